//! The compiler: takes events, compiles what depends on them, and tells what changed.
//!
//! Invariant: after each [`Compiler::flush`], what was ever sent as a change adds up to exactly what
//! the index says.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
};

use slotmesh_xds::{Change, Resource, ResourceName, ResourceType, Version};

use crate::{
    Audience, CompileOptions, Conditions, Index, LeftAlone, Object, ObjectKey, ObjectName, ObjectRef,
    Origins, Reason, Report, Severity, Source, Unit, clusters, conditions, endpoints, enrolment, envoy,
    origins, routing, settings, unit::Compiled,
};

/// Changes that came of a [`Compiler::flush`].
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
    /// The listeners that other callers need than before; `None` where all do again, or the listener is gone.
    pub audiences: BTreeMap<ResourceName, Option<Audience>>,
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
/// use slotmesh_builders::{service, slice};
/// use slotmesh_compile::Compiler;
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
    /// Reports of reading, for the next flush.
    read: HashMap<ObjectKey, Vec<Report>>,
    /// The objects that came or went since the last flush, and have a status.
    events: BTreeSet<ObjectKey>,
    compiled: HashMap<Unit, Compiled>,
    /// How many units lead to the cluster that refuses connections.
    refusing: usize,
    /// How many lead to the one that leaves connections as they are.
    passing: usize,
    /// How many Services are left to kube-proxy.
    left: usize,
    /// How many Pods are left alone, by reason.
    left_alone: BTreeMap<LeftAlone, usize>,
    /// Every report that holds, and how many units say so.
    reports: BTreeMap<Report, usize>,
    stats: Stats,
}

impl Compiler {
    /// A compiler without objects.
    pub fn new(options: CompileOptions) -> Self {
        Self { index: Index::new(options), ..Self::default() }
    }

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

    /// The conditions of an object for its status, as of the last flush; `None` when there is no
    /// such object, or its kind has no status.
    pub fn conditions(&self, object: &ObjectKey) -> Option<Conditions> {
        let generation = self.index.generation(object).filter(|_| object.kind.has_conditions())?;
        let reports: Vec<&Report> = self.reports_about(object).collect();
        let ancestors = conditions::ancestors(&self.index, &self.compiled, object, &reports);
        Some(Conditions { object: object.clone(), generation, ancestors })
    }

