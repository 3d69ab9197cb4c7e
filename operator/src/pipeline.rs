//! The pipeline: takes updates of a source, compiles them, publishes what changed.
//!
//! Invariant: one thread owns all state. Whatever updates are waiting are compiled together, so a
//! burst costs one compilation, and nothing between two of its updates is published.

mod edits;
mod inquiry;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use kube::Client;
use slotmesh_compile::{
    Audience, CompileOptions, Compiler, Kind, Object, ObjectKey, ObjectName, Report, Stats,
};
use slotmesh_serve::Reached;
use slotmesh_xds::{Change, ResourceName};
use tokio::sync::{
    mpsc::{self, Receiver, Sender},
    watch,
};
use tracing::{debug, info};

pub use self::inquiry::Inquiry;
use self::{
    edits::{Edits, log, log_end, without_line},
    inquiry::Questions,
};
use crate::{
    Error,
    enrol::{Enrolment, LeftAlone},
    pod_classes::Callers,
    pulse::Pulse,
    status::Notices,
    watch::{
        Cluster, ListTracker, LocalNode, ManifestTexts, Manifests, Reach, SliceController, Step, Update,
    },
};

/// Updates that may wait for the compiler; a source that has more waits itself.
const WAITING: usize = 1_024;
/// The most updates that are compiled together, so that a stream of them that never ends is
/// published all the same.
const TOGETHER: usize = 16_384;

/// Whoever serves the compiled resources.
///
/// A closure is one: `move |changes| store.apply(changes)`.
pub trait Publish: Send + 'static {
    /// Takes the next changes, which are in make-before-break order and belong together. The first
    /// call brings everything that the source held at the start, which may be nothing. `seen` is when the
    /// source saw the first event that led to them, and `reached` how far it is known with them.
    fn publish(&mut self, changes: Vec<Change>, seen: Instant, reached: &Reached);

    /// Listeners that other callers need from the next changes on; `None` where all do.
    fn audiences(&mut self, _audiences: BTreeMap<ResourceName, Option<Audience>>) {}

    /// The source is known further, which changes nothing else.
    fn reach(&mut self, _reached: &Reached) {}
}

impl<F: FnMut(Vec<Change>) + Send + 'static> Publish for F {
    fn publish(&mut self, changes: Vec<Change>, _: Instant, _: &Reached) {
        self(changes);
    }
}

/// What the operator has to say of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Whether all that the source held at the start has been compiled and published.
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

/// A running pipeline. Dropping it stops it; what was published stays with the publisher.
///
/// ```
/// use slotmesh_operator::Operator;
///
/// let dir = tempfile::tempdir()?;
/// let operator = Operator::from_manifests(dir.path(), |changes: Vec<_>| println!("{changes:?}"))?;
/// let mut status = operator.status();
/// while !status.borrow_and_update().synced {
///     std::thread::yield_now();
/// }
/// assert!(status.borrow().reports.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Operator {
    status: watch::Receiver<Status>,
    /// Goes first: it feeds the thread, which ends when nobody does any more.
    source: Option<Source>,
    thread: Option<JoinHandle<()>>,
    pulse: Pulse,
    inquiry: Inquiry,
}

