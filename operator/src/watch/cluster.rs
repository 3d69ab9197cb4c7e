//! The Kubernetes API as a source: one watcher for each kind.
//!
//! ```text
//!  API server --watch--> follow(kind): decode, prune --Update--> pipeline
//!             --watch--> crd_discovery: CRDs come and go --wake--^
//! ```
//!
//! Invariants:
//! - What is gone is noticed, however it went: a watch that can't be resumed (410) lists again, and
//!   what isn't in the list is deleted when the list is complete, not before.
//! - An API server that is away takes nothing out of force. When it answers one kind again, all try at once.
//! - A kind of others (Istio's, Gateway API's) that can't be listed at the start holds up the rest for half a
//!   minute, not for ever: then it is left out, loudly, until it can.
//! - An object that can't be read is reported by name and field, and is as if it weren't there.
//! - A custom resource that isn't installed counts as listed, with no objects. When it is installed,
//!   its objects come; when it is removed, they go.
//! - An object is pruned before it leaves the watcher, so what waits for the compiler is small; and
//!   it is a bounded number of updates that may wait.

mod api;
mod crd_discovery;
mod decoder;
mod health;
mod list_watch;
mod prune;
mod raw;
mod unenforced;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{Api, Client, core::ApiResource};
use kube_runtime::utils::Backoff as _;
use slotmesh_compile::{Kind, Report};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tracing::{debug, error, info, warn};

pub(super) use self::api::api_version;
pub(crate) use self::api::resources;
use self::{
    api::{is_built_in, is_needed, resource},
    crd_discovery::CrdDiscovery,
    decoder::Decoder,
    health::{Answers, Heard, Refusals},
    list_watch::{Ended, ListWatch},
    raw::Raw,
};
use super::{Event, Update, WatchEvent};
use crate::retry::Retry;

/// How long to wait before the API server is asked again whether a resource is there, after an error.
const AGAIN: Duration = Duration::from_secs(1);

/// How long an API server that is well may take to tell its version.
const ANSWER: Duration = Duration::from_secs(5);

/// The minor version of Kubernetes 1 from which lists are streamed by default.
const STREAMING_LISTS: u32 = 32;

/// The watchers of all kinds. Dropping it ends them; and one that fails ends all, so that whoever waits for updates
/// hears of it: no more come.
#[derive(Debug)]
pub struct Cluster {
    _watching: JoinSet<()>,
}

impl Cluster {
    /// Watches all kinds, on tasks of the current tokio runtime. What they see goes to `updates`.
    pub fn follow(client: Client, updates: mpsc::Sender<Update>) -> Self {
        let mut tasks = JoinSet::new();
        let crds = CrdDiscovery::watch(client.clone(), updates.clone(), &mut tasks);
        let context = Arc::new(Context { client, updates, crds, answers: Answers::default() });
        for kind in Kind::ALL {
            tasks.spawn(follow(Arc::clone(&context), kind));
        }
        // The tasks have the only senders left.
        drop(context);
        let mut watching = JoinSet::new();
        watching.spawn(until_one_fails(tasks));
        Self { _watching: watching }
    }
}

/// Ends, and the others with it, when one of these has failed.
async fn until_one_fails(mut tasks: JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            error!(%error, "a watcher has failed; nothing is watched any more");
            return;
        }
    }
}

/// State that all watchers share.
struct Context {
    client: Client,
    updates: mpsc::Sender<Update>,
    crds: CrdDiscovery,
    answers: Answers,
}

/// Nobody listens any more.
struct Over;

/// One kind, and what became of its requests.
struct Following {
    context: Arc<Context>,
    kind: Kind,
    heard: Heard,
    refusals: Refusals,
    listed: bool,
    retry: Retry,
}

/// Watches one kind until nobody listens any more.
async fn follow(context: Arc<Context>, kind: Kind) {
    let mut decoder = Decoder::new(kind);
    let heard = context.answers.listen();
    let refusals = Refusals::new(Instant::now());
    let mut this = Following { context, kind, heard, refusals, listed: false, retry: Retry::default() };
    while this.once(&mut decoder).await.is_ok() {}
}

impl Following {
    /// Finds the resource and watches it until it is gone.
    async fn once(&mut self, decoder: &mut Decoder) -> Result<(), Over> {
        let (context, kind) = (Arc::clone(&self.context), self.kind);
        let built_in = is_built_in(kind);
        let version = if built_in {
            kind.spec().versions[0]
        } else {
            match self.find().await? {
                Some(version) => version,
                None => {
                    info!(%kind, group = kind.spec().group, "the cluster doesn't have this resource; waiting for it");
                    context.tell(decoder.none()).await?;
                    self.is_listed();
                    context.crds.wait_for(&context.client, kind).await
                }
            }
        };
        debug!(%kind, version, "watching");
        self.watch(resource(kind, version), decoder, built_in).await?;
        info!(%kind, "the resource is gone");
        Ok(())
    }

