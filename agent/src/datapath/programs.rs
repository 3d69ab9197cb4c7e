//! Programs of the eBPF object, and facts about the running kernel that they need.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::{
    Btf, Ebpf,
    programs::{CgroupSock, CgroupSockAddr, Iter, ProgramError, SchedClassifier},
};
use slotmesh_kernel::{Hook, KernelTypes, Map, Sockets};
use slotmesh_records::{
    SocketState,
    fields::{self, KernelFields},
};

use super::{DatapathError, error::bpf};

/// The warning where programs can't tell network namespaces apart.
pub(super) const NESTED_NETWORKS: &str =
    "connections from a network namespace within a pod (docker or kind in a pod) are routed as the pod's own";

/// Facts about the running kernel that the programs need.
pub(super) fn kernel_fields() -> KernelFields {
    let find = || -> io::Result<KernelFields> {
        let types = KernelTypes::read()?;
        let mut fields = fields::UNKNOWN;
        for (found, (of, field)) in fields.iter_mut().zip(fields::FIELDS) {
            let missing = || io::Error::new(io::ErrorKind::NotFound, format!("there is no {of}.{field}"));
            *found = types.offset(of, field).ok_or_else(missing)?;
        }
        fields[fields::BYTES_RECEIVED] = types.offset("tcp_sock", "bytes_received").unwrap_or(0);
        let of_tasks = fields::OF_TASKS.map(|(of, field)| types.offset(of, field));
        if of_tasks.iter().all(Option::is_some) {
            fields[fields::CSET_LINKS..=fields::CG_LIST]
                .copy_from_slice(&of_tasks.map(Option::unwrap_or_default));
        }
        let of_traffic = fields::OF_TRAFFIC.map(|(of, field)| types.offset(of, field));
        if of_traffic.iter().all(Option::is_some) && fields[fields::BYTES_RECEIVED] != 0 {
            fields[fields::BYTES_ACKED..].copy_from_slice(&of_traffic.map(Option::unwrap_or_default));
        }
        fields[fields::HAS_MPTCP] = types.offset("mptcp_sock", "sk").is_some().into();
        Ok(fields)
    };
    find().unwrap_or_else(|error| {
        tracing::warn!(%error, "{NESTED_NETWORKS}");
        fields::UNKNOWN
    })
}

pub(super) fn load_hook(object: &mut Ebpf, hook: Hook) -> Result<OwnedFd, DatapathError> {
    let program = hook.as_str();
    let loaded: &mut CgroupSockAddr = find(object, program)?;
    load(program, || {
        loaded.load()?;
        duplicate(loaded.fd()?.as_fd())
    })
}

pub(super) fn load_release(object: &mut Ebpf) -> Result<OwnedFd, DatapathError> {
    let program = Hook::SockRelease.as_str();
    let loaded: &mut CgroupSock = find(object, program)?;
    load(program, || {
        loaded.load()?;
        duplicate(loaded.fd()?.as_fd())
    })
}

/// Loads `closed` or `open`, which go over sockets.
pub(super) fn load_over_sockets(
    object: &mut Ebpf,
    program: &'static str,
    btf: Option<&Btf>,
    sockets: &Path,
) -> Result<Sockets, DatapathError> {
    let loaded: &mut Iter = find(object, program)?;
    let btf = btf.ok_or_else(|| no_btf(program))?;
    let fd = load(program, || {
        loaded.load("bpf_sk_storage_map", btf)?;
        duplicate(loaded.fd()?.as_fd())
    })?;
    let map: Map<u32, SocketState> =
        Map::open(sockets).map_err(bpf("open the sockets"))?.ok_or(DatapathError::NoObject)?;
    Sockets::attach(fd.as_fd(), map.as_fd()).map_err(bpf("go over the sockets"))
}

pub(super) fn load_pod_network(object: &mut Ebpf, btf: Option<&Btf>) -> Result<OwnedFd, DatapathError> {
    let program = "pod_network";
    let loaded: &mut Iter = find(object, program)?;
    let btf = btf.ok_or_else(|| no_btf(program))?;
    load(program, || {
        loaded.load("cgroup", btf)?;
        duplicate(loaded.fd()?.as_fd())
    })
}

fn no_btf(program: &'static str) -> DatapathError {
    let source = io::Error::new(io::ErrorKind::NotFound, "/sys/kernel/btf/vmlinux").into();
    DatapathError::Program { program, source }
}

pub(super) fn load_classifier(object: &mut Ebpf, program: &'static str) -> Result<OwnedFd, DatapathError> {
    let loaded: &mut SchedClassifier = find(object, program)?;
    load(program, || {
        loaded.load()?;
        duplicate(loaded.fd()?.as_fd())
    })
}

fn load(
    program: &'static str,
    run: impl FnOnce() -> Result<OwnedFd, ProgramError>,
) -> Result<OwnedFd, DatapathError> {
    run().map_err(|source| DatapathError::Program { program, source })
}

fn duplicate(fd: std::os::fd::BorrowedFd<'_>) -> Result<OwnedFd, ProgramError> {
    fd.try_clone_to_owned().map_err(ProgramError::from)
}

fn find<'o, P>(object: &'o mut Ebpf, program: &'static str) -> Result<&'o mut P, DatapathError>
where
    &'o mut P: TryFrom<&'o mut aya::programs::Program, Error = ProgramError>,
{
    object
        .program_mut(program)
        .ok_or(DatapathError::NoObject)?
        .try_into()
        .map_err(|source| DatapathError::Program { program, source })
}
