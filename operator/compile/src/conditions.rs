//! The conditions of an object, from the reports that hold about it, and the
//! resources that it compiled to.
//!
//! ```text
//!  Compiler::conditions(&ObjectKey) -> Conditions { generation, ancestors: [
//!      Ancestor { at: Service, conditions: Accepted, ResolvedRefs, Conflicted, resources: (type, name, version) } ] }
//! ```
//!
//! [`ConditionType::Programmed`] isn't here: whoever knows what the agents have acknowledged says so, by comparing the
//! versions (content hashes) of `resources` with theirs. [`Output::affected`](crate::Output::affected)
//! names the objects whose conditions may have changed with a flush.
//!
//! Invariant: conditions follow from what the index and the compiler hold now; asked twice they are the
//! same, on every replica.

use std::collections::{BTreeSet, HashMap};

use slotmesh_xds::{Resource, ResourceName, ResourceType, Version};

use crate::{
    Condition, ConditionType, Index, Kind, ObjectKey, ObjectName, Reason, Report, ServiceId, Severity, Unit,
    clusters,
    model::{Host, PortKey, Route, Target},
    patterns::HostPattern,
    rules::Standing,
    unit::Compiled,
};

/// How many characters of a message are kept: what a status may hold, and more than anybody reads.
const LONGEST: usize = 4_096;

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

    /// Tells whether this is the version that the resource has here.
    pub fn is(&self, version: Version) -> bool {
        self.version == version.get()
    }
}

/// The conditions of an object at one Service, or of it as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// The Service, or host of a ServiceEntry (for a SlotProfile or WorkloadEntry none); its port, where the object is for one only.
    pub at: Option<At>,
    /// In the order of their types; one of each type at most.
    pub conditions: Vec<Condition>,
    /// Resources that the object compiled to there: it is programmed once all nodes have these versions. Empty
    /// where it isn't in force.
    pub resources: Vec<ResourceVersion>,
}

/// Where an object is attached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// The Service.
    pub service: ServiceId,
    /// The name of its port, where the object is for one only by name.
    pub section: Option<String>,
    /// The number of its port, where the object is for one only by number.
    pub port: Option<u16>,
    /// The field that says so, such as `spec.parentRefs[1]`.
    pub field: String,
}

/// All that there is to say of an object in its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// The object.
    pub object: ObjectKey,
    /// The `metadata.generation` that this is about.
    pub generation: Option<i64>,
    /// One for each place where it is attached, or one for the object as a whole; none where the object is none of
    /// ours.
    pub ancestors: Vec<Ancestor>,
}

/// The objects whose conditions may follow from a unit.
pub(crate) fn parties(index: &Index, unit: &Unit) -> Vec<ObjectKey> {
    let key = |kind| move |name: &ObjectName| ObjectKey { kind, name: name.clone() };
    let relations = &index.relations;
    match unit {
        Unit::Object(object) | Unit::Budget(object) => {
            Some(object).filter(|o| o.kind.has_conditions()).cloned().into_iter().collect()
        }
        // What is said of endpoints is no condition.
        Unit::Endpoints(_) => Vec::new(),
        Unit::Clusters(service) => {
            let entries =
                relations.service_entries.of(service).map(|(_, name)| name).map(key(Kind::ServiceEntry));
            let named = HostPattern::One(service.clone());
            let rules = relations.rules.of(&named).map(|(.., name)| name).map(key(Kind::DestinationRule));
            let policies = relations.policies.of(service).map(|(_, name)| name).map(key(Kind::TrafficPolicy));
            rules.chain(policies).chain(entries).collect()
        }
        Unit::Routing(service) => {
            let entries =
                relations.service_entries.of(service).map(|(_, name)| name).map(key(Kind::ServiceEntry));
            let wild = relations.wild_routes_of(service).into_iter();
            let routes = relations.routes.of(service).chain(wild).map(|ranked| ranked.key.clone());
            routes.chain(entries).collect()
        }
        Unit::Settings(node) => index.profile_of(node).map(key(Kind::SlotProfile)).into_iter().collect(),
        Unit::Profile(name) => vec![key(Kind::SlotProfile)(name)],
        Unit::Node(_) | Unit::Workload(_) | Unit::BlackHole | Unit::Passthrough => Vec::new(),
    }
}

/// The resources at a Service that an object has made.
enum Made<'a> {
    /// All of these units.
    Units(Vec<Unit>),
    /// This host, with its addresses.
    Host(ServiceId),
    /// Those that lead connections to the ports that this covers where its rules say.
    Routes(&'a Host),
    /// The clusters of the ports for which it is in force.
    Clusters(&'a Target),
    /// Nothing.
    Nothing,
}

/// One of the places where an object is attached.
struct Place<'a> {
    at: Option<At>,
    made: Made<'a>,
}

