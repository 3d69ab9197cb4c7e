//! What was refused and may be accepted now, on its way to the client.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use slotmesh_xds::{ResourceName, ResourceType};
use tokio::sync::Notify;

type Names = BTreeSet<(ResourceType, ResourceName)>;

/// Names that nobody has taken yet.
#[derive(Default)]
pub(crate) struct Room {
    names: Mutex<Names>,
    some: Notify,
}

impl Room {
    /// Adds names.
    pub fn put(&self, names: Names) {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).extend(names);
        self.some.notify_one();
    }

    /// Waits for names and takes them all. None is lost where the future is dropped.
    pub async fn taken(&self) -> Vec<(ResourceType, ResourceName)> {
        self.some.notified().await;
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *names).into_iter().collect()
    }
}
