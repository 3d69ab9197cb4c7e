//! Which network namespace a pod's connections are routed in: that of its containers, and no other.
//!
//! A network namespace within a pod (docker or kind in a pod) has addresses of its own, and may have Services of its
//! own at the same ones. Its sockets are of the pod's cgroup, so they come here; they are left alone.
//!
//! A pod's namespace is that of the first processes of its containers. The first connect of a pod finds it: from the
//! process that connects up to the last ancestor that is in the pod's cgroup. It is kept beside the pod's identity.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{
        bpf_get_current_task,
        generated::{bpf_get_netns_cookie, bpf_probe_read_kernel},
    },
    programs::SockAddrContext,
};
use slotmesh_records::{Identity, fields::*};

use crate::kernel::field;

/// How many ancestors a process may have in its pod.
const GENERATIONS: u32 = 24;
/// How deep a cgroup may lie below its pod's.
const LEVELS: u32 = 10;

/// Whether a socket is in another network namespace than the pod of its cgroup. Where that isn't known it isn't.
///
/// # Safety
/// `identity` is the storage of this program's attachment.
#[inline(always)]
pub unsafe fn is_foreign(ctx: &SockAddrContext, identity: *mut Identity) -> bool {
    // SAFETY: words of the storage, which other CPUs may write, all of them the same.
    unsafe {
        let cgroup = (&raw const (*identity).pod).read_volatile();
        if cgroup == 0 || field(NSPROXY) == 0 {
            return false;
        }
        let mut network = (&raw const (*identity).network).read_volatile();
        if network == 0 {
            network = network_of(cgroup);
            if network == 0 {
                return false;
            }
            (&raw mut (*identity).network).write_volatile(network);
        }
        network != bpf_get_netns_cookie(ctx.sock_addr.cast())
    }
}

/// The cookie of the network namespace of the first process of this one's container; 0 where it isn't found: the
/// process may be in another cgroup than its socket.
/// Global, so that the verifier follows it once, and not for each way that leads here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn network_of(cgroup: u64) -> u64 {
    // SAFETY: the helper has no preconditions.
    let mut task = unsafe { bpf_get_current_task() };
    let mut first = 0;
    for _ in 0..GENERATIONS {
        if is_below(read(task, CGROUPS), cgroup) == 0 {
            // The one before was the last.
            return read(read(read(first, NSPROXY), NET_NS), NET_COOKIE);
        }
        first = task;
        task = read(task, REAL_PARENT);
    }
    0
}

/// 1 where the cgroup of a `css_set` is this one or lies below it, else 0. Global as well.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_below(set: u64, id: u64) -> u64 {
    let mut cgroup = read(set, DFL_CGRP);
    for _ in 0..LEVELS {
        if read(read(cgroup, KN), ID) == id {
            return 1;
        }
        let parent = read(cgroup.wrapping_add(u64::from(field(SELF))), PARENT);
        if parent == 0 {
            return 0;
        }
        // It is that of the parent's `self`.
        cgroup = parent.wrapping_sub(u64::from(field(SELF)));
    }
    0
}

/// A word of the kernel's: the field of the structure at `at`; 0 where it can't be read. No branch, each of which the
/// verifier would follow to the end.
#[inline(always)]
pub fn read(at: u64, number: usize) -> u64 {
    read_word(at.wrapping_add(u64::from(field(number))))
}

/// The word at this address; 0 where it can't be read.
#[inline(always)]
pub fn read_word(at: u64) -> u64 {
    let mut value = 0_u64;
    // SAFETY: the helper checks the address, and where nothing can be read from it writes zeros (`bpf_probe_read_kernel_common`
    // in `kernel/trace/bpf_trace.c`).
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<u64>() as u32, at as *const c_void) };
    value
}
