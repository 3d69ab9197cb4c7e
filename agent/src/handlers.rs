//! Handlers of resource types: each puts the resources of its types into force.
//!
//! ```text
//!  ADS client --Update--> Handlers --by its type--> RecordHandler   --> owner of the maps (cluster, endpoints, route, listener)
//!                                               |-> SettingsHandler --> owner of the maps (settings)
//!                                               `-> Enrolment, FixedCallers               (workload)
//! ```
//!
//! Invariants:
//! - A type has one handler, or none: then its resources are refused.
//! - Nobody but the handler of a type knows the type. A new one is a file here, and a line where it is
//!   [added](Handlers::with).

mod node_settings;
mod record_types;

use std::{future::Future, pin::Pin, sync::Arc};

use slotmesh_ads::{AskAgain, Sink, Subscription, Update};
use slotmesh_xds::{PerType, Rejection, Resource, ResourceName, ResourceType, Version};

pub(crate) use self::{node_settings::SettingsHandler, record_types::RecordHandler};
use crate::{metrics::Metrics, pending_retries::PendingRetries};

/// Work of a handler, for one response.
pub type Handling<'h, T> = Pin<Box<dyn Future<Output = T> + Send + 'h>>;

/// Resources as the control plane knows them, with their versions.
pub type HeldResources = Vec<(ResourceType, ResourceName, Version)>;

/// Puts resources of some types into force. The calls come one after the other.
pub trait Handler: Send + Sync + 'static {
    /// The types that it takes.
    fn types(&self) -> &'static [ResourceType];

    /// The resources of its types that the agent of this node asks for.
    fn subscription(&self, _node: &str) -> Subscription {
        Subscription::Wildcard
    }

    /// The resources of its types that are in force.
    fn held(&self) -> Handling<'_, HeldResources>;

    /// Puts one response, of one of its types, into force, and returns what it refuses: of that, the version before stays.
    fn apply(&self, update: Update) -> Handling<'_, Vec<Rejection>>;

    /// All types have been answered for the first time.
    fn synced(&self) {}
}

/// The handlers of an agent: a sink that hands each type to its own. Clones are handles of the same.
#[derive(Clone)]
pub struct Handlers {
    /// In the order in which they were added.
    all: Vec<Arc<dyn Handler>>,
    by_type: PerType<Option<Arc<dyn Handler>>>,
    /// Resources that are to be asked for once more, of all types.
    again: Arc<PendingRetries>,
    metrics: Arc<Metrics>,
}

impl Handlers {
    /// None yet; `again` has what is to be asked for once more, `metrics` counts what is refused.
    pub(crate) fn new(again: Arc<PendingRetries>, metrics: Arc<Metrics>) -> Self {
        Self { all: Vec::new(), by_type: PerType::from_fn(|_| None), again, metrics }
    }

    /// One more. Where another one has had its types, that one has them no longer.
    #[must_use]
    pub fn with(mut self, handler: impl Handler) -> Self {
        let handler: Arc<dyn Handler> = Arc::new(handler);
        for &ty in handler.types() {
            self.by_type[ty] = Some(handler.clone());
        }
        self.all.push(handler);
        self
    }

    /// The resources that the agent of this node asks for, by type; nothing of types without a handler.
    pub fn subscriptions(&self, node: &str) -> impl Iterator<Item = (ResourceType, Subscription)> {
        let wanted = |(ty, handler): (ResourceType, &Option<Arc<dyn Handler>>)| {
            Some((ty, handler.as_ref()?.subscription(node)))
        };
        self.by_type.iter().filter_map(wanted).collect::<Vec<_>>().into_iter()
    }
}

impl Sink for Handlers {
    async fn held(&self) -> HeldResources {
        let mut held = Vec::new();
        for handler in &self.all {
            held.extend(handler.held().await);
        }
        held
    }

    async fn apply(&self, update: Update) -> Vec<Rejection> {
        let ty = update.ty;
        let rejected = match &self.by_type[ty] {
            Some(handler) => handler.apply(update).await,
            None => {
                let refused =
                    |one: Resource| Rejection { name: one.name, reason: format!("no {ty} is taken here") };
                update.upserts.into_iter().map(refused).collect()
            }
        };
        self.metrics.rejected(ty, rejected.len());
        rejected
    }

    fn synced(&self) {
        // Those that were added last first: records are there when nothing else has to change.
        self.all.iter().rev().for_each(|handler| handler.synced());
    }

    async fn retries(&self) -> AskAgain {
        self.again.taken().await
    }
}
