//! Resources to be served, and who has to be told of a change.
//!
//! Invariant: whoever reads the resources under the lock finds in its inbox every name that changed
//! up to the generation it reads. So a stream that drains its inbox and copies resources under one
//! read lock sees one generation, whole.
//!
//! Lock order: a stream's state, then the resources, then an inbox. `apply` takes only the last two.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use slotmesh_xds::{Change, PerType, Resource, ResourceName, ResourceType, Version};
use tokio::sync::{Notify, watch};

use crate::{
    delays::{Delays, observe},
    news::{Feed, News},
    reached::Reached,
    scope::{Rescoped, Scope, View, Visibility},
    status::{Acknowledgement, AgentStatus, Ending, NodeName, StreamId, StreamNews},
    stream::{Awaiting, Stream},
    table::{Before, Place, Table},
};

/// Names of a type that changed, and what there was of each before.
pub(crate) type Changed = HashMap<ResourceName, Option<Before>>;

/// Names that may differ from what a stream's agent has.
pub(crate) type Dirty = PerType<Changed>;

/// The resources to be served, at one generation.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    by_type: PerType<Table>,
    generation: u64,
    reached: Reached,
    /// The knowledge that an agent with all of them gives back, as it is written: the same for nearly all.
    source: Arc<str>,
    scope: Option<Arc<dyn Scope>>,
}

impl Resources {
    /// Applies a batch and returns the names whose content changed.
    pub(crate) fn apply(&mut self, changes: Vec<Change>) -> Dirty {
        let mut dirty = Dirty::default();
        for change in changes {
            match change {
                Change::Upsert(resource) => {
                    let (ty, name) = (resource.ty, resource.name.clone());
                    if let Some(before) = self.by_type[ty].upsert(resource) {
                        dirty[ty].entry(name).or_insert(before);
                    }
                }
                Change::Remove(ty, name) => {
                    if let Some(before) = self.by_type[ty].remove(&name) {
                        dirty[ty].entry(name).or_insert(Some(before));
                    }
                }
            }
        }
        self.generation += 1;
        dirty
    }

    /// Adds resources that are as they were, and are to be compared all the same.
    pub(crate) fn look_at(&self, names: &HashSet<(ResourceType, ResourceName)>, dirty: &mut Dirty) {
        for (ty, name) in names {
            if let Some((place, resource)) = self.find(*ty, name) {
                let before = Before { place, version: resource.version };
                dirty[*ty].entry(name.clone()).or_insert(Some(before));
            }
        }
    }

    /// The current content of a resource.
    pub(crate) fn get(&self, ty: ResourceType, name: &ResourceName) -> Option<&Resource> {
        self.by_type[ty].get(name)
    }

    /// A resource and its place.
    pub(crate) fn find(&self, ty: ResourceType, name: &ResourceName) -> Option<(Place, &Resource)> {
        let place = self.by_type[ty].place(name)?;
        Some((place, self.by_type[ty].at(place)?))
    }

    /// All resources of a type.
    pub(crate) fn table(&self, ty: ResourceType) -> &Table {
        &self.by_type[ty]
    }

    /// The rule by which a node sees what it may; `None` where all see all.
    pub(crate) fn scope(&self) -> Option<&dyn Scope> {
        self.scope.as_deref()
    }

    pub(crate) fn set_scope(&mut self, scope: Arc<dyn Scope>) {
        self.scope = Some(scope);
    }

    /// Knowledge of the source of which these resources are.
    pub(crate) fn reached(&self) -> &Reached {
        &self.reached
    }

    /// From now on the source is known so far.
    pub(crate) fn reach(&mut self, reached: &Reached) {
        self.reached.clone_from(reached);
        self.source = reached.needs().to_string().into();
    }

    /// The knowledge that an agent with all of these gives back.
    pub(crate) fn source(&self) -> &Arc<str> {
        &self.source
    }

    /// How many batches have been applied. Zero means that nothing is known yet, and an agent must
    /// not be told that what it holds is gone.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }
}

