//! The JSON that the admin interfaces answer, as types that both ends share: agent, operator and `slotmesh up` on one,
//! the command line on the other.
//!
//! Invariant: a client reads what an older or a newer server answers. Fields that it doesn't know are skipped, and
//! those that a server may not have are optional.

mod changed;
mod in_force;
mod origin_view;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use changed::{ChangeView, ChangedObjectView, ChangedResourceView};
pub use in_force::{
    ActionInForce, AskedInForce, AssignmentInForce, ChainInForce, ClusterInForce, ConnectionsInForce,
    EjectedInForce, EndpointInForce, HostInForce, ListenerInForce, LocalityInForce, MembersInForce,
    NodeInForce, RateInForce, RouteInForce, RuleInForce, ServedView, ShareInForce, VerdictInForce,
    WeightedInForce, WorkloadInForce,
};
pub use origin_view::{EndpointOriginView, OriginView, OriginsView};

/// Paths of the pages that a client asks for.
pub mod paths {
    /// A list of [`ReportView`](super::ReportView)s, by operator and `slotmesh up`.
    pub const REPORTS: &str = "/reports";
    /// A [`SlotsReport`](super::SlotsReport), by agents; behind a further `/` and a size of slots a list of
    /// [`SlabReport`](super::SlabReport).
    pub const SLOTS: &str = "/slots";
    /// Resources of a type as the records hold them, some at a time, by name; behind a further `/` the name after which
    /// they begin. By agents.
    pub const RECORDS: &str = "/records";
    /// A list of [`WorkloadInForce`](super::WorkloadInForce), by agents.
    pub const WORKLOADS: &str = "/workloads";
    /// [`AskedInForce`](super::AskedInForce) of `/NAMESPACE/NAME/PROTOCOL/ADDRESS`, by agents.
    pub const ASK: &str = "/ask";
    /// A list of [`ServedView`](super::ServedView) of a type, by operator and `slotmesh up`; behind a further `/` and a
    /// name the resource as a node would have it in force.
    pub const SERVED: &str = "/served";
    /// [`OriginsView`](super::OriginsView) of a listener, by operator and `slotmesh up`.
    pub const ORIGINS: &str = "/origins";
    /// A list of [`ChangeView`](super::ChangeView), oldest first: what was compiled and served, by operator and
    /// `slotmesh up`.
    pub const CHANGES: &str = "/changes";
    /// A list of [`ChangeView`](super::ChangeView), oldest first: what came into force on the node, by agents.
    pub const UPDATES: &str = "/updates";
    /// Bytes of the route configuration `/NAME` (`envoy.config.route.v3.RouteConfiguration`) that the proxies of a node
    /// have, by agents that serve proxies.
    pub const PROXIED: &str = "/proxied";
    /// [`NodeInForce`](super::NodeInForce), by agents.
    pub const NODE: &str = "/node";
    /// A [`VersionView`](super::VersionView), by all.
    pub const VERSION: &str = "/version";
}

/// Severity of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportSeverity {
    /// Something that somebody asked for is not in force.
    Refused,
    /// A field has no effect.
    NotSupported,
    /// Worth knowing.
    Note,
}

impl fmt::Display for ReportSeverity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Refused => "refused",
            Self::NotSupported => "not supported",
            Self::Note => "note",
        })
    }
}

/// One thing that a user should know about one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportView {
    /// Kind, namespace and name in one, to be read.
    pub object: String,
    /// Kind of the object; also `Document`, `File` and `Directory`.
    pub kind: String,
    /// Its namespace; empty where there is none.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// File that it was read from.
    pub file: Option<String>,
    /// Number of its document in the file, from 1.
    pub document: Option<usize>,
    /// Line in the file: that of the field where it is known, else the first of the document.
    pub line: Option<usize>,
    /// Field that it is about, such as `spec.http[0].route[1].weight`.
    pub field: Option<String>,
    /// Severity.
    pub severity: ReportSeverity,
    /// Reason for machines, such as `BackendNotFound`.
    pub reason: String,
    /// Description of what is the matter.
    pub message: String,
    /// Meaning of it for connections.
    pub consequence: Option<String>,
    /// Likely cause.
    pub hint: Option<String>,
}

impl ReportView {
    /// Field (where the message doesn't name it), message, consequence and hint in one line.
    pub fn text(&self) -> String {
        let field = self.field.as_deref().filter(|field| !self.message.contains(field));
        let field = field.map_or(String::new(), |field| format!("{field}: "));
        let rest = [&self.consequence, &self.hint].into_iter().flatten();
        rest.fold(field + &self.message, |text, more| text + "; " + more)
    }
}

/// Slot table of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotsReport {
    /// Counts by slot size, smallest first.
    pub classes: Vec<ClassReport>,
    /// Outer records (slabs of 64 KiB) that exist.
    pub outer_records: u32,
    /// Of these, wholly idle: any class can have them.
    pub outer_records_empty: u32,
    /// Outer records not created yet, up to the cap.
    pub outer_records_remaining: u32,
    /// Slots and handles that wait for a grace period.
    pub quarantined: usize,
    /// Named resources that have a handle.
    pub handles: usize,
    /// Grace periods since the agent started.
    pub grace_periods: u64,
    /// Reason of the last growth's failure, if it failed.
    pub growth_error: Option<String>,
}

/// Slots of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassReport {
    /// Size of a slot, bytes.
    pub bytes: usize,
    /// Slots in use.
    pub used: u64,
    /// Free slots, in slabs of this class.
    pub idle: u64,
    /// Slots that wait for a grace period.
    pub retired: u64,
}

/// A slab of a class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlabReport {
    /// Index.
    pub slab: u32,
    /// Slots in use.
    pub used: u64,
    /// Free slots.
    pub idle: u64,
    /// Slots that wait for a grace period.
    pub retired: u64,
}

/// Version of a process, and on what it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionView {
    /// Part of slotmesh: `agent`, `operator`.
    pub component: String,
    /// Version of the build.
    pub version: String,
    /// Hash of the record layout, of agents: builds of the same layout take over each other's records.
    pub layout: Option<String>,
    /// Release of the kernel, of agents.
    pub kernel: Option<String>,
    /// Hooks of a workload's cgroup at which programs decide, of agents.
    #[serde(default)]
    pub hooks: Vec<String>,
    /// Features that not each kernel has, of agents.
    #[serde(default)]
    pub features: Vec<FeatureView>,
}

/// A feature that not each kernel has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureView {
    /// Its meaning for connections.
    pub name: String,
    /// True where this kernel has it, and lets programs use it.
    pub available: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_as_one_line_and_names_its_field_once() {
        let mut report = ReportView {
            object: "Service shop/web".to_owned(),
            kind: "Service".to_owned(),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            file: None,
            document: None,
            line: None,
            field: Some("spec.ports".to_owned()),
            severity: ReportSeverity::NotSupported,
            reason: "NotSupported".to_owned(),
            message: "it is empty".to_owned(),
            consequence: Some("nothing happens".to_owned()),
            hint: None,
        };
        assert_eq!(report.text(), "spec.ports: it is empty; nothing happens");
        report.message = "spec.ports is empty".to_owned();
        assert_eq!(report.text(), "spec.ports is empty; nothing happens");
        assert_eq!(format!("{:>14}", report.severity), " not supported");
    }
}
