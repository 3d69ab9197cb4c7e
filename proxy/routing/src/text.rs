//! Matching of text: paths, header values, query parameters, origins.
//!
//! A regular expression takes time in the length of the text, and its automaton is bounded in size. It is read as RE2
//! reads it: `\d`, `\w` and `\s` are about ASCII, `.` is any character but a line's end.

use regex::bytes::{Regex, RegexBuilder};
use slotmesh_xds::envoy::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};

use crate::field::{FieldPath, InvalidField, refuse_set};

/// The most bytes that the automaton of one expression may take.
const MOST_BYTES: usize = 1 << 20;
/// The most bytes that an expression may be written with.
const MOST_WRITTEN: usize = 4096;

/// A regular expression.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    /// Matches wherever it is found.
    anywhere: Regex,
    /// Matches the whole text.
    whole: Regex,
}

impl Pattern {
    pub(crate) fn new(at: &FieldPath<'_>, matcher: &RegexMatcher) -> Result<Self, InvalidField> {
        // RE2 is the only engine that there is, and its limit is for Envoy's own automata.
        let RegexMatcher { regex, engine_type: _ } = matcher;
        let at = at.field("regex");
        if regex.is_empty() {
            return Err(at.wrong("it is empty"));
        }
        if regex.len() > MOST_WRITTEN {
            return Err(at.wrong(format!("{} bytes; at most {MOST_WRITTEN}", regex.len())));
        }
        // By itself first: `a)|(b` is no expression, though it is one between brackets.
        let anywhere = build(&at, regex, regex)?;
        // The line's end closes a comment of verbose mode, outside of it it would be matched.
        let verbose = regex.contains("(?") && build(&at, regex, &format!(r"\A(?:{regex})\z")).is_err();
        let end = if verbose { "\n)" } else { ")" };
        let whole = build(&at, regex, &format!(r"\A(?:{regex}{end}\z"))?;
        Ok(Self { anywhere, whole })
    }

    /// True where the whole text matches.
    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        self.whole.is_match(text)
    }

    /// The expression, for what is found in a text.
    pub(crate) fn finder(&self) -> &Regex {
        &self.anywhere
    }
}

fn build(at: &FieldPath<'_>, written: &str, regex: &str) -> Result<Regex, InvalidField> {
    // Bytes are as fast as it gets, but know no characters outside of ASCII.
    let unicode = !written.is_ascii() || written.contains(r"\p") || written.contains(r"\P");
    RegexBuilder::new(regex)
        .unicode(unicode)
        .size_limit(MOST_BYTES)
        .dfa_size_limit(MOST_BYTES)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => at.wrong(format!("its automaton is above {MOST_BYTES} bytes")),
            // The last line says what is wrong, those before show where.
            error => {
                let text = error.to_string();
                at.wrong(
                    text.lines().last().unwrap_or("not a regular expression").trim_start_matches("error: "),
                )
            }
        })
}

/// A condition on a text.
#[derive(Clone, Debug)]
pub(crate) enum TextMatcher {
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Contains(Box<[u8]>),
    Regex(Box<Pattern>),
    /// One of the four above, written in small letters, for text in any.
    IgnoreCase(Box<TextMatcher>),
}

impl TextMatcher {
    pub(crate) fn new(at: &FieldPath<'_>, matcher: &StringMatcher) -> Result<Self, InvalidField> {
        let StringMatcher { match_pattern, ignore_case } = matcher;
        let lower = |text: &str| {
            if *ignore_case { text.to_ascii_lowercase() } else { text.to_owned() }
                .into_bytes()
                .into_boxed_slice()
        };
        let some = |name, text: &str| {
            if text.is_empty() { Err(at.field(name).wrong("it is empty")) } else { Ok(lower(text)) }
        };
        let found = match match_pattern {
            Some(MatchPattern::Exact(text)) => Self::Exact(lower(text)),
            Some(MatchPattern::Prefix(text)) => Self::Prefix(some("prefix", text)?),
            Some(MatchPattern::Suffix(text)) => Self::Suffix(some("suffix", text)?),
            Some(MatchPattern::Contains(text)) => Self::Contains(some("contains", text)?),
            Some(MatchPattern::SafeRegex(regex)) => {
                refuse_set!(at, "an expression says (?i) itself": ignore_case;);
                return Ok(Self::Regex(Box::new(Pattern::new(&at.field("safe_regex"), regex)?)));
            }
            Some(MatchPattern::Custom(_)) => return Err(at.field("custom").wrong("no extensions")),
            None => return Err(at.wrong("there is no pattern")),
        };
        Ok(if *ignore_case { Self::IgnoreCase(Box::new(found)) } else { found })
    }

    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(whole) => **whole == *text,
            Self::Prefix(start) => text.starts_with(start),
            Self::Suffix(end) => text.ends_with(end),
            Self::Contains(part) => text.windows(part.len()).any(|window| *window == **part),
            Self::Regex(pattern) => pattern.matches(text),
            Self::IgnoreCase(matcher) => matcher.matches(&text.to_ascii_lowercase()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(regex: &str) -> Result<Pattern, InvalidField> {
        Pattern::new(&FieldPath::ROOT, &RegexMatcher { regex: regex.to_owned(), ..Default::default() })
    }

    #[test]
    fn an_expression_matches_the_whole_text() {
        let either = pattern("/a|/ab").unwrap();
        assert!(either.matches(b"/ab") && either.matches(b"/a"));
        assert!(!either.matches(b"/abc") && !either.matches(b"x/a"));
        assert!(!pattern("a$").unwrap().matches(b"a\n"));
        assert!(pattern("(?i)abc").unwrap().matches(b"ABC"));
        assert!(pattern("(?x) a b # and no more").unwrap().matches(b"ab"));
    }

    #[test]
    fn classes_are_about_ascii() {
        assert!(pattern(r"\d+").unwrap().matches(b"123"));
        assert!(!pattern(r"\d+").unwrap().matches("١".as_bytes()));
        assert!(pattern("caf[éè]").unwrap().matches("café".as_bytes()));
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for regex in ["", "(", "a)|(b", "[a", &"a".repeat(5_000), "((a{100}){100}){100}", r"(a)\1", "(?=a)"] {
            let error = pattern(regex).unwrap_err();
            assert_eq!(error.field, "regex");
            assert!(!error.reason.is_empty());
        }
    }

    #[test]
    fn letters_in_any_case() {
        let matcher = |ignore_case, pattern| {
            let matcher = StringMatcher { ignore_case, match_pattern: Some(pattern) };
            TextMatcher::new(&FieldPath::ROOT, &matcher).unwrap()
        };
        assert!(matcher(true, MatchPattern::Exact("AbC".into())).matches(b"aBc"));
        assert!(!matcher(false, MatchPattern::Exact("AbC".into())).matches(b"aBc"));
        assert!(matcher(true, MatchPattern::Contains("B".into())).matches(b"abc"));
        assert!(matcher(true, MatchPattern::Suffix("C".into())).matches(b"abc"));
        assert!(matcher(false, MatchPattern::Prefix("ab".into())).matches(b"abc"));
    }
}
