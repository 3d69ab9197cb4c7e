//! Threads, channels and slabs: the standard library's and the kernel's, or in the model (`cfg(loom)`)
//! those whose every interleaving is tried.

#[cfg(not(loom))]
pub(crate) use {
    slotmesh_kernel::{Arena, MappedSlab},
    std::sync::mpsc::{Receiver, Sender, channel},
    std::thread::{Builder, JoinHandle, sleep},
};

#[cfg(loom)]
pub use crate::model::slabs::{Arena, MappedSlab};
#[cfg(loom)]
pub(crate) use {
    crate::model::{
        channel::{Receiver, Sender, channel},
        sleep,
    },
    loom::thread::{Builder, JoinHandle},
};
