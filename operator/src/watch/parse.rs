//! Manifest text to objects.
//!
//! Invariant: a document that can't be read takes no other one along. Documents are split before
//! they are parsed, and what is wrong is said with document, line where known, field and reason.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use serde::de::DeserializeSeed as _;
use serde_yaml::Value;
use slotmesh_compile::{Kind, Object, ObjectKey, ObjectName, ObjectRef, Reason, Report, Severity, Source};

use super::{
    Sourced, cluster,
    typos::{self, nearest, unknown_fields},
};

/// The consequences of a document, or an object, that can't be read.
const KEPT: &str = "what it defined before stays in force";
const LAST_GOOD: &str = "the object's last good version stays in force";

/// Objects that a file tried to define and couldn't, as far as it can be told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// These objects (none when all of the file was read).
    These(BTreeSet<ObjectKey>),
    /// Something that can't be told.
    Unknown,
}

/// The content of a file.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) objects: Vec<Sourced>,
    pub(crate) reports: Vec<Report>,
    pub(crate) lost: Lost,
}

/// Parses a file. `file` is its name in reports.
pub(crate) fn parse(file: &Arc<str>, text: &str) -> Parsed {
    let mut parser = Parser {
        source: Source::file(file.clone()),
        out: Parsed { objects: Vec::new(), reports: Vec::new(), lost: Lost::These(BTreeSet::new()) },
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if file.ends_with(".json") {
        (parser.source.document, parser.source.line) = (Some(1), Some(1));
        match serde_json::from_str::<Value>(text) {
            Ok(value) => parser.document(&value, None),
            Err(error) => parser.broken(Some(error.line()), &error.to_string()),
        }
        return parser.out;
    }
    for (i, (line, document)) in split(text).into_iter().enumerate() {
        (parser.source.document, parser.source.line) = (Some(i + 1), Some(first_line(document) + line));
        let mut value = match serde_yaml::from_str::<Value>(document) {
            Ok(value) => value,
            Err(error) => {
                parser.broken(error.location().map(|at| at.line() + line), &error.to_string());
                continue;
            }
        };
        match value.apply_merge() {
            Ok(()) => parser.document(&value, Some((line, document))),
            Err(error) => parser.broken(None, &error.to_string()),
        }
    }
    parser.out
}

/// The documents of a YAML stream that say anything, each with the number of lines before it.
///
/// A line that starts with `---` always ends a document, even inside a block scalar.
pub(super) fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    let is_marker = |line: &str, marker| {
        line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
    };
    for (i, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line, "---") {
            documents.push((start_line, &text[start..offset]));
            (start, start_line) = (offset + 3, i);
        } else if is_marker(line, "...") {
            documents.push((start_line, &text[start..offset]));
            (start, start_line) = (offset + line.len(), i + 1);
        }
        offset += line.len();
    }
    documents.push((start_line, &text[start..]));
    documents.retain(|(_, document)| !document.lines().all(says_nothing));
    documents
}

fn says_nothing(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line.starts_with('%')
}

/// The number of the first line that says something, in a document that does.
fn first_line(document: &str) -> usize {
    document.lines().position(|line| !says_nothing(line)).unwrap_or(0) + 1
}

/// Kinds of the groups that are read, which are somebody else's.
const OTHERS: [&str; 17] = [
    "Binding",
    "ConfigMap",
    "Endpoints",
    "Event",
    "LimitRange",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "ServiceAccount",
    "Gateway",
    "GatewayClass",
    "UDPRoute",
    "WorkloadGroup",
    "EnvoyFilter",
];

/// The group of Istio's security policies, and the kinds that somebody relies on who writes them.
pub(super) const SECURITY_GROUP: &str = "security.istio.io";
pub(super) const SECURITY: [(&str, &str); 3] = [
    ("AuthorizationPolicy", "nothing enforces it: connections that it denies are made"),
    (
        "PeerAuthentication",
        "nothing enforces it: connections aren't encrypted, and nobody verifies who makes them",
    ),
    ("RequestAuthentication", "nothing enforces it: requests pass with any token, and with none"),
];

/// Kinds of which controllers make Pods, where there are some.
const WORKLOADS: [&str; 7] =
    ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job", "CronJob"];

