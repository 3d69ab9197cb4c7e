//! Sources of objects: all give the same typed events, those of kube's watchers.
//!
//! Each kind of object has its own cycle of `Init`, `InitApply`…, `InitDone`, then `Apply` and
//! `Delete`, as if by one kube watcher for each kind. Events that belong together (the files of one
//! save) travel in one [`Update`], so no state between them is ever compiled.

mod cluster;
mod files;
mod lines;
mod list_tracker;
mod manifests;
mod once;
mod parse;
mod slices;
mod store;
mod typos;

pub use cluster::Cluster;
pub(crate) use cluster::resources;
pub(crate) use list_tracker::{ListTracker, Step};
pub use manifests::Manifests;
pub use once::ManifestTexts;
pub(crate) use slices::SliceController;
#[cfg(feature = "fuzz")]
pub(crate) use {parse::parse, store::Store as Definitions};

use std::{collections::BTreeMap, time::Instant};

use slotmesh_compile::{Kind, Object, ObjectName, Report, Source};

/// The node on which the agent of the embedded mode runs: no manifest has to describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNode {
    /// Its name, as its agent calls itself.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Default for LocalNode {
    /// A node without labels, by the name that agents have where nobody names them.
    fn default() -> Self {
        Self { name: "standalone".to_owned(), labels: BTreeMap::new() }
    }
}

/// An object and where it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Sourced {
    /// The object.
    pub object: Object,
    /// Where it was read, when from a file.
    pub source: Option<Source>,
}

/// A change of an object, or of the list of all of its kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A list of all objects begins.
    Init,
    /// An object of that list.
    InitApply(Sourced),
    /// The list is complete: what isn't in it is gone.
    InitDone,
    /// An object is new or has changed.
    Apply(Sourced),
    /// An object is gone, or can't be read any more, which is the same: what is in force follows from what the
    /// objects say now.
    Delete(ObjectName),
    /// The objects can't be listed for now, and nothing waits for that any longer.
    LeftOut,
}

/// An event of the watcher for one kind.
#[derive(Clone, Debug)]
pub struct WatchEvent {
    /// The kind that is watched.
    pub kind: Kind,
    /// The event.
    pub event: Event,
}

/// News of the versions of a kind's objects in the source, which rise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// An object of a list under way has this version.
    Listing(u64),
    /// The list that is complete now is of this version.
    Listed(u64),
    /// An object got this version, by a change or its end.
    Changed(u64),
    /// Nothing happened up to this version.
    Quiet(u64),
    /// There are none, or they can't be compared.
    Unknown,
}

/// All that a source has to say at one moment.
#[derive(Clone, Debug)]
pub struct Update {
    /// Events of objects, in order.
    pub events: Vec<WatchEvent>,
    /// Reports about the source that hold now and did not before.
    pub appeared: Vec<Report>,
    /// Reports about the source that held and do no longer.
    pub disappeared: Vec<Report>,
    /// When the source saw it.
    pub seen: Instant,
    /// The version up to which the source is known with that, where it has versions.
    pub reached: Option<(Kind, Reach)>,
}

/// Follows what changes in a set of reports.
#[derive(Debug, Default)]
pub(crate) struct ReportChanges(BTreeMap<Report, isize>);

impl ReportChanges {
    pub(crate) fn replace(
        &mut self,
        old: impl IntoIterator<Item = Report>,
        new: impl IntoIterator<Item = Report>,
    ) {
        old.into_iter().for_each(|report| *self.0.entry(report).or_default() -= 1);
        new.into_iter().for_each(|report| *self.0.entry(report).or_default() += 1);
    }

    /// Returns the reports that appeared and those that disappeared.
    pub(crate) fn take(&mut self) -> (Vec<Report>, Vec<Report>) {
        let changed = std::mem::take(&mut self.0).into_iter().filter(|(_, difference)| *difference != 0);
        let (appeared, disappeared): (Vec<_>, Vec<_>) = changed.partition(|(_, difference)| *difference > 0);
        let reports = |list: Vec<(Report, isize)>| list.into_iter().map(|(report, _)| report).collect();
        (reports(appeared), reports(disappeared))
    }
}
