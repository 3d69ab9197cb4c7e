//! JSON of Envoy messages to protobuf, by a table of fields.
//!
//! The protocol types don't read JSON. The table, `schema.txt`, names for each message the fields that are read: name,
//! number and type. A value is written as protobuf by it, and the protocol types decode that. A field that isn't in the
//! table is refused by its path, so nothing is left out in silence.

use std::{collections::HashMap, sync::LazyLock};

use prost::encoding::{WireType, encode_key, encode_varint};
use serde_json::Value;
use slotmesh_routing::InvalidField;

/// A type of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Text,
    Bytes,
    Integer,
    Double,
    Enum(&'static str),
    Message(&'static str),
    /// A message around one value, in JSON the value itself.
    Wrapped(Box<Kind>),
    Duration,
    Any,
    Map(Box<Kind>),
}

#[derive(Debug)]
struct Field {
    number: u32,
    repeated: bool,
    kind: Kind,
}

/// Messages and enumerations by their full names.
struct Schema {
    messages: HashMap<&'static str, HashMap<&'static str, Field>>,
    enums: HashMap<&'static str, HashMap<&'static str, i64>>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| Schema::parse(include_str!("schema.txt")));

impl Schema {
    fn parse(text: &'static str) -> Self {
        let mut schema = Self { messages: HashMap::new(), enums: HashMap::new() };
        let mut within = "";
        let mut is_enum = false;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (first, second, third) = (words.next(), words.next(), words.next());
            match (line.starts_with(' '), first, second, third) {
                (false, Some("enum"), Some(name), None) => {
                    (within, is_enum) = (name, true);
                    schema.enums.insert(name, HashMap::new());
                }
                (false, Some(name), None, None) => {
                    (within, is_enum) = (name, false);
                    schema.messages.insert(name, HashMap::new());
                }
                (true, Some(name), Some(number), None) if is_enum => {
                    let number = number.parse().expect("a number in the table");
                    schema.enums.get_mut(within).expect("it stands above").insert(name, number);
                }
                (true, Some(name), Some(number), Some(kind)) => {
                    let (repeated, kind) = kind.strip_prefix('*').map_or((false, kind), |kind| (true, kind));
                    let number = number.parse().expect("a number in the table");
                    let field = Field { number, repeated, kind: Kind::parse(kind) };
                    schema.messages.get_mut(within).expect("it stands above").insert(name, field);
                }
                _ => unreachable!("a line of the table that can't be read: {line}"),
            }
        }
        schema
    }
}

impl Kind {
    fn parse(word: &'static str) -> Self {
        if let Some(value) = word.strip_prefix("map:") {
            return Self::Map(Box::new(Self::parse(value)));
        }
        if let Some(name) = word.strip_prefix("enum:") {
            return Self::Enum(name);
        }
        if let Some(inner) = word.strip_suffix('?') {
            return Self::Wrapped(Box::new(Self::parse(inner)));
        }
        match word {
            "bool" => Self::Bool,
            "string" => Self::Text,
            "bytes" => Self::Bytes,
            "int" => Self::Integer,
            "double" => Self::Double,
            "duration" => Self::Duration,
            "any" => Self::Any,
            message => Self::Message(message),
        }
    }
}

/// Writes a message of the type with this full name.
///
/// # Errors
/// Names the first field that isn't known or has a value that it can't have.
pub(super) fn encode(message: &str, at: &str, value: &Value) -> Result<Vec<u8>, InvalidField> {
    let mut out = Vec::new();
    write_message(message, at, value, &mut out)?;
    Ok(out)
}

fn wrong(at: &str, reason: impl Into<String>) -> InvalidField {
    InvalidField { field: at.to_owned(), reason: reason.into() }
}

