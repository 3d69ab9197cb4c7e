//! What was refused and may be accepted now, on its way to the client.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use slotmesh_ads::AskAgain;
use slotmesh_xds::{ResourceName, ResourceType};
use tokio::sync::Notify;

type Names = BTreeSet<(ResourceType, ResourceName)>;

/// Names that nobody has taken yet.
#[derive(Default)]
pub(crate) struct PendingRetries {
    /// And whether they are to be asked for soon.
    names: Mutex<(Names, bool)>,
    some: Notify,
}

impl PendingRetries {
    /// Adds names, if there are any.
    pub fn put(&self, names: Names, soon: bool) {
        if names.is_empty() {
            return;
        }
        let mut held = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        held.0.extend(names);
        held.1 |= soon;
        self.some.notify_one();
    }

    /// Waits for names and takes them all. None is lost where the future is dropped.
    pub async fn taken(&self) -> AskAgain {
        self.some.notified().await;
        let mut held = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let (names, soon) = std::mem::take(&mut *held);
        AskAgain { names: names.into_iter().collect(), soon }
    }
}
