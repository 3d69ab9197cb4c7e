//! Running a program on a buffer.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::sys::{BpfError, attr, bpf, bpf_cmd};

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
