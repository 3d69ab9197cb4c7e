//! A server and a client in one process, joined by in-memory pipes that can be cut.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt;
use slotmesh_ads::{Backoff, Client, Config, FromStreams, Handle, Sink, Subscription, Update};
use slotmesh_serve::Store;
use slotmesh_xds::{AgentReport, Change, Rejection, Resource, ResourceName, ResourceType, Version};
use tokio::{
    io::DuplexStream,
    sync::{mpsc, watch},
    task::{AbortHandle, JoinHandle},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

/// Far beyond what anything takes; a test that hangs fails instead.
const HANG: Duration = Duration::from_secs(60 * 60);

pub fn upsert(ty: ResourceType, name: &str, content: &str) -> Change {
    let content = content.as_bytes();
    Change::Upsert(Resource {
        ty,
        name: name.into(),
        version: Version::of(content),
        content: content.to_vec().into(),
    })
}

pub fn remove(ty: ResourceType, name: &str) -> Change {
    Change::Remove(ty, name.into())
}

type Key = (ResourceType, ResourceName);

/// What is in force, and what has happened.
#[derive(Default)]
pub struct Memory {
    pub held: BTreeMap<Key, Resource>,
    /// One line an update: `cluster +a -b`.
    pub log: Vec<String>,
    pub synced: usize,
}

/// Looks at what is in force after each update, and panics if it is wrong.
type Check = Arc<dyn Fn(&Memory) + Send + Sync>;

/// Keeps resources in memory and refuses those whose content begins with "bad".
#[derive(Clone, Default)]
pub struct MemorySink {
    pub memory: Arc<Mutex<Memory>>,
    pub changes: Arc<watch::Sender<()>>,
    /// Called after each update.
    pub check: Option<Check>,
}

impl Sink for MemorySink {
    async fn held(&self) -> Vec<(ResourceType, ResourceName, Version)> {
        let memory = self.memory.lock().unwrap();
        memory.held.iter().map(|((ty, name), resource)| (*ty, name.clone(), resource.version)).collect()
    }

    async fn apply(&self, update: Update) -> Vec<Rejection> {
        // Lets other tasks run in the middle, as a sink that waits for another thread does.
        tokio::task::yield_now().await;
        let mut refused = Vec::new();
        let mut memory = self.memory.lock().unwrap();
        let mut signs: Vec<_> =
            update.upserts.iter().map(|resource| format!(" +{}", resource.name)).collect();
        signs.extend(update.removed.iter().map(|name| format!(" -{name}")));
        signs.sort_unstable();
        memory.log.push(format!("{}{}", update.ty, signs.concat()));
        for resource in update.upserts {
            assert_eq!(resource.version, Version::of(&resource.content));
            if resource.content.starts_with(b"bad") {
                refused.push(Rejection { name: resource.name, reason: "bad content".into() });
            } else {
                memory.held.insert((update.ty, resource.name.clone()), resource);
            }
        }
        for name in update.removed {
            memory.held.remove(&(update.ty, name));
        }
        if let Some(check) = &self.check {
            check(&memory);
        }
        drop(memory);
        self.changes.send_replace(());
        refused
    }

    fn synced(&self) {
        self.memory.lock().unwrap().synced += 1;
        self.changes.send_replace(());
    }
}

impl MemorySink {
    /// Waits until the memory is as expected.
    pub async fn until(&self, what: &str, expected: impl Fn(&Memory) -> bool) {
        let mut changes = self.changes.subscribe();
        let wait = async {
            while !expected(&self.memory.lock().unwrap()) {
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(HANG, wait).await.is_err() {
            panic!("never: {what}; {:?}", self.memory.lock().unwrap().log);
        }
    }

    pub fn names(&self, ty: ResourceType) -> Vec<String> {
        let memory = self.memory.lock().unwrap();
        memory.held.keys().filter(|(held, _)| *held == ty).map(|(_, name)| name.to_string()).collect()
    }

    pub fn content(&self, ty: ResourceType, name: &str) -> Option<String> {
        let memory = self.memory.lock().unwrap();
        let resource = memory.held.get(&(ty, name.into()))?;
        Some(String::from_utf8_lossy(&resource.content).into_owned())
    }

    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.memory.lock().unwrap().log)
    }
}

/// The pipes between client and server.
#[derive(Clone, Default)]
pub struct Wires {
    cables: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Wires {
    /// Cuts all connections.
    pub fn cut(&self) {
        for cable in self.cables.lock().unwrap().drain(..) {
            cable.abort();
        }
    }

    fn plug(&self, server: &mpsc::UnboundedSender<io::Result<DuplexStream>>) -> io::Result<DuplexStream> {
        let (near, mut here) = tokio::io::duplex(1 << 16);
        let (mut there, far) = tokio::io::duplex(1 << 16);
        server.send(Ok(far)).map_err(|_gone| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        let cable = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut here, &mut there).await });
        self.cables.lock().unwrap().push(cable.abort_handle());
        Ok(near)
    }
}

/// A running client and server.
pub struct Mesh {
    pub store: Store,
    pub sink: MemorySink,
    pub handle: Handle,
    /// What the agent has to tell of itself.
    pub reports: watch::Sender<Option<AgentReport>>,
    pub wires: Wires,
    pub stop: CancellationToken,
    pub client: JoinHandle<()>,
    pub server: JoinHandle<()>,
}

impl Mesh {
    /// A client with the wildcard for all types.
    pub fn start(store: Store) -> Self {
        Self::with(store, MemorySink::default(), |handle| {
            for ty in ResourceType::ALL {
                handle.set(ty, Subscription::Wildcard);
            }
        })
    }

    pub fn with(store: Store, sink: MemorySink, subscribe: impl FnOnce(&Handle)) -> Self {
        let stop = CancellationToken::new();
        let wires = Wires::default();
        let (connections, incoming) = mpsc::unbounded_channel();
        let incoming = UnboundedReceiverStream::new(incoming).boxed();
        let serving = slotmesh_serve::serve(
            store.clone(),
            slotmesh_serve::AdsServerConfig::default(),
            incoming,
            stop.clone(),
        );
        let server = tokio::spawn(async move { serving.await.unwrap() });
        let cables = wires.clone();
        let connector = FromStreams::new(move || std::future::ready(cables.plug(&connections)));
        let (client, handle) = Client::new(config(), connector, sink.clone());
        subscribe(&handle);
        let (reports, told) = watch::channel(None);
        let client = tokio::spawn(client.reporting(told).run(stop.clone()));
        Self { store, sink, handle, reports, wires, stop, client, server }
    }

    /// Waits until the server has nothing more for the agent and knows that it has it.
    pub async fn settled(&self) {
        let mut changes = self.store.status_changes();
        let wait = async {
            loop {
                let agents = self.store.agents();
                if agents.len() == 1 && agents[0].up_to_date && self.handle.stats().in_sync() {
                    break;
                }
                // The client is in sync a little after the server's status changed.
                _ = tokio::time::timeout(Duration::from_millis(1), changes.changed()).await;
            }
        };
        if tokio::time::timeout(HANG, wait).await.is_err() {
            panic!("never settled: {:?}", self.store.agents());
        }
    }

    /// Ends both sides and waits for them.
    pub async fn end(self) {
        self.stop.cancel();
        self.client.await.unwrap();
        self.server.await.unwrap();
    }
}

pub fn config() -> Config {
    let backoff = Backoff { initial: Duration::from_millis(5), max: Duration::from_millis(50) };
    Config { backoff, ..Config::new("node-a") }
}
