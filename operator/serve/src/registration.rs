//! A stream's place in a store, as long as the stream lasts.

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use tokio::sync::watch;

use crate::{
    NodeName, Store,
    delays::observe,
    inbox::Inbox,
    registry::Connected,
    resources::Resources,
    status::{Ending, StreamId},
    stream::{Awaiting, Stream},
};

/// See the module's comment. Dropping it removes the stream.
pub(crate) struct Registration {
    store: Store,
    id: StreamId,
    connected: Connected,
    ending: Ending,
}

impl Registration {
    /// Adds a stream to a store.
    pub(crate) fn new(store: &Store, max_message: usize) -> Self {
        let (id, connected) = store.registry().open(max_message);
        store.add_inbox(id, &connected.inbox);
        store.registry().enter(id, connected.clone());
        Self { store: store.clone(), id, connected, ending: Ending::default() }
    }

    pub(crate) fn id(&self) -> StreamId {
        self.id
    }

    /// Refuses the stream if it turns out to be for another node.
    pub(crate) fn restrict(&self, node: NodeName) {
        self.connected.stream().restrict(node);
    }

    pub(crate) fn inbox(&self) -> &Inbox {
        &self.connected.inbox
    }

    /// Runs `step` on the stream's state, which has absorbed the inbox, with the resources of the
    /// same generation.
    pub(crate) fn step<T>(&self, step: impl FnOnce(&mut Stream, &Resources) -> T) -> T {
        self.store.step(&self.connected, step)
    }

    /// The next response to send, if there is one now.
    ///
    /// The resources are locked only to begin a round: building a message copies up to megabytes.
    pub(crate) fn next_response(&self) -> Option<DeltaDiscoveryResponse> {
        loop {
            let mut stream = self.connected.stream();
            let response = stream.next_response();
            if let Some(seen) = stream.take_answered() {
                observe(&self.store.delays().answered, seen);
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
        self.store.reached()
    }

    /// Tells whether the first round waits until the source is known as far as elsewhere.
    pub(crate) fn is_stale(&self) -> bool {
        let stream = self.connected.stream();
        // Most have nothing to wait for, and don't need the resources to know.
        stream.awaits() && self.store.read(|resources| stream.is_stale(resources))
    }

    /// Waits for that no longer.
    pub(crate) fn stop_waiting(&self) {
        self.connected.stream().stop_waiting();
    }

    /// The thing that the stream waits for, if any.
    pub(crate) fn awaiting(&self) -> Option<Awaiting> {
        self.connected.stream().awaiting()
    }

    /// Says how the stream ended, before it is dropped.
    pub(crate) fn ends(&mut self, ending: Ending) {
        self.ending = ending;
    }

    /// Tells those who watch the status.
    pub(crate) fn status_changed(&self) {
        self.store.registry().changed(self.id);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.store.remove_inbox(self.id);
        self.store.registry().leave(self.id, &self.connected, self.ending);
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_xds::{Change, Resource, ResourceType, Version};

    use super::*;

    #[test]
    fn repeated_changes_of_one_name_are_one_entry_in_an_inbox() {
        let store = Store::new();
        let stream = Registration::new(&store, 1 << 20);
        for content in ["1", "2", "3"].map(str::as_bytes).into_iter().cycle().take(1_000) {
            let (ty, name) = (ResourceType::Cluster, "a".into());
            let resource = Resource { ty, name, version: Version::of(content), content: content.into() };
            store.apply(vec![Change::Upsert(resource)]);
        }
        assert_eq!(stream.inbox().take().names[ResourceType::Cluster].len(), 1);
    }

    #[test]
    fn a_stream_leaves_nothing_behind() {
        let store = Store::new();
        drop(Registration::new(&store, 1 << 20));
        assert!(store.registry().streams().is_empty());
        assert_eq!(store.inboxes(), 0);
    }
}
