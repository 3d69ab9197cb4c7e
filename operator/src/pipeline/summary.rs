//! The status of the operator itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use slotmesh_compile::{Kind, LeftAlone, Report, Stats};

/// The status of the operator itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Tells whether all that the source held at the start has been compiled and published.
    pub synced: bool,
    /// The kinds that have not been listed yet; none once synced.
    pub outstanding: Vec<Kind>,
    /// The kinds that can't be listed, and without which everything else is served.
    pub left_out: Vec<Kind>,
    /// How many pods are left alone, by reason.
    pub left_alone: BTreeMap<LeftAlone, usize>,
    /// Every report that holds, sorted by object.
    pub reports: Arc<BTreeSet<Report>>,
    /// How many objects of each kind the source has.
    pub objects: BTreeMap<Kind, usize>,
    /// How much was compiled since the start.
    pub compiled: Stats,
    /// How many Services ask for what isn't done yet, so that connections to them are left to kube-proxy.
    pub left_to_kube_proxy: usize,
}
