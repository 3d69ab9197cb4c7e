//! The pipeline: takes updates of a source, compiles them, publishes what changed.
//!
//! ```text
//!  Update --ListTracker--> Step --+--> stages: observe --make--> more steps --+
//!                                 +-------------------------------------------+--> Compiler --> Publish
//!                                      stages: published <---- Batch --------------------+
//! ```
//!
//! Invariant: one thread owns all state. Whatever updates are waiting are compiled together, so a
//! burst costs one compilation, and nothing between two of its updates is published.

mod edits;
mod history;
mod inquiry;
mod stage;
mod summary;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use kube::Client;
use slotmesh_compile::{Audience, CompileOptions, Compiler, EnrolmentMode, Kind, Report};
use slotmesh_serve::SourceVersions;
use slotmesh_xds::{Change, ResourceName};
use tokio::sync::{
    mpsc::{self, Receiver, Sender},
    watch,
};
use tracing::{debug, info};

use self::{
    edits::{EditLog, log, log_end, without_line},
    history::{HistoryStage, named},
    inquiry::Questions,
    stage::{Batch, Made, Stage, StatusStage},
};
pub use self::{
    history::{ChangeRecord, ChangedObject, ChangedResource, History},
    inquiry::Inquiry,
    summary::Status,
};
use crate::{
    Error,
    pulse::Pulse,
    status::StatusUpdates,
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
    fn publish(&mut self, changes: Vec<Change>, seen: Instant, reached: &SourceVersions);

    /// Listeners that other callers need from the next changes on; `None` where all do.
    fn audiences(&mut self, _audiences: BTreeMap<ResourceName, Option<Audience>>) {}

    /// The source is known further, which changes nothing else.
    fn reach(&mut self, _reached: &SourceVersions) {}
}

impl<F: FnMut(Vec<Change>) + Send + 'static> Publish for F {
    fn publish(&mut self, changes: Vec<Change>, _: Instant, _: &SourceVersions) {
        self(changes);
    }
}

/// How an operator compiles, and for whom.
#[derive(Clone, Debug, Default)]
pub struct OperatorOptions {
    /// Settings of the installation. Which workloads agents are told of follows from the source.
    pub compile: CompileOptions,
    /// A node that no manifest has to describe. Of no use on a cluster.
    pub node: Option<LocalNode>,
    /// Is told what there is to write into statuses. Of no use without a cluster.
    pub updates: Option<StatusUpdates>,
}

/// A running pipeline. Dropping it stops it; what was published stays with the publisher.
///
/// ```
/// use slotmesh_operator::{Operator, OperatorOptions};
///
/// let dir = tempfile::tempdir()?;
/// let options = OperatorOptions::default();
/// let operator = Operator::from_manifests(dir.path(), options, |changes: Vec<_>| println!("{changes:?}"))?;
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
    history: History,
}

