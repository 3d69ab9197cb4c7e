//! Packets with descriptors, over a Unix socket of sequenced packets.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

use crate::protocol::{LONGEST, MOST_SOCKETS};

/// Room for as many descriptors as are sent at once.
const ROOM: usize = rustix::cmsg_space!(ScmRights(MOST_SOCKETS as usize));

/// Sends a packet whole, with these descriptors.
pub(crate) fn send(
    to: impl AsFd,
    packet: &[u8],
    sockets: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); ROOM];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(Errno::MSGSIZE);
    }
    let flags = flags | SendFlags::NOSIGNAL;
    match sendmsg(to, &[IoSlice::new(packet)], &mut control, flags)? {
        sent if sent == packet.len() => Ok(()),
        _ => Err(Errno::MSGSIZE),
    }
}

/// A packet that came.
pub(crate) struct Packet {
    pub(crate) bytes: Vec<u8>,
    /// They are closed with it where nobody takes them.
    pub(crate) sockets: Vec<OwnedFd>,
}

/// Receives a packet; `None` where the other end is closed. One that is too long, or has more descriptors than there can
/// be, is an error.
pub(crate) fn receive(from: impl AsFd, flags: RecvFlags) -> Result<Option<Packet>, Errno> {
    let mut bytes = [0; LONGEST];
    let mut space = [MaybeUninit::uninit(); ROOM];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            sockets.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Errno::MSGSIZE);
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    Ok(Some(Packet { bytes: bytes[..received.bytes].to_vec(), sockets }))
}
