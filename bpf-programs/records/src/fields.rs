//! What programs have to know of the running kernel: a constant of theirs, which the agent sets when it loads them.

/// Offsets of fields in the kernel's structures, in bytes, and whether it knows MPTCP; by these numbers.
pub type KernelFields = [u32; 17];

/// `task_struct.real_parent`
pub const REAL_PARENT: usize = 0;
/// `task_struct.cgroups`
pub const CGROUPS: usize = 1;
/// `task_struct.nsproxy`
pub const NSPROXY: usize = 2;
/// `nsproxy.net_ns`
pub const NET_NS: usize = 3;
/// `net.net_cookie`
pub const NET_COOKIE: usize = 4;
/// `css_set.dfl_cgrp`: the task's cgroup in the v2 hierarchy.
pub const DFL_CGRP: usize = 5;
/// `cgroup.kn`
pub const KN: usize = 6;
/// `kernfs_node.id`
pub const ID: usize = 7;
/// `cgroup.self`
pub const SELF: usize = 8;
/// `cgroup_subsys_state.parent`
pub const PARENT: usize = 9;

/// 1 where there are sockets of MPTCP. A program that asks of what the kernel doesn't know isn't accepted.
pub const HAS_MPTCP: usize = 10;

/// `tcp_sock.bytes_received`: 0 where a connection was reset before a byte came. 0 where it isn't known.
pub const BYTES_RECEIVED: usize = 11;

/// `cgroup.cset_links`: the sets of tasks of a cgroup. 0, as the next four, where one of them isn't known.
pub const CSET_LINKS: usize = 12;
/// `cgrp_cset_link.cset_link`: the place in that list.
pub const CSET_LINK: usize = 13;
/// `cgrp_cset_link.cset`
pub const CSET: usize = 14;
/// `css_set.tasks`
pub const TASKS: usize = 15;
/// `task_struct.cg_list`: the place in that list.
pub const CG_LIST: usize = 16;

/// The structure and the field that each number from [`CSET_LINKS`] on stands for.
pub const OF_TASKS: [(&str, &str); 5] = [
    ("cgroup", "cset_links"),
    ("cgrp_cset_link", "cset_link"),
    ("cgrp_cset_link", "cset"),
    ("css_set", "tasks"),
    ("task_struct", "cg_list"),
];

/// The structure and the field that each number up to [`PARENT`] stands for.
pub const FIELDS: [(&str, &str); 10] = [
    ("task_struct", "real_parent"),
    ("task_struct", "cgroups"),
    ("task_struct", "nsproxy"),
    ("nsproxy", "net_ns"),
    ("net", "net_cookie"),
    ("css_set", "dfl_cgrp"),
    ("cgroup", "kn"),
    ("kernfs_node", "id"),
    ("cgroup", "self"),
    ("cgroup_subsys_state", "parent"),
];

/// Nothing is known: namespaces aren't told apart.
pub const UNKNOWN: KernelFields = [0; 17];
