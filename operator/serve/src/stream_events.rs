//! The reader of what happens on the streams.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{registry::Registry, status::StreamEvent};

/// Reads what happens on the streams of a store.
#[derive(Debug)]
pub struct StreamEvents {
    registry: Arc<Registry>,
    changes: watch::Receiver<u64>,
}

impl StreamEvents {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        registry.follow();
        let mut changes = registry.changes();
        changes.mark_changed();
        Self { registry, changes }
    }

    /// Waits until something happened; ends of streams come first. May be dropped at any time without
    /// losing anything.
    pub async fn next(&mut self) -> Vec<StreamEvent> {
        loop {
            // The registry, which has the sender, is ours too: this can't fail.
            if self.changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let events = self.registry.take_events();
            if !events.is_empty() {
                return events;
            }
        }
    }
}
