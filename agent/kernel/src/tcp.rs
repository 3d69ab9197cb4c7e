//! Calls on TCP sockets that tests make and no library has.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// Disconnects a socket: connect(2) to `AF_UNSPEC`.
///
/// # Errors
/// The answer of connect(2).
pub fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain integers, all-zero is valid.
    let mut nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    nowhere.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    let size = size_of_val(&nowhere) as libc::socklen_t;
    // SAFETY: an open descriptor and a whole address.
    done(unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, size) })
}

/// Lets connect(2) return before anything is sent, whether or not the other end knows fast open.
///
/// # Errors
/// The answer of setsockopt(2).
pub fn defer_connect(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    for option in [libc::TCP_FASTOPEN_NO_COOKIE, libc::TCP_FASTOPEN_CONNECT] {
        // SAFETY: an open descriptor and a whole integer.
        done(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                option,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        })?;
    }
    Ok(())
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
