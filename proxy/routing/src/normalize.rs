//! Normalisation of paths before they are matched, as Envoy does it: nobody gets around a rule by writing a path
//! differently.
//!
//! ```text
//!  /a/%2e%2e/b?q   escaped letters, digits and - . _ ~ are unescaped, \ is /, then . and .. are resolved   -> /b?q
//!  /a//b           slashes are merged, where that is asked for                                             -> /a/b
//!  /a%2Fb          kept, refused, or unescaped first and all else after it                                 -> /a/b
//! ```

use std::borrow::Cow;

/// Treatment of slashes that are escaped: `%2F`, `%5C`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// They stay, and are no slashes.
    #[default]
    Keep,
    /// The request is answered 400.
    Reject,
    /// They are slashes.
    Unescape,
    /// The caller is redirected (307) to the path where they are slashes.
    Redirect,
}

/// Normalisation of paths: settings of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathNormalization {
    /// `.` and `..` are resolved, and what needn't be escaped isn't.
    pub resolve: bool,
    /// Slashes that follow each other are one.
    pub merge_slashes: bool,
    /// Treatment of escaped slashes.
    pub escaped_slashes: EscapedSlashes,
}

/// Outcome of a normalisation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NormalizedPath<'p> {
    /// The path and query to go on with.
    Path(Cow<'p, str>),
    /// The request is answered 307, with this `Location`.
    Redirect(String),
    /// The request is answered 400.
    BadRequest,
}

impl PathNormalization {
    /// Normalises path and query of a request. What doesn't begin with a slash (`*`) stays as it is.
    pub fn apply<'p>(&self, target: &'p str) -> NormalizedPath<'p> {
        let end = target.find('?').unwrap_or(target.len());
        let (path, query) = target.split_at(end);
        if !path.starts_with('/') || self.is_normal(path) {
            return NormalizedPath::Path(Cow::Borrowed(target));
        }
        let mut bytes = path.as_bytes().to_vec();
        let mut redirect = false;
        if self.escaped_slashes != EscapedSlashes::Keep
            && unescape(&mut bytes, |byte| matches!(byte, b'/' | b'\\'))
        {
            match self.escaped_slashes {
                EscapedSlashes::Reject => return NormalizedPath::BadRequest,
                EscapedSlashes::Redirect => redirect = true,
                EscapedSlashes::Unescape | EscapedSlashes::Keep => {}
            }
        }
        if self.resolve {
            if bytes.windows(3).any(|escape| escape == b"%00") {
                return NormalizedPath::BadRequest;
            }
            bytes = resolve(&escape(&unescape_plain(&without_dot_parameters(&bytes))));
        }
        if self.merge_slashes {
            let only_slashes = bytes.len() > 1 && bytes.iter().all(|byte| *byte == b'/');
            bytes.dedup_by(|next, before| *next == b'/' && *before == b'/');
            // As in Envoy.
            if only_slashes {
                bytes.push(b'/');
            }
        }
        // Only ASCII was taken away or put in.
        let Ok(mut path) = String::from_utf8(bytes) else { return NormalizedPath::BadRequest };
        path += query;
        match redirect {
            true => NormalizedPath::Redirect(path),
            false => NormalizedPath::Path(Cow::Owned(path)),
        }
    }

    /// True of a path that can't change: no escape, no dot that a segment begins with, no two slashes, nothing odd.
    fn is_normal(&self, path: &str) -> bool {
        let mut before = 0;
        path.bytes().all(|byte| {
            let normal = match byte {
                b'/' | b'.' => before != b'/',
                b'%' | b'\\' | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' => false,
                _ => true,
            };
            before = byte;
            normal
        })
    }
}

/// The byte that is escaped here, by a percent sign and two digits.
fn escaped(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    (bytes.first() == Some(&b'%')).then_some(())?;
    u8::try_from(digit(1)? * 16 + digit(2)?).ok()
}

/// Unescapes those of the escaped bytes. True where there were any.
fn unescape(bytes: &mut Vec<u8>, which: impl Fn(u8) -> bool) -> bool {
    let (mut from, mut to) = (0, 0);
    let before = bytes.len();
    while from < before {
        let plain = escaped(&bytes[from..]).filter(|plain| which(*plain));
        bytes[to] = plain.unwrap_or(bytes[from]);
        from += if plain.is_some() { 3 } else { 1 };
        to += 1;
    }
    bytes.truncate(to);
    to < before
}

