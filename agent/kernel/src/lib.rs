//! The only place of the agent with `unsafe`: bpf(2), mmap, pins, links and what the host offers.
//!
//! Every bpf(2) call of slotmesh's own goes through one function ([`sys`]), which counts them, so that
//! "no system call on the path of an update" is a number that tests and benches can read.

mod arena;
mod btf;
mod cgroup_iter;
#[cfg(feature = "faults")]
pub mod faults;
mod host;
mod link;
mod map;
mod mapped;
mod memory;
mod outer;
mod pin_root;
mod program;
mod sockets;
mod sys;
#[cfg(feature = "faults")]
pub mod tcp;

pub use arena::{Arena, MappedSlab, Reservation};
pub use btf::KernelTypes;
pub use cgroup_iter::ask_of_cgroup;
pub use host::{Host, HostError, cgroup_id, monotonic};
pub use link::{Hook, Link, attached_programs};
pub use map::{Map, MapKind, MapSpec};
pub use mapped::MappedArray;
pub use memory::MemoryLimit;
pub use outer::{BatchCost, Outer, OuterError, Puts};
pub use pin_root::{Lock, ensure_bpffs};
pub use program::{program_id, test_run};
pub use sockets::{Sockets, netns_cookie};
pub use sys::{BpfError, bpf_calls};