impl Place<'_> {
    /// The place of an object that isn't attached to anything.
    fn whole(units: Vec<Unit>) -> Self {
        Self { at: None, made: Made::Units(units) }
    }

    /// Tells whether a report is about this place: one about another parent or host isn't.
    fn concerns(&self, report: &Report) -> bool {
        let Some(at) = &self.at else { return true };
        let is_here = report.at.as_ref().is_none_or(|service| *service == at.service);
        let Some((list, _)) = at.field.split_once('[') else { return is_here };
        let field = report.field.as_deref().unwrap_or_default();
        let of_another = field.strip_prefix(list).is_some_and(|rest| rest.starts_with('['))
            && field
                .strip_prefix(at.field.as_str())
                .is_none_or(|rest| !matches!(rest.chars().next(), None | Some('.')));
        is_here && !of_another
    }
}

/// Where an object is attached, and what it has made there. None where it is none of ours.
fn places<'a>(index: &'a Index, object: &ObjectKey) -> Vec<Place<'a>> {
    let at = |service: &ServiceId, field: &str| At {
        service: service.clone(),
        section: None,
        port: None,
        field: field.to_owned(),
    };
    match object.kind {
        Kind::DestinationRule => index
            .rule_named(&object.name)
            .map(|rule| {
                let made = match &rule.host {
                    HostPattern::One(service)
                        if matches!(index.standing(service, &object.name), Standing::InForce) =>
                    {
                        Made::Units(vec![Unit::Clusters(service.clone())])
                    }
                    HostPattern::One(_) | HostPattern::Under(_) => Made::Nothing,
                };
                Place { at: Some(at(&rule.host.shown(), "spec.host")), made }
            })
            .into_iter()
            .collect(),
        Kind::ServiceEntry => {
            let hosts = index.service_entry(&object.name).into_iter().flat_map(|entry| &entry.hosts);
            hosts
                .map(|host| {
                    // Those of one namespace are merged.
                    let provider = index.provider(&host.name).filter(|by| by.kind == Kind::ServiceEntry);
                    let made = if provider.is_some_and(|by| by.name.namespace == object.name.namespace) {
                        Made::Host(host.name.clone())
                    } else {
                        Made::Nothing
                    };
                    Place { at: Some(at(&host.name, &host.field)), made }
                })
                .collect()
        }
        Kind::TrafficPolicy => {
            let targets = index.policy(&object.name).into_iter().flat_map(|policy| &policy.targets);
            targets
                .map(|target| {
                    let at = At { section: target.port.clone(), ..at(&target.service, &target.field) };
                    Place { at: Some(at), made: Made::Clusters(target) }
                })
                .collect()
        }
        Kind::SlotProfile => {
            let nodes = index.nodes_of(&object.name).into_iter();
            let own = nodes.filter(|node| index.profile_of(node) == Some(&object.name));
            vec![Place::whole(own.map(|node| Unit::Settings(node.clone())).collect())]
        }
        // What becomes of a workload is said of those who select it: it may stand in many assignments, and each
        // holds many workloads.
        Kind::WorkloadEntry => vec![Place::whole(Vec::new())],
        // Where they have routes. The others are attached to nothing.
        _ => {
            let hosts = index.routes(object).into_iter().flat_map(|routes| &routes.hosts);
            let named = hosts.map(|host| {
                let at =
                    At { section: host.section.clone(), port: host.port, ..at(&host.service, &host.field) };
                Place { at: Some(at), made: Made::Routes(host) }
            });
            let wild = index.routes(object).into_iter().flat_map(|routes| &routes.wild);
            let wild = wild.map(|host| {
                let shown = HostPattern::Under(host.suffix.clone()).shown();
                Place { at: Some(at(&shown, &host.field)), made: Made::Nothing }
            });
            named.chain(wild).collect()
        }
    }
}

/// The conditions of an object at each place where it is attached. `reports` are those that hold about it.
pub(crate) fn ancestors(
    index: &Index,
    compiled: &HashMap<Unit, Compiled>,
    object: &ObjectKey,
    reports: &[&Report],
) -> Vec<Ancestor> {
    let mut places = places(index, object);
    if places.is_empty() && reports.iter().any(|report| report.severity != Severity::Note) {
        places.push(Place::whole(Vec::new()));
    }
    places
        .into_iter()
        .map(|place| {
            let here: Vec<&Report> =
                reports.iter().filter(|report| place.concerns(report)).copied().collect();
            let resources = resources(index, compiled, object, &place.made);
            let dropped = (dropped(index, object), index.options.proxy);
            let conditions = conditions(object.kind, &here, dropped, &resources);
            let in_force = conditions.iter().any(|c| c.ty == ConditionType::Accepted && c.holds());
            let resources = if in_force { resources.into_iter().collect() } else { Vec::new() };
            Ancestor { at: place.at, conditions, resources }
        })
        .collect()
}

