//! Paths of requests, brought into one form before rules see them: as Envoy's connection manager is told to.

use std::borrow::Cow;

use slotmesh_routing::InvalidField;

use crate::upstream::wrong;

/// Changes of paths that a listener asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathRules {
    /// `.` and `..` are resolved, `\` becomes `/`, and what need not be escaped isn't.
    normalize: bool,
    /// Slashes that follow each other become one.
    merge_slashes: bool,
    escaped_slashes: EscapedSlashes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EscapedSlashes {
    Keep,
    Reject,
    Redirect,
    Forward,
}

/// Outcome for a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NormalPath<'p> {
    Path(Cow<'p, str>),
    /// The client is to ask for this path.
    Redirect(String),
    Reject,
}

impl PathRules {
    pub(crate) fn new(
        field: &str,
        normalize: bool,
        merge_slashes: bool,
        escaped_slashes: i32,
    ) -> Result<Self, InvalidField> {
        let escaped_slashes = match escaped_slashes {
            // Envoy's own default keeps them, too.
            0 | 1 => EscapedSlashes::Keep,
            2 => EscapedSlashes::Reject,
            3 => EscapedSlashes::Redirect,
            4 => EscapedSlashes::Forward,
            _ => return Err(wrong(field, "there is no such action")),
        };
        Ok(Self { normalize, merge_slashes, escaped_slashes })
    }

    /// Applies the rules to path and query; the query stays as it is.
    pub(crate) fn apply<'p>(&self, whole: &'p str) -> NormalPath<'p> {
        let (path, query) = whole.split_at(whole.find('?').unwrap_or(whole.len()));
        if !path.starts_with('/') {
            // `*`
            return NormalPath::Path(Cow::Borrowed(whole));
        }
        let mut path = Cow::Borrowed(path);
        let mut redirects = false;
        if self.escaped_slashes != EscapedSlashes::Keep && has_escaped_slash(&path) {
            match self.escaped_slashes {
                EscapedSlashes::Reject => return NormalPath::Reject,
                EscapedSlashes::Redirect => redirects = true,
                EscapedSlashes::Keep | EscapedSlashes::Forward => {}
            }
            path = Cow::Owned(unescape(&path, |byte| matches!(byte, b'/' | b'\\')));
        }
        if self.normalize && path.bytes().any(|byte| matches!(byte, b'%' | b'\\' | b'.')) {
            path = Cow::Owned(resolved(&path));
        }
        if self.merge_slashes && path.contains("//") {
            let mut merged = String::with_capacity(path.len());
            for letter in path.chars() {
                if letter != '/' || !merged.ends_with('/') {
                    merged.push(letter);
                }
            }
            path = Cow::Owned(merged);
        }
        if redirects {
            return NormalPath::Redirect(format!("{path}{query}"));
        }
        NormalPath::Path(match path {
            Cow::Borrowed(_) => Cow::Borrowed(whole),
            Cow::Owned(path) if query.is_empty() => Cow::Owned(path),
            Cow::Owned(path) => Cow::Owned(path + query),
        })
    }
}

fn has_escaped_slash(path: &str) -> bool {
    path.as_bytes().windows(3).any(|escape| matches!(escaped(escape), Some(b'/' | b'\\')))
}

/// The byte that `%XX` stands for.
fn escaped(escape: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = escape else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(*high)? << 4 | digit(*low)?)
}

/// Replaces the escapes of bytes of ASCII that are meant.
fn unescape(path: &str, meant: impl Fn(u8) -> bool) -> String {
    let mut text = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(place) = rest.find('%') {
        text.push_str(&rest[..place]);
        rest = &rest[place..];
        match escaped(rest.as_bytes()) {
            Some(byte) if byte.is_ascii() && meant(byte) => {
                text.push(char::from(byte));
                rest = &rest[3..];
            }
            _ => {
                text.push('%');
                rest = &rest[1..];
            }
        }
    }
    text + rest
}

/// The path without `.` and `..`; above the root there is the root.
fn resolved(path: &str) -> String {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let path = unescape(path, unreserved).replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    segments.pop();
                }
                if last {
                    segments.push("");
                }
            }
            part => segments.push(part),
        }
    }
    format!("/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(normalize: bool, merge: bool, escaped: i32, path: &str) -> NormalPath<'_> {
        PathRules::new("f", normalize, merge, escaped).unwrap().apply(path)
    }

    fn path(path: &str) -> NormalPath<'_> {
        NormalPath::Path(path.into())
    }

    #[test]
    fn paths_are_normalised() {
        for (from, to) in [
            ("/", "/"),
            ("/a/./b", "/a/b"),
            ("/a/%2e%2E/b?c=/../d", "/b?c=/../d"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a\\b", "/a/b"),
            ("/%41%2f%20~", "/A%2f%20~"),
            ("/a//b/../c", "/a//c"),
            ("/%zz%", "/%zz%"),
            ("*", "*"),
            ("/..a/.b/c..", "/..a/.b/c.."),
            ("/..", "/"),
            ("/../a", "/a"),
            ("/a/%2e%2e/../b", "/b"),
        ] {
            assert_eq!(apply(true, false, 0, from), path(to), "{from}");
        }
        assert_eq!(apply(false, false, 0, "/a/../b"), path("/a/../b"));
    }

    #[test]
    fn slashes_are_merged_and_unescaped() {
        assert_eq!(apply(false, true, 0, "//a///b/?x=//"), path("/a/b/?x=//"));
        assert_eq!(apply(true, true, 4, "/a%2F..%5cb"), path("/b"));
        assert_eq!(apply(false, false, 1, "/a%2Fb"), path("/a%2Fb"));
        assert_eq!(apply(false, false, 2, "/a%2Fb"), NormalPath::Reject);
        assert_eq!(apply(false, false, 3, "/a%2Fb?c"), NormalPath::Redirect("/a/b?c".into()));
        assert_eq!(apply(false, false, 2, "/a?%2F"), path("/a?%2F"));
        assert!(PathRules::new("f", true, true, 5).is_err());
    }
}
