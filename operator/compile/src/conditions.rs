//! What there is to say of an object in its status, from the reports that hold about it, and the
//! resources that it compiled to.
//!
//! ```text
//!  Compiler::conditions(&ObjectKey) -> Conditions { generation, ancestors: [
//!      Ancestor { at: Service, conditions: Accepted, ResolvedRefs, Conflicted, resources: (type, name, version) } ] }
//! ```
//!
//! `Programmed` isn't here: whoever knows what the agents have acknowledged says so, by comparing the
//! versions (content hashes) of `resources` with theirs. [`Output::affected`](crate::Output::affected)
//! names the objects whose conditions may have changed with a flush.
//!
//! Invariant: conditions follow from what the index and the compiler hold now; asked twice they are the
//! same, on every replica.

use std::collections::BTreeSet;

use slotmesh_xds::{Resource, ResourceName, ResourceType, Version};

use crate::{Index, Kind, ObjectKey, ObjectName, Reason, Report, Severity, Unit};

/// How many characters of a message are kept: what a status may hold, and more than anybody reads.
const LONGEST: usize = 4_096;

/// What a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The object can be acted on. The message names by field what of it can't.
    Accepted,
    /// All that the object leads to is there and allowed. Only for objects that lead somewhere.
    ResolvedRefs,
    /// Another object has what this one wants.
    Conflicted,
}

impl ConditionType {
    /// As it stands in a status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::ResolvedRefs => "ResolvedRefs",
            Self::Conflicted => "Conflicted",
        }
    }
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What it is about.
    pub ty: ConditionType,
    /// Whether it holds.
    pub holds: bool,
    /// Why, for machines, such as `Accepted`, `Invalid`, `Conflicted`, `BackendNotFound`.
    pub reason: &'static str,
    /// Why, for people: the fields and what to do.
    pub message: String,
}

/// A resource that an object takes part in, and the content that it has now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceVersion {
    /// The type.
    pub ty: ResourceType,
    /// The name.
    pub name: ResourceName,
    /// The hash of the content.
    pub version: u64,
}

impl ResourceVersion {
    fn of(resource: &Resource) -> Self {
        Self { ty: resource.ty, name: resource.name.clone(), version: resource.version.get() }
    }

    /// Whether this is the version that the resource has here.
    pub fn is(&self, version: Version) -> bool {
        self.version == version.get()
    }
}

/// What there is to say of an object at one Service, or of it as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// The Service, or host of a ServiceEntry (for a SlotProfile or WorkloadEntry none); its port, where the object is for one only.
    pub at: Option<At>,
    /// In the order of their types; one of each type at most.
    pub conditions: Vec<Condition>,
    /// What the object compiled to there: it is programmed once all nodes have these versions. Empty
    /// where it isn't in force.
    pub resources: Vec<ResourceVersion>,
}

/// Where an object is attached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// The Service.
    pub service: ObjectName,
    /// The name of its port, where the object is for one only by name.
    pub section: Option<String>,
    /// The number of its port, where the object is for one only by number.
    pub port: Option<u16>,
}

/// All that there is to say of an object in its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// The object.
    pub object: ObjectKey,
    /// The `metadata.generation` that this is about.
    pub generation: Option<i64>,
    /// One for each place where it is attached, or one for the object as a whole.
    pub ancestors: Vec<Ancestor>,
}

impl Kind {
    /// Whether objects of this kind have a status that slotmesh writes.
    pub const fn has_conditions(self) -> bool {
        match self {
            Self::Service | Self::EndpointSlice | Self::Pod | Self::Namespace | Self::Node => false,
            Self::ReferenceGrant => false,
            Self::VirtualService | Self::GrpcRoute | Self::HttpRoute => true,
            Self::TlsRoute | Self::TcpRoute => true,
            Self::DestinationRule | Self::SlotProfile | Self::TrafficPolicy => true,
            Self::ServiceEntry | Self::WorkloadEntry => true,
        }
    }

