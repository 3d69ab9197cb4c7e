//! The node agent: delta ADS in, records in kernel maps out.
//!
//! ```text
//! xds client (slotmesh-ads) -> config -> flatten -> slots -> mapped slabs
//!                                 \-> VIP map            programs: datapath
//! ```
//!
//! [`Agent::start`] wires them. One thread owns the maps ([`writer`]); the ADS client and the admin
//! server ask it through [`Handle`]. Each resource type has a [handler](handlers).

pub mod admin;
mod agent;
mod alias;
pub mod config;
mod datapath;
mod decided;
mod enrol;
pub mod flatten;
pub mod handlers;
mod handles;
mod held;
mod hosts;
mod maglev;
pub mod memory;
pub mod metrics;
mod nearness;
mod packed;
mod pending_retries;
mod pins;
mod prepare;
mod proxy_feed;
mod record_type;
mod recorder;
pub mod report;
mod running;
mod show;
mod steward;
pub mod traffic;
mod unwritten;
mod view;
mod vips;
pub mod writer;

pub use agent::{Agent, Handle, Options, StartError, cleanup};
pub use datapath::{
    ChoiceNumbers, ConnectAttempt, ConnectOutcome, Datapath, DatapathError, MapSizes, Workload,
};
pub use enrol::{AttachedPod, AttachedPods, Enrolled, Enrolment, FixedCallers, FixedWorkloads, NoPods};
pub use pins::Pins;
pub use proxy_feed::{ProxiedPods, ProxyFeed, PublishToProxies};
pub use record_type::RecordType;
pub use recorder::{Recorder, Remembered};
pub use running::{Affinities, ConnectionCounts, DatapathState, Ejections};
pub use steward::{AcknowledgedPods, StewardParts, start_steward};
pub use unwritten::in_force_as_compiled;
