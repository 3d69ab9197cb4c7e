//! The steward of the socket broker: which pods have a proxy, and at which port of their network namespace.
//!
//! ```text
//!  pod attached --cookie of its namespace--> broker --port of the listener there--> proxies (ProxiedPods)
//!                                                     map: cookie -> port <-- acknowledged by a proxy --/
//! ```
//!
//! Invariants:
//! - Connections of a pod go to a proxy only while one has acknowledged the pod, and the broker was there within the last
//!   [`AWAY`]; else they go where the rule for every request says.
//! - What an earlier agent entered stays until all pods are named and each has been looked at; then what belongs to none
//!   goes, from the map and from the broker.
//! - The listener of a pod outlives its broker: connections that are made while there is none wait in it for the next
//!   proxy.
//! - What the broker answers is checked: the namespace is the one that was asked for.
//!
//! It runs on a thread of its own, which may wait for the broker; no update waits for it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use slotmesh_broker::{AskError, Counterpart, Key, NamespaceAt};
use slotmesh_kernel::netns_cookie;
use slotmesh_xds::{Resource, ResourceName, ResourceType, Version, Workload as Named};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    Agent, Datapath, ProxiedPods,
    enrol::{AttachedPod, AttachedPods},
    running::RunningReader,
};

/// For how long connections go to proxies while the broker is away: without it a proxy gets no sockets in pods.
const AWAY: Duration = Duration::from_secs(10);
/// The bounds of the delays before the broker is looked for again.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// The bounds of the delays before a pod is looked at again that has no process yet.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// The same of one whose namespace can't be had.
const FAILED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often it is looked whether a pod is still in the namespace in which it was.
const RECHECK: Duration = Duration::from_secs(10);
/// How often it is looked whether the broker is there.
const TICK: Duration = Duration::from_secs(1);
/// How many pods are looked at before it is looked whether this is to end.
const AT_ONCE: usize = 64;
/// A pod that was looked at so often without success isn't waited for.
const TRIES: u32 = 5;

/// The pods of which a proxy accepts connections, each in the version that it has acknowledged last; `None` while nobody
/// knows.
pub type AcknowledgedPods = Option<BTreeMap<ResourceName, Version>>;

/// The parties that a steward deals with.
pub struct StewardParts {
    /// The broker's Unix socket.
    pub broker: PathBuf,
    /// The pods that are attached.
    pub attached: AttachedPods,
    /// Where proxies are told of them.
    pub proxied: ProxiedPods,
    /// The pods that they acknowledge.
    pub acknowledged: watch::Receiver<AcknowledgedPods>,
}

/// Starts the steward of an agent, on a thread that ends with `stop`.
///
/// # Errors
/// Where there can't be another thread.
pub fn start_steward(
    agent: &Agent,
    parts: StewardParts,
    stop: CancellationToken,
) -> io::Result<JoinHandle<()>> {
    let StewardParts { broker, attached, proxied, acknowledged } = parts;
    let steward = Steward {
        datapath: agent.datapath().clone(),
        running: agent.running_reader(),
        proxied,
        socket: broker,
        broker: None,
        next_connect: Instant::now(),
        delay: RECONNECT.0,
        left: Instant::now(),
        is_reviewing: false,
        is_named: false,
        pods: HashMap::new(),
    };
    let synced = agent.synced();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name("steward".to_owned())
        .spawn(move || runtime.block_on(steward.run(attached, acknowledged, synced, stop)))
}

/// A pod that is attached.
struct Pod {
    attached: AttachedPod,
    /// When it is looked at next.
    next: Instant,
    delay: Duration,
    /// How often it was looked at without success since there is this broker.
    tries: u32,
    /// It was enrolled with this broker.
    is_enrolled: bool,
    /// Its namespace, where it is known.
    place: Option<Place>,
    /// The matter at the last look.
    trouble: String,
}

/// A pod's place at the broker.
struct Place {
    cookie: u64,
    /// The listener there: the next broker gets it, and connections wait in it while there is none.
    listener: OwnedFd,
    port: u16,
    /// The name and the version by which proxies know it.
    name: ResourceName,
    version: Version,
    /// The port in the map.
    entered: Option<u16>,
}

struct Steward {
    datapath: Arc<Datapath>,
    running: Arc<RunningReader>,
    proxied: ProxiedPods,
    socket: PathBuf,
    broker: Option<Counterpart>,
    next_connect: Instant,
    delay: Duration,
    /// Since when the broker is away, where it is.
    left: Instant,
    /// Things that an earlier steward left haven't gone yet.
    is_reviewing: bool,
    /// All pods are named.
    is_named: bool,
    pods: HashMap<ResourceName, Pod>,
}

