//! Running a program on a buffer, and telling programs apart.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya_obj::generated::bpf_prog_info;

use crate::sys::{BpfError, attr, bpf, bpf_cmd, info};

/// The id of a loaded program.
pub fn program_id(program: BorrowedFd<'_>) -> Result<u32, BpfError> {
    Ok(info::<bpf_prog_info>(program)?.id)
}

/// Runs a classifier once on `packet` and stores what it left there; the result is what it returned.
pub fn test_run(program: BorrowedFd<'_>, packet: &mut [u8]) -> Result<u32, BpfError> {
    let mut attr = attr();
    // SAFETY: the attribute is all zero, so every member of the union is initialised.
    let test = unsafe { &mut attr.test };
    test.prog_fd = program.as_raw_fd() as u32;
    test.data_in = packet.as_ptr() as u64;
    test.data_size_in = packet.len() as u32;
    test.data_out = packet.as_mut_ptr() as u64;
    test.data_size_out = packet.len() as u32;
    test.repeat = 1;
    bpf("BPF_PROG_TEST_RUN", bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: the kernel filled the same member.
    Ok(unsafe { attr.test.retval })
}
