//! Resources to be served, and who has to be told of a change.
//!
//! Invariant: whoever reads the resources under the lock finds in its inbox every name that changed
//! up to the generation it reads. So a stream that drains its inbox and copies resources under one
//! read lock sees one generation, whole.
//!
//! Lock order: a stream's state, then the resources, then an inbox. `apply` takes only the last two.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockWriteGuard},
    time::Instant,
};

use slotmesh_xds::{Change, Resource, ResourceName, ResourceType, Version};
use tokio::sync::watch;

use crate::{
    delays::{Delays, observe},
    inbox::{Inbox, Waiting},
    registry::{Connected, Registry},
    resources::{Dirty, Resources, View},
    scope::{Rescoped, Scope, Visibility},
    source_versions::SourceVersions,
    status::{AgentStatus, NodeName, StreamId},
    stream::Stream,
    stream_events::StreamEvents,
};

#[derive(Debug, Default)]
struct State {
    resources: Resources,
    inboxes: HashMap<StreamId, Arc<Inbox>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: RwLock<State>,
    registry: Arc<Registry>,
    /// Says that the source is known further.
    reached: watch::Sender<()>,
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
        store.write().resources.set_scope(scope);
        store
    }

    /// Applies a batch of changes as a whole and wakes the streams.
    ///
    /// Costs what the batch touches, for each stream; an upsert of equal content costs nothing.
    pub fn apply(&self, changes: Vec<Change>) {
        self.apply_for(changes, &Rescoped::default(), None, &SourceVersions::default());
    }

    /// As [`apply`](Self::apply), of a source that is known so far; and what nodes may see has changed just before, as
    /// `rescoped` tells: that is compared. `seen` is when the first event that led to this
    /// was seen; the [`delays`](Self::delays) count from then.
    pub fn apply_for(
        &self,
        changes: Vec<Change>,
        rescoped: &Rescoped,
        seen: Option<Instant>,
        reached: &SourceVersions,
    ) {
        // Before the resources are locked: see the lock order.
        let Rescoped { nodes, resources, of_node } = rescoped;
        let rescopes = !nodes.is_empty() || !of_node.is_empty();
        let streams = if rescopes { self.0.registry.streams() } else { Vec::new() };
        let rescoped = streams.into_iter().filter_map(|(_, connected)| {
            let stream = connected.stream();
            let node = stream.node()?;
            let (all, some) = (nodes.contains(node), of_node.get(node));
            drop(stream);
            (all || some.is_some()).then_some((connected.inbox, all, some))
        });
        let rescoped: Vec<_> = rescoped.collect();
        let mut state = self.write();
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
    pub fn reach(&self, reached: &SourceVersions) {
        self.write().resources.reach(reached);
        self.0.reached.send_replace(());
    }

    /// The resource that is currently served under this name.
    pub fn get(&self, ty: ResourceType, name: &ResourceName) -> Option<Resource> {
        self.read(|resources| resources.get(ty, name).cloned())
    }

    /// Names and versions of the resources of a type that are served: to the agent of this node, or to whichever agents.
    pub fn served(&self, ty: ResourceType, node: Option<&NodeName>) -> Vec<(ResourceName, Version)> {
        self.read(|resources| {
            let (table, view) = (resources.table(ty), View::new(resources, node));
            let version = |place| Some(table.at(place)?.version);
            let all = table.iter();
            let of_node =
                all.filter(|(name, _)| node.is_none() || view.visibility(ty, name) == Visibility::Seen);
            of_node.filter_map(|(name, place)| Some((name.clone(), version(place)?))).collect()
        })
    }

    /// How many resources of a type are served.
    pub fn count(&self, ty: ResourceType) -> usize {
        self.read(|resources| resources.table(ty).len())
    }

    /// The acknowledgements of each connected agent.
    pub fn agents(&self) -> Vec<AgentStatus> {
        self.0.registry.agents()
    }

    /// Events of the streams from now on, for one reader: the last who asked for it.
    pub fn follow(&self) -> StreamEvents {
        StreamEvents::new(Arc::clone(&self.0.registry))
    }

    /// The versions of a type that the agent behind a stream has in force; `None` when the stream is
    /// gone.
    pub fn held(&self, stream: StreamId, ty: ResourceType) -> Option<Vec<(ResourceName, Version)>> {
        let connected = self.0.registry.find(stream)?;
        Some(self.step(&connected, |stream, resources| stream.held(ty, resources)))
    }

    /// Runs `step` on a stream's state, which has absorbed its inbox, with the resources of the same generation.
    pub(crate) fn step<T>(
        &self,
        connected: &Connected,
        step: impl FnOnce(&mut Stream, &Resources) -> T,
    ) -> T {
        let mut stream = connected.stream();
        self.read(|resources| {
            let Waiting { names, all, seen } = connected.inbox.take();
            stream.absorb(names, seen, resources);
            if all {
                stream.compare_all(resources);
            }
            step(&mut stream, resources)
        })
    }

    /// Changes whenever an agent connects, acknowledges or leaves; the value itself has no meaning.
    pub fn status_changes(&self) -> watch::Receiver<u64> {
        self.0.registry.changes()
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// Changes when the source may be known further.
    pub(crate) fn reached(&self) -> watch::Receiver<()> {
        self.0.reached.subscribe()
    }

    /// Marks from now on in the inbox of this stream what changes.
    pub(crate) fn add_inbox(&self, stream: StreamId, inbox: &Arc<Inbox>) {
        self.write().inboxes.insert(stream, Arc::clone(inbox));
    }

    pub(crate) fn remove_inbox(&self, stream: StreamId) {
        self.write().inboxes.remove(&stream);
    }

    #[cfg(test)]
    pub(crate) fn inboxes(&self) -> usize {
        self.write().inboxes.len()
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Resources) -> T) -> T {
        read(&self.0.state.read().unwrap_or_else(PoisonError::into_inner).resources)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(name: &str) -> Resource {
        let (ty, content) = (ResourceType::Cluster, b"1");
        Resource { ty, name: name.into(), version: Version::of(content), content: content.as_slice().into() }
    }

    /// Shows each node the resource of its name.
    #[derive(Debug)]
    struct OwnName;

    impl Scope for OwnName {
        fn visibility(&self, node: &NodeName, _: ResourceType, name: &ResourceName) -> Visibility {
            if node.as_str() == name.as_str() { Visibility::Seen } else { Visibility::Spared }
        }
    }

    #[test]
    fn what_is_served_to_a_node_is_what_it_sees() {
        let store = Store::with_scope(Arc::new(OwnName));
        store.apply(["a", "b"].map(|name| Change::Upsert(resource(name))).into());
        let names = |node: Option<&str>| {
            let node = node.map(NodeName::from);
            let mut names: Vec<_> = store.served(ResourceType::Cluster, node.as_ref()).into_iter().collect();
            names.sort_by(|one, other| one.0.cmp(&other.0));
            names.into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(None), ["a", "b"]);
        assert_eq!(names(Some("b")), ["b"]);
        assert!(names(Some("c")).is_empty());
    }
}
