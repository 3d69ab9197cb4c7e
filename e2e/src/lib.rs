//! Harness of the end-to-end scenarios and of the demo.
//!
//! Everything is real: the `slotmesh` binary, its eBPF programs on real cgroups, TCP connections from
//! processes in these cgroups. Only public interfaces of the product are used: its command line, the
//! manifests, its admin HTTP.
//!
//! ```text
//!  own network namespace without a way out (isolated)
//!  +--------------------------------------------------------------+
//!  |  Manifests --files--> Up (slotmesh up) --admin HTTP--> test  |
//!  |                          | attaches programs                 |
//!  |  Cgroup [ Client process ] --connect(VIP)--> Backends        |
//!  |            +--stdout: one line a connect--> Log              |
//!  +--------------------------------------------------------------+
//! ```
//!
//! Invariants:
//! - A connect that isn't rewritten can't leave the machine: its namespace has no route out.
//! - Whatever is created is owned by a value and goes with it, also on panic; what an aborted run left
//!   behind is removed by the next one ([`names::sweep`]).
//! - Every wait has a deadline, and says what it waited for.

pub mod backend;
pub mod bpf;
pub mod cgroup;
pub mod client;
pub mod connect;
pub mod files;
pub mod held;
pub mod http;
pub mod manifests;
pub mod mesh;
pub mod metrics;
pub mod names;
pub mod net;
pub mod pinned;
pub mod stats;
pub mod up;
pub mod wait;

pub use backend::Backends;
pub use cgroup::Cgroup;
pub use client::{Ask, Client, ClientSpec};
pub use connect::{Connect, Log};
pub use files::ManifestDir;
pub use held::Held;
pub use http::{HttpAnswer, HttpBackend, HttpClient};
pub use mesh::Mesh;
pub use net::isolated;
pub use pinned::Pinned;
pub use up::{Build, Up, UpSpec};