/// The resources at one place that come from the object.
fn resources(
    index: &Index,
    compiled: &HashMap<Unit, Compiled>,
    object: &ObjectKey,
    made: &Made<'_>,
) -> BTreeSet<ResourceVersion> {
    let of = |unit: &Unit| compiled.get(unit);
    match made {
        Made::Nothing => BTreeSet::new(),
        Made::Units(units) => {
            let resources = units.iter().filter_map(of).flat_map(|compiled| &compiled.resources);
            resources.map(ResourceVersion::of).collect()
        }
        Made::Host(name) => {
            let has = |unit: Unit| of(&unit).into_iter().flat_map(|compiled| &compiled.resources);
            let own: BTreeSet<_> = has(Unit::Routing(name.clone())).map(ResourceVersion::of).collect();
            // Where others have all of its addresses, nothing leads to its clusters.
            if own.is_empty() && index.service(name).is_some_and(|service| !service.vips.is_empty()) {
                return own;
            }
            own.into_iter().chain(has(Unit::Clusters(name.clone())).map(ResourceVersion::of)).collect()
        }
        Made::Routes(host) => {
            let Some(service) = index.service(&host.service) else { return BTreeSet::new() };
            let covers = |port: PortKey| service.port(port).is_some_and(|port| host.covers(port));
            let Some(compiled) = of(&Unit::Routing(host.service.clone())) else { return BTreeSet::new() };
            let own = compiled.resources.iter().filter(|resource| {
                let makers = compiled.made.get(&(resource.ty, resource.name.clone()));
                let mut makers = makers.into_iter().flatten();
                makers.any(|maker| maker.object == *object && covers(maker.port))
            });
            own.map(ResourceVersion::of).collect()
        }
        Made::Clusters(target) => {
            let Some(compiled) = of(&Unit::Clusters(target.service.clone())) else { return BTreeSet::new() };
            let names = clusters::of_policy(index, &object.name, target);
            let own = compiled.resources.iter().filter(|resource| names.contains(resource.name.as_str()));
            own.map(ResourceVersion::of).collect()
        }
    }
}

/// The rules of a route that never act, whatever the port; none where none does.
fn dropped<'a>(index: &'a Index, object: &ObjectKey) -> Vec<&'a str> {
    let Some(routes) = index.routes(object) else { return Vec::new() };
    if !routes.all().any(Route::acts) {
        return Vec::new();
    }
    routes.all().filter(|route| !route.acts()).map(|route| route.field.as_str()).collect()
}

/// The conditions of an object at one place.
fn conditions(
    kind: Kind,
    here: &[&Report],
    (dropped, requests): (Vec<&str>, bool),
    resources: &BTreeSet<ResourceVersion>,
) -> Vec<Condition> {
    let refused = |which: &dyn Fn(Reason) -> bool| -> Vec<&Report> {
        let of = |r: &&&Report| r.severity == Severity::Refused && which(r.reason);
        here.iter().filter(of).copied().collect()
    };
    let conflicts = refused(&|reason| reason == Reason::Conflicted);
    let unresolved = refused(&Reason::is_of_a_backend);
    let wrong = refused(&|reason| {
        let acts = reason == Reason::Conflicted || reason == Reason::NoEndpoints || reason.is_of_a_backend();
        !acts
    });
    // It may have a part of what it wants.
    let lost = !conflicts.is_empty() && resources.is_empty();
    let unsupported: Vec<_> = here.iter().filter(|r| r.severity == Severity::NotSupported).copied().collect();
    let yes = |ty, reason, message: String| Condition::new(ty, true, reason, message);
    let accepted = match (wrong.first(), lost) {
        (Some(first), _) => no(ConditionType::Accepted, first.reason.as_str(), &wrong),
        (None, true) => no(ConditionType::Accepted, Reason::Conflicted.as_str(), &conflicts),
        (None, false) if unsupported.is_empty() => {
            let message = "everything that the object says can be acted on".to_owned();
            yes(ConditionType::Accepted, "Accepted", message)
        }
        (None, false) => yes(ConditionType::Accepted, "SomeFieldsNotSupported", message(&unsupported)),
    };
    let in_force = accepted.holds();
    let mut conditions = vec![accepted];
    if in_force && !dropped.is_empty() {
        let why = match requests {
            true => {
                "A rule that asks for what isn't supported has no effect; requests go where the other rules say"
            }
            false => {
                "A rule that asks for what only a request tells can't be decided when a connection is made; \
                 connections go where the other rules say"
            }
        };
        let message = format!("Dropped Rule: {}. {why}", dropped.join(", "));
        conditions.push(yes(
            ConditionType::PartiallyInvalid,
            Reason::UnsupportedValue.as_str(),
            shorten(message),
        ));
    }
    if kind.spec().has_routes {
        conditions.push(match unresolved.first() {
            Some(first) => no(ConditionType::ResolvedRefs, first.reason.as_str(), &unresolved),
            None => {
                let message = "all that the object leads to is there".to_owned();
                yes(ConditionType::ResolvedRefs, "ResolvedRefs", message)
            }
        });
    }
    conditions.push(match conflicts.is_empty() {
        false => yes(ConditionType::Conflicted, Reason::Conflicted.as_str(), message(&conflicts)),
        true => {
            let message = "no other object has what this one wants".to_owned();
            Condition::new(ConditionType::Conflicted, false, "NoConflict", message)
        }
    });
    conditions
}

/// No more than a status may hold.
fn shorten(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

fn no(ty: ConditionType, reason: &'static str, reports: &[&Report]) -> Condition {
    Condition::new(ty, false, reason, message(reports))
}

/// The texts of the reports, one after the other.
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