    /// Whether objects of this kind lead to Services other than the one that they are attached to.
    const fn leads_somewhere(self) -> bool {
        matches!(
            self,
            Self::VirtualService | Self::GrpcRoute | Self::HttpRoute | Self::TlsRoute | Self::TcpRoute
        )
    }
}

/// The objects whose conditions may follow from a unit.
pub(crate) fn parties(index: &Index, unit: &Unit) -> Vec<ObjectKey> {
    let key = |kind| move |name: &ObjectName| ObjectKey { kind, name: name.clone() };
    let relations = &index.relations;
    match unit {
        Unit::Object(object) => {
            Some(object).filter(|o| o.kind.has_conditions()).cloned().into_iter().collect()
        }
        Unit::Clusters(service) | Unit::Endpoints(service) => {
            let entries =
                relations.service_entries.of(service).map(|(_, name)| name).map(key(Kind::ServiceEntry));
            let rules = relations.rules.of(service).map(|(_, name)| name).map(key(Kind::DestinationRule));
            let policies = relations.policies.of(service).map(|(_, name)| name).map(key(Kind::TrafficPolicy));
            rules.chain(policies).chain(entries).collect()
        }
        Unit::Routing(service) => {
            let entries =
                relations.service_entries.of(service).map(|(_, name)| name).map(key(Kind::ServiceEntry));
            relations.routes.of(service).map(|ranked| ranked.key.clone()).chain(entries).collect()
        }
        Unit::Settings(node) => index.profile_of(node).map(key(Kind::SlotProfile)).into_iter().collect(),
        Unit::Profile(name) => vec![key(Kind::SlotProfile)(name)],
        Unit::BlackHole => Vec::new(),
    }
}

/// Where an object is attached, and the units that it takes part in there.
pub(crate) fn attachments(index: &Index, object: &ObjectKey) -> Vec<(Option<At>, Vec<Unit>)> {
    let whole = |service: &ObjectName| Some(At { service: service.clone(), section: None, port: None });
    match object.kind {
        Kind::VirtualService | Kind::GrpcRoute | Kind::HttpRoute | Kind::TlsRoute | Kind::TcpRoute => {
            let hosts = index.routes(object).into_iter().flat_map(|routes| &routes.hosts);
            hosts
                .map(|host| {
                    let (service, section) = (host.service.clone(), host.section.clone());
                    let at = At { service, section, port: host.port };
                    (Some(at), vec![Unit::Routing(host.service.clone())])
                })
                .collect()
        }
        Kind::DestinationRule => index
            .rule_named(&object.name)
            .map(|rule| &rule.service)
            .map(|s| (whole(s), vec![Unit::Clusters(s.clone()), Unit::Endpoints(s.clone())]))
            .into_iter()
            .collect(),
        Kind::ServiceEntry => {
            let hosts = index.service_entry(&object.name).into_iter().flat_map(|entry| &entry.hosts);
            hosts
                .map(|host| {
                    let s = &host.name;
                    let units = [Unit::Clusters, Unit::Endpoints, Unit::Routing].map(|unit| unit(s.clone()));
                    (whole(s), units.into())
                })
                .collect()
        }
        Kind::TrafficPolicy => {
            let targets = index.policy(&object.name).into_iter().flat_map(|policy| &policy.targets);
            targets
                .map(|t| {
                    let at = At { service: t.service.clone(), section: t.port.clone(), port: None };
                    (Some(at), vec![Unit::Clusters(t.service.clone())])
                })
                .collect()
        }
        Kind::SlotProfile => {
            let nodes = index.nodes_of(&object.name).into_iter();
            let own = nodes.filter(|node| index.profile_of(node) == Some(&object.name));
            vec![(None, own.map(|node| Unit::Settings(node.clone())).collect())]
        }
        Kind::Service | Kind::EndpointSlice | Kind::Pod => Vec::new(),
        // What becomes of a workload is said of those who select it: it may stand in many assignments, and each
        // holds many workloads.
        Kind::Namespace | Kind::Node | Kind::ReferenceGrant | Kind::WorkloadEntry => Vec::new(),
    }
}

