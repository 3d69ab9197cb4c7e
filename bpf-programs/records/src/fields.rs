//! What programs have to know of the running kernel: a constant of theirs, which the agent sets when it loads them.

/// Offsets of fields in the kernel's structures, in bytes, and whether it knows MPTCP; by these numbers.
pub type KernelFields = [u32; 26];

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

/// `tcp_sock.bytes_acked`: 1 more than what is acknowledged, once the other end has answered. 0, as the next eight, where one
/// of them isn't known.
pub const BYTES_ACKED: usize = 17;
/// `tcp_sock.rcv_nxt`: not 0 once the other end has answered a connect.
pub const RCV_NXT: usize = 18;
/// `tcp_sock.write_seq`: where what was sent ends.
pub const WRITE_SEQ: usize = 19;
/// `tcp_sock.snd_una`: where what was acknowledged ends.
pub const SND_UNA: usize = 20;
/// `tcp_sock.srtt_us`: eight times the smoothed round-trip time.
pub const SRTT_US: usize = 21;
/// `tcp_sock.total_retrans`
pub const TOTAL_RETRANS: usize = 22;
/// `tcp_sock.tcp_mstamp`: when something was sent or received last, in microseconds.
pub const TCP_MSTAMP: usize = 23;
/// `sock_common.skc_flags`, with which a socket begins.
pub const SK_FLAGS: usize = 24;
/// `sock.sk_protocol`
pub const SK_PROTOCOL: usize = 25;

/// The structure and the field that each number from [`BYTES_ACKED`] on stands for.
pub const OF_TRAFFIC: [(&str, &str); 9] = [
    ("tcp_sock", "bytes_acked"),
    ("tcp_sock", "rcv_nxt"),
    ("tcp_sock", "write_seq"),
    ("tcp_sock", "snd_una"),
    ("tcp_sock", "srtt_us"),
    ("tcp_sock", "total_retrans"),
    ("tcp_sock", "tcp_mstamp"),
    ("sock_common", "skc_flags"),
    ("sock", "sk_protocol"),
];

/// The structure and the field that each number from [`CSET_LINKS`] to [`CG_LIST`] stands for.
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
pub const UNKNOWN: KernelFields = [0; 26];