    /// The best version of the resource that is served; `None` when it isn't there. Asks until the API server says.
    async fn find(&mut self) -> Result<Option<&'static str>, Over> {
        let context = Arc::clone(&self.context);
        loop {
            match crd_discovery::look(&context.client, self.kind).await {
                Ok(found) => {
                    self.answered();
                    return Ok(found);
                }
                Err(error) => {
                    warn!(kind = %self.kind, error = %Chain(&error), "can't find out whether the resource is there");
                    self.failed(&error).await?;
                }
            }
        }
    }

    /// Watches a resource that was there a moment ago; returns when it is gone.
    async fn watch(
        &mut self,
        resource: ApiResource,
        decoder: &mut Decoder,
        built_in: bool,
    ) -> Result<(), Over> {
        let context = Arc::clone(&self.context);
        let api: Api<Raw> = Api::all_with(context.client.clone(), &resource);
        let mut streamed = context.streams_lists().await;
        let mut list_watch = ListWatch::new(&context, decoder, api);
        loop {
            let error = match list_watch.follow(streamed, self).await {
                Ok(never) => match never {},
                Err(Ended::Over) => return Err(Over),
                Err(Ended::Failed(error)) => error,
                Err(Ended::Silent) if streamed => {
                    // A list by pages says why, or can be had where a stream can't.
                    warn!(kind = resource.kind, "nothing comes of the streamed list; listing by pages");
                    streamed = false;
                    continue;
                }
                Err(Ended::Silent) => {
                    warn!(kind = resource.kind, "nothing comes of the list; trying again");
                    self.silent().await?;
                    continue;
                }
            };
            let code = if let kube::Error::Api(status) = &error { Some(status.code) } else { None };
            // 400 and 422: it doesn't stream lists after all.
            if matches!(code, Some(400 | 422)) && streamed {
                debug!(kind = resource.kind, %error, "lists aren't streamed");
                streamed = false;
                continue;
            }
            if code == Some(404) && !built_in {
                return Ok(());
            }
            match code {
                Some(410) => {
                    info!(kind = resource.kind, "the watch is too old to be resumed; listing again");
                    // At once, unless a list was refused so.
                    if list_watch.list_again() {
                        self.answered();
                        continue;
                    }
                }
                Some(403) => warn!(
                    kind = resource.kind, %error,
                    "not allowed to watch; grant list and watch (what is in force stays in force)"
                ),
                _ => warn!(kind = resource.kind, error = %Chain(&error), "the watch failed; trying again"),
            }
            self.failed(&error).await?;
        }
    }

    /// A request of this kind was answered well.
    fn answered(&mut self) {
        self.retry.reset();
        self.context.answers.answered(&mut self.heard);
    }

    /// All objects of the kind were told.
    fn is_listed(&mut self) {
        self.listed = true;
        if self.refusals.listed() {
            info!(kind = %self.kind, "the kind can be listed again: it is left out no longer");
        }
    }

    /// A request failed.
    async fn failed(&mut self, error: &kube::Error) -> Result<(), Over> {
        if matches!(error, kube::Error::Api(_)) {
            let why = Chain(error).to_string();
            self.refused(&why).await
        } else {
            self.unanswered().await;
            Ok(())
        }
    }

    /// Nothing came of a list: that is a refusal where the API server answers at all.
    async fn silent(&mut self) -> Result<(), Over> {
        match timeout(ANSWER, self.context.client.apiserver_version()).await {
            Ok(Ok(_version)) => self.refused("the API server answers, but says nothing of this kind").await,
            Ok(Err(_)) | Err(_) => {
                self.unanswered().await;
                Ok(())
            }
        }
    }

    /// The API server said no: leaves the kind out where that lasts, and waits.
    async fn refused(&mut self, why: &str) -> Result<(), Over> {
        self.context.answers.answered(&mut self.heard);
        let waits = !self.listed && !is_needed(self.kind);
        if waits && self.refusals.refused(Instant::now()) {
            let kind = self.kind;
            error!(%kind, error = why, "the kind can't be listed; everything else is served without it");
            self.context.tell(update(kind, [Event::LeftOut])).await?;
        }
        self.wait().await;
        Ok(())
    }

    /// The API server said nothing, so nobody can tell of the kind; waits.
    async fn unanswered(&mut self) {
        self.refusals.unanswered();
        self.heard.unanswered();
        self.wait().await;
    }

    async fn wait(&mut self) {
        let wait = self.retry.next().unwrap_or(AGAIN);
        self.heard.sleep(wait).await;
    }
}

impl Context {
    async fn tell(&self, update: Update) -> Result<(), Over> {
        self.updates.send(update).await.map_err(|_closed| Over)
    }

    /// Streamed lists need no pages in memory, on either side.
    async fn streams_lists(&self) -> bool {
        match self.client.apiserver_version().await {
            Ok(version) => minor(&version.minor) >= STREAMING_LISTS && version.major == "1",
            Err(error) => {
                debug!(%error, "the API server doesn't tell its version");
                false
            }
        }
    }
}

/// Clouds write "32+".
fn minor(text: &str) -> u32 {
    text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0)
}

/// An error with its causes in one line.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let (mut said, mut cause) = (self.0.to_string(), self.0.source());
        while let Some(error) = cause {
            // Some errors repeat their cause.
            let text = error.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

/// The events of one kind as an update.
fn update(kind: Kind, events: impl IntoIterator<Item = Event>) -> Update {
    let events = events.into_iter().map(|event| WatchEvent { kind, event }).collect();
    Update { events, appeared: Vec::new(), disappeared: Vec::new(), seen: Instant::now(), reached: None }
}

/// Reports about the cluster itself as an update.
fn reports((appeared, disappeared): (Vec<Report>, Vec<Report>)) -> Update {
    Update { events: Vec::new(), appeared, disappeared, seen: Instant::now(), reached: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watcher_that_fails_takes_the_others_along() {
        let (updates, mut waiting) = mpsc::channel::<Update>(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            updates.closed().await;
        });
        tasks.spawn(async { panic!("as a bug would") });
        until_one_fails(tasks).await;
        assert!(waiting.recv().await.is_none(), "whoever waits hears of it");
    }

    #[test]
    fn minor_versions_of_clouds_are_understood() {
        assert_eq!((minor("33"), minor("32+"), minor(""), minor("x")), (33, 32, 0, 0));
    }
}