/// Where a stream finds the names that changed since it last looked. Repeated changes of one name
/// are one entry.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    names: Dirty,
    /// The agent may see other resources than before: all is to be compared.
    all: bool,
    /// When the first event that led to them was seen.
    seen: Option<Instant>,
}

impl Inbox {
    fn put(&self, dirty: &Dirty, all: bool, seen: Option<Instant>) {
        let mut waiting = lock(&self.waiting);
        for (ty, names) in dirty.iter() {
            for (name, before) in names {
                // What it has is what there was before the first change.
                waiting.names[ty].entry(name.clone()).or_insert(*before);
            }
        }
        waiting.all |= all;
        waiting.seen = waiting.seen.or(seen);
        self.wake.notify_one();
    }

    /// Resolves when something is in the inbox.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }
}

#[derive(Debug, Default)]
struct State {
    resources: Resources,
    inboxes: HashMap<StreamId, Arc<Inbox>>,
}

/// A stream, as those see it who read its status.
#[derive(Clone, Debug)]
struct Connected {
    stream: Arc<Mutex<Stream>>,
    inbox: Arc<Inbox>,
}

impl Connected {
    fn status(&self, id: StreamId) -> Option<AgentStatus> {
        let stream = lock(&self.stream);
        let waiting = lock(&self.inbox.waiting);
        let news = waiting.all || waiting.names.iter().any(|(_, names)| !names.is_empty());
        drop(waiting);
        let mut status = stream.status(id)?;
        status.up_to_date &= !news;
        Some(status)
    }

    /// Runs `step` on the stream's state, which has absorbed the inbox, with the resources of the same generation.
    fn step<T>(&self, store: &Store, step: impl FnOnce(&mut Stream, &Resources) -> T) -> T {
        let mut stream = lock(&self.stream);
        store.read(|resources| {
            let Waiting { names, all, seen } = mem::take(&mut *lock(&self.inbox.waiting));
            stream.absorb(names, seen, resources);
            if all {
                stream.compare_all(resources);
            }
            step(&mut stream, resources)
        })
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: RwLock<State>,
    streams: Mutex<BTreeMap<StreamId, Connected>>,
    last_stream: AtomicU64,
    acknowledged: watch::Sender<u64>,
    /// Says that the source is known further.
    reached: watch::Sender<()>,
    news: Mutex<News>,
    delays: Delays,
}

/// The resources to be served. Clones are handles of the same store.
///
/// Streams are accepted at once but answered only after the first batch: an empty store at the start
/// of the operator must not make agents remove what they have in force. So the first batch has to be
/// the whole initial state (it may be empty).
#[derive(Clone, Debug, Default)]
pub struct Store(Arc<Shared>);

impl Store {
    /// An empty store that answers nobody until the first [`apply`](Self::apply).
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store of which each node sees what `scope` says.
    pub fn with_scope(scope: Arc<dyn Scope>) -> Self {
        let store = Self::default();
        store.0.state.write().unwrap_or_else(PoisonError::into_inner).resources.set_scope(scope);
        store
    }

    /// Applies a batch of changes as a whole and wakes the streams.
    ///
    /// Costs what the batch touches, for each stream; an upsert of equal content costs nothing.
    pub fn apply(&self, changes: Vec<Change>) {
        self.apply_for(changes, &Rescoped::default(), None, &Reached::default());
    }

