//! The compiler: takes events, compiles what depends on them, and tells what changed.
//!
//! Invariant: after each [`Compiler::flush`], what was ever sent as a change adds up to exactly what
//! the index says (and the last good versions of what is refused).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
};

use slotmesh_xds::{Change, Resource, ResourceName, ResourceType, Version};

use crate::{
    Conditions, Index, Object, ObjectKey, ObjectName, ObjectRef, Reason, Report, Severity, Source, Unit,
    clusters, conditions, endpoints,
    routing::{self, Memory},
    settings,
};

/// What one unit compiles to.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    pub(crate) resources: Vec<Resource>,
    pub(crate) reports: Vec<Report>,
}

/// What a [`Compiler::flush`] changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// Changed resources in make-before-break order: updates by type and name, then removals by
    /// reverse type and name. Each resource at most once.
    pub changes: Vec<Change>,
    /// Reports that hold now and did not before, sorted.
    pub appeared: Vec<Report>,
    /// Reports that held before and do no longer, sorted.
    pub disappeared: Vec<Report>,
    /// The objects whose [`Compiler::conditions`] may have changed; those that are gone, too.
    pub affected: BTreeSet<ObjectKey>,
}

/// How much work was done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Units compiled.
    pub units: u64,
    /// Resources encoded, changed or not.
    pub resources: u64,
}

/// Holds the objects of a cluster and compiles them step by step.
///
/// ```
/// use slotmesh_compile::{Compiler, builder::{service, slice}};
///
/// let mut compiler = Compiler::default();
/// compiler.apply(&service("web").ip("10.96.0.10").port(80).build(), None);
/// compiler.apply(&slice("web-1", "web").port(8080).endpoint("10.1.0.1").build(), None);
/// // A cluster, its endpoints and a listener.
/// assert_eq!(compiler.flush().changes.len(), 3);
/// ```
#[derive(Debug, Default)]
pub struct Compiler {
    index: Index,
    dirty: BTreeSet<Unit>,
    /// What reading found, for the next flush.
    read: HashMap<ObjectKey, Vec<Report>>,
    /// The objects that came or went since the last flush, and have a status.
    events: BTreeSet<ObjectKey>,
    compiled: HashMap<Unit, Compiled>,
    /// The last good versions of routes, by Service.
    routed: HashMap<ObjectName, Memory>,
    /// Every report that holds, and how many units say so.
    reports: BTreeMap<Report, usize>,
    stats: Stats,
}

impl Compiler {
    /// Adds an object or replaces its previous version. Takes effect with the next flush.
    pub fn apply(&mut self, object: &Object, source: Option<Source>) {
        let reports = self.index.apply(object, source, &mut self.dirty);
        self.read(object.key(), reports);
    }

    /// Removes an object. Takes effect with the next flush.
    pub fn delete(&mut self, key: &ObjectKey) {
        self.index.delete(key, &mut self.dirty);
        self.read(key.clone(), Vec::new());
    }

    fn read(&mut self, key: ObjectKey, reports: Vec<Report>) {
        if key.kind.has_conditions() {
            self.events.insert(key.clone());
        }
        // Most objects have nothing to say, now or before.
        let unit = Unit::Object(key.clone());
        if !reports.is_empty() || self.compiled.contains_key(&unit) || self.read.contains_key(&key) {
            self.dirty.insert(unit);
            self.read.insert(key, reports);
        }
    }

    /// What there is to say of an object in its status, as of the last flush; `None` when there is no
    /// such object, or its kind has no status.
    pub fn conditions(&self, object: &ObjectKey) -> Option<Conditions> {
        let generation = self.index.generation(object).filter(|_| object.kind.has_conditions())?;
        let mut places = conditions::attachments(&self.index, object);
        if places.is_empty() {
            places.push((None, Vec::new()));
        }
        let ancestors = places.into_iter().map(|(at, units)| {
            let compiled = units.iter().filter_map(|unit| self.compiled.get(unit));
            let resources = compiled.flat_map(|compiled| &compiled.resources);
            conditions::ancestor(object.kind, at, self.reports_about(object), resources)
        });
        Some(Conditions { object: object.clone(), generation, ancestors: ancestors.collect() })
    }

    /// The reports that hold about an object.
    fn reports_about(&self, object: &ObjectKey) -> impl Iterator<Item = &Report> {
        let first = Report {
            object: ObjectRef::new(object, None),
            field: None,
            severity: Severity::Refused,
            reason: Reason::Invalid,
            at: None,
            message: String::new(),
            consequence: None,
        };
        let is = move |report: &&Report| {
            report.object.kind == object.kind.as_str()
                && report.object.namespace == object.name.namespace
                && report.object.name == object.name.name
        };
        self.reports.range(first..).map(|(report, _)| report).take_while(is)
    }

