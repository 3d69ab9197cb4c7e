//! The proxies of this node: they are served what they look at by delta ADS, on a Unix socket, and what they have
//! acknowledged is known here.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    extract::{Path as Place, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use clap::Args;
use slotmesh_admin::paths;
use slotmesh_agent::{AcknowledgedPods, PublishToProxies};
use slotmesh_serve::{AdsServerConfig, Store, StreamEvent, StreamId, UnixSocket};
use slotmesh_xds::{ResourceName, ResourceType, Version};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::process::Parts;

/// The proxies at a time: one, its successor, and somebody who looks.
const MOST_PROXIES: usize = 4;
/// How long what a proxy had acknowledged counts when it has gone: its successor may be on its way, and connections wait.
const AWAY: Duration = Duration::from_secs(10);

/// The page of what proxies look at, and its content.
pub const PROXIED_PAGE: (&str, &str) =
    (paths::PROXIED, "/proxied/NAME: the route configuration that proxies of this node have, protobuf");

/// The heading of flags about the proxy.
pub const PROXY: &str = "Proxy";

/// The flags by which a process serves proxies.
#[derive(Debug, Args)]
pub struct ProxySocketFlags {
    /// Unix socket on which the proxy of this node is told what it looks at: its owner and group may connect
    #[arg(long, env = "SLOTMESH_PROXY_SOCKET", value_name = "PATH", help_heading = PROXY)]
    proxy_socket: Option<PathBuf>,

    /// Group of that socket, by number [default: that of this process]
    #[arg(long, env = "SLOTMESH_PROXY_SOCKET_GROUP", value_name = "GID", requires = "proxy_socket",
        help_heading = PROXY)]
    proxy_socket_group: Option<u32>,
}

/// Serves proxies.
pub struct ProxyServer {
    store: Store,
    socket: UnixSocket,
}

impl ProxySocketFlags {
    /// Listens at the socket, if there is to be one.
    ///
    /// # Errors
    /// Where it can't be used.
    pub fn bind(self) -> anyhow::Result<Option<ProxyServer>> {
        let Self { proxy_socket, proxy_socket_group } = self;
        let Some(path) = proxy_socket else { return Ok(None) };
        let server = ProxyServer::at(&path, proxy_socket_group)
            .with_context(|| format!("--proxy-socket {} can't be used", path.display()))?;
        Ok(Some(server))
    }
}

impl ProxyServer {
    /// Listens at a path; owner and group may connect.
    ///
    /// # Errors
    /// Where it can't be used.
    pub fn at(path: &Path, group: Option<u32>) -> std::io::Result<Self> {
        Ok(Self { store: Store::new(), socket: UnixSocket::bind(path, group, MOST_PROXIES)? })
    }

    /// Publishes changes to the proxies.
    pub fn publisher(&self) -> PublishToProxies {
        let store = self.store.clone();
        Box::new(move |changes| store.apply(changes))
    }

    /// The route `/proxied/NAME`.
    pub fn router(&self) -> Router {
        async fn show(State(store): State<Store>, Place(name): Place<String>) -> Response {
            match store.get(ResourceType::Route, &name.as_str().into()) {
                Some(route) => route.content.into_response(),
                None => (StatusCode::NOT_FOUND, format!("no proxy has a route {name:?}\n")).into_response(),
            }
        }
        Router::new().route("/proxied/{name}", get(show)).with_state(self.store.clone())
    }

    /// Serves until `stop`, as parts of the process, and tells which pods are acknowledged.
    pub fn serve(
        self,
        parts: &mut Parts,
        stop: &CancellationToken,
        acknowledged: watch::Sender<AcknowledgedPods>,
    ) {
        let Self { store, socket } = self;
        let serving = slotmesh_serve::serve(store.clone(), AdsServerConfig::default(), socket, stop.clone());
        parts.add("the delta ADS server of the proxies", async move { Ok(serving.await?) });
        let stop = stop.clone();
        parts.add("the reader of what proxies acknowledge", async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = follow(store, acknowledged) => {}
            }
            Ok(())
        });
    }
}

