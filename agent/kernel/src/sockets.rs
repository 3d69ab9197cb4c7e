//! A program that the kernel runs for each socket with an element in a map of sk_storage, and what a socket tells.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya_obj::generated::bpf_attach_type;

use crate::sys::{BpfError, attr, bpf_cmd, bpf_fd};

/// An iterator over a map's sockets, in whatever network namespace they are (kernel 5.9). Gone when it is
/// dropped.
#[derive(Debug)]
pub struct Sockets {
    link: OwnedFd,
}

impl Sockets {
    /// Makes `program` the one that is run for the sockets of `map`.
    pub fn attach(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> Result<Self, BpfError> {
        // `union bpf_iter_link_info`, as far as it is used.
        let info = map.as_raw_fd() as u32;
        let mut attr = attr();
        attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        attr.link_create.attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
        attr.link_create.__bindgen_anon_3.__bindgen_anon_1.iter_info = (&raw const info) as u64;
        attr.link_create.__bindgen_anon_3.__bindgen_anon_1.iter_info_len = size_of_val(&info) as u32;
        Ok(Self { link: bpf_fd("BPF_LINK_CREATE", bpf_cmd::BPF_LINK_CREATE, &mut attr)? })
    }

    /// Runs the program once for each socket; what it has written.
    pub fn collect(&self) -> Result<Vec<u8>, BpfError> {
        let mut run = self.begin()?;
        let mut written = Vec::new();
        let mut part = vec![0; 64 << 10];
        loop {
            match run.read(&mut part) {
                Ok(0) => return Ok(written),
                Ok(count) => written.extend_from_slice(&part[..count]),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
                Err(source) => return Err(BpfError { call: "read an iterator", source }),
            }
        }
    }

    fn begin(&self) -> Result<File, BpfError> {
        let mut attr = attr();
        attr.iter_create.link_fd = self.link.as_raw_fd() as u32;
        Ok(File::from(bpf_fd("BPF_ITER_CREATE", bpf_cmd::BPF_ITER_CREATE, &mut attr)?))
    }

    /// Runs the program once for each socket.
    pub fn run(&self) -> Result<(), BpfError> {
        let mut run = self.begin()?;
        // The program writes nothing; the kernel goes over them while it is read. After a million it lets
        // others run, and says so.
        loop {
            match run.read(&mut [0; 8]) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
                Err(source) => return Err(BpfError { call: "read an iterator", source }),
            }
        }
    }
}

/// The cookie of a socket's network namespace, by which programs know it (kernel 5.14).
///
/// # Errors
/// Where it is no socket.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes no more than `length` bytes to `cookie`, and to `length`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io, net::UdpSocket, os::fd::AsFd as _};

    use super::*;
    use crate::{Map, MapKind, MapSpec};

    #[test]
    fn sockets_of_a_namespace_have_its_cookie() {
        let [one, other] = [0; 2].map(|_| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        let cookie = netns_cookie(one.as_fd()).expect("it is a socket");
        assert!(cookie != 0 && netns_cookie(other.as_fd()).expect("it is a socket") == cookie);
        let file = File::open("/proc/self/exe").expect("this program");
        assert!(netns_cookie(file.as_fd()).is_err());
    }

    #[test]
    fn what_is_no_iterator_is_refused() {
        let spec = MapSpec { name: "slotmesh_test", kind: MapKind::Array, max_entries: 1, flags: 0 };
        let map = Map::<u32, u32>::create(&spec, None).expect("this needs root and BPF");
        let error = Sockets::attach(map.as_fd(), map.as_fd()).map(drop).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput, "{error}");
    }
}