/// The path with letters, digits and `-._~` that aren't escaped. A percent sign that escaped nothing before does so
/// nowhere after: it is escaped itself where digits come to stand behind it.
fn unescape_plain(bytes: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(bytes.len());
    let mut loose = Vec::new();
    let mut rest = bytes;
    while let Some((&first, behind)) = rest.split_first() {
        match escaped(rest) {
            Some(plain) if plain.is_ascii_alphanumeric() || b"-._~".contains(&plain) => {
                result.push(plain);
                rest = &rest[3..];
            }
            Some(_) => {
                result.extend_from_slice(&rest[..3]);
                rest = &rest[3..];
            }
            None => {
                if first == b'%' {
                    loose.push(result.len());
                }
                result.push(first);
                rest = behind;
            }
        }
    }
    for at in loose.into_iter().rev() {
        if escaped(&result[at..]).is_some() {
            result.splice(at + 1..at + 1, *b"25");
        }
    }
    result
}

/// The path without the parameters of segments that are a dot or two: as in Envoy, these are resolved, too. An escaped
/// dot with parameters is none.
fn without_dot_parameters(path: &[u8]) -> Vec<u8> {
    fn segment(segment: &[u8]) -> &[u8] {
        match segment {
            [b'.', b';', ..] => b".",
            [b'.', b'.', b';', ..] => b"..",
            segment => segment,
        }
    }
    path.split(|byte| *byte == b'/').map(segment).collect::<Vec<_>>().join(&b'/')
}

/// The path with a slash for each backslash, and what no path has plainly escaped.
fn escape(bytes: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => result.push(b'/'),
            b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' => {
                result.extend_from_slice(format!("%{byte:02X}").as_bytes());
            }
            byte => result.push(byte),
        }
    }
    result
}

/// The path without `.` and `..`; the root is its own parent.
fn resolve(path: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(path.len());
    let mut segments = path[1..].split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." => {}
            b".." => {
                let parent = result.iter().rposition(|byte| *byte == b'/').unwrap_or_default();
                result.truncate(parent);
            }
            segment => {
                result.push(b'/');
                result.extend_from_slice(segment);
                continue;
            }
        }
        if last {
            result.push(b'/');
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(target: &str, merge_slashes: bool, escaped_slashes: EscapedSlashes) -> String {
        match (PathNormalization { resolve: true, merge_slashes, escaped_slashes }).apply(target) {
            NormalizedPath::Path(path) => path.into_owned(),
            NormalizedPath::Redirect(path) => format!("307 {path}"),
            NormalizedPath::BadRequest => "400".to_owned(),
        }
    }

    #[test]
    fn dots_are_resolved_however_they_are_written() {
        for (target, path) in [
            ("/a/b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b/", "/b/"),
            ("/a/./b/.", "/a/b/"),
            ("/../../a", "/a"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a\\..\\b", "/b"),
            ("/a/..b/...", "/a/..b/..."),
            ("/a//../b", "/a/b"),
            ("/%41%7e%2F", "/A~%2F"),
            ("/a|b", "/a%7Cb"),
            ("/%zz%", "/%zz%"),
            ("/a/..;x/b", "/b"),
            ("/a/.;x", "/a/"),
            ("/a/%2e;x", "/a/.;x"),
            ("/%%41%41", "/%25AA"),
            ("/%%4%31", "/%%2541"),
            ("/a%00", "400"),
            ("/a?b/../c%41", "/a?b/../c%41"),
            ("*", "*"),
        ] {
            assert_eq!(normal(target, false, EscapedSlashes::Keep), path, "{target}");
        }
    }

    #[test]
    fn slashes_are_merged_and_unescaped_as_the_settings_say() {
        assert_eq!(normal("/a///b//", true, EscapedSlashes::Keep), "/a/b/");
        assert_eq!(normal("/a/..%2fb", true, EscapedSlashes::Keep), "/a/..%2fb");
        assert_eq!(normal("/a/..%2fb", true, EscapedSlashes::Reject), "400");
        assert_eq!(normal("/a/..%2fb", true, EscapedSlashes::Unescape), "/b");
        assert_eq!(normal("/a%5C%2Fb?x=%2F", true, EscapedSlashes::Redirect), "307 /a/b?x=%2F");
        assert_eq!(normal("/a%252fb", true, EscapedSlashes::Unescape), "/a%252fb");
    }

    #[test]
    fn what_is_switched_off_changes_nothing() {
        for target in ["/a/../b", "/a//b", "/a%2fb", "/%41"] {
            let path = PathNormalization::default().apply(target);
            assert_eq!(path, NormalizedPath::Path(Cow::Borrowed(target)));
        }
    }
}
