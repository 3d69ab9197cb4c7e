//! Errors of the programs.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::{EbpfError, programs::ProgramError};
use slotmesh_kernel::{BpfError, HostError};
use slotmesh_records::LAYOUT_HASH;

/// What went wrong with the programs.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// Built without the eBPF object.
    #[error("this build has no eBPF programs; run `make ebpf` and build again")]
    NoObject,
    /// The object doesn't load.
    #[error("the eBPF programs can't be loaded: {0}")]
    Load(#[from] EbpfError),
    /// The verifier refuses a program.
    #[error("the kernel refuses the eBPF program {program}: {source}")]
    Program {
        /// Which.
        program: &'static str,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// Another build's programs.
    #[error(
        "the eBPF programs have record layout {found:016x}, the agent has {LAYOUT_HASH:016x}; \
         run `make ebpf` and build again"
    )]
    Layout {
        /// The programs' layout hash.
        found: u64,
    },
    /// A call failed.
    #[error("{what}: {source}")]
    Bpf {
        /// What was being done.
        what: String,
        /// The call.
        #[source]
        source: BpfError,
    },
    /// Not a cgroup.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A process would belong to two workloads.
    #[error(
        "workload {inner} lies in the cgroup of workload {outer} or below it; give each workload a cgroup \
         of its own, beside the others'"
    )]
    Nested {
        /// The one in whose cgroup.
        outer: String,
        /// The other one.
        inner: String,
    },
    /// A pin can't be created or removed.
    #[error("{path}: {source}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DatapathError {
    pub(crate) fn running(source: BpfError) -> Self {
        bpf("read what runs")(source)
    }
}

pub(super) fn bpf(what: impl Into<String>) -> impl FnOnce(BpfError) -> DatapathError {
    let what = what.into();
    move |source| DatapathError::Bpf { what, source }
}

pub(super) fn pin_error(path: &Path) -> impl FnOnce(io::Error) -> DatapathError {
    let path = path.to_owned();
    move |source| DatapathError::Pin { path, source }
}