fn write_message(message: &str, at: &str, value: &Value, out: &mut Vec<u8>) -> Result<(), InvalidField> {
    let Some(fields) = SCHEMA.messages.get(message) else {
        return Err(wrong(at, format!("{message} is not supported")));
    };
    let Value::Object(object) = value else { return Err(wrong(at, format!("not an object ({message})"))) };
    for (key, value) in object {
        if key == "@type" {
            continue;
        }
        let at = join(at, key);
        let name = snake(key);
        let Some(field) = fields.get(name.as_str()) else { return Err(wrong(&at, "not supported")) };
        if value.is_null() {
            continue;
        }
        if let Kind::Map(kind) = &field.kind {
            let Value::Object(entries) = value else { return Err(wrong(&at, "not an object")) };
            for (key, value) in entries {
                let mut entry = Vec::new();
                write_value(&Kind::Text, 1, &at, &Value::String(key.clone()), &mut entry)?;
                write_value(kind, 2, &format!("{at}[{key}]"), value, &mut entry)?;
                delimited(field.number, &entry, out);
            }
        } else if field.repeated {
            let Value::Array(elements) = value else { return Err(wrong(&at, "not a list")) };
            for (index, element) in elements.iter().enumerate() {
                write_value(&field.kind, field.number, &format!("{at}[{index}]"), element, out)?;
            }
        } else {
            write_value(&field.kind, field.number, &at, value, out)?;
        }
    }
    Ok(())
}

fn write_value(
    kind: &Kind,
    number: u32,
    at: &str,
    value: &Value,
    out: &mut Vec<u8>,
) -> Result<(), InvalidField> {
    match kind {
        Kind::Bool => {
            let value = value.as_bool().ok_or_else(|| wrong(at, "not true or false"))?;
            varint(number, value.into(), out);
        }
        Kind::Text => {
            let text = value.as_str().ok_or_else(|| wrong(at, "not a string"))?;
            delimited(number, text.as_bytes(), out);
        }
        Kind::Bytes => return Err(wrong(at, "bytes are not supported in a file; use a string field")),
        Kind::Integer => varint(number, integer(at, value)?, out),
        Kind::Double => {
            let value = value.as_f64().ok_or_else(|| wrong(at, "not a number"))?;
            encode_key(number, WireType::SixtyFourBit, out);
            out.extend_from_slice(&value.to_le_bytes());
        }
        Kind::Enum(name) => {
            let value = match value {
                Value::String(word) => *SCHEMA
                    .enums
                    .get(name)
                    .and_then(|values| values.get(word.as_str()))
                    .ok_or_else(|| wrong(at, format!("there is no {word:?}")))?,
                number => number.as_i64().ok_or_else(|| wrong(at, "not a name"))?,
            };
            varint(number, value.cast_unsigned(), out);
        }
        Kind::Message(name) => {
            let mut inner = Vec::new();
            write_message(name, at, value, &mut inner)?;
            delimited(number, &inner, out);
        }
        Kind::Wrapped(kind) => {
            let mut inner = Vec::new();
            write_value(kind, 1, at, value, &mut inner)?;
            delimited(number, &inner, out);
        }
        Kind::Duration => {
            let (seconds, nanos) = value
                .as_str()
                .and_then(duration)
                .ok_or_else(|| wrong(at, "not a duration in seconds, such as \"1.5s\""))?;
            let mut inner = Vec::new();
            varint(1, seconds, &mut inner);
            varint(2, nanos, &mut inner);
            delimited(number, &inner, out);
        }
        Kind::Any => {
            let url = value.get("@type").and_then(Value::as_str);
            let url = url.ok_or_else(|| wrong(&join(at, "@type"), "there is none"))?;
            let name = url.rsplit('/').next().unwrap_or_default();
            let mut content = Vec::new();
            write_message(name, at, value, &mut content)?;
            let mut inner = Vec::new();
            delimited(1, url.as_bytes(), &mut inner);
            delimited(2, &content, &mut inner);
            delimited(number, &inner, out);
        }
        Kind::Map(_) => return Err(wrong(at, "not supported")),
    }
    Ok(())
}

fn join(at: &str, key: &str) -> String {
    if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") }
}

/// The name of a field as messages are written, of `lowerCamelCase` too.
fn snake(key: &str) -> String {
    let mut name = String::with_capacity(key.len() + 4);
    for letter in key.chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

fn varint(number: u32, value: u64, out: &mut Vec<u8>) {
    encode_key(number, WireType::Varint, out);
    encode_varint(value, out);
}

fn delimited(number: u32, content: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

fn integer(at: &str, value: &Value) -> Result<u64, InvalidField> {
    let number = match value {
        Value::String(text) => text.parse().ok(),
        number => number.as_i64().or_else(|| whole(number.as_f64()?)),
    };
    number.map(i64::cast_unsigned).ok_or_else(|| wrong(at, "not a whole number"))
}

fn whole(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "it is a whole number in the range of exact ones")]
    (number.fract() == 0.0 && number.abs() < EXACT).then_some(number as i64)
}

