//! Texts without secrets: tokens, keys, passwords, certificates, and values of headers that may hold such.
//!
//! What looks like a secret is removed, whether or not it is one: in JSON by the name of its field, or of the header or
//! variable that it is the value of; in other text by what stands before it; everywhere by its form.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::Value;

const REMOVED: &str = "[removed]";

/// Names of what is a secret.
const SECRET: &str =
    "password|passwd|passphrase|secret|token|api[_-]?key|private[_-]?key|credential|authorization|cookie";
/// The annotation in which kubectl keeps an object that somebody applied: all of it once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

static NAME: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(&format!("(?i)({SECRET})")).ok());
/// Forms of secrets: PEM, JSON web tokens, what stands behind `Bearer`, user and password of a URL, keys of
/// clouds.
static FORMS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    [
        r"-----BEGIN [A-Z0-9 ]+-----[\s\S]*?-----END [A-Z0-9 ]+-----",
        r"eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{4,}(\.[A-Za-z0-9_-]*)?",
        r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}",
        r"://[^/\s:@]+:[^/\s@]+@",
        r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
        r"\bgh[pousr]_[A-Za-z0-9]{20,}\b",
    ]
    .iter()
    .filter_map(|form| Regex::new(form).ok())
    .collect()
});
/// `name: value` and `name=value` in text.
static PAIR: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let value = r#""(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;&}\]]+"#;
    Regex::new(&format!(r#"(?i)([\w.-]*(?:{SECRET})[\w.-]*\\?["']?\s*[:=]\s*)({value})"#)).ok()
});

/// The text without secrets, and how many were removed.
pub fn redacted(text: &str) -> (String, usize) {
    let mut count = 0;
    if let Ok(mut value) = serde_json::from_str::<Value>(text)
        && (value.is_object() || value.is_array())
    {
        walk(&mut value, &mut count);
        return (serde_json::to_string_pretty(&value).unwrap_or_default() + "\n", count);
    }
    (of_text(text, &mut count), count)
}

fn of_text(text: &str, count: &mut usize) -> String {
    let mut text = text.to_owned();
    for form in FORMS.iter() {
        text = form
            .replace_all(&text, |_: &Captures<'_>| {
                *count += 1;
                REMOVED
            })
            .into_owned();
    }
    let Some(pair) = &*PAIR else { return text };
    let replaced = pair.replace_all(&text, |found: &Captures<'_>| {
        let value = found[2].trim_matches(['"', '\'']);
        if is_plain(value) {
            return found[0].to_owned();
        }
        *count += 1;
        format!("{}{REMOVED}", &found[1])
    });
    replaced.into_owned()
}

/// Tells a value that can be no secret: a switch, a number, or what is removed already.
fn is_plain(value: &str) -> bool {
    let is_word = matches!(value, "" | "true" | "false" | "null" | "none" | "{" | "[" | REMOVED);
    is_word
        || value.starts_with("[removed")
        || (value.len() <= 10 && value.bytes().all(|b| b.is_ascii_digit()))
}

fn is_secret(name: &str) -> bool {
    NAME.as_ref().is_none_or(|names| names.is_match(name))
}

fn walk(value: &mut Value, count: &mut usize) {
    match value {
        Value::String(text) => *text = of_text(text, count),
        Value::Array(all) => all.iter_mut().for_each(|one| walk(one, count)),
        Value::Object(fields) => {
            let of_secret = fields.get("kind").is_some_and(|kind| kind == "Secret");
            // `{name: authorization, value: …}`: of headers and variables.
            let called = ["name", "key", "header", "headerName"].iter().filter_map(|key| fields.get(*key));
            let holds_one = called.filter_map(Value::as_str).any(is_secret);
            for (name, inner) in fields {
                let is_one = (holds_one
                    && matches!(name.as_str(), "value" | "rawValue" | "exact" | "prefix" | "regex"))
                    || name == LAST_APPLIED
                    || name == "caBundle"
                    || (of_secret && matches!(name.as_str(), "data" | "stringData"))
                    || (is_secret(name) && !inner.is_object() && !inner.is_array());
                match inner {
                    Value::String(text) if is_one && is_plain(text) => {}
                    Value::Bool(_) | Value::Null | Value::Number(_) if is_one => {}
                    _ if is_one => {
                        *count += 1;
                        *inner = Value::String(REMOVED.to_owned());
                    }
                    _ => walk(inner, count),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const JWT: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl";

    #[test]
    fn no_secret_of_a_log_is_left_and_what_is_none_stays() {
        let pem = "-----BEGIN EC PRIVATE KEY-----\nplanted1\nplanted2\n-----END EC PRIVATE KEY-----";
        let log = format!(
            "a stream of {JWT} is let in\nauthorization: Bearer planted3planted\n{pem}\nSLOTMESH_TOKEN=planted4 x=1\n\
             https://user:planted5@host/path\nconfig {{\"password\": \"planted6 planted7\", \"port\": 80}}\n\
             Cookie: planted8\napi-key='planted9'\ntoken expired, tokens_total 5, token=true, secret: 12\n"
        );
        let (text, removed) = redacted(&log);
        assert!(!text.contains("planted") && !text.contains(JWT), "{text}");
        assert!(removed >= 8, "{removed}: {text}");
        for kept in [
            "a stream of",
            "x=1",
            "host/path",
            "\"port\": 80",
            "token expired, tokens_total 5, token=true, secret: 12",
        ] {
            assert!(text.contains(kept), "{kept}: {text}");
        }
    }

    #[test]
    fn no_secret_of_an_object_is_left_and_what_is_none_stays() {
        let object = json!({
            "kind": "HTTPRoute",
            "metadata": {"name": "web", "annotations": {LAST_APPLIED: "{\"planted\": 1}", "note": JWT}},
            "spec": {"rules": [{"filters": [{"requestHeaderModifier": {"set": [
                {"name": "Authorization", "value": "planted1"}, {"name": "x-team", "value": "shop"}]}}]}],
                "automountServiceAccountToken": false, "secretName": "planted2",
                "env": [{"name": "DB_PASSWORD", "value": "planted3"}]},
        });
        let secret = json!([{"kind": "Secret", "data": {"ca.crt": "planted4"}}]);
        for value in [object, secret] {
            let (text, removed) = redacted(&value.to_string());
            assert!(!text.contains("planted") && !text.contains(JWT) && removed > 0, "{text}");
            if value.is_object() {
                assert!(text.contains("\"value\": \"shop\"") && text.contains("\"name\": \"web\""), "{text}");
                assert!(text.contains("\"automountServiceAccountToken\": false"), "{text}");
            }
        }
    }

    #[test]
    fn metrics_stay_as_they_are() {
        let metrics =
            "# HELP a_total x\nslotmesh_operator_tokens_refused_total{reason=\"expired\"} 3\n# EOF\n";
        assert_eq!(redacted(metrics), (metrics.to_owned(), 0));
    }
}