/// The conditions of an object at one place, from the reports that hold about it.
pub(crate) fn ancestor<'a>(
    kind: Kind,
    at: Option<At>,
    reports: impl Iterator<Item = &'a Report>,
    resources: impl Iterator<Item = &'a Resource>,
) -> Ancestor {
    let service = at.as_ref().map(|at| &at.service);
    let here: Vec<&Report> =
        reports.filter(|r| r.at.is_none() || service.is_none() || r.at.as_ref() == service).collect();
    let refused = |reasons: &[Reason]| -> Vec<&Report> {
        let of = |r: &&&Report| r.severity == Severity::Refused && reasons.contains(&r.reason);
        here.iter().filter(of).copied().collect()
    };
    let mut resources: BTreeSet<ResourceVersion> = resources.map(ResourceVersion::of).collect();
    let conflicts = refused(&[Reason::Conflicted]);
    let wrong = refused(&[Reason::Invalid, Reason::TargetNotFound, Reason::NotSupported]);
    let unresolved: Vec<&Report> = here
        .iter()
        .filter(|r| r.severity == Severity::Refused && r.reason.is_of_a_backend())
        .copied()
        .collect();
    // A SlotProfile is in force on the nodes that it has, even if another has some.
    let lost = !conflicts.is_empty() && (kind != Kind::SlotProfile || resources.is_empty());
    if lost || !wrong.is_empty() {
        resources.clear();
    }
    let unsupported: Vec<_> = here.iter().filter(|r| r.severity == Severity::NotSupported).copied().collect();
    let accepted = match (wrong.first(), lost) {
        (Some(first), _) => no(ConditionType::Accepted, first.reason.as_str(), &wrong),
        (None, true) => no(ConditionType::Accepted, Reason::Conflicted.as_str(), &conflicts),
        (None, false) if unsupported.is_empty() => Condition {
            ty: ConditionType::Accepted,
            holds: true,
            reason: "Accepted",
            message: "everything that the object says can be acted on".to_owned(),
        },
        (None, false) => Condition {
            ty: ConditionType::Accepted,
            holds: true,
            reason: "SomeFieldsNotSupported",
            message: message(&unsupported),
        },
    };
    let mut conditions = vec![accepted];
    if kind.leads_somewhere() {
        conditions.push(match unresolved.first() {
            Some(first) => no(ConditionType::ResolvedRefs, first.reason.as_str(), &unresolved),
            None => Condition {
                ty: ConditionType::ResolvedRefs,
                holds: true,
                reason: "ResolvedRefs",
                message: "all that the object leads to is there".to_owned(),
            },
        });
    }
    conditions.push(match conflicts.is_empty() {
        false => Condition {
            ty: ConditionType::Conflicted,
            holds: true,
            reason: Reason::Conflicted.as_str(),
            message: message(&conflicts),
        },
        true => Condition {
            ty: ConditionType::Conflicted,
            holds: false,
            reason: "NoConflict",
            message: "no other object has what this one wants".to_owned(),
        },
    });
    Ancestor { at, conditions, resources: resources.into_iter().collect() }
}

fn no(ty: ConditionType, reason: &'static str, reports: &[&Report]) -> Condition {
    Condition { ty, holds: false, reason, message: message(reports) }
}

/// What the reports say, one after the other.
fn message(reports: &[&Report]) -> String {
    let mut text = String::new();
    for report in reports {
        let one = report.text();
        if text.len() + one.len() > LONGEST {
            text.push_str(if text.is_empty() { "too much to be shown" } else { ". And more" });
            break;
        }
        if !text.is_empty() {
            text.push_str(". ");
        }
        text.push_str(&one);
    }
    text
}
