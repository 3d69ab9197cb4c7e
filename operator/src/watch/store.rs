//! The definitions of the manifest files.
//!
//! Invariant: of each object exactly one definition is in force, the first in the order of paths.
//! A file that can't be read (or a document of it) keeps the last good definitions of what it may
//! have meant.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use slotmesh_compile::{ObjectKey, ObjectRef, Report, Severity, Source};

use super::{
    ReportChanges, Sourced,
    parse::{Lost, Parsed},
};

#[derive(Debug, Default)]
struct File {
    objects: BTreeMap<ObjectKey, Sourced>,
    reports: Vec<Report>,
}

/// An object's definition in force changed: from what to what.
#[derive(Debug, PartialEq)]
pub(crate) struct Changed {
    pub(crate) old: Option<Sourced>,
    pub(crate) new: Option<Sourced>,
}

/// All definitions of a set of files.
#[derive(Debug, Default)]
pub(crate) struct Store {
    files: BTreeMap<Arc<str>, File>,
    definers: HashMap<ObjectKey, BTreeSet<Arc<str>>>,
    in_force: HashMap<ObjectKey, Sourced>,
    duplicates: HashMap<ObjectKey, Vec<Report>>,
    touched: BTreeSet<ObjectKey>,
    reports: ReportChanges,
}

impl Store {
    /// The file was read.
    pub(crate) fn set(&mut self, path: &Arc<str>, parsed: Parsed) {
        let mut old = self.files.remove(path).unwrap_or_default();
        let mut new = File { objects: BTreeMap::new(), reports: parsed.reports };
        for sourced in parsed.objects {
            let key = sourced.object.key();
            if let Some(first) = new.objects.get(&key) {
                new.reports.push(duplicate(&key, sourced.source.clone(), first));
            } else {
                new.objects.insert(key, sourced);
            }
        }
        for (key, sourced) in std::mem::take(&mut old.objects) {
            let keep = match &parsed.lost {
                Lost::These(keys) => keys.contains(&key),
                Lost::Unknown => true,
            };
            self.undefine(&key, path);
            if keep {
                new.objects.entry(key).or_insert(sourced);
            }
        }
        for key in new.objects.keys() {
            self.definers.entry(key.clone()).or_default().insert(path.clone());
            self.touched.insert(key.clone());
        }
        new.reports.sort();
        new.reports.dedup();
        self.reports.replace(old.reports, new.reports.iter().cloned());
        self.files.insert(path.clone(), new);
    }

    /// The file is there but can't be read: what it defined stays.
    pub(crate) fn unreadable(&mut self, path: &Arc<str>, reason: &str) {
        let file = self.files.entry(path.clone()).or_default();
        let object = ObjectRef {
            kind: "File".into(),
            namespace: "".into(),
            name: "".into(),
            source: Some(Source::file(path.clone())),
        };
        let message = format!("the file can't be read: {reason}");
        let report = Report::new(object, None, Severity::Refused, message);
        let report = report.meaning("what it defined before stays in force");
        let old = std::mem::replace(&mut file.reports, vec![report.clone()]);
        self.reports.replace(old, [report]);
    }

    /// The file is gone.
    pub(crate) fn remove(&mut self, path: &Arc<str>) {
        let Some(file) = self.files.remove(path) else { return };
        for key in file.objects.keys() {
            self.undefine(key, path);
        }
        self.reports.replace(file.reports, []);
    }

    fn undefine(&mut self, key: &ObjectKey, path: &Arc<str>) {
        if let Some(definers) = self.definers.get_mut(key) {
            definers.remove(path);
            if definers.is_empty() {
                self.definers.remove(key);
            }
        }
        self.touched.insert(key.clone());
    }

    /// The definitions that changed since the last call, and the reports that appeared and
    /// disappeared.
    pub(crate) fn changes(&mut self) -> (Vec<Changed>, Vec<Report>, Vec<Report>) {
        let mut changes = Vec::new();
        for key in std::mem::take(&mut self.touched) {
            let mut definitions = self
                .definers
                .get(&key)
                .into_iter()
                .flatten()
                .filter_map(|path| self.files.get(path)?.objects.get(&key));
            let new = definitions.next().cloned();
            let losers = definitions
                .filter_map(|loser| Some(duplicate(&key, loser.source.clone(), new.as_ref()?)))
                .collect::<Vec<_>>();
            let old_losers = if losers.is_empty() {
                self.duplicates.remove(&key)
            } else {
                self.duplicates.insert(key.clone(), losers.clone())
            };
            self.reports.replace(old_losers.unwrap_or_default(), losers);
            let old = match &new {
                Some(new) if self.in_force.get(&key) == Some(new) => continue,
                Some(new) => self.in_force.insert(key, new.clone()),
                None => self.in_force.remove(&key),
            };
            if old.is_some() || new.is_some() {
                changes.push(Changed { old, new });
            }
        }
        let (appeared, disappeared) = self.reports.take();
        (changes, appeared, disappeared)
    }
}

