//! Which custom resources the cluster has.
//!
//! Nobody asks over and over: a watch on the CustomResourceDefinitions (their metadata only) says
//! when to look again. Where that watch isn't allowed, a slow look-up replaces it.

use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, core::PartialObjectMeta};
use kube_runtime::{WatchStreamExt as _, watcher};
use slotmesh_compile::Kind;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::{debug, warn};

use super::{AGAIN, Chain, api::api_version, reports, unenforced::Unenforced};
use crate::{retry::Retry, watch::Update};

/// How often to look where CustomResourceDefinitions can't be watched.
const LOOK: Duration = Duration::from_secs(30);
/// A new resource is served a moment after its definition appears. The looks that follow one change.
const LOOKS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// The state of the definitions, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    /// Counts what happened to any of them.
    changes: u64,
    /// Tells whether the watch works.
    watched: bool,
}

/// Tells when to look again.
#[derive(Clone, Debug)]
pub(super) struct CrdDiscovery(watch::Receiver<Seen>);

impl CrdDiscovery {
    /// Watches the definitions on a task of `tasks`.
    ///
    /// Tells `updates` which kinds there are that nobody enforces.
    pub(super) fn watch(client: Client, updates: mpsc::Sender<Update>, tasks: &mut JoinSet<()>) -> Self {
        let (sender, receiver) = watch::channel(Seen { changes: 0, watched: false });
        tasks.spawn(async move {
            let definitions: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client);
            let events = watcher(definitions, watcher::Config::default());
            let mut events = std::pin::pin!(events.backoff(Retry::default()));
            let mut unenforced = Unenforced::default();
            while let Some(event) = events.next().await {
                if let Ok(event) = &event {
                    let (appeared, gone) = unenforced.observe(event);
                    let tells = !appeared.is_empty() || !gone.is_empty();
                    if tells && updates.send(reports((appeared, gone))).await.is_err() {
                        return;
                    }
                }
                let watched = match &event {
                    Ok(_) => true,
                    Err(error) => {
                        debug!(error = %Chain(error), "custom resource definitions can't be watched");
                        false
                    }
                };
                sender.send_modify(|seen| {
                    seen.changes += u64::from(watched);
                    seen.watched = watched;
                });
            }
        });
        Self(receiver)
    }

    /// The best version of the resource that is served; `None` when it isn't there. Asks until the
    /// API server answers.
    async fn find(&self, client: &Client, kind: Kind) -> Option<&'static str> {
        loop {
            match look(client, kind).await {
                Ok(found) => return found,
                Err(error) => {
                    warn!(%kind, error = %Chain(&error), "can't find out whether the resource is there");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Waits until the resource is there.
    pub(super) async fn wait_for(&self, client: &Client, kind: Kind) -> &'static str {
        let mut seen = self.0.clone();
        loop {
            seen.mark_unchanged();
            let mut looks = LOOKS.into_iter();
            loop {
                if let Some(version) = self.find(client, kind).await {
                    return version;
                }
                let watched = seen.borrow().watched;
                let next = looks.next().or((!watched).then_some(LOOK));
                tokio::select! {
                    changed = seen.changed() => match changed {
                        Ok(()) => break,
                        // Nobody watches any more; all of this is about to end.
                        Err(_ended) => std::future::pending().await,
                    },
                    () = sleep(next) => {}
                }
            }
        }
    }
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// The best version of the resource that is served; `None` when it isn't there.
pub(super) async fn look(client: &Client, kind: Kind) -> kube::Result<Option<&'static str>> {
    for version in kind.spec().versions {
        match client.list_api_group_resources(&api_version(kind, version)).await {
            Ok(list) if list.resources.iter().any(|resource| resource.name == kind.spec().plural) => {
                return Ok(Some(version));
            }
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
