//! Reads the fields of an object that no type has: each by its name, and every other one is a fault.
//!
//! Invariant: a value that is read is of the type that its field has; what can't be read names its field.

use serde_json::{Map, Value};

use slotmesh_crds::Rest;

/// The most characters of a regular expression, which a proxy compiles.
const LONGEST_REGEX: usize = 1_024;

/// The reason why a part of a route can't act on requests, so that the whole part doesn't.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) field: String,
    /// For people; empty where the field has no effect in any form.
    pub(super) what: String,
}

pub(super) type Readable<T> = Result<T, Unreadable>;

/// Fails for a value that can't be.
pub(super) fn unreadable<T>(field: impl Into<String>, what: impl Into<String>) -> Readable<T> {
    Err(Unreadable { field: field.into(), what: what.into() })
}

/// The fields of one object, as they are taken.
#[derive(Debug)]
pub(super) struct JsonFields<'a> {
    at: String,
    left: Vec<(&'a str, &'a Value)>,
}

impl<'a> JsonFields<'a> {
    /// Those of what was left of a typed object.
    pub(super) fn of_rest(at: impl Into<String>, rest: &'a Rest) -> Self {
        let left = rest.iter().filter(|(_, value)| !value.is_null());
        Self { at: at.into(), left: left.map(|(name, value)| (name.as_str(), value)).collect() }
    }

    /// Those of an object.
    pub(super) fn of(at: impl Into<String>, value: &'a Value) -> Readable<Self> {
        let at = at.into();
        let Value::Object(map) = value else { return unreadable(at, "it is no object") };
        Ok(Self::of_map(at, map))
    }

    fn of_map(at: String, map: &'a Map<String, Value>) -> Self {
        let left = map.iter().filter(|(_, value)| !value.is_null());
        Self { at, left: left.map(|(name, value)| (name.as_str(), value)).collect() }
    }

    /// The path of a field.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.at)
    }

    /// The value of a field that is set.
    pub(super) fn take(&mut self, name: &str) -> Option<&'a Value> {
        let at = self.left.iter().position(|(field, _)| *field == name)?;
        Some(self.left.swap_remove(at).1)
    }

    /// Text.
    pub(super) fn text(&mut self, name: &str) -> Readable<Option<&'a str>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => unreadable(self.path(name), "it is no text"),
        }
    }

    /// A whole number that isn't negative.
    pub(super) fn number(&mut self, name: &str) -> Readable<Option<u32>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => unreadable(self.path(name), format!("{value} is no number from 0 to {}", u32::MAX)),
        }
    }

    /// A status that an answer can have.
    pub(super) fn status(&mut self, name: &str) -> Readable<Option<u32>> {
        match self.number(name)? {
            Some(status) if !(200..=599).contains(&status) => unreadable(
                self.path(name),
                format!("{status} is no status of an answer; these are 200 to 599"),
            ),
            status => Ok(status),
        }
    }

    /// A flag.
    pub(super) fn flag(&mut self, name: &str) -> Readable<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => unreadable(self.path(name), "it is neither true nor false"),
        }
    }

    /// Milliseconds, of a time such as `1.5s` or `1m30s`.
    pub(super) fn time(&mut self, name: &str) -> Readable<Option<u64>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match milliseconds(text) {
            Some(time) => Ok(Some(time)),
            None => unreadable(self.path(name), format!("{text:?} is no time such as 1.5s, 200ms or 1m")),
        }
    }

    /// A share in millionths, of a number of percent.
    pub(super) fn percent(&mut self, name: &str) -> Readable<Option<u32>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64().filter(|percent| (0.0..=100.0).contains(percent)) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "from 0 to 1,000,000"
            )]
            Some(percent) => Ok(Some((percent * 10_000.0).round() as u32)),
            None => unreadable(self.path(name), format!("{value} is no percentage from 0 to 100")),
        }
    }

    /// The fields of an object.
    pub(super) fn object(&mut self, name: &str) -> Readable<Option<JsonFields<'a>>> {
        let at = self.path(name);
        self.take(name).map(|value| JsonFields::of(at, value)).transpose()
    }

    /// The elements of a list, each with its path.
    pub(super) fn list(&mut self, name: &str) -> Readable<Vec<(String, &'a Value)>> {
        let at = self.path(name);
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => {
                Ok(list.iter().enumerate().map(|(i, value)| (format!("{at}[{i}]"), value)).collect())
            }
            Some(_) => unreadable(at, "it is no list"),
        }
    }

    /// A list of objects.
    pub(super) fn objects(&mut self, name: &str) -> Readable<Vec<JsonFields<'a>>> {
        self.list(name)?.into_iter().map(|(at, value)| JsonFields::of(at, value)).collect()
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, name: &str) -> Readable<Vec<&'a str>> {
        let text = |(at, value): (String, &'a Value)| match value {
            Value::String(text) => Ok(text.as_str()),
            _ => unreadable(at, "it is no text"),
        };
        self.list(name)?.into_iter().map(text).collect()
    }

    /// Names with their values.
    pub(super) fn pairs(&mut self, name: &str) -> Readable<Vec<(&'a str, &'a Value)>> {
        let at = self.path(name);
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Object(map)) => Ok(map.iter().map(|(name, value)| (name.as_str(), value)).collect()),
            Some(_) => unreadable(at, "it is no object"),
        }
    }

    /// Ends: a field that nobody has taken has no effect, so what it stands in can't do what is asked for.
    pub(super) fn end(self) -> Readable<()> {
        match self.left.iter().map(|(name, _)| *name).min() {
            None => Ok(()),
            Some(name) => unreadable(self.path(name), ""),
        }
    }
}

