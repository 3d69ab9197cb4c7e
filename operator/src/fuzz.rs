//! What fuzzing drives: manifests in, compiled changes out, without files and threads.

use std::sync::Arc;

use slotmesh_compile::Compiler;
use slotmesh_xds::Change;

use crate::watch::{Definitions, SliceController, Sourced, Step, parse};

/// The files of a directory, and what the operator makes of them.
#[derive(Debug, Default)]
pub struct Manifests {
    files: Definitions,
    slices: SliceController,
    compiler: Compiler,
}

impl Manifests {
    /// The file was saved with this text, or removed; what changes.
    pub fn save(&mut self, file: &str, text: Option<&str>) -> Vec<Change> {
        let file: Arc<str> = file.into();
        match text {
            Some(text) => self.files.set(&file, parse(&file, text)),
            None => self.files.remove(&file),
        }
        let (changed, ..) = self.files.changes();
        for change in changed {
            let gone = |sourced: Sourced| Step::Delete(sourced.object.key());
            if let Some(step) = change.new.map(Step::Apply).or_else(|| change.old.map(gone)) {
                self.slices.observe(&step);
                self.step(step);
            }
        }
        let (made, ..) = self.slices.flush();
        made.into_iter().for_each(|step| self.step(step));
        self.compiler.flush().changes
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Apply(sourced) => self.compiler.apply(&sourced.object, sourced.source),
            Step::Delete(key) => self.compiler.delete(&key),
        }
    }
}
