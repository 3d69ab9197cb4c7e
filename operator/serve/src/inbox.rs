//! The names that changed since a stream last looked. Repeated changes of one name are one entry.

use std::{
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

use crate::resources::Dirty;

/// Where a stream finds what changed.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

/// Changes that a stream has to take in.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) names: Dirty,
    /// The agent may see other resources than before: all is to be compared.
    pub(crate) all: bool,
    /// When the first event that led to them was seen.
    pub(crate) seen: Option<Instant>,
}

impl Inbox {
    pub(crate) fn put(&self, dirty: &Dirty, all: bool, seen: Option<Instant>) {
        let mut waiting = self.waiting();
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

    /// Takes all that waits.
    pub(crate) fn take(&self) -> Waiting {
        mem::take(&mut *self.waiting())
    }

    /// Tells whether nothing is to be compared.
    pub(crate) fn is_empty(&self) -> bool {
        let waiting = self.waiting();
        !waiting.all && waiting.names.iter().all(|(_, names)| names.is_empty())
    }

    /// Resolves when something is in the inbox.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// A panic elsewhere leaves maps that are whole, so a poisoned lock is used on.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