/// The sort of a document.
enum What {
    /// Of a kind that is read.
    Known(Kind),
    /// Meant to be of this kind; what is wrong with it.
    Meant(Kind, String),
    /// Somebody else's: how serious that is, and what it means.
    Foreign(Severity, Reason, &'static str),
}

/// Tells what a document is.
fn what(api_version: &str, kind: &str) -> What {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if let Some(known) = Kind::named(kind) {
        let spec = known.spec();
        if spec.group == group && spec.versions.contains(&version) {
            return What::Known(known);
        }
        let read = || {
            let all = spec.versions.iter().map(|version| cluster::api_version(known, version));
            all.collect::<Vec<_>>().join(", ")
        };
        if spec.group == group {
            return What::Meant(known, format!("{kind} isn't read of {api_version}, but of {}", read()));
        }
        // Others have a Service, too; nobody has a VirtualService in the core group.
        if group.is_empty() {
            return What::Meant(known, format!("there is no {kind} in {api_version}; write {}", read()));
        }
    }
    let mut of_group = Kind::ALL.into_iter().filter(|known| known.spec().group == group).map(Kind::as_str);
    if !OTHERS.contains(&kind)
        && let Some(near) = nearest(kind, &mut of_group)
        && let Some(meant) = Kind::named(near)
    {
        return What::Meant(meant, format!("there is no {kind} in {api_version}; did you mean {near}?"));
    }
    if let Some((_, means)) = SECURITY.iter().find(|(of, _)| group == SECURITY_GROUP && *of == kind) {
        return What::Foreign(Severity::NotSupported, Reason::NotSupported, means);
    }
    if WORKLOADS.contains(&kind) && matches!(group, "" | "apps" | "batch") {
        let means = "in a directory nobody makes its Pods: write Pods with status.podIP, or an EndpointSlice";
        return What::Foreign(Severity::Note, Reason::Note, means);
    }
    What::Foreign(Severity::Note, Reason::Foreign, "it is skipped")
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

struct Parser {
    source: Source,
    out: Parsed,
}

impl Parser {
    /// Something that is wrong, and what that means.
    fn fault(&mut self, object: ObjectRef, field: Option<String>, message: String, consequence: &str) {
        self.fault_on(None, object, field, message, consequence);
    }

    /// The same, where the line is known.
    fn fault_on(
        &mut self,
        line: Option<usize>,
        object: ObjectRef,
        field: Option<String>,
        message: String,
        consequence: &str,
    ) {
        let report = Report::new(object, field, Severity::Refused, message).meaning(consequence);
        self.out.reports.push(Report { line, ..report });
    }

    fn object_ref(&self, kind: &str, namespace: &str, name: &str) -> ObjectRef {
        ObjectRef {
            kind: Cow::Owned(kind.to_owned()),
            namespace: namespace.into(),
            name: name.into(),
            source: Some(self.source.clone()),
        }
    }

    /// The document can't be read at all.
    fn broken(&mut self, line: Option<usize>, reason: &str) {
        let object = self.object_ref("Document", "", "");
        self.fault_on(line, object, None, reason.to_owned(), KEPT);
        self.out.lost = Lost::Unknown;
    }

    /// `place` is the document's text and the number of lines before it.
    fn document(&mut self, value: &Value, place: Option<(usize, &str)>) {
        let kind = text(value, "kind").unwrap_or_default();
        let items = value.get("items").and_then(Value::as_sequence);
        match (kind.strip_suffix("List"), items) {
            (Some(of), Some(items)) => {
                let api_version = text(value, "apiVersion").unwrap_or_default();
                for (i, item) in items.iter().enumerate() {
                    // The items of a typed list need not say what they are.
                    let (v, k) = if of.is_empty() { ("", "") } else { (api_version, of) };
                    let api_version = text(item, "apiVersion").unwrap_or(v);
                    self.object(
                        item,
                        api_version,
                        text(item, "kind").unwrap_or(k),
                        &format!("items[{i}]"),
                        None,
                    );
                }
            }
            _ => {
                let api_version = text(value, "apiVersion").unwrap_or_default();
                self.object(value, api_version, kind, "", place);
            }
        }
    }

    fn object(
        &mut self,
        value: &Value,
        api_version: &str,
        kind: &str,
        at: &str,
        place: Option<(usize, &str)>,
    ) {
        let field = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
        let metadata = value.get("metadata");
        let name = metadata.and_then(|m| text(m, "name")).unwrap_or_default();
        let namespace = metadata.and_then(|m| text(m, "namespace")).filter(|ns| !ns.is_empty());
        self.source.in_default = namespace.is_none();
        let namespace = namespace.unwrap_or("default");
        if kind.is_empty() || api_version.is_empty() {
            let missing = field(if kind.is_empty() { "kind" } else { "apiVersion" });
            let object = self.object_ref("Document", "", name);
            let message = format!("{missing} is missing, so this can't be read");
            self.fault(object, Some(missing), message, KEPT);
            self.out.lost = Lost::Unknown;
            return;
        }
        let known = match what(api_version, kind) {
            What::Known(known) => known,
            What::Meant(meant, fault) => {
                let object = self.object_ref(kind, namespace, name);
                let wrong = field(if fault.contains("did you mean") { "kind" } else { "apiVersion" });
                self.fault(object, Some(wrong), fault, KEPT);
                let namespace = if meant.is_namespaced() { namespace } else { "" };
                self.lose(ObjectKey { kind: meant, name: ObjectName::new(namespace, name) });
                return;
            }
            What::Foreign(severity, reason, means) => {
                let object = self.object_ref(kind, namespace, name);
                let message = format!("slotmesh does not read {kind} of {api_version}");
                let report = Report::new(object, None, severity, message).meaning(means);
                self.out.reports.push(Report { reason, ..report });
                return;
            }
        };
        if name.is_empty() {
            let object = self.object_ref(kind, namespace, "");
            let missing = field("metadata.name");
            let message = format!("{missing} is missing");
            self.fault(object, Some(missing), message, KEPT);
            self.out.lost = Lost::Unknown;
            return;
        }
        let namespace = if known.is_namespaced() { namespace } else { "" };
        let key = ObjectKey { kind: known, name: ObjectName::new(namespace, name) };
        if !known.is_namespaced() {
            self.source.in_default = false;
        }
        match typed(known, value, place) {
            Ok((object, unknown)) => {
                let misspelt = unknown.iter().any(|unknown| unknown.meant.is_some());
                for unknown in unknown {
                    self.unknown(&key, &unknown, field(&unknown.path()), place);
                }
                if misspelt {
                    self.lose(key);
                } else {
                    let sourced = Sourced { object: in_namespace(object), source: Some(self.source.clone()) };
                    self.out.objects.push(sourced);
                }
            }
            Err(Fault { path, reason, line }) => {
                let object = ObjectRef::new(&key, Some(self.source.clone()));
                let path = if path == "." { at.to_owned() } else { field(&path) };
                self.fault_on(line, object, Some(path), reason, LAST_GOOD);
                self.lose(key);
            }
        }
    }

    /// Keeps what this object was before.
    fn lose(&mut self, key: ObjectKey) {
        if let Lost::These(keys) = &mut self.out.lost {
            keys.insert(key);
        }
    }

    /// A field of an object that isn't one. One that is nearly another is a mistake, which may turn what the object
    /// says into something else; of another nobody can tell, and the rest of the object acts.
    fn unknown(
        &mut self,
        key: &ObjectKey,
        unknown: &typos::Unknown,
        path: String,
        place: Option<(usize, &str)>,
    ) {
        let object = ObjectRef::new(key, Some(self.source.clone()));
        let line = place.and_then(|(before, text)| Some(line_of(text, &unknown.name)? + before));
        match unknown.meant {
            Some(meant) => {
                let message = format!("there is no field {path}; did you mean `{meant}`?");
                self.fault_on(line, object, Some(path), message, LAST_GOOD);
            }
            None => {
                let message = format!("there is no field {path}");
                let report = Report::new(object, Some(path), Severity::NotSupported, message);
                self.out.reports.push(Report { line, ..report.meaning("it has no effect") });
            }
        }
    }
}

/// The only line on which a key stands, where it is one.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let stands = |line: &str| {
        let mut rest = line;
        while let Some(at) = rest.find(key) {
            let before = rest[..at].trim_end_matches(['"', '\'']).chars().next_back();
            let after = rest[at + key.len()..].trim_start_matches(['"', '\'']);
            if before.is_none_or(|c| c.is_whitespace() || matches!(c, '{' | ',' | '-'))
                && after.starts_with(':')
            {
                return true;
            }
            rest = &rest[at + key.len()..];
        }
        false
    };
    let mut lines = text.lines().enumerate().filter(|(_, line)| stands(line)).map(|(i, _)| i + 1);
    let first = lines.next()?;
    lines.next().is_none().then_some(first)
}