/// The pods of each proxy.
struct Acknowledged {
    streams: HashMap<StreamId, BTreeMap<ResourceName, Version>>,
    /// Those of proxies that have gone, until then.
    gone: Vec<(Instant, BTreeMap<ResourceName, Version>)>,
    /// Until when nobody knows, unless a proxy has said something.
    unknown: Option<Instant>,
}

impl Acknowledged {
    /// All pods at this moment; those of proxies that are there before those of proxies that have gone.
    fn pods(&mut self, now: Instant) -> AcknowledgedPods {
        self.gone.retain(|(until, _)| *until > now);
        self.unknown = self.unknown.filter(|until| *until > now);
        if self.unknown.is_some() {
            return None;
        }
        let mut pods = BTreeMap::new();
        let all = self.gone.iter().map(|(_, pods)| pods).chain(self.streams.values());
        for (name, version) in all.flatten() {
            pods.insert(name.clone(), *version);
        }
        Some(pods)
    }

    /// When that may change by itself.
    fn due(&self) -> Option<Instant> {
        self.gone.iter().map(|(until, _)| *until).chain(self.unknown).min()
    }
}

async fn follow(store: Store, acknowledged: watch::Sender<AcknowledgedPods>) {
    let mut news = store.follow();
    let unknown = Some(Instant::now() + AWAY);
    let mut state = Acknowledged { streams: HashMap::new(), gone: Vec::new(), unknown };
    loop {
        let due = state.due();
        let over = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let came = tokio::select! {
            came = news.next() => came,
            () = over => Vec::new(),
        };
        let now = Instant::now();
        for StreamEvent { status, ended } in came {
            let held = store.held(status.stream, ResourceType::Workload).filter(|_| ended.is_none());
            match held {
                Some(held) => {
                    // It has said what it has.
                    if status.up_to_date {
                        state.unknown = None;
                    }
                    state.streams.insert(status.stream, held.into_iter().collect());
                }
                None => {
                    let left = state.streams.remove(&status.stream);
                    state.gone.extend(left.map(|left| (now + AWAY, left)));
                }
            }
        }
        let pods = state.pods(now);
        acknowledged.send_if_modified(|before| {
            let changed = *before != pods;
            *before = pods;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(names: &[&str], version: &[u8]) -> BTreeMap<ResourceName, Version> {
        names.iter().map(|name| ((*name).into(), Version::of(version))).collect()
    }

    #[test]
    fn pods_of_a_proxy_that_has_gone_count_until_its_successor_is_there_or_for_a_while() {
        let now = Instant::now();
        let mut state = Acknowledged { streams: HashMap::new(), gone: Vec::new(), unknown: Some(now + AWAY) };
        assert_eq!(state.pods(now), None);
        assert_eq!(state.due(), Some(now + AWAY));
        // Nobody has come: there is no proxy.
        assert_eq!(state.pods(now + AWAY), Some(BTreeMap::new()));
        assert_eq!(state.due(), None);
        state.streams.insert(StreamId::from(1), pods(&["a", "b"], b"1"));
        assert_eq!(state.pods(now + AWAY), Some(pods(&["a", "b"], b"1")));
        let gone = state.streams.remove(&StreamId::from(1)).unwrap();
        state.gone.push((now + 2 * AWAY, gone));
        // The successor has one of them, at another port.
        state.streams.insert(StreamId::from(2), pods(&["b"], b"2"));
        let mut both = pods(&["a"], b"1");
        both.extend(pods(&["b"], b"2"));
        assert_eq!(state.pods(now + AWAY), Some(both));
        assert_eq!(state.due(), Some(now + 2 * AWAY));
        assert_eq!(state.pods(now + 2 * AWAY), Some(pods(&["b"], b"2")));
    }
}
