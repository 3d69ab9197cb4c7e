//! A real Kubernetes cluster on one machine, for tests.
//!
//! [`ControlPlane`] is etcd, API server and controllers as processes on loopback, with certificates
//! and role-based access control as a cluster has them. [`Cluster`] adds nodes: machines that are namespaces,
//! joined by a bridge, which run the pods that are bound to them. Nothing here knows slotmesh.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use k8s_openapi::api::core::v1::Namespace;
//! use kube::Api;
//!
//! let cluster = slotmesh_cluster::ControlPlane::start().await?;
//! let namespaces: Api<Namespace> = Api::all(cluster.client().await?);
//! assert!(namespaces.get_opt("kube-system").await?.is_some());
//! # Ok(())
//! # }
//! ```
//!
//! Invariants:
//! - Whatever is started is owned by a value and ends with it, also on panic; when the process that
//!   owns it is killed, it ends too ([`process`]).
//! - Every wait has a deadline and says what it waited for.

pub mod cgroups;
pub mod cluster;
pub mod control_plane;
pub mod exec;
pub mod fabric;
pub mod images;
pub mod kubernetes_tests;
pub mod node;
pub mod pki;
pub mod ports;
pub mod process;
pub mod programs;
pub mod prometheus;
pub mod scenarios;
pub mod wait;

pub use cluster::Cluster;
pub use control_plane::{ControlPlane, Spec};
