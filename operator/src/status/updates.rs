//! Updates that the pipeline tells whoever writes statuses, without waiting for it.

use std::collections::BTreeMap;

use slotmesh_compile::{Conditions, ObjectKey, Report, Severity};

use super::{
    coalescing_queue::CoalescingQueue,
    due::{Due, Snapshot},
};

/// The subject of an update. What is served comes first: conditions are evaluated by it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Served,
    Object(ObjectKey),
    /// Apart from [`Object`](Self::Object): what the compiler says later must not take its place.
    Seen(ObjectKey),
    Report(Box<Report>),
}

/// An update.
#[derive(Clone, Debug)]
pub(crate) enum StatusUpdate {
    /// The resources that are due to the nodes, from what the objects were compiled to.
    Served(Snapshot),
    /// Conditions of an object as the compiler has them now, `None` when it is gone.
    Object(Option<Box<Conditions>>),
    /// The resource version in which an object was seen last.
    Version(Option<String>),
    /// Tells whether a report of something refused holds.
    Holds(bool),
}

/// Where it is put. Clones are handles of the same.
#[derive(Clone, Debug)]
pub struct StatusUpdates {
    queue: CoalescingQueue<Subject, StatusUpdate>,
    due: Due,
}

impl StatusUpdates {
    /// `due` is kept by whoever publishes.
    pub fn new(due: Due) -> Self {
        Self { queue: CoalescingQueue::default(), due }
    }

    /// Objects are compiled and published. Told together, or conditions could be evaluated by what isn't due yet.
    pub(crate) fn compiled(
        &self,
        objects: impl Iterator<Item = (ObjectKey, Option<Conditions>, Option<String>)>,
    ) {
        // Made before anybody has to wait for it.
        let mut all = vec![(Subject::Served, StatusUpdate::Served(self.due.now()))];
        for (key, conditions, version) in objects {
            if version.is_some() {
                all.push((Subject::Seen(key.clone()), StatusUpdate::Version(version)));
            }
            all.push((Subject::Object(key), StatusUpdate::Object(conditions.map(Box::new))));
        }
        self.queue.put(all);
    }

    pub(crate) fn reports(&self, reports: &[Report], hold: bool) {
        let refused = reports.iter().filter(|report| report.severity == Severity::Refused);
        let news = |report: &Report| (Subject::Report(Box::new(report.clone())), StatusUpdate::Holds(hold));
        self.queue.put(refused.map(news));
    }

    pub(crate) async fn take(&self) -> BTreeMap<Subject, StatusUpdate> {
        self.queue.take().await
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_compile::{Kind, ObjectName};

    use super::*;

    #[tokio::test]
    async fn what_was_seen_of_an_object_outlives_what_the_compiler_says_later() {
        let updates = StatusUpdates::new(Due::default());
        let key = ObjectKey { kind: Kind::HttpRoute, name: ObjectName::new("shop", "web") };
        // Somebody else wrote into its status, then something that it depends on changed.
        updates.compiled([(key.clone(), None, Some("7".to_owned()))].into_iter());
        updates.compiled([(key.clone(), None, None)].into_iter());
        let news = updates.take().await;
        assert!(
            matches!(&news[&Subject::Seen(key)], StatusUpdate::Version(Some(seen)) if seen == "7"),
            "{news:?}"
        );
    }
}