/// Where the objects come from; dropping it ends that.
#[derive(Debug)]
enum Source {
    Manifests(#[expect(dead_code, reason = "held to be dropped")] Manifests),
    Cluster(#[expect(dead_code, reason = "held to be dropped")] Cluster),
    /// They were read once.
    Texts,
}

impl Operator {
    /// Starts an operator on a directory of manifests.
    ///
    /// # Errors
    /// When there is no such directory or it can't be watched.
    pub fn from_manifests(dir: &Path, publish: impl Publish) -> Result<Self, Error> {
        Self::from_manifests_with(CompileOptions::default(), None, dir, publish)
    }

    /// As [`from_manifests`](Self::from_manifests), compiled by other options, and with a node that no manifest has
    /// to describe.
    ///
    /// # Errors
    /// As [`from_manifests`](Self::from_manifests).
    pub fn from_manifests_with(
        options: CompileOptions,
        node: Option<&LocalNode>,
        dir: &Path,
        publish: impl Publish,
    ) -> Result<Self, Error> {
        let source = |updates| follow(node, dir, updates);
        let slices = Some(SliceController::default());
        let naming = node.map(|node| Naming::Callers(Callers::on(node))).unwrap_or_default();
        Self::start(options, slices, naming, None, publish, source)
    }

    /// Starts an operator on manifests that were read once. Dropping it waits until they are compiled.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn from_texts(
        options: CompileOptions,
        node: Option<&LocalNode>,
        texts: &ManifestTexts,
        publish: impl Publish,
    ) -> Result<Self, Error> {
        let source = |updates: Sender<Update>| {
            // The first of many that have room.
            updates.try_send(texts.update(node)).map_err(|_| Error::Stopped)?;
            Ok(Source::Texts)
        };
        let naming = node.map(|node| Naming::Callers(Callers::on(node))).unwrap_or_default();
        Self::start(options, Some(SliceController::default()), naming, None, publish, source)
    }

    /// Starts an operator on a cluster, on tasks of the current tokio runtime.
    ///
    /// # Errors
    /// When no thread can be started. An API server that can't be reached is waited for.
    pub fn from_cluster(client: Client, publish: impl Publish) -> Result<Self, Error> {
        Self::from_cluster_telling(client, publish, None)
    }

    /// As [`from_cluster`](Self::from_cluster), and tells whoever writes statuses what there is to say.
    ///
    /// # Errors
    /// As [`from_cluster`](Self::from_cluster).
    pub fn from_cluster_telling(
        client: Client,
        publish: impl Publish,
        notices: impl Into<Option<Notices>>,
    ) -> Result<Self, Error> {
        Self::from_cluster_with(CompileOptions::default(), client, publish, notices)
    }

    /// As [`from_cluster_telling`](Self::from_cluster_telling), compiled with these options.
    ///
    /// # Errors
    /// As [`from_cluster`](Self::from_cluster).
    pub fn from_cluster_with(
        options: CompileOptions,
        client: Client,
        publish: impl Publish,
        notices: impl Into<Option<Notices>>,
    ) -> Result<Self, Error> {
        let source = |updates| Ok(Source::Cluster(Cluster::follow(client, updates)));
        let tell = notices.into().map(Tell::new);
        Self::start(options, None, Naming::Workloads(Box::default()), tell, publish, source)
    }

    fn start(
        options: CompileOptions,
        slices: Option<SliceController>,
        naming: Naming,
        tell: Option<Tell>,
        publish: impl Publish,
        source: impl FnOnce(Sender<Update>) -> Result<Source, Error>,
    ) -> Result<Self, Error> {
        let (updates, waiting) = mpsc::channel(WAITING);
        let (sender, status) = watch::channel(Status::default());
        let lists = ListTracker::default();
        let compiler = Compiler::new(options);
        let reached = Reached::default();
        let defined = HashMap::new();
        let questions = Questions::default();
        let inquiry = Inquiry::new(questions.clone(), &updates);
        let pipeline = Pipeline {
            lists,
            slices,
            naming,
            compiler,
            defined,
            reached,
            publish,
            tell,
            questions,
            status: sender,
        };
        let source = source(updates)?;
        let pulse = Pulse::default();
        let beat = pulse.clone();
        let run = move || pipeline.run(waiting, &beat);
        let thread = thread::Builder::new().name("compile".to_owned()).spawn(run).map_err(Error::Thread)?;
        Ok(Self { status, source: Some(source), thread: Some(thread), pulse, inquiry })
    }

    /// What the operator has to say of itself, now and whenever it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// A way to ask the compiler.
    pub fn inquiry(&self) -> Inquiry {
        self.inquiry.clone()
    }

    /// The heartbeat of the compile thread.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Waits until all that the source held at the start is published.
    ///
    /// # Errors
    /// When the pipeline has ended before that.
    pub async fn synced(&self) -> Result<(), Error> {
        let mut status = self.status();
        status.wait_for(|status| status.synced).await.map(drop).map_err(|_| Error::Stopped)
    }
}

fn follow(node: Option<&LocalNode>, dir: &Path, updates: Sender<Update>) -> Result<Source, Error> {
    let deliver = move |update| updates.blocking_send(update).is_ok();
    Manifests::follow_on(node, dir, deliver).map(Source::Manifests)
}

impl Drop for Operator {
    fn drop(&mut self) {
        drop(self.source.take());
        // It fails when the thread panicked, which has been printed.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

struct Pipeline<P> {
    lists: ListTracker,
    /// Only where no EndpointSlice controller runs.
    slices: Option<SliceController>,
    naming: Naming,
    compiler: Compiler,
    /// What manifests define.
    defined: HashMap<ObjectKey, Object>,
    /// How far the source is known.
    reached: Reached,
    publish: P,
    /// Only where statuses are written.
    tell: Option<Tell>,
    questions: Questions,
    status: watch::Sender<Status>,
}

/// What agents are told of workloads.
#[derive(Debug, Default)]
enum Naming {
    /// Which ones there are: where no flags name them.
    Workloads(Box<Enrolment>),
    /// Only what they are as callers.
    Callers(Callers),
    /// Nothing.
    #[default]
    Nobody,
}

/// Tells whoever writes statuses.
#[derive(Debug)]
struct Tell {
    notices: Notices,
    /// The resource versions of the objects that were seen since the last flush.
    seen: HashMap<ObjectKey, Option<String>>,
}

impl Tell {
    fn new(notices: Notices) -> Self {
        Self { notices, seen: HashMap::new() }
    }

    fn see(&mut self, step: &Step) {
        if let Step::Apply(sourced) = step
            && sourced.object.kind().has_conditions()
        {
            let version = sourced.object.meta().resource_version.clone();
            self.seen.insert(sourced.object.key(), version);
        }
    }

    /// After what was compiled is published.
    fn compiled(&mut self, affected: BTreeSet<ObjectKey>, compiler: &Compiler) {
        let objects = affected.into_iter().map(|key| {
            let version = self.seen.remove(&key).flatten();
            let conditions = compiler.conditions(&key);
            (key, conditions, version)
        });
        self.notices.compiled(objects);
    }
}

impl<P: Publish> Pipeline<P> {
    fn run(mut self, mut waiting: Receiver<Update>, pulse: &Pulse) {
        while let Some(first) = waiting.blocking_recv() {
            let _busy = pulse.begin();
            let (mut appeared, mut disappeared) = (Vec::new(), Vec::new());
            let (mut events, seen) = (0, first.seen);
            let mut edits = Edits::default();
            let mut further = false;
            let more = std::iter::from_fn(|| waiting.try_recv().ok()).take(TOGETHER);
            for update in std::iter::once(first).chain(more) {
                appeared.extend(update.appeared);
                settle(&mut appeared, &mut disappeared, update.disappeared);
                if let Some((kind, reach)) = update.reached {
                    further = true;
                    self.reach(kind, reach);
                }
                for event in update.events {
                    events += 1;
                    for step in self.lists.steps(event) {
                        if let Some(slices) = &mut self.slices {
                            slices.observe(&step);
                        }
                        if let Naming::Workloads(enrolment) = &mut self.naming {
                            enrolment.observe(&step);
                        }
                        if let Some(tell) = &mut self.tell {
                            tell.see(&step);
                        }
                        edits.see(&step, &mut self.defined);
                        self.step(step);
                    }
                }
            }
            if let Some(slices) = &mut self.slices {
                let (steps, more, fewer) = slices.flush();
                appeared.extend(more);
                disappeared.extend(fewer);
                steps.into_iter().for_each(|step| self.step(step));
            }
            // Nothing is published before everything that the source held at the start is known. That
            // first time is published even if it is nothing: an empty cluster is an answer too.
            let first = self.lists.synced() && !self.status.borrow().synced;
            if self.lists.synced() {
                let output = self.compiler.flush();
                appeared.extend(output.appeared);
                disappeared.extend(output.disappeared);
                let mut changes = output.changes;
                let class = |pod: &ObjectName| self.compiler.caller_class(pod);
                match &mut self.naming {
                    Naming::Workloads(enrolment) => {
                        enrolment.classified(output.classes);
                        changes.extend(enrolment.flush(class));
                        let (more, fewer) = enrolment.reports();
                        appeared.extend(more);
                        disappeared.extend(fewer);
                    }
                    Naming::Callers(callers) => changes.extend(callers.flush(output.classes, class)),
                    Naming::Nobody => {}
                }
                debug!(events, changes = changes.len(), "compiled");
                let rescoped = !output.audiences.is_empty();
                self.publish.audiences(output.audiences);
                if first || !changes.is_empty() || rescoped {
                    self.publish.publish(changes, seen, &self.reached);
                } else if further {
                    self.publish.reach(&self.reached);
                }
                if let Some(tell) = &mut self.tell {
                    tell.compiled(output.affected, &self.compiler);
                }
            }
            if let Some(tell) = &self.tell {
                tell.notices.reports(&disappeared, false);
                tell.notices.reports(&appeared, true);
            }
            self.tell(&appeared, &disappeared);
            if !first && self.lists.synced() {
                edits.log(&self.compiler);
            }
            self.questions.answer(&self.compiler);
        }
    }

    fn reach(&mut self, kind: Kind, reach: Reach) {
        let kind = kind.as_str();
        match reach {
            Reach::Listing(version) => self.reached.listing(kind, version),
            Reach::Listed(version) => self.reached.listed(kind, version),
            Reach::Changed(version) => self.reached.changed(kind, version),
            Reach::Quiet(version) => self.reached.quiet(kind, version),
            Reach::Unknown => self.reached.unknown(kind),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Apply(sourced) => self.compiler.apply(&sourced.object, sourced.source),
            Step::Delete(key) => self.compiler.delete(&key),
        }
    }

    fn tell(&self, appeared: &[Report], disappeared: &[Report]) {
        // What is said again because its line has moved isn't new.
        let still = |reports: &[Report]| reports.iter().map(without_line).collect::<BTreeSet<_>>();
        let (new, old) = (still(appeared), still(disappeared));
        appeared.iter().filter(|report| !old.contains(&without_line(report))).for_each(log);
        disappeared.iter().filter(|report| !new.contains(&without_line(report))).for_each(log_end);
        let outstanding: Vec<_> = self.lists.outstanding().collect();
        let left_out: Vec<_> = self.lists.left_out().collect();
        let left_alone = match &self.naming {
            Naming::Workloads(enrolment) => Some(enrolment.count()),
            Naming::Callers(_) | Naming::Nobody => None,
        };
        let synced = outstanding.is_empty();
        let compiled = self.compiler.stats();
        let left = self.compiler.left_to_kube_proxy();
        self.status.send_if_modified(|status| {
            let reports = !appeared.is_empty() || !disappeared.is_empty();
            if reports {
                let all = Arc::make_mut(&mut status.reports);
                disappeared.iter().for_each(|report| {
                    all.remove(report);
                });
                all.extend(appeared.iter().cloned());
            }
            if synced && !status.synced {
                info!(units = compiled.units, resources = compiled.resources, "all objects are compiled");
            }
            let objects = self.lists.held();
            let changed = reports
                || objects != status.objects
                || outstanding != status.outstanding
                || left_out != status.left_out
                || left_alone.is_some_and(|count| *count != status.left_alone)
                || synced != status.synced
                || compiled != status.compiled;
            status.left_to_kube_proxy = left;
            (status.synced, status.outstanding, status.compiled) = (synced, outstanding, compiled);
            status.objects = objects;
            status.left_out = left_out;
            if let Some(count) = left_alone {
                status.left_alone.clone_from(count);
            }
            changed
        });
    }
}

/// A report that appears and disappears within one batch is none.
fn settle(appeared: &mut Vec<Report>, disappeared: &mut Vec<Report>, gone: Vec<Report>) {
    for report in gone {
        match appeared.iter().position(|r| *r == report) {
            Some(at) => {
                appeared.swap_remove(at);
            }
            None => disappeared.push(report),
        }
    }
}