    /// The reports that hold about an object.
    fn reports_about(&self, object: &ObjectKey) -> impl Iterator<Item = &Report> {
        let first = Report {
            object: ObjectRef::new(object, None),
            field: None,
            line: None,
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

    /// The objects because of which a listener leads connections where it does, as of the last flush; `None` where there
    /// is no listener of this name. It looks through all that is compiled: for people who ask.
    pub fn origins(&self, listener: &ResourceName) -> Option<Origins> {
        origins::origins(&self.index, &self.compiled, |key| self.reports_about(key).collect(), listener)
    }

    /// Compiles what depends on the events since the last flush.
    pub fn flush(&mut self) -> Output {
        self.index.settle(&mut self.dirty);
        self.index.reclassify(&mut self.dirty);
        let mut difference = Difference::default();
        let mut affected = mem::take(&mut self.events);
        for unit in mem::take(&mut self.dirty) {
            let new = self.compile(&unit);
            affected.extend(conditions::parties(&self.index, &unit));
            self.replace(unit, new, &mut difference);
        }
        // They are there for as long as anything leads to them.
        for (unit, leading) in [(Unit::BlackHole, self.refusing), (Unit::Passthrough, self.passing)] {
            if (leading > 0) != self.compiled.contains_key(&unit) {
                let new = self.compile(&unit);
                self.replace(unit, new, &mut difference);
            }
        }
        let Difference { before, after, said, audiences } = difference;
        let audiences = audiences.into_iter().filter(|(_, [old, new])| old != new);
        let audiences = audiences.map(|(name, [_, new])| (name, new)).collect();
        let changes = changes(before, after);
        let mut output = Output { changes, affected, audiences, ..Output::default() };
        for (report, difference) in said {
            self.count(report, difference, &mut output);
        }
        // Also those that a unit says something of which it isn't for, such as one that others delegate to.
        let about =
            output.appeared.iter().chain(&output.disappeared).filter_map(|report| report.object.key());
        output.affected.extend(about.filter(|key| key.kind.has_conditions()));
        output
    }

    fn replace(&mut self, unit: Unit, new: Compiled, difference: &mut Difference) {
        difference.after.extend(new.resources.iter().cloned());
        for report in &new.reports {
            *difference.said.entry(report.clone()).or_default() += 1;
        }
        for (name, audience) in &new.audiences {
            difference.audiences.entry(name.clone()).or_default()[1] = Some(audience.clone());
        }
        self.refusing += usize::from(new.refuses);
        self.passing += usize::from(new.passes);
        self.left += usize::from(new.left);
        if let Some(why) = new.left_alone {
            *self.left_alone.entry(why).or_default() += 1;
        }
        let old = if new.is_empty() { self.compiled.remove(&unit) } else { self.compiled.insert(unit, new) };
        let Some(old) = old else { return };
        self.refusing -= usize::from(old.refuses);
        self.passing -= usize::from(old.passes);
        self.left -= usize::from(old.left);
        if let Some(count) = old.left_alone.and_then(|why| self.left_alone.get_mut(&why)) {
            *count -= 1;
        }
        for (name, audience) in old.audiences {
            difference.audiences.entry(name).or_default()[0] = Some(audience);
        }
        difference.before.extend(old.resources.into_iter().map(|r| ((r.ty, r.name), r.version)));
        for report in old.reports {
            *difference.said.entry(report).or_default() -= 1;
        }
    }

    fn compile(&mut self, unit: &Unit) -> Compiled {
        let compiled = match unit {
            Unit::Object(key) => {
                Compiled { reports: self.read.remove(key).unwrap_or_default(), ..Compiled::default() }
            }
            Unit::Clusters(name) => clusters::compile(&self.index, name),
            Unit::Endpoints(name) => endpoints::compile(&self.index, name),
            Unit::Workload(pod) => enrolment::compile(&self.index, pod),
            Unit::Settings(node) => settings::compile(&self.index, node),
            Unit::Node(name) => {
                let addresses = self.index.addresses_of_node(name);
                let told = (!addresses.is_empty()).then(|| envoy::node(&name.name, &addresses));
                Compiled { resources: told.into_iter().collect(), ..Compiled::default() }
            }
            Unit::Profile(name) => settings::report(&self.index, name),
            Unit::Budget(key) => self.index.beyond_budget(key),
            Unit::Routing(name) => routing::compile(&self.index, name),
            Unit::BlackHole if self.refusing > 0 => {
                Compiled { resources: vec![envoy::black_hole()], ..Compiled::default() }
            }
            Unit::Passthrough if self.passing > 0 => {
                Compiled { resources: vec![envoy::passthrough()], ..Compiled::default() }
            }
            Unit::BlackHole | Unit::Passthrough => Compiled::default(),
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

    /// Tells whether an object, or something of it, is refused.
    pub fn refuses(&self, object: &ObjectKey) -> bool {
        self.reports_about(object).any(|report| report.severity == Severity::Refused)
    }

    /// Every report that holds, sorted.
    pub fn reports(&self) -> impl Iterator<Item = &Report> {
        self.reports.keys()
    }

    /// The class of a Pod as a caller, by which agents and listeners know it: its namespace, and a hash of those of its
    /// labels that some rule asks for. A workload of which no Pod is known is of its namespace's.
    pub fn caller_class(&self, pod: &ObjectName) -> String {
        self.index.classes.of(pod)
    }

    /// Every resource in force, sorted by type and name.
    pub fn resources(&self) -> Vec<Resource> {
        let mut all: Vec<_> = self.compiled.values().flat_map(|c| &c.resources).cloned().collect();
        all.sort_by(|a, b| (a.ty, &a.name).cmp(&(b.ty, &b.name)));
        all
    }

    /// The number of Services that ask for what isn't done yet, and are left to kube-proxy.
    pub const fn left_to_kube_proxy(&self) -> usize {
        self.left
    }

    /// The number of Pods that don't take part though their namespaces do, by reason.
    pub const fn left_alone(&self) -> &BTreeMap<LeftAlone, usize> {
        &self.left_alone
    }

    /// How much work was done since the start.
    pub const fn stats(&self) -> Stats {
        self.stats
    }
}

/// Contents of units, before and now.
#[derive(Debug, Default)]
struct Difference {
    before: HashMap<(ResourceType, ResourceName), Version>,
    after: Vec<Resource>,
    said: BTreeMap<Report, isize>,
    /// Of listeners, before and now; a listener is of one unit before, and of one now.
    audiences: BTreeMap<ResourceName, [Option<Audience>; 2]>,
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
