//! Where resources go: the boundary between the protocol and what the agent makes of it.

use slotmesh_xds::{Rejection, Resource, ResourceName, ResourceType, Version};

/// The content of one response, for one resource type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The type of all of it.
    pub ty: ResourceType,
    /// New and changed resources; each name once, and none that is also removed.
    pub upserts: Vec<Resource>,
    /// Resources that are gone, or that were asked for and don't exist.
    pub removed: Vec<ResourceName>,
}

/// Resources that a sink has to be sent again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AskAgain {
    /// The resources.
    pub names: Vec<(ResourceType, ResourceName)>,
    /// There is reason to think that one of them will be accepted: they are asked for within half a second. Else the
    /// client waits, the longer the more often it has asked in vain.
    pub soon: bool,
}

/// Takes resources into force.
///
/// The calls come one after the other, from one task; an `apply` that has begun is never dropped
/// half-way by the client.
pub trait Sink: Send + Sync + 'static {
    /// What is in force now, with its versions. Called at each connect, so that the control plane
    /// sends only the difference.
    fn held(&self) -> impl Future<Output = Vec<(ResourceType, ResourceName, Version)>> + Send;

    /// Applies one response and returns the refused resources with their reasons. What isn't refused
    /// is in force when this returns; what is refused leaves its old version in force.
    fn apply(&self, update: Update) -> impl Future<Output = Vec<Rejection>> + Send;

    /// All subscribed types were answered, and the answers applied. Called once in the client's life.
    ///
    /// After a restart, what vanished while the agent was away is removed right after this: the
    /// control plane removes only when all that referred to it is up to date.
    fn synced(&self);

    /// Resolves with what was refused for want of room, when it may fit now, and with what the sink has to decide anew.
    /// The client then asks for it again. It may drop the future and call again: nothing is lost by that.
    fn retries(&self) -> impl Future<Output = AskAgain> + Send {
        std::future::pending()
    }
}

impl<S: Sink> Sink for std::sync::Arc<S> {
    async fn held(&self) -> Vec<(ResourceType, ResourceName, Version)> {
        S::held(self).await
    }

    async fn apply(&self, update: Update) -> Vec<Rejection> {
        S::apply(self, update).await
    }

    fn synced(&self) {
        S::synced(self);
    }

    async fn retries(&self) -> AskAgain {
        S::retries(self).await
    }
}
