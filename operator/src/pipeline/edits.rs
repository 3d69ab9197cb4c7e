//! The log: edits of manifests that are in force, and reports as they come and go.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
};

use slotmesh_compile::{Object, ObjectKey, ObjectRef, Reason, Report, Severity, Source};
use tracing::{debug, info, warn};

use super::stage::{Batch, Stage};
use crate::watch::{Sourced, Step};

/// Logs what is edited in manifests. In a cluster there may be thousands of changes a minute, and `kubectl` says what
/// became of each.
#[derive(Debug, Default)]
pub(super) struct EditLog {
    /// Objects that manifests define: what only moves within its file is no edit.
    defined: HashMap<ObjectKey, Object>,
    /// Of the batch under way: where each object stands, and what is gone.
    applied: BTreeMap<ObjectKey, String>,
    deleted: BTreeSet<ObjectKey>,
}

impl Stage for EditLog {
    fn observe(&mut self, step: &Step) {
        match step {
            Step::Apply(Sourced { object, source: Some(source) }) => {
                let key = object.key();
                if self.defined.insert(key.clone(), object.clone()).as_ref() != Some(object) {
                    self.deleted.remove(&key);
                    self.applied.insert(key, place(source));
                }
            }
            Step::Apply(_) => {}
            Step::Delete(key) => {
                if self.defined.remove(key).is_some() {
                    self.applied.remove(key);
                    self.deleted.insert(key.clone());
                }
            }
        }
    }

    /// Logs what is in force or gone; what was refused is told by reports.
    fn published(&mut self, batch: &Batch<'_>) {
        let (applied, deleted) = (mem::take(&mut self.applied), mem::take(&mut self.deleted));
        if batch.is_first || batch.affected.is_none() {
            return;
        }
        for (key, place) in applied.iter().filter(|(key, _)| !batch.compiler.refuses(key)) {
            info!("{place}{key}: in force");
        }
        for key in deleted {
            info!("{key}: gone");
        }
    }
}

/// A report, as one line: `shop/web.yaml:12 Service shop/web: …`.
fn line(report: &Report) -> String {
    let object = &report.object;
    let place = object.source.as_ref().map(place).unwrap_or_default();
    let object = ObjectRef { source: None, ..object.clone() };
    format!("{place}{object}: {}", report.text())
}

/// A file and its line, with a space behind.
fn place(source: &Source) -> String {
    match source.line {
        Some(line) => format!("{}:{line} ", source.file),
        None => format!("{source} "),
    }
}

/// The report of the same, wherever in its file the object stands.
pub(super) fn without_line(report: &Report) -> Report {
    let mut report = Report { line: None, ..report.clone() };
    if let Some(source) = &mut report.object.source {
        source.line = None;
    }
    report
}

pub(super) fn log(report: &Report) {
    let line = line(report);
    match (report.severity, report.reason) {
        (Severity::Refused | Severity::NotSupported, _) => warn!("{line}"),
        (Severity::Note, Reason::Foreign) => debug!("{line}"),
        (Severity::Note, _) => info!("{line}"),
    }
}

/// A report that holds no longer.
pub(super) fn log_end(report: &Report) {
    let line = line(report);
    match report.severity {
        Severity::Refused | Severity::NotSupported => info!("settled: {line}"),
        Severity::Note => debug!("settled: {line}"),
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_builders::service;
    use slotmesh_compile::{Kind, ObjectName};

    use super::*;

    #[test]
    fn an_object_that_only_moves_in_its_file_is_no_edit() {
        let mut log = EditLog::default();
        let mut edited = |port: i32, line: usize| {
            let source = Some(Source { line: Some(line), ..Source::file("app.yaml".into()) });
            let object = service("web").port(port).build();
            log.observe(&Step::Apply(Sourced { object, source }));
            mem::take(&mut log.applied).into_values().collect::<Vec<_>>()
        };
        assert_eq!(edited(80, 1), ["app.yaml:1 "]);
        assert_eq!(edited(80, 7), [""; 0]);
        assert_eq!(edited(81, 7), ["app.yaml:7 "]);
        let key = service("web").build().key();
        log.observe(&Step::Delete(key.clone()));
        log.observe(&Step::Delete(ObjectKey { kind: Kind::Pod, ..key.clone() }));
        assert_eq!(log.deleted, BTreeSet::from([key]));
    }

    #[test]
    fn a_report_is_one_line_without_what_is_empty() {
        let key = ObjectKey { kind: Kind::Service, name: ObjectName::new("shop", "web") };
        let source = Source { document: Some(2), line: Some(12), ..Source::file("app.yaml".into()) };
        let said = |source, field: Option<&str>| {
            let object = ObjectRef::new(&key, source);
            let report = Report::new(object, field.map(str::to_owned), Severity::Note, "so it is".to_owned());
            line(&report.meaning("and nothing happens"))
        };
        let whole = "app.yaml:12 Service shop/web: spec.ports: so it is; and nothing happens";
        assert_eq!(said(Some(source), Some("spec.ports")), whole);
        assert_eq!(said(None, None), "Service shop/web: so it is; and nothing happens");
    }
}
