//! pod_network: finds the network namespace of a cgroup, and of what lies below it: that of the first task there is.
//!
//! The agent runs it over the cgroup of a pod whose namespace it is to know before anything connects. A container's first
//! process comes first, as tasks and cgroups stand in the order in which they came. Nothing is locked: what is read may be
//! gone by then, so the answer is one to be checked.

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};
use slotmesh_records::fields::*;

use crate::{
    kernel::field,
    network::{read, read_word},
};

/// How many sets of tasks of a cgroup are looked at, and how many tasks of each.
const SETS: u32 = 8;
const IN_A_SET: u32 = 4;

/// `struct bpf_iter__cgroup`
#[repr(C)]
pub struct CgroupVisit {
    meta: *const Meta,
    cgroup: *const u8,
}

/// `struct bpf_iter_meta`, as far as it is used.
#[repr(C)]
pub struct Meta {
    seq: *mut seq_file,
}

/// Writes the cookie of the namespace, and ends.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/cgroup")]
pub extern "C" fn pod_network(ctx: *const CgroupVisit) -> i32 {
    // SAFETY: the kernel hands a valid context; the cgroup is null at the end.
    let (meta, cgroup) = unsafe { ((*ctx).meta, &raw const (*ctx).cgroup) };
    // As a number, which the helper reads: a function of its own takes no pointer for one.
    let cgroup = read_word(cgroup as u64);
    if cgroup == 0 || field(CSET_LINKS) == 0 {
        return 0;
    }
    let cookie = network_in(cgroup);
    if cookie == 0 {
        return 0;
    }
    // SAFETY: the kernel hands a valid context; the helper copies the bytes.
    unsafe { bpf_seq_write((*meta).seq, (&raw const cookie).cast(), size_of::<u64>() as u32) };
    1
}

/// The cookie of the network namespace of the first task of a cgroup; 0 where there is none. Global, so that the verifier
/// follows it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn network_in(cgroup: u64) -> u64 {
    let sets = cgroup.wrapping_add(u64::from(field(CSET_LINKS)));
    // `list_head.next` is its first word.
    let mut link = read_word(sets);
    for _ in 0..SETS {
        if link == sets || link == 0 {
            return 0;
        }
        let cookie = network_of_set(read(link.wrapping_sub(u64::from(field(CSET_LINK))), CSET));
        if cookie != 0 {
            return cookie;
        }
        link = read_word(link);
    }
    0
}

/// The same of a set of tasks.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn network_of_set(set: u64) -> u64 {
    let tasks = set.wrapping_add(u64::from(field(TASKS)));
    let mut link = read_word(tasks);
    for _ in 0..IN_A_SET {
        if link == tasks || link == 0 {
            return 0;
        }
        // One that ends has none any more.
        let namespaces = read(link.wrapping_sub(u64::from(field(CG_LIST))), NSPROXY);
        if namespaces != 0 {
            return read(read(namespaces, NET_NS), NET_COOKIE);
        }
        link = read_word(link);
    }
    0
}