/// Seconds and nanoseconds of a text such as `1.5s`.
fn duration(text: &str) -> Option<(u64, u64)> {
    let number = text.strip_suffix('s')?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = fraction.len();
    if !(1..=9).contains(&digits) || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos = fraction.parse::<u64>().ok()? * 10_u64.pow(9 - u32::try_from(digits).ok()?);
    Some((whole.parse().ok()?, nanos))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use serde_json::json;
    use slotmesh_xds::envoy::envoy::config::route::v3 as route;

    use super::*;

    const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";

    fn read(value: &Value) -> route::RouteConfiguration {
        route::RouteConfiguration::decode(encode(ROUTES, "", value).unwrap().as_slice()).unwrap()
    }

    #[test]
    fn both_spellings_of_fields_are_read() {
        let snake = read(&json!({"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [
            {"match": {"prefix": "/", "case_sensitive": false}, "route": {"cluster": "c", "timeout": "1.25s"},
             "response_headers_to_remove": ["x-a"]}]}]}));
        let camel = read(&json!({"name": "r", "virtualHosts": [{"name": "v", "domains": ["*"], "routes": [
            {"match": {"prefix": "/", "caseSensitive": false}, "route": {"cluster": "c", "timeout": "1.25s"},
             "responseHeadersToRemove": ["x-a"]}]}]}));
        assert_eq!(snake, camel);
        let route = &snake.virtual_hosts[0].routes[0];
        assert!(!route.r#match.as_ref().unwrap().case_sensitive.unwrap().value);
        let Some(route::route::Action::Route(action)) = &route.action else { panic!("{route:?}") };
        let timeout = action.timeout.unwrap();
        assert_eq!((timeout.seconds, timeout.nanos), (1, 250_000_000));
        assert_eq!(route.response_headers_to_remove, ["x-a"]);
    }

    #[test]
    fn maps_enumerations_and_any_are_read() {
        let config = read(&json!({"virtual_hosts": [{"name": "v", "domains": ["*"],
            "require_tls": "EXTERNAL_ONLY", "typed_per_filter_config": {"envoy.filters.http.cors": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
            "allow_methods": "GET"}}}]}));
        let host = &config.virtual_hosts[0];
        assert_eq!(host.require_tls(), route::virtual_host::TlsRequirementType::ExternalOnly);
        let any = &host.typed_per_filter_config["envoy.filters.http.cors"];
        assert!(any.type_url.ends_with("cors.v3.CorsPolicy") && !any.value.is_empty());
    }

    #[test]
    fn unknown_fields_and_wrong_values_are_refused_by_their_path() {
        for (value, field) in [
            (json!({"virtual_hosts": [{"nmae": "v"}]}), "virtual_hosts[0].nmae"),
            (json!({"virtual_hosts": {}}), "virtual_hosts"),
            (json!({"virtual_hosts": [{"domains": ["*", 1]}]}), "virtual_hosts[0].domains[1]"),
            (json!({"virtual_hosts": [{"require_tls": "SOME"}]}), "virtual_hosts[0].require_tls"),
            (
                json!({"virtual_hosts": [{"routes": [{"route": {"timeout": "1m"}}]}]}),
                "virtual_hosts[0].routes[0].route.timeout",
            ),
            (
                json!({"virtual_hosts": [{"typed_per_filter_config": {"x": {"@type": "a/b.C"}}}]}),
                "virtual_hosts[0].typed_per_filter_config[x]",
            ),
        ] {
            assert_eq!(encode(ROUTES, "", &value).unwrap_err().field, field);
        }
    }

    #[test]
    fn every_type_that_a_field_has_is_in_the_table() {
        fn check(kind: &Kind) {
            match kind {
                Kind::Message(name) => assert!(SCHEMA.messages.contains_key(name), "{name}"),
                Kind::Enum(name) => assert!(SCHEMA.enums.contains_key(name), "{name}"),
                Kind::Map(kind) | Kind::Wrapped(kind) => check(kind),
                _ => {}
            }
        }
        for field in SCHEMA.messages.values().flat_map(HashMap::values) {
            check(&field.kind);
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("5s"), Some((5, 0)));
        assert_eq!(duration("0.000000001s"), Some((0, 1)));
        for bad in ["5", "s", "1.s", "-1s", "1.0000000001s", "1,5s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