    /// Compiles what depends on the events since the last flush.
    pub fn flush(&mut self) -> Output {
        let mut before: HashMap<(ResourceType, ResourceName), Version> = HashMap::new();
        let mut after: Vec<Resource> = Vec::new();
        let mut said: BTreeMap<Report, isize> = BTreeMap::new();
        let mut affected = mem::take(&mut self.events);
        for unit in mem::take(&mut self.dirty) {
            let new = self.compile(&unit);
            affected.extend(conditions::parties(&self.index, &unit));
            after.extend(new.resources.iter().cloned());
            for report in &new.reports {
                *said.entry(report.clone()).or_default() += 1;
            }
            let old = if new.resources.is_empty() && new.reports.is_empty() {
                self.compiled.remove(&unit)
            } else {
                self.compiled.insert(unit, new)
            };
            let Some(old) = old else { continue };
            before.extend(old.resources.into_iter().map(|r| ((r.ty, r.name), r.version)));
            for report in old.reports {
                *said.entry(report).or_default() -= 1;
            }
        }
        let mut output = Output { changes: changes(before, after), affected, ..Output::default() };
        for (report, difference) in said {
            self.count(report, difference, &mut output);
        }
        output
    }

    fn compile(&mut self, unit: &Unit) -> Compiled {
        let compiled = match unit {
            Unit::Object(key) => {
                Compiled { resources: Vec::new(), reports: self.read.remove(key).unwrap_or_default() }
            }
            Unit::Clusters(name) => clusters::compile(&self.index, name),
            Unit::Endpoints(name) => endpoints::compile(&self.index, name),
            Unit::Settings(node) => settings::compile(&self.index, node),
            Unit::Profile(name) => settings::report(&self.index, name),
            Unit::Routing(name) => {
                let mut memory = self.routed.remove(name).unwrap_or_default();
                let compiled = routing::compile(&self.index, name, &mut memory);
                if !memory.is_empty() {
                    self.routed.insert(name.clone(), memory);
                }
                compiled
            }
        };
        self.stats.units += 1;
        self.stats.resources += compiled.resources.len() as u64;
        compiled
    }

    fn count(&mut self, report: Report, difference: isize, output: &mut Output) {
        let held = self.reports.get(&report).copied().unwrap_or_default();
        let holds = held.saturating_add_signed(difference);
        match (held, holds) {
            (0, 0) => {}
            (_, 0) => {
                self.reports.remove(&report);
                output.disappeared.push(report);
            }
            (0, _) => {
                self.reports.insert(report.clone(), holds);
                output.appeared.push(report);
            }
            _ => {
                self.reports.insert(report, holds);
            }
        }
    }

    /// Whether an object, or something of it, is refused.
    pub fn refuses(&self, object: &ObjectKey) -> bool {
        self.reports_about(object).any(|report| report.severity == Severity::Refused)
    }

    /// Every report that holds, sorted.
    pub fn reports(&self) -> impl Iterator<Item = &Report> {
        self.reports.keys()
    }

    /// Every resource in force, sorted by type and name.
    pub fn resources(&self) -> Vec<Resource> {
        let mut all: Vec<_> = self.compiled.values().flat_map(|c| &c.resources).cloned().collect();
        all.sort_by(|a, b| (a.ty, &a.name).cmp(&(b.ty, &b.name)));
        all
    }

    /// How much work was done since the start.
    pub const fn stats(&self) -> Stats {
        self.stats
    }
}

/// The difference, in make-before-break order. A resource may have moved from one unit to another.
fn changes(
    mut before: HashMap<(ResourceType, ResourceName), Version>,
    mut after: Vec<Resource>,
) -> Vec<Change> {
    after.retain(|r| before.remove(&(r.ty, r.name.clone())) != Some(r.version));
    after.sort_by(|a, b| (a.ty, &a.name).cmp(&(b.ty, &b.name)));
    let mut gone: Vec<_> = before.into_keys().collect();
    gone.sort_by(|a, b| (b.0, &a.1).cmp(&(a.0, &b.1)));
    let removed = gone.into_iter().map(|(ty, name)| Change::Remove(ty, name));
    after.into_iter().map(Change::Upsert).chain(removed).collect()
}
