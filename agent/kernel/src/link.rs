//! Links of programs to cgroups.

use std::{
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use aya_obj::generated::{bpf_attach_type, bpf_link_info, bpf_link_type};

use crate::sys::{self, BpfError, attr, bpf, bpf_cmd, bpf_fd};

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// connect(2) of an IPv4 socket.
    Connect4,
    /// connect(2) of an IPv6 socket, IPv4-mapped addresses included.
    Connect6,
    /// getpeername(2) of an IPv4 socket.
    GetPeerName4,
    /// getpeername(2) of an IPv6 socket.
    GetPeerName6,
    /// A datagram of a socket to an IPv4 address that is given with it, IPv4-mapped ones included.
    SendMsg4,
    /// A datagram of a socket to an IPv6 address that is given with it.
    SendMsg6,
    /// A datagram that an IPv4 socket receives, where the application asks whence.
    RecvMsg4,
    /// A datagram that an IPv6 socket receives, where the application asks whence.
    RecvMsg6,
    /// The last close(2) of a socket.
    SockRelease,
}

impl Hook {
    /// The hooks of a workload, in the order in which they are attached. One that decides nothing comes
    /// first: its attachment makes the cgroup's storage, where the identity is stored before anything
    /// decides. They are detached in the reverse order.
    ///
    /// [`SockRelease`](Self::SockRelease) isn't among them: it is a cgroup's, is attached before them, and
    /// stays as long as the cgroup has sockets.
    pub const ALL: [Self; 8] = [
        Self::GetPeerName4,
        Self::GetPeerName6,
        Self::RecvMsg4,
        Self::RecvMsg6,
        Self::Connect4,
        Self::Connect6,
        Self::SendMsg4,
        Self::SendMsg6,
    ];

    /// The program's name in the object, and the link's name among the pins.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::GetPeerName4 => "getpeername4",
            Self::GetPeerName6 => "getpeername6",
            Self::SendMsg4 => "sendmsg4",
            Self::SendMsg6 => "sendmsg6",
            Self::RecvMsg4 => "recvmsg4",
            Self::RecvMsg6 => "recvmsg6",
            Self::SockRelease => "sock_release",
        }
    }

    const fn attach_type(self) -> u32 {
        match self {
            Self::Connect4 => bpf_attach_type::BPF_CGROUP_INET4_CONNECT as u32,
            Self::Connect6 => bpf_attach_type::BPF_CGROUP_INET6_CONNECT as u32,
            Self::GetPeerName4 => bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME as u32,
            Self::GetPeerName6 => bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME as u32,
            Self::SendMsg4 => bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG as u32,
            Self::SendMsg6 => bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG as u32,
            Self::RecvMsg4 => bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG as u32,
            Self::RecvMsg6 => bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG as u32,
            Self::SockRelease => bpf_attach_type::BPF_CGROUP_INET_SOCK_RELEASE as u32,
        }
    }
}

/// A program attached to a cgroup. Detached when the link is closed, unless it is pinned.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

impl Link {
    /// Attaches `program` to `cgroup`.
    pub fn attach(hook: Hook, cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<Self, BpfError> {
        let mut attr = attr();
        attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        attr.link_create.__bindgen_anon_2.target_fd = cgroup.as_raw_fd() as u32;
        attr.link_create.attach_type = hook.attach_type();
        Ok(Self { fd: bpf_fd("BPF_LINK_CREATE", bpf_cmd::BPF_LINK_CREATE, &mut attr)? })
    }

    /// Opens the link pinned at `path`; `None` where nothing is pinned there.
    pub fn open(path: &Path) -> Result<Option<Self>, BpfError> {
        Ok(sys::open(path)?.map(|fd| Self { fd }))
    }

    /// Pins the link.
    pub fn pin(&self, path: &Path) -> Result<(), BpfError> {
        sys::pin(&self.fd, path)
    }

    /// Detaches the program at once. Removing the pin does so, too, but some time later.
    pub fn detach(&self) -> Result<(), BpfError> {
        let mut attr = attr();
        attr.link_detach.link_fd = self.fd.as_raw_fd() as u32;
        bpf("BPF_LINK_DETACH", bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
    }

    /// The id of the cgroup and whether the link is one of `hook`. The cgroup is 0 once it is removed.
    pub fn target(&self, hook: Hook) -> Result<(u64, bool), BpfError> {
        let info: bpf_link_info = sys::info(&self.fd)?;
        if info.type_ != bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
            return Ok((0, false));
        }
        // SAFETY: the type says that the kernel filled the cgroup member.
        let cgroup = unsafe { info.__bindgen_anon_1.cgroup };
        Ok((cgroup.cgroup_id, cgroup.attach_type == hook.attach_type()))
    }

    /// The id of the program that it runs.
    pub fn program_id(&self) -> Result<u32, BpfError> {
        Ok(sys::info::<bpf_link_info>(&self.fd)?.prog_id)
    }

    /// Replaces the program; connections never meet a moment without one.
    ///
    /// The kernel doesn't refuse a program of another hook: compare [`target`](Self::target) first.
    pub fn replace(&self, program: BorrowedFd<'_>) -> Result<(), BpfError> {
        let mut attr = attr();
        attr.link_update.link_fd = self.fd.as_raw_fd() as u32;
        attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
        bpf("BPF_LINK_UPDATE", bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
    }
}

/// The most programs that are looked at; the kernel allows 64 a cgroup and hook.
const MOST_PROGRAMS: usize = 64;

/// The ids of the programs that are attached to the cgroup itself at a hook.
pub fn attached_programs(hook: Hook, cgroup: BorrowedFd<'_>) -> Result<Vec<u32>, BpfError> {
    let mut ids = vec![0_u32; MOST_PROGRAMS];
    let mut attr = attr();
    // SAFETY: the attribute is all zero, so every member of the union is initialised.
    let query = unsafe { &mut attr.query };
    query.__bindgen_anon_1.target_fd = cgroup.as_raw_fd() as u32;
    query.attach_type = hook.attach_type();
    query.prog_ids = ids.as_mut_ptr() as u64;
    query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
    bpf("BPF_PROG_QUERY", bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: the kernel has set the same member, to at most what it was.
    ids.truncate(unsafe { attr.query.__bindgen_anon_2.prog_cnt } as usize);
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_is_attached_last() {
        use Hook::{Connect4, Connect6, SendMsg4, SendMsg6};
        let decides = |hook: &Hook| matches!(hook, Connect4 | Connect6 | SendMsg4 | SendMsg6);
        let decides: Vec<bool> = Hook::ALL.iter().map(decides).collect();
        assert_eq!(decides, [false, false, false, false, true, true, true, true]);
    }
}
