//! Tables of sources: a load assignment has one while a cluster in force chooses from it by the source.
//!
//! Clusters and load assignments are resources of their own, and come and change in any order. So the writer
//! counts, by load assignment, the clusters that hash. Before the first becomes current, the assignment gets
//! its table; after the last has gone, it is written without one. The records say which clusters those are, also to
//! the next agent.

use slotmesh_records::{Cluster, Handle, balance};
use slotmesh_slots::Full;

use super::{RejectedRecord, Writer};
use crate::{
    RecordType,
    config::{self, Model},
    flatten::{EndpointsView, flush},
    held::Held,
};

impl Writer {
    /// Makes a cluster current, and gives its load assignment a table where it wants one.
    pub(super) fn upsert_cluster(
        &mut self,
        name: &str,
        version: u64,
        cluster: &config::Cluster<'_>,
        model: &Model<'_>,
        view: EndpointsView<'_>,
    ) -> Result<(), RejectedRecord> {
        // Both versions count until the flush has been decided.
        let (old, new) = (self.hashed_by(name), cluster.hashes_over());
        if let Some(new) = new {
            self.hash(new)?;
        }
        let flushed = flush(self.engine.draft(), name, version, model, view);
        let unused = if flushed.is_ok() { old.as_deref() } else { new };
        if let Some(unused) = unused {
            self.unhash(unused);
        }
        flushed?;
        Ok(())
    }

    /// The load assignment that the current version of a cluster chooses from by the source.
    pub(super) fn hashed_by(&self, cluster: &str) -> Option<String> {
        let root = self.engine.current(self.engine.find(RecordType::Cluster.kind(), cluster)?);
        let (cluster, _) = self.engine.record::<Cluster>(root)?;
        if !matches!(cluster.balance, balance::HASH | balance::HASH_BY_ROUTE) {
            return None;
        }
        let (_, name) = self.engine.record::<Handle>(cluster.endpoints.ptr())?;
        Some(std::str::from_utf8(name).ok()?.to_owned())
    }

    /// One cluster more chooses from this load assignment by the source: before it is current, the assignment
    /// has a table for that.
    fn hash(&mut self, assignment: &str) -> Result<(), Full> {
        if let Some(clusters) = self.hashed.get_mut(assignment) {
            *clusters += 1;
            return Ok(());
        }
        self.rewrite(assignment, true)?;
        self.hashed.insert(assignment.to_owned(), 1);
        self.hashed_names.insert(assignment);
        Ok(())
    }

    /// One cluster less does; after the last, the assignment has no table.
    pub(super) fn unhash(&mut self, assignment: &str) {
        let Some(clusters) = self.hashed.get_mut(assignment) else { return };
        *clusters -= 1;
        if *clusters == 0 {
            self.hashed.remove(assignment);
            self.hashed_names.remove(assignment);
            if let Err(error) = self.rewrite(assignment, false) {
                tracing::info!(assignment, %error, "its table of sources stays until its next version");
            }
        }
    }

    /// Writes the current version of a load assignment anew, with a table of sources or without one.
    fn rewrite(&mut self, name: &str, hashed: bool) -> Result<(), Full> {
        let Some(handle) = self.engine.find(RecordType::Endpoints.kind(), name) else { return Ok(()) };
        let Some(held) = Held::read(&self.engine, self.engine.current(handle)) else { return Ok(()) };
        let Some(endpoints) = held.endpoints() else { return Ok(()) };
        let tables = if hashed { self.prepared.take(name, held.version(), None) } else { None };
        let view = EndpointsView { hashed, tables: tables.as_ref() };
        self.own_tables += u64::from(view.lacks_tables(&endpoints));
        let model = Model::Endpoints(endpoints);
        flush(self.engine.draft(), name, held.version(), &model, view).map(drop)
    }
}