/// Objects without namespace are in `default`, for all who read them from here on.
fn in_namespace(mut object: Object) -> Object {
    if object.kind().is_namespaced() {
        let namespace = &mut object.meta_mut().namespace;
        if namespace.as_deref().unwrap_or_default().is_empty() {
            *namespace = Some("default".to_owned());
        }
    }
    object
}

/// Why an object can't be read.
struct Fault {
    path: String,
    reason: String,
    line: Option<usize>,
}

/// Reads an object, and finds the fields that are none.
fn typed(
    kind: Kind,
    value: &Value,
    place: Option<(usize, &str)>,
) -> Result<(Object, Vec<typos::Unknown>), Fault> {
    let object = read(kind, value, place)?;
    let again = serde_json::to_value(&object).unwrap_or_default();
    Ok((object, unknown_fields(kind, value, &again)))
}

fn read(kind: Kind, value: &Value, place: Option<(usize, &str)>) -> Result<Object, Fault> {
    let mut track = serde_path_to_error::Track::new();
    kind.deserialize(serde_path_to_error::Deserializer::new(value, &mut track)).map_err(|error| {
        // A value no longer knows its line; the text does.
        let line = place.and_then(|(before, text)| {
            let error = kind.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
            Some(error.location()?.line() + before)
        });
        Fault { path: track.path().to_string(), reason: error.to_string(), line }
    })
}

#[cfg(test)]
mod tests;
