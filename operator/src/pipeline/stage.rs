//! Stages: what happens in the pipeline beside compiling, to the same steps and on the same thread.
//!
//! Invariant: a stage sees each step of the source once, before it is compiled, and each batch once, after it is
//! published. What it makes is compiled with the batch that it is made of.

use std::collections::{BTreeSet, HashMap};

use slotmesh_compile::{Compiler, ObjectKey, Report};

use super::history::ChangedResource;
use crate::{
    status::StatusUpdates,
    watch::{SliceController, Sourced, Step},
};

/// A part of the pipeline beside the compiler.
pub(super) trait Stage: Send {
    /// Takes notice of a step of the source.
    fn observe(&mut self, step: &Step);

    /// Makes objects of what it has seen since the last call.
    fn make(&mut self) -> Made {
        Made::default()
    }

    /// Takes notice of what has come of a batch, which is published if all that the source held at the start is known.
    fn published(&mut self, _batch: &Batch<'_>) {}
}

/// Objects that a stage has made, and reports about these.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) steps: Vec<Step>,
    /// Reports that hold now and did not before.
    pub(super) appeared: Vec<Report>,
    /// Reports that held before and do no longer.
    pub(super) disappeared: Vec<Report>,
}

/// The outcome of the updates that were compiled together.
pub(super) struct Batch<'a> {
    pub(super) compiler: &'a Compiler,
    /// The objects whose conditions may have changed; `None` where nothing is compiled yet.
    pub(super) affected: Option<&'a BTreeSet<ObjectKey>>,
    /// The first of the resources that are other ones since, and how many there are beyond these.
    pub(super) changes: &'a [ChangedResource],
    pub(super) more: usize,
    /// Tells whether it is the first that is published: all that the source held at the start.
    pub(super) is_first: bool,
    pub(super) appeared: &'a [Report],
    pub(super) disappeared: &'a [Report],
}

impl Stage for SliceController {
    fn observe(&mut self, step: &Step) {
        self.observe(step);
    }

    fn make(&mut self) -> Made {
        let (steps, appeared, disappeared) = self.flush();
        Made { steps, appeared, disappeared }
    }
}

/// Tells whoever writes statuses.
#[derive(Debug)]
pub(super) struct StatusStage {
    updates: StatusUpdates,
    /// The resource versions of the objects that were seen since the last flush.
    seen: HashMap<ObjectKey, Option<String>>,
}

impl StatusStage {
    pub(super) fn new(updates: StatusUpdates) -> Self {
        Self { updates, seen: HashMap::new() }
    }
}

impl Stage for StatusStage {
    fn observe(&mut self, step: &Step) {
        if let Step::Apply(Sourced { object, .. }) = step
            && object.kind().has_conditions()
        {
            self.seen.insert(object.key(), object.meta().resource_version.clone());
        }
    }

    fn published(&mut self, batch: &Batch<'_>) {
        if let Some(affected) = batch.affected {
            let objects = affected.iter().map(|key| {
                let version = self.seen.remove(key).flatten();
                (key.clone(), batch.compiler.conditions(key), version)
            });
            self.updates.compiled(objects);
        }
        self.updates.reports(batch.disappeared, false);
        self.updates.reports(batch.appeared, true);
    }
}
