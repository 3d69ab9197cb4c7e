//! Manifest text to objects.
//!
//! Invariant: a document that can't be read takes no other one along. Documents are split before
//! they are parsed, and what is wrong is said with document, line where known, field and reason.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use serde::de::DeserializeOwned;
use serde_yaml::Value;
use slotmesh_compile::{Kind, Object, ObjectKey, ObjectName, ObjectRef, Report, Severity, Source};
use slotmesh_crds::{
    ISTIO_GROUP, ISTIO_VERSIONS,
    gateway::{self, GATEWAY_GROUP},
    own,
};

use super::Sourced;

/// What a file tried to define and couldn't, as far as it can be told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// These objects (none when all of the file was read).
    These(BTreeSet<ObjectKey>),
    /// Something that can't be told.
    Unknown,
}

/// What a file says.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) objects: Vec<Sourced>,
    pub(crate) reports: Vec<Report>,
    pub(crate) lost: Lost,
}

/// Parses a file. `file` is its name in reports.
pub(crate) fn parse(file: &Arc<str>, text: &str) -> Parsed {
    let mut parser = Parser {
        source: Source { file: file.clone(), document: None },
        out: Parsed { objects: Vec::new(), reports: Vec::new(), lost: Lost::These(BTreeSet::new()) },
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if file.ends_with(".json") {
        parser.source.document = Some(1);
        match serde_json::from_str::<Value>(text) {
            Ok(value) => parser.document(&value, None),
            Err(error) => parser.broken(Some(error.line()), &error.to_string()),
        }
        return parser.out;
    }
    for (i, (line, document)) in split(text).into_iter().enumerate() {
        parser.source.document = Some(i + 1);
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
fn split(text: &str) -> Vec<(usize, &str)> {
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
    let says_nothing = |line: &str| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line.starts_with('%')
    };
    documents.retain(|(_, document)| !document.lines().all(says_nothing));
    documents
}

/// Which compiled kind this is, if any.
fn known_kind(api_version: &str, kind: &str) -> Option<Kind> {
    let istio =
        || api_version.split_once('/').is_some_and(|(g, v)| g == ISTIO_GROUP && ISTIO_VERSIONS.contains(&v));
    let gateway = |versions: &[&str]| {
        api_version.split_once('/').is_some_and(|(g, v)| g == GATEWAY_GROUP && versions.contains(&v))
    };
    let own = || api_version.split_once('/') == Some((own::GROUP, own::VERSION));
    let kind = Kind::ALL.into_iter().find(|k| k.as_str() == kind)?;
    let matches = match kind {
        Kind::Service | Kind::Pod | Kind::Namespace | Kind::Node => api_version == "v1",
        Kind::EndpointSlice => api_version == "discovery.k8s.io/v1",
        Kind::VirtualService | Kind::DestinationRule => istio(),
        Kind::ServiceEntry | Kind::WorkloadEntry => istio(),
        Kind::HttpRoute => gateway(&["v1", "v1beta1"]),
        Kind::TcpRoute => gateway(&["v1", "v1alpha2"]),
        Kind::ReferenceGrant => gateway(&["v1", "v1beta1"]),
        Kind::SlotProfile | Kind::TrafficPolicy => own(),
    };
    matches.then_some(kind)
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

struct Parser {
    source: Source,
    out: Parsed,
}

impl Parser {
    fn object_ref(&self, kind: &str, namespace: &str, name: &str) -> ObjectRef {
        ObjectRef {
            kind: Cow::Owned(kind.to_owned()),
            namespace: namespace.into(),
            name: name.into(),
            source: Some(self.source.clone()),
        }
    }

    fn report(&mut self, object: ObjectRef, field: Option<String>, severity: Severity, message: String) {
        self.out.reports.push(Report::new(object, field, severity, message));
    }

    /// The document can't be read at all.
    fn broken(&mut self, line: Option<usize>, reason: &str) {
        let line = line.map_or(String::new(), |line| format!("line {line}: "));
        let message = format!("{line}{reason}; what it defined before stays in force");
        let object = self.object_ref("Document", "", "");
        self.report(object, None, Severity::Refused, message);
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
        let namespace = namespace.unwrap_or("default");
        if kind.is_empty() || api_version.is_empty() {
            let missing = field(if kind.is_empty() { "kind" } else { "apiVersion" });
            let object = self.object_ref("Document", "", name);
            let message =
                format!("{missing} is missing, so this can't be read; what it defined before stays in force");
            self.report(object, Some(missing), Severity::Refused, message);
            self.out.lost = Lost::Unknown;
            return;
        }
        let Some(known) = known_kind(api_version, kind) else {
            let message = format!("slotmesh does not read {kind} of {api_version}; it is skipped");
            let object = self.object_ref(kind, namespace, name);
            self.report(object, None, Severity::Note, message);
            return;
        };
        if name.is_empty() {
            let object = self.object_ref(kind, namespace, "");
            let missing = field("metadata.name");
            let message = format!("{missing} is missing; what the document defined before stays in force");
            self.report(object, Some(missing), Severity::Refused, message);
            self.out.lost = Lost::Unknown;
            return;
        }
        let namespace = if known.is_namespaced() { namespace } else { "" };
        let key = ObjectKey { kind: known, name: ObjectName::new(namespace, name) };
        match typed(known, value, place) {
            Ok(object) => {
                let sourced = Sourced { object: in_namespace(object), source: Some(self.source.clone()) };
                self.out.objects.push(sourced);
            }
            Err(Fault { path, reason, line }) => {
                let object = ObjectRef::new(&key, Some(self.source.clone()));
                let line = line.map_or(String::new(), |line| format!("line {line}: "));
                let message = format!("{line}{reason}; the object's last good version stays in force");
                let path = if path == "." { at.to_owned() } else { field(&path) };
                self.report(object, Some(path), Severity::Refused, message);
                if let Lost::These(keys) = &mut self.out.lost {
                    keys.insert(key);
                }
            }
        }
    }
}

/// Objects without namespace are in `default`, for all who read them from here on.
fn in_namespace(mut object: Object) -> Object {
    macro_rules! set {
        ($($kind:ident),*) => {
            match &mut object {
                Object::Namespace(_) | Object::Node(_) | Object::SlotProfile(_) => {}
                $(Object::$kind(o) => {
                    let namespace = &mut Arc::make_mut(o).metadata.namespace;
                    if namespace.as_deref().unwrap_or_default().is_empty() {
                        *namespace = Some("default".to_owned());
                    }
                })*
            }
        };
    }
    set!(
        Service,
        EndpointSlice,
        Pod,
        VirtualService,
        DestinationRule,
        ServiceEntry,
        WorkloadEntry,
        HttpRoute,
        TcpRoute,
        ReferenceGrant,
        TrafficPolicy
    );
    object
}

/// Why an object can't be read.
struct Fault {
    path: String,
    reason: String,
    line: Option<usize>,
}

fn typed(kind: Kind, value: &Value, place: Option<(usize, &str)>) -> Result<Object, Fault> {
    use k8s_openapi::api::{core::v1, discovery::v1 as discovery};
    match kind {
        Kind::Service => read::<v1::Service>(value, place).map(Object::from),
        Kind::EndpointSlice => read::<discovery::EndpointSlice>(value, place).map(Object::from),
        Kind::Pod => read::<v1::Pod>(value, place).map(Object::from),
        Kind::Namespace => read::<v1::Namespace>(value, place).map(Object::from),
        Kind::Node => read::<v1::Node>(value, place).map(Object::from),
        Kind::VirtualService => read::<slotmesh_crds::VirtualService>(value, place).map(Object::from),
        Kind::DestinationRule => read::<slotmesh_crds::DestinationRule>(value, place).map(Object::from),
        Kind::ServiceEntry => read::<slotmesh_crds::ServiceEntry>(value, place).map(Object::from),
        Kind::WorkloadEntry => read::<slotmesh_crds::WorkloadEntry>(value, place).map(Object::from),
        Kind::HttpRoute => read::<gateway::HttpRoute>(value, place).map(Object::from),
        Kind::TcpRoute => read::<gateway::TcpRoute>(value, place).map(Object::from),
        Kind::ReferenceGrant => read::<gateway::ReferenceGrant>(value, place).map(Object::from),
        Kind::TrafficPolicy => read::<own::TrafficPolicy>(value, place).map(Object::from),
        Kind::SlotProfile => read::<own::SlotProfile>(value, place).map(Object::from),
    }
}

fn read<T: DeserializeOwned>(value: &Value, place: Option<(usize, &str)>) -> Result<T, Fault> {
    serde_path_to_error::deserialize::<_, T>(value).map_err(|error| {
        // A value no longer knows its line; the text does.
        let line = place.and_then(|(before, text)| {
            let error = serde_yaml::from_str::<T>(text).err()?;
            Some(error.location()?.line() + before)
        });
        Fault { path: error.path().to_string(), reason: error.into_inner().to_string(), line }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Parsed {
        parse(&"shop.yaml".into(), text)
    }

    fn names(parsed: &Parsed) -> Vec<String> {
        parsed.objects.iter().map(|o| o.object.key().to_string()).collect()
    }

    fn said(parsed: &Parsed) -> Vec<String> {
        parsed.reports.iter().map(ToString::to_string).collect()
    }

    const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  ports:\n  - port: 80\n";

    #[test]
    fn documents_are_split_and_numbered_by_what_they_say() {
        let text = format!("# a comment\n---\n%YAML 1.2\n---\n{WEB}---\n\n--- # two\n{WEB}...\n# end\n");
        assert_eq!(split(&text).iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 12]);
        let parsed = parsed(&text);
        assert_eq!(names(&parsed), ["Service default/web", "Service default/web"]);
        assert_eq!(parsed.objects[1].source.as_ref().unwrap().document, Some(2));
        assert!(parsed.reports.is_empty());
    }

    #[test]
    fn a_broken_document_is_named_and_takes_no_other_along() {
        let parsed = parsed(&format!("{WEB}---\nkind: [\n---\n{WEB}"));
        assert_eq!(names(&parsed).len(), 2);
        let said = said(&parsed);
        assert_eq!(said.len(), 1);
        assert!(said[0].starts_with("Document (shop.yaml, document 2): line "), "{}", said[0]);
        assert_eq!(parsed.lost, Lost::Unknown);
    }

    #[test]
    fn a_wrong_field_is_named_with_line_path_and_reason() {
        let parsed = parsed(&format!("{WEB}---\n{}", WEB.replace("80", "http").replace("web", "api")));
        assert_eq!(names(&parsed), ["Service default/web"]);
        let said = said(&parsed);
        let start = "Service default/api (shop.yaml, document 2): spec.ports[0].port: line 13: ";
        assert!(said[0].starts_with(start), "{}", said[0]);
        assert!(said[0].contains("invalid type: string \"http\""), "{}", said[0]);
        let key = ObjectKey { kind: Kind::Service, name: ObjectName::new("default", "api") };
        assert_eq!(parsed.lost, Lost::These(BTreeSet::from([key])));
    }

    #[test]
    fn a_wrong_field_beside_unsupported_ones_is_named_too() {
        let parsed = parsed(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\nspec:\n  hosts: \
             [web]\n  http:\n  - timeout: 3s\n    route:\n    - destination: {host: web}\n      weight: many\n",
        );
        let start =
            "VirtualService default/web (shop.yaml, document 1): spec.http[0].route[0].weight: line 10: ";
        assert!(said(&parsed)[0].starts_with(start), "{:?}", said(&parsed));
    }

    #[test]
    fn lists_and_versions_of_istio() {
        let parsed = parsed(
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: networking.istio.io/v1beta1\n  kind: \
             VirtualService\n  metadata: {name: a, namespace: x}\n  spec: {hosts: [a]}\n- apiVersion: v1\n  \
             kind: Pod\n  metadata: {name: 7}\n---\napiVersion: v1\nkind: ServiceList\nitems:\n- metadata: \
             {name: b}\n",
        );
        assert_eq!(names(&parsed), ["VirtualService x/a", "Service default/b"]);
        assert!(said(&parsed)[0].contains("items[1].metadata.name is missing"), "{:?}", said(&parsed));
    }

    #[test]
    fn unknown_kinds_are_skipped_with_a_note() {
        let parsed = parsed(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n---\napiVersion: \
             serving.knative.dev/v1\nkind: Service\nmetadata: {name: k}\n",
        );
        assert!(parsed.objects.is_empty());
        assert!(parsed.reports.iter().all(|r| r.severity == Severity::Note));
        let expected = "ConfigMap default/c (shop.yaml, document 1): slotmesh does not read ConfigMap of v1; it is skipped";
        assert_eq!(said(&parsed)[0], expected);
        assert_eq!(parsed.reports.len(), 2);
        assert_eq!(parsed.lost, Lost::These(BTreeSet::new()));
    }

    #[test]
    fn a_document_without_kind_and_a_key_that_stands_twice_are_refused() {
        assert!(said(&parsed("metadata: {name: web}\n"))[0].contains("kind is missing"));
        let twice = parsed("apiVersion: v1\nkind: Service\nkind: Service\n");
        assert!(said(&twice)[0].contains("duplicate"), "{:?}", said(&twice));
    }

    #[test]
    fn json_is_read_too() {
        let json = "{\n\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\", \"metadata\": {\"name\": \"p\"}\n}";
        assert_eq!(names(&parse(&"p.json".into(), json)), ["Pod default/p"]);
        let broken = parse(&"p.json".into(), "{\n\"a\": }");
        assert!(said(&broken)[0].contains("(p.json, document 1): line 2: "), "{:?}", said(&broken));
    }
}