    /// As [`apply`](Self::apply), of a source that is known so far; and what nodes may see has changed just before, as
    /// `rescoped` tells: that is compared. `seen` is when the first event that led to this
    /// was seen; the [`delays`](Self::delays) count from then.
    pub fn apply_for(
        &self,
        changes: Vec<Change>,
        rescoped: &Rescoped,
        seen: Option<Instant>,
        reached: &Reached,
    ) {
        // Before the resources are locked: see the lock order.
        let Rescoped { nodes, resources, of_node } = rescoped;
        let streams = if nodes.is_empty() && of_node.is_empty() { Vec::new() } else { self.streams() };
        let rescoped = streams.into_iter().filter_map(|(_, connected)| {
            let stream = lock(&connected.stream);
            let node = stream.node()?;
            let (all, some) = (nodes.contains(node), of_node.get(node));
            drop(stream);
            (all || some.is_some()).then_some((connected.inbox, all, some))
        });
        let rescoped: Vec<_> = rescoped.collect();
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut dirty = state.resources.apply(changes);
        state.resources.look_at(resources, &mut dirty);
        state.resources.reach(reached);
        self.0.reached.send_replace(());
        let first = state.resources.generation() == 1;
        let seen = seen.filter(|_| !first);
        for (inbox, all, some) in rescoped {
            let mut names = Dirty::default();
            if let Some(some) = some {
                state.resources.look_at(some, &mut names);
            }
            // What changed comes with the rest.
            for (ty, names) in names.iter_mut() {
                names.retain(|name, _| !dirty[ty].contains_key(name));
            }
            inbox.put(&names, all, seen);
        }
        if !first && dirty.iter().all(|(_, names)| names.is_empty()) {
            return;
        }
        if let Some(seen) = seen {
            observe(&self.0.delays.published, seen);
        }
        for inbox in state.inboxes.values() {
            inbox.put(&dirty, false, seen);
        }
    }

    /// How long changes take.
    pub fn delays(&self) -> Delays {
        self.0.delays.clone()
    }

    /// The source is known further, which changes nothing of what is served.
    pub fn reach(&self, reached: &Reached) {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner).resources.reach(reached);
        self.0.reached.send_replace(());
    }

    /// The resource that is currently served under this name.
    pub fn get(&self, ty: ResourceType, name: &ResourceName) -> Option<Resource> {
        self.read(|resources| resources.get(ty, name).cloned())
    }

    /// Names and versions of the resources of a type that are served: to the agent of this node, or to whichever agents.
    pub fn served(&self, ty: ResourceType, node: Option<&NodeName>) -> Vec<(ResourceName, Version)> {
        self.read(|resources| {
            let (table, view) = (&resources.by_type[ty], View::new(resources, node));
            let version = |place| Some(table.at(place)?.version);
            let all = table.iter();
            let of_node =
                all.filter(|(name, _)| node.is_none() || view.visibility(ty, name) == Visibility::Seen);
            of_node.filter_map(|(name, place)| Some((name.clone(), version(place)?))).collect()
        })
    }

    /// How many resources of a type are served.
    pub fn count(&self, ty: ResourceType) -> usize {
        self.read(|resources| resources.by_type[ty].len())
    }

    /// The acknowledgements of each connected agent.
    pub fn agents(&self) -> Vec<AgentStatus> {
        self.streams().into_iter().filter_map(|(id, connected)| connected.status(id)).collect()
    }

    /// Events of the streams from now on, for one reader: the last who asked for it.
    pub fn follow(&self) -> Feed {
        let ids: Vec<StreamId> = lock(&self.0.streams).keys().copied().collect();
        lock(&self.0.news).follow(ids);
        Feed::new(self.clone(), self.status_changes())
    }

    /// Events since the last call.
    pub(crate) fn take_news(&self) -> Vec<StreamNews> {
        let (changed, mut news) = lock(&self.0.news).take();
        for id in changed {
            let connected = lock(&self.0.streams).get(&id).cloned();
            let status = connected.and_then(|connected| connected.status(id));
            news.extend(status.map(|status| StreamNews { status, ended: None }));
        }
        news
    }

    /// The answer of each connected agent to one resource.
    pub fn acknowledgements(
        &self,
        ty: ResourceType,
        name: &ResourceName,
    ) -> Vec<(StreamId, NodeName, Acknowledgement)> {
        let one = |(id, connected): (StreamId, Connected)| {
            connected.step(self, |stream, resources| {
                Some((id, stream.node()?.clone(), stream.acknowledgement(ty, name, resources)))
            })
        };
        self.streams().into_iter().filter_map(one).collect()
    }

    /// The versions of a type that the agent behind a stream has in force; `None` when the stream is
    /// gone.
    pub fn held(&self, stream: StreamId, ty: ResourceType) -> Option<Vec<(ResourceName, Version)>> {
        let connected = lock(&self.0.streams).get(&stream).cloned()?;
        Some(connected.step(self, |stream, resources| stream.held(ty, resources)))
    }

