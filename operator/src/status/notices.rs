//! What the pipeline tells whoever writes statuses, without waiting for it.

use std::collections::BTreeMap;

use slotmesh_compile::{Conditions, ObjectKey, Report, Severity};

use super::{
    due::{Due, Snapshot},
    mailbox::Mailbox,
};

/// What a piece of news is about. What is served comes first: conditions are judged by it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Served,
    Object(ObjectKey),
    Report(Report),
}

/// What there is to say.
#[derive(Clone, Debug)]
pub(crate) enum News {
    /// What is due to the nodes, from what the objects were compiled to.
    Served(Snapshot),
    /// What the compiler says of an object now, `None` when it is gone; and the resource version in which
    /// it was seen last, if it was seen.
    Object { conditions: Option<Box<Conditions>>, version: Option<String> },
    /// Whether a report of something refused holds.
    Holds(bool),
}

/// Where it is put. Clones are handles of the same.
#[derive(Clone, Debug)]
pub struct Notices {
    mailbox: Mailbox<Subject, News>,
    due: Due,
}

impl Notices {
    /// `due` is kept by whoever publishes.
    pub fn new(due: Due) -> Self {
        Self { mailbox: Mailbox::default(), due }
    }

    /// What was compiled is published. Told together, or conditions could be judged by what isn't due yet.
    pub(crate) fn compiled(
        &self,
        objects: impl Iterator<Item = (ObjectKey, Option<Conditions>, Option<String>)>,
    ) {
        let objects = objects.map(|(key, conditions, version)| {
            (Subject::Object(key), News::Object { conditions: conditions.map(Box::new), version })
        });
        let served = (Subject::Served, News::Served(self.due.now()));
        // Made before anybody has to wait for it.
        let all: Vec<_> = std::iter::once(served).chain(objects).collect();
        self.mailbox.put(all);
    }

    pub(crate) fn reports(&self, reports: &[Report], hold: bool) {
        let refused = reports.iter().filter(|report| report.severity == Severity::Refused);
        self.mailbox.put(refused.map(|report| (Subject::Report(report.clone()), News::Holds(hold))));
    }

    pub(crate) async fn take(&self) -> BTreeMap<Subject, News> {
        self.mailbox.take().await
    }
}