fn duplicate(key: &ObjectKey, loser: Option<Source>, winner: &Sourced) -> Report {
    let first = winner.source.as_ref().map(ToString::to_string).unwrap_or_default();
    let message =
        format!("already defined in {first}, which comes first; this definition has no effect; remove one");
    Report::new(ObjectRef::new(key, loser), None, Severity::Refused, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::parse::parse;

    fn web(port: u16) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{ports: [{{port: {port}}}]}}\n"
        )
    }

    fn set(store: &mut Store, path: &str, text: &str) -> (Vec<String>, Vec<String>) {
        let path: Arc<str> = path.into();
        let parsed = parse(&path, text);
        store.set(&path, parsed);
        told(store)
    }

    /// Changes, and reports that appeared.
    fn told(store: &mut Store) -> (Vec<String>, Vec<String>) {
        let (changes, appeared, _) = store.changes();
        let told = |c: Changed| match (c.old, c.new) {
            (_, Some(new)) => format!("apply {} from {}", new.object.key(), new.source.unwrap()),
            (Some(old), None) => format!("delete {}", old.object.key()),
            (None, None) => panic!("nothing changed"),
        };
        (changes.into_iter().map(told).collect(), appeared.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_first_definition_wins_and_the_second_takes_over() {
        let mut store = Store::default();
        assert_eq!(
            set(&mut store, "b.yaml", &web(80)).0,
            ["apply Service default/web from b.yaml, document 1"]
        );
        let (changes, said) = set(&mut store, "c.yaml", &web(81));
        assert!(changes.is_empty());
        assert_eq!(
            said,
            [
                "Service default/web (c.yaml, document 1): already defined in b.yaml, document 1, which comes first; \
              this definition has no effect; remove one"
            ]
        );
        store.remove(&"b.yaml".into());
        assert_eq!(told(&mut store).0, ["apply Service default/web from c.yaml, document 1"]);
        store.remove(&"c.yaml".into());
        assert_eq!(told(&mut store).0, ["delete Service default/web"]);
        assert!(store.definers.is_empty() && store.duplicates.is_empty());
    }

    #[test]
    fn a_broken_document_keeps_what_it_may_have_meant() {
        let mut store = Store::default();
        let api = web(80).replace("web", "api");
        set(&mut store, "a.yaml", &format!("{}---\n{api}", web(80)));
        // The first document is broken, the second works and may change.
        let (changes, said) =
            set(&mut store, "a.yaml", &format!("kind: [\n---\n{}", api.replace("80", "81")));
        assert_eq!(changes, ["apply Service default/api from a.yaml, document 2"]);
        assert_eq!(said.len(), 1);
        // A document that says which object it means keeps that one only.
        let (changes, _) = set(&mut store, "a.yaml", &web(80).replace("80", "x"));
        assert_eq!(changes, ["delete Service default/api"]);
        assert_eq!(set(&mut store, "a.yaml", "").0, ["delete Service default/web"]);
    }

    #[test]
    fn an_unreadable_file_keeps_all() {
        let mut store = Store::default();
        set(&mut store, "a.yaml", &web(80));
        store.unreadable(&"a.yaml".into(), "permission denied");
        let (changes, said) = told(&mut store);
        assert!(changes.is_empty());
        assert!(said[0].starts_with("File (a.yaml): the file can't be read"), "{}", said[0]);
        assert_eq!(set(&mut store, "a.yaml", &web(80)), (Vec::new(), Vec::new()));
        assert!(store.reports.0.is_empty());
    }

    #[test]
    fn an_object_twice_in_a_file_is_named() {
        let (changes, said) = set(&mut Store::default(), "a.yaml", &format!("{}---\n{}", web(80), web(81)));
        assert_eq!(changes, ["apply Service default/web from a.yaml, document 1"]);
        assert!(
            said[0].contains("(a.yaml, document 2): already defined in a.yaml, document 1"),
            "{}",
            said[0]
        );
    }
}
