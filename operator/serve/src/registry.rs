//! The open streams, and what happens on them.
//!
//! Lock order: a stream's state, then its inbox. The list of streams is locked by itself.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

use crate::{
    inbox::Inbox,
    pending_events::PendingEvents,
    status::{AgentStatus, Ending, StreamEvent, StreamId},
    stream::Stream,
};

/// A stream, as those see it who read its status.
#[derive(Clone, Debug)]
pub(crate) struct Connected {
    stream: Arc<Mutex<Stream>>,
    pub(crate) inbox: Arc<Inbox>,
}

impl Connected {
    /// The state of the stream.
    pub(crate) fn stream(&self) -> MutexGuard<'_, Stream> {
        lock(&self.stream)
    }

    fn status(&self, id: StreamId) -> Option<AgentStatus> {
        let stream = self.stream();
        let settled = self.inbox.is_empty();
        let mut status = stream.status(id)?;
        status.up_to_date &= settled;
        Some(status)
    }
}

/// See the module's comment.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    streams: Mutex<BTreeMap<StreamId, Connected>>,
    last: AtomicU64,
    changes: watch::Sender<u64>,
    pending: Mutex<PendingEvents>,
}

impl Registry {
    /// A new stream, which is not among the others yet.
    pub(crate) fn open(&self, max_message: usize) -> (StreamId, Connected) {
        let id = StreamId(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let stream = Arc::new(Mutex::new(Stream::new(id, max_message)));
        (id, Connected { stream, inbox: Arc::default() })
    }

    /// Adds a stream to the others.
    pub(crate) fn enter(&self, id: StreamId, connected: Connected) {
        lock(&self.streams).insert(id, connected);
    }

    /// Removes a stream that has ended.
    pub(crate) fn leave(&self, id: StreamId, connected: &Connected, ending: Ending) {
        lock(&self.streams).remove(&id);
        let status = connected.stream().status(id);
        lock(&self.pending).ended(id, status, ending);
        self.wake();
    }

    /// Something has happened on a stream.
    pub(crate) fn changed(&self, id: StreamId) {
        lock(&self.pending).changed(id);
        self.wake();
    }

    fn wake(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Changes whenever something has happened; the value itself has no meaning.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// All streams.
    pub(crate) fn streams(&self) -> Vec<(StreamId, Connected)> {
        lock(&self.streams).iter().map(|(id, connected)| (*id, connected.clone())).collect()
    }

    /// A stream, while it lasts.
    pub(crate) fn find(&self, id: StreamId) -> Option<Connected> {
        lock(&self.streams).get(&id).cloned()
    }

    /// The acknowledgements of each connected agent.
    pub(crate) fn agents(&self) -> Vec<AgentStatus> {
        self.streams().into_iter().filter_map(|(id, connected)| connected.status(id)).collect()
    }

    /// Events of the streams from now on, for one reader: the last who asked for it.
    pub(crate) fn follow(&self) {
        let ids: Vec<StreamId> = lock(&self.streams).keys().copied().collect();
        lock(&self.pending).follow(ids);
    }

    /// Events since the last call.
    pub(crate) fn take_events(&self) -> Vec<StreamEvent> {
        let (changed, mut events) = lock(&self.pending).take();
        for id in changed {
            let status = self.find(id).and_then(|connected| connected.status(id));
            events.extend(status.map(|status| StreamEvent { status, ended: None }));
        }
        events
    }
}

/// A panic elsewhere leaves maps and sets that are whole, so a poisoned lock is used on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