/// A regular expression, as far as that can be told without compiling it.
pub(super) fn regex(field: impl Into<String>, text: &str) -> Readable<String> {
    match text.chars().count() {
        0 => unreadable(field, "it is empty"),
        1..=LONGEST_REGEX => Ok(text.to_owned()),
        count => unreadable(field, format!("it has {count} characters; at most {LONGEST_REGEX}")),
    }
}

/// Milliseconds of a time as Go and Gateway API write it: numbers with units, behind each other.
fn milliseconds(text: &str) -> Option<u64> {
    /// A year, which no request takes.
    const MOST: f64 = 365.0 * 86_400_000.0;
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3_600_000.0,
            "m" => 60_000.0,
            "s" => 1_000.0,
            "ms" => 1.0,
            "us" | "µs" => 0.001,
            "ns" => 0.000_001,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[end..];
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to a year")]
    (!text.is_empty() && total <= MOST).then_some(total.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_read_in_both_forms() {
        for (text, wanted) in [
            ("10s", Some(10_000)),
            ("1.5s", Some(1_500)),
            ("1h2m3s4ms", Some(3_723_004)),
            ("0s", Some(0)),
            ("1us", Some(1)),
            ("", None),
            ("10", None),
            ("s", None),
            ("1d", None),
            ("-1s", None),
            ("1.2.3s", None),
            ("9999999h", None),
        ] {
            assert_eq!(milliseconds(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn fields_are_of_their_types_and_none_is_left() {
        let value = json!({"a": "x", "b": 7, "c": 12.5, "d": null, "e": {"f": ["y"]}, "g": 1});
        let mut fields = JsonFields::of("spec", &value).unwrap();
        assert_eq!(fields.text("a"), Ok(Some("x")));
        assert_eq!(fields.number("b"), Ok(Some(7)));
        assert_eq!(fields.percent("c"), Ok(Some(125_000)));
        assert_eq!(fields.text("d"), Ok(None), "null is unset");
        let mut inner = fields.object("e").unwrap().unwrap();
        assert_eq!(inner.texts("f"), Ok(vec!["y"]));
        assert_eq!(inner.end(), Ok(()));
        assert_eq!(fields.end().unwrap_err().field, "spec.g");
        let value = json!({"a": 1, "n": -1, "p": 101, "l": {}, "s": 99});
        let mut fields = JsonFields::of("spec", &value).unwrap();
        assert_eq!(fields.text("a").unwrap_err().field, "spec.a");
        assert!(fields.number("n").is_err() && fields.percent("p").is_err() && fields.texts("l").is_err());
        assert!(fields.status("s").is_err());
        assert!(regex("spec.r", &"x".repeat(1_025)).is_err() && regex("spec.r", "").is_err());
    }
}