    /// Changes whenever an agent connects, acknowledges or leaves; the value itself has no meaning.
    pub fn status_changes(&self) -> watch::Receiver<u64> {
        self.0.acknowledged.subscribe()
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Resources) -> T) -> T {
        read(&self.0.state.read().unwrap_or_else(PoisonError::into_inner).resources)
    }

    /// Adds a stream; it is removed when the registration is dropped.
    pub(crate) fn register(&self, max_message: usize) -> Registration {
        let id = StreamId(self.0.last_stream.fetch_add(1, Ordering::Relaxed) + 1);
        let inbox = Arc::new(Inbox::default());
        let stream = Arc::new(Mutex::new(Stream::new(id, max_message)));
        let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        state.inboxes.insert(id, Arc::clone(&inbox));
        drop(state);
        let connected = Connected { stream, inbox };
        lock(&self.0.streams).insert(id, connected.clone());
        Registration { store: self.clone(), id, connected, ending: Ending::default() }
    }

    fn streams(&self) -> Vec<(StreamId, Connected)> {
        lock(&self.0.streams).iter().map(|(id, connected)| (*id, connected.clone())).collect()
    }
}

/// A stream's place in the store.
pub(crate) struct Registration {
    store: Store,
    id: StreamId,
    connected: Connected,
    ending: Ending,
}

impl Registration {
    pub(crate) fn id(&self) -> StreamId {
        self.id
    }

    /// Refuses the stream if it turns out to be for another node.
    pub(crate) fn restrict(&self, node: NodeName) {
        lock(&self.connected.stream).restrict(node);
    }

    pub(crate) fn inbox(&self) -> &Inbox {
        &self.connected.inbox
    }

    /// Runs `step` on the stream's state, which has absorbed the inbox, with the resources of the
    /// same generation.
    pub(crate) fn step<T>(&self, step: impl FnOnce(&mut Stream, &Resources) -> T) -> T {
        self.connected.step(&self.store, step)
    }

    /// The next response to send, if there is one now.
    ///
    /// The resources are locked only to begin a round: building a message copies up to megabytes.
    pub(crate) fn next_response(&self) -> Option<DeltaDiscoveryResponse> {
        loop {
            let mut stream = lock(&self.connected.stream);
            let response = stream.next_response();
            if let Some(seen) = stream.take_answered() {
                observe(&self.store.0.delays.answered, seen);
            }
            drop(stream);
            if response.is_some() {
                return response;
            }
            if !self.step(|stream, resources| stream.begin_round(resources)) {
                return None;
            }
        }
    }

    /// Changes when the source may be known further.
    pub(crate) fn reached(&self) -> watch::Receiver<()> {
        self.store.0.reached.subscribe()
    }

    /// Tells whether the first round waits until the source is known as far as elsewhere.
    pub(crate) fn lags(&self) -> bool {
        let stream = lock(&self.connected.stream);
        // Most have nothing to wait for, and don't need the resources to know.
        stream.awaits() && self.store.read(|resources| stream.lags(resources))
    }

    /// Waits for that no longer.
    pub(crate) fn go_on(&self) {
        lock(&self.connected.stream).go_on();
    }

    /// The thing that the stream waits for, if any.
    pub(crate) fn awaiting(&self) -> Option<Awaiting> {
        lock(&self.connected.stream).awaiting()
    }

    /// Says how the stream ended, before it is dropped.
    pub(crate) fn ends(&mut self, ending: Ending) {
        self.ending = ending;
    }

    /// Tells those who watch the status.
    pub(crate) fn status_changed(&self) {
        lock(&self.store.0.news).changed(self.id);
        self.tell();
    }

    fn tell(&self) {
        self.store.0.acknowledged.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.store.0.state.write().unwrap_or_else(PoisonError::into_inner).inboxes.remove(&self.id);
        lock(&self.store.0.streams).remove(&self.id);
        let status = lock(&self.connected.stream).status(self.id);
        lock(&self.store.0.news).ended(self.id, status, self.ending);
        self.tell();
    }
}

/// A panic elsewhere leaves maps and sets that are whole, so a poisoned lock is used on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