/// Where the objects come from; dropping it ends that.
#[derive(Debug)]
enum Source {
    Manifests(#[expect(dead_code, reason = "held to be dropped")] Manifests),
    Cluster(#[expect(dead_code, reason = "held to be dropped")] Cluster),
    /// They were read once; nothing more comes.
    Texts(#[expect(dead_code, reason = "held to be dropped")] Sender<Update>),
}

impl Operator {
    /// Starts an operator on a directory of manifests.
    ///
    /// # Errors
    /// When there is no such directory or it can't be watched.
    pub fn from_manifests(
        dir: &Path,
        options: OperatorOptions,
        publish: impl Publish,
    ) -> Result<Self, Error> {
        let (node, stages) = (options.node.clone(), of_manifests());
        let source = |updates| follow(node.as_ref(), dir, updates);
        Self::start(callers(options), stages, publish, source)
    }

    /// Starts an operator on manifests that were read once. Dropping it waits until they are compiled.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn from_texts(
        texts: &ManifestTexts,
        options: OperatorOptions,
        publish: impl Publish,
    ) -> Result<Self, Error> {
        let node = options.node.clone();
        let source = |updates: Sender<Update>| {
            // The first of many that have room.
            updates.try_send(texts.update(node.as_ref())).map_err(|_| Error::Stopped)?;
            Ok(Source::Texts(updates))
        };
        Self::start(callers(options), of_manifests(), publish, source)
    }

    /// Starts an operator on a cluster, on tasks of the current tokio runtime.
    ///
    /// # Errors
    /// When no thread can be started. An API server that can't be reached is waited for.
    pub fn from_cluster(
        client: Client,
        options: OperatorOptions,
        publish: impl Publish,
    ) -> Result<Self, Error> {
        let source = |updates| Ok(Source::Cluster(Cluster::follow(client, updates)));
        let told = options.updates.map(|updates| Box::new(StatusStage::new(updates)) as Box<dyn Stage>);
        let compile = CompileOptions { enrolment: EnrolmentMode::ByLabel, ..options.compile };
        Self::start(compile, told.into_iter().collect(), publish, source)
    }

    fn start(
        options: CompileOptions,
        mut stages: Vec<Box<dyn Stage>>,
        publish: impl Publish,
        source: impl FnOnce(Sender<Update>) -> Result<Source, Error>,
    ) -> Result<Self, Error> {
        let (updates, waiting) = mpsc::channel(WAITING);
        let (sender, status) = watch::channel(Status::default());
        let questions = Questions::default();
        let inquiry = Inquiry::new(questions.clone(), &updates);
        let history = History::default();
        stages.push(Box::new(HistoryStage::new(history.clone())));
        let pipeline = Pipeline {
            lists: ListTracker::default(),
            stages,
            compiler: Compiler::new(options),
            reached: SourceVersions::default(),
            publish,
            questions,
            status: sender,
        };
        let source = source(updates)?;
        let pulse = Pulse::default();
        let beat = pulse.clone();
        let run = move || pipeline.run(waiting, &beat);
        let thread = thread::Builder::new().name("compile".to_owned()).spawn(run).map_err(Error::Thread)?;
        Ok(Self { status, source: Some(source), thread: Some(thread), pulse, inquiry, history })
    }

    /// The status of the operator, now and whenever it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// A way to ask the compiler.
    pub fn inquiry(&self) -> Inquiry {
        self.inquiry.clone()
    }

    /// The changes of the last time.
    pub fn history(&self) -> History {
        self.history.clone()
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

/// The stages of manifests: no EndpointSlice controller runs, and people edit files.
fn of_manifests() -> Vec<Box<dyn Stage>> {
    vec![Box::new(SliceController::default()), Box::new(EditLog::default())]
}

/// The options where flags name the workloads of the node, if there is one.
fn callers(options: OperatorOptions) -> CompileOptions {
    let enrolment = match options.node {
        Some(node) => EnrolmentMode::Callers { node: node.name.into() },
        None => EnrolmentMode::Nobody,
    };
    CompileOptions { enrolment, ..options.compile }
}

struct Pipeline<P> {
    lists: ListTracker,
    stages: Vec<Box<dyn Stage>>,
    compiler: Compiler,
    /// The versions of the source that are known.
    reached: SourceVersions,
    publish: P,
    questions: Questions,
    status: watch::Sender<Status>,
}

impl<P: Publish> Pipeline<P> {
    fn run(mut self, mut waiting: Receiver<Update>, pulse: &Pulse) {
        while let Some(first) = waiting.blocking_recv() {
            let _busy = pulse.begin();
            let (mut appeared, mut disappeared) = (Vec::new(), Vec::new());
            let (mut events, seen) = (0, first.seen);
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
                        self.stages.iter_mut().for_each(|stage| stage.observe(&step));
                        self.step(step);
                    }
                }
            }
            let made: Vec<Made> = self.stages.iter_mut().map(|stage| stage.make()).collect();
            for Made { steps, appeared: more, disappeared: fewer } in made {
                appeared.extend(more);
                disappeared.extend(fewer);
                steps.into_iter().for_each(|step| self.step(step));
            }
            // Nothing is published before everything that the source held at the start is known. That
            // first time is published even if it is nothing: an empty cluster is an answer too.
            let synced = self.lists.synced();
            let first = synced && !self.status.borrow().synced;
            let (mut affected, mut changes) = (None, (Vec::new(), 0));
            if synced {
                let output = self.compiler.flush();
                appeared.extend(output.appeared);
                disappeared.extend(output.disappeared);
                debug!(events, changes = output.changes.len(), "compiled");
                changes = named(&output.changes);
                let rescoped = !output.audiences.is_empty();
                self.publish.audiences(output.audiences);
                if first || !output.changes.is_empty() || rescoped {
                    self.publish.publish(output.changes, seen, &self.reached);
                } else if further {
                    self.publish.reach(&self.reached);
                }
                affected = Some(output.affected);
            }
            self.tell(&appeared, &disappeared);
            let (compiler, affected) = (&self.compiler, affected.as_ref());
            let (appeared, disappeared) = (&*appeared, &*disappeared);
            let (changes, more) = (&*changes.0, changes.1);
            let batch = Batch { compiler, affected, changes, more, is_first: first, appeared, disappeared };
            self.stages.iter_mut().for_each(|stage| stage.published(&batch));
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
        let left_alone = self.compiler.left_alone();
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
                || *left_alone != status.left_alone
                || synced != status.synced
                || compiled != status.compiled;
            status.left_to_kube_proxy = left;
            (status.synced, status.outstanding, status.compiled) = (synced, outstanding, compiled);
            status.objects = objects;
            status.left_out = left_out;
            status.left_alone.clone_from(left_alone);
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