impl Steward {
    async fn run(
        mut self,
        mut attached: AttachedPods,
        mut acknowledged: watch::Receiver<AcknowledgedPods>,
        mut synced: watch::Receiver<bool>,
        stop: CancellationToken,
    ) {
        let mut is_changed = true;
        loop {
            if stop.is_cancelled() {
                return self.leave();
            }
            if is_changed {
                self.take(attached.now());
            }
            self.is_named = *synced.borrow_and_update();
            self.look_after_broker();
            let next = self.look_at_pods();
            self.finish_review();
            self.enter(&acknowledged.borrow_and_update());
            is_changed = tokio::select! {
                biased;
                () = stop.cancelled() => return self.leave(),
                () = attached.changed() => true,
                // Whoever told of them has ended: then nothing changes any more.
                Ok(()) = acknowledged.changed() => false,
                Ok(()) = synced.changed() => false,
                () = sleep(next) => false,
            };
        }
    }

    /// Ends. Connections go on to the proxies that there are; where no broker keeps their listeners, these end with us.
    fn leave(&mut self) {
        if self.broker.as_ref().is_some_and(Counterpart::is_open) {
            return;
        }
        for place in self.pods.values_mut().filter_map(|pod| pod.place.as_mut()) {
            set(&self.running, place, None);
        }
    }

    /// Takes over which pods are attached.
    fn take(&mut self, all: Vec<AttachedPod>) {
        let names: HashSet<&ResourceName> = all.iter().map(|pod| &pod.resource).collect();
        let gone: Vec<_> = self.pods.keys().filter(|name| !names.contains(name)).cloned().collect();
        for name in gone {
            if let Some(pod) = self.pods.remove(&name) {
                self.release(pod);
            }
        }
        for attached in all {
            match self.pods.get_mut(&attached.resource) {
                Some(pod) if pod.attached == attached => {}
                Some(pod) => {
                    // Another class of callers, or another cgroup.
                    pod.attached = attached;
                    pod.next = Instant::now();
                    pod.is_enrolled = false;
                }
                None => {
                    let pod = Pod {
                        next: Instant::now(),
                        delay: LOOK.0,
                        tries: 0,
                        is_enrolled: false,
                        place: None,
                        trouble: String::new(),
                        attached,
                    };
                    self.pods.insert(pod.attached.resource.clone(), pod);
                }
            }
        }
    }

    /// A pod has gone: first nothing goes to its listener, then nobody listens.
    fn release(&mut self, pod: Pod) {
        let Some(mut place) = pod.place else { return };
        set(&self.running, &mut place, None);
        self.proxied.leave(&place.name);
        if let (Some(broker), Some(key)) = (&self.broker, Key::new(&pod.attached.message.uid))
            && let Err(error) = broker.release(&key)
        {
            self.lost(&error);
        }
    }

    /// Connects where it isn't; notices that the broker has gone.
    fn look_after_broker(&mut self) {
        let now = Instant::now();
        if self.broker.as_ref().is_some_and(|broker| !broker.is_open()) {
            self.lost(&"it has gone");
        }
        if self.broker.is_none() && self.next_connect <= now {
            let connected = Counterpart::connect(&self.socket).map_err(AskError::from);
            match connected.and_then(|broker| broker.review().map(|()| broker)) {
                Ok(broker) => {
                    tracing::info!(socket = %self.socket.display(), "the socket broker is there");
                    self.broker = Some(broker);
                    self.delay = RECONNECT.0;
                    self.is_reviewing = true;
                    for pod in self.pods.values_mut() {
                        (pod.is_enrolled, pod.tries, pod.next, pod.delay) = (false, 0, now, LOOK.0);
                    }
                }
                Err(error) => {
                    if self.delay == RECONNECT.0 {
                        tracing::warn!(socket = %self.socket.display(), %error, "the socket broker can't be reached; trying again");
                    }
                    self.next_connect = now + jittered(self.delay);
                    self.delay = (self.delay * 2).min(RECONNECT.1);
                }
            }
        }
    }

    fn lost(&mut self, why: &dyn std::fmt::Display) {
        if self.broker.take().is_some() {
            tracing::warn!(%why, "the socket broker is away");
            self.left = Instant::now();
            self.next_connect = Instant::now();
        }
    }

    /// Looks at the pods that are due; for how long there is nothing to do then.
    fn look_at_pods(&mut self) -> Duration {
        let now = Instant::now();
        let mut due: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.next <= now)
            .map(|(name, pod)| (pod.next, name.clone()))
            .collect();
        due.sort();
        let is_more = due.len() > AT_ONCE;
        for (_, name) in due.into_iter().take(AT_ONCE) {
            if self.broker.is_none() {
                break;
            }
            self.look_at(&name);
        }
        if is_more && self.broker.is_some() {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let connect = self.broker.is_none().then_some(self.next_connect);
        let pods = self.pods.values().map(|pod| pod.next).filter(|_| self.broker.is_some());
        let next = pods.chain(connect).min().map_or(TICK, |next| next.saturating_duration_since(now));
        next.min(TICK)
    }

