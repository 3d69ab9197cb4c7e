//! From a thread that must not wait to a task that may be slow: of each key only the latest.
//!
//! Invariant: what waits is bounded by the keys, and a message isn't lost but to a later one of its key.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

#[derive(Debug)]
struct Shared<K, V> {
    waiting: Mutex<BTreeMap<K, V>>,
    wake: Notify,
}

/// Clones are handles of the same.
#[derive(Debug)]
pub(crate) struct CoalescingQueue<K, V>(Arc<Shared<K, V>>);

impl<K, V> Clone for CoalescingQueue<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for CoalescingQueue<K, V> {
    fn default() -> Self {
        Self(Arc::new(Shared { waiting: Mutex::new(BTreeMap::new()), wake: Notify::new() }))
    }
}

impl<K: Ord, V> CoalescingQueue<K, V> {
    /// Puts messages in; those of the same keys that wait are replaced.
    pub(crate) fn put(&self, messages: impl IntoIterator<Item = (K, V)>) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(messages);
        if !waiting.is_empty() {
            self.0.wake.notify_one();
        }
    }

    /// Waits for messages and takes all. For one reader; may be dropped without losing any.
    pub(crate) async fn take(&self) -> BTreeMap<K, V> {
        loop {
            let taken = std::mem::take(&mut *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken;
            }
            self.0.wake.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_each_key_the_latest_is_taken() {
        let queue = CoalescingQueue::default();
        queue.put([("a", 1), ("b", 1)]);
        queue.clone().put([("a", 2)]);
        assert_eq!(queue.take().await, BTreeMap::from([("a", 2), ("b", 1)]));
        let reader = tokio::spawn({
            let queue = queue.clone();
            async move { queue.take().await }
        });
        tokio::task::yield_now().await;
        queue.put([("c", 3)]);
        assert_eq!(reader.await.unwrap(), BTreeMap::from([("c", 3)]));
    }
}
