//! What operator and agent share of xDS: resource types, names, content-hash versions, and the
//! form in which a NACK names each bad resource.
//!
//! Neither side depends on the other; both depend on this crate and on `envoy-types`.

mod nack;
mod parts;
mod per_type;
mod resource;
mod settings;
mod workload;

pub use envoy_types::pb as envoy;
pub use nack::{Rejection, rejections_from_status, status_from_rejections};
pub use parts::{more_follows, system_version_info};
pub use per_type::PerType;
pub use resource::{Change, Resource, ResourceName, ResourceType, UnknownTypeUrl, Version};
pub use settings::{SlotGrowth, SlotSettings};
pub use workload::Workload;