    /// Finds the namespace of a pod and enrols it, or sees that it is still the same.
    fn look_at(&mut self, name: &ResourceName) {
        let (Some(pod), Some(broker)) = (self.pods.get_mut(name), &self.broker) else { return };
        let cookie = match self.datapath.network_of(&pod.attached.workload) {
            Ok(Some(cookie)) => cookie,
            // Its processes come, or go.
            Ok(None) => return pod.later(LOOK, String::new()),
            Err(error) => return pod.later(FAILED, error.to_string()),
        };
        if pod.is_enrolled && pod.place.as_ref().is_some_and(|place| place.cookie == cookie) {
            return pod.later((RECHECK, RECHECK), String::new());
        }
        let message = &pod.attached.message;
        let Some(key) = Key::new(&message.uid) else {
            return pod.later(FAILED, format!("uid: {:?} can't be a key", message.uid));
        };
        if let Some(place) = &mut pod.place
            && place.cookie != cookie
        {
            // It was made again, with a namespace of its own.
            set(&self.running, place, None);
        }
        let kept = pod.place.as_ref().filter(|place| place.cookie == cookie);
        let kept = kept.map(|place| place.listener.as_fd());
        let (listener, port) = match enrol(broker, &key, cookie, kept) {
            Ok(enrolled) => enrolled,
            Err(AskError::Failed(why)) => return pod.later(FAILED, why),
            Err(error) => return self.lost(&error),
        };
        if netns_cookie(listener.as_fd()).ok() != Some(cookie) {
            return pod.later(LOOK, "the socket broker has another network namespace".to_owned());
        }
        let served = Named { proxy_port: port.into(), ..message.clone() };
        let name = served.resource_name();
        let version = Resource::encode(ResourceType::Workload, name.clone(), &served).version;
        let known = pod.place.take().filter(|place| place.cookie == cookie);
        let entered = match &known {
            Some(known) => known.entered,
            None => self.running.proxy_of(cookie),
        };
        if known.is_none_or(|known| known.version != version) {
            self.proxied.serve(&served);
        }
        pod.place = Some(Place { cookie, listener, port, name, version, entered });
        pod.is_enrolled = true;
        pod.later((RECHECK, RECHECK), String::new());
        tracing::debug!(pod = %pod.attached.workload, port, "has a listener for the proxy");
    }

    /// Gives up what an earlier steward left, once it is known that it belongs to no pod.
    fn finish_review(&mut self) {
        let is_looked_at = |pod: &Pod| pod.is_enrolled || pod.tries >= TRIES;
        if !self.is_reviewing || !self.is_named || !self.pods.values().all(is_looked_at) {
            return;
        }
        let Some(broker) = &self.broker else { return };
        if let Err(error) = broker.sweep() {
            return self.lost(&error);
        }
        let known: HashSet<u64> =
            self.pods.values().filter_map(|pod| pod.place.as_ref()).map(|place| place.cookie).collect();
        self.running.retain_proxies(|cookie| known.contains(&cookie));
        self.is_reviewing = false;
    }

    /// Sends connections to the proxies that take them, and to no others.
    fn enter(&mut self, acknowledged: &AcknowledgedPods) {
        let is_away = self.broker.is_none() && self.left.elapsed() >= AWAY;
        for place in self.pods.values_mut().filter_map(|pod| pod.place.as_mut()) {
            match acknowledged.as_ref().map(|pods| pods.get(&place.name)) {
                _ if is_away => set(&self.running, place, None),
                None => {}
                Some(None) => set(&self.running, place, None),
                Some(Some(version)) if *version == place.version => {
                    let port = place.port;
                    set(&self.running, place, Some(port));
                }
                // It listens as it was told before.
                Some(Some(_)) => {}
            }
        }
    }
}

impl Pod {
    /// It is looked at again, each time later as long as the same is the matter.
    fn later(&mut self, (first, last): (Duration, Duration), trouble: String) {
        let is_same = self.trouble == trouble && (first..=last).contains(&self.delay);
        self.delay = if is_same { (self.delay * 2).min(last) } else { first };
        if !is_same && !trouble.is_empty() {
            tracing::warn!(pod = %self.attached.workload, trouble, "has no proxy; trying again");
        }
        self.tries = self.tries.saturating_add(1);
        self.trouble = trouble;
        self.next = Instant::now() + jittered(self.delay);
    }
}

/// Enrols a namespace: the listener that the broker has under this key, and its port.
fn enrol(
    broker: &Counterpart,
    key: &Key,
    cookie: u64,
    kept: Option<BorrowedFd<'_>>,
) -> Result<(OwnedFd, u16), AskError> {
    let ask = || broker.enrol(key, &NamespaceAt::Cookie(cookie), kept);
    let found = ask()?;
    if netns_cookie(found.0.as_fd())? == cookie {
        return Ok(found);
    }
    // That which the pod had before.
    broker.release(key)?;
    ask()
}

/// Writes into the map where the proxy of a namespace listens.
fn set(running: &RunningReader, place: &mut Place, port: Option<u16>) {
    if place.entered == port {
        return;
    }
    match running.set_proxy(place.cookie, port) {
        Ok(()) => place.entered = port,
        Err(error) => {
            tracing::warn!(%error, namespace = place.cookie, "the port of a proxy can't be entered")
        }
    }
}

/// About so long: not all at once.
fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(0.75 + 0.5 * rand::random::<f64>())
}
