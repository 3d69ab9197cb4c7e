//! A program that the kernel runs for a cgroup, and for all below it.

use std::{
    fs::File,
    io::Read as _,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya_obj::generated::bpf_attach_type;

use crate::sys::{BpfError, attr, bpf_cmd, bpf_fd};

/// `union bpf_iter_link_info`, as far as it is used: of an iterator over cgroups.
#[repr(C)]
struct CgroupInfo {
    /// `BPF_CGROUP_ITER_DESCENDANTS_PRE`: a cgroup before what lies below it.
    order: u32,
    cgroup_fd: u32,
    cgroup_id: u64,
}

/// Runs `program` for a cgroup and those below it until it is content (kernel 6.1), and returns the number that it
/// writes, if it does.
///
/// # Errors
/// Where the kernel refuses.
pub fn ask_of_cgroup(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> Result<Option<u64>, BpfError> {
    let info = CgroupInfo { order: 2, cgroup_fd: cgroup.as_raw_fd() as u32, cgroup_id: 0 };
    let mut create = attr();
    create.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    create.link_create.attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
    create.link_create.__bindgen_anon_3.__bindgen_anon_1.iter_info = (&raw const info) as u64;
    create.link_create.__bindgen_anon_3.__bindgen_anon_1.iter_info_len = size_of_val(&info) as u32;
    let link = bpf_fd("BPF_LINK_CREATE", bpf_cmd::BPF_LINK_CREATE, &mut create)?;
    let mut iterate = attr();
    iterate.iter_create.link_fd = link.as_raw_fd() as u32;
    let mut run = File::from(bpf_fd("BPF_ITER_CREATE", bpf_cmd::BPF_ITER_CREATE, &mut iterate)?);
    let mut number = [0; size_of::<u64>()];
    loop {
        match run.read(&mut number) {
            Ok(read) => return Ok((read == number.len()).then(|| u64::from_ne_bytes(number))),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
            Err(source) => return Err(BpfError { call: "read an iterator", source }),
        }
    }
}
