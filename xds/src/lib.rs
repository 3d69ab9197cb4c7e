//! What operator and agent share of xDS: resource types, names, content-hash versions, and the
//! form in which a NACK names each bad resource, what an agent tells of itself, and sketches of what it has.
//!
//! Neither side depends on the other; both depend on this crate and on `envoy-types`.

mod matching;
mod metadata;
mod nack;
mod parts;
mod per_type;
mod report;
mod requests;
mod resource;
mod settings;
mod sketch;
mod source;
mod transport;
mod ways;
mod workload;

pub use envoy_types::pb as envoy;
pub use matching::{CallerClass, OneOfClasses};
pub use metadata::{
    ConnectionRate, EndpointHints, LocalityPolicy, LocalityShare, LocalityShares, OF_NODES, RegionFailover,
    RoutedByRequest, SessionAffinity,
};
pub use nack::{Rejection, rejections_from_status, status_from_rejections};
pub use parts::{more_follows, source_of, system_version_info};
pub use per_type::PerType;
pub use report::{AgentReport, CONTROL_PLANE, SlotCounts};
pub use requests::{CORS_FILTER, FAULT_FILTER, proxy_listener, request_manager};
pub use resource::{Change, Resource, ResourceName, ResourceType, UnknownTypeUrl, Version};
pub use settings::{SlotGrowth, SlotSettings};
pub use sketch::{Difference, Fingerprint, NotASketch, Sketch, TooDifferent};
pub use source::{give_source_back, source_given_back};
pub use transport::Transport;
pub use ways::{Targets, Ways, assignment_of_cluster, clusters_of_route};
pub use workload::Workload;
