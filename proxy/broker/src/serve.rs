//! The broker: one thread that answers its peers, one packet at a time.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, listen, socket_with},
};

use crate::{
    Answered, BrokerAsk, EnterError, Key,
    namespaces::{Enrolled, Home, Names},
    transfer::{receive, send},
};

/// The most peers at a time: a proxy, its successor, a steward, and somebody who looks.
const MOST_PEERS: usize = 16;
/// The most namespaces: more pods than a node has.
const MOST_NAMESPACES: usize = 4_096;

/// The part of a peer, which says for what it may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerRole {
    /// Says which namespaces there are.
    Steward,
    /// Gets sockets in those that there are.
    Proxy,
}

/// Somebody who asks.
struct Peer {
    role: PeerRole,
    socket: OwnedFd,
}

/// Makes sockets in namespaces for its peers. Its thread is in other network namespaces while it does.
pub struct Broker {
    names: Names,
    listeners: Vec<Peer>,
    peers: Vec<Peer>,
    namespaces: BTreeMap<Key, Enrolled>,
    /// Of these, those that no steward has enrolled since the last one began.
    in_review: BTreeSet<Key>,
}

impl Broker {
    /// A broker for namespaces whose names stand in this folder, such as `/run/netns`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let (listeners, peers) = (Vec::new(), Vec::new());
        let (names, namespaces, in_review) = (Names::new(folder.into()), BTreeMap::new(), BTreeSet::new());
        Self { names, listeners, peers, namespaces, in_review }
    }

    /// Serves whoever is at the other end of this socket of sequenced packets.
    pub fn serve(&mut self, socket: OwnedFd, role: PeerRole) {
        self.peers.push(Peer { role, socket });
    }

    /// Serves whoever connects to a new Unix socket at `path`. Who may is the matter of the folder's rights.
    ///
    /// # Errors
    /// Where it can't be made; something that is there already is an error, too.
    pub fn listen(&mut self, path: &std::path::Path, role: PeerRole) -> std::io::Result<()> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(path)?)?;
        listen(&socket, MOST_PEERS as i32)?;
        self.listeners.push(Peer { role, socket });
        Ok(())
    }

    /// Serves until nobody can come any more: all peers are gone, and it listens nowhere.
    ///
    /// # Errors
    /// Where it can't wait for its peers.
    pub fn run(mut self) -> std::io::Result<()> {
        let home = Home::of_this_thread()?;
        while !self.peers.is_empty() || !self.listeners.is_empty() {
            let (comers, askers) = self.wait()?;
            for listener in comers {
                self.admit(listener);
            }
            // From the last, so that places stay what they are.
            for peer in askers.into_iter().rev() {
                if let Err(why) = self.answer_one(peer, &home) {
                    let Peer { role, socket } = self.peers.swap_remove(peer);
                    drop(socket);
                    tracing::info!(?role, why, "a peer is left");
                }
            }
        }
        Ok(())
    }

    /// The places of listeners and of peers of which there is something to read.
    fn wait(&self) -> std::io::Result<(Vec<usize>, Vec<usize>)> {
        // At its limit it lets those wait who come.
        let listeners = if self.peers.len() < MOST_PEERS { self.listeners.as_slice() } else { &[] };
        let all = listeners.iter().chain(&self.peers);
        let mut events: Vec<PollFd<'_>> = all.map(|peer| PollFd::new(&peer.socket, PollFlags::IN)).collect();
        match poll(&mut events, None) {
            Err(Errno::INTR) => return Ok((Vec::new(), Vec::new())),
            result => result?,
        };
        let is_ready = |event: &PollFd<'_>| !event.revents().is_empty();
        let (comers, askers) = events.split_at(listeners.len());
        let places = |events: &[PollFd<'_>]| {
            events.iter().enumerate().filter(|(_, event)| is_ready(event)).map(|(i, _)| i).collect()
        };
        Ok((places(comers), places(askers)))
    }

    fn admit(&mut self, listener: usize) {
        let Peer { role, socket } = &self.listeners[listener];
        match accept_with(socket, SocketFlags::CLOEXEC) {
            Ok(socket) => self.peers.push(Peer { role: *role, socket }),
            Err(error) => tracing::debug!(%error, "a peer went before it was let in"),
        }
    }

    /// Answers one packet. Fails where the peer is to be left; why.
    fn answer_one(&mut self, peer: usize, home: &Home) -> Result<(), String> {
        let role = self.peers[peer].role;
        let packet = match receive(&self.peers[peer].socket, RecvFlags::DONTWAIT) {
            Ok(Some(packet)) => packet,
            Ok(None) => return Err("it has gone".to_owned()),
            Err(Errno::INTR | Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let ask = BrokerAsk::decode(&packet.bytes).map_err(|error| error.to_string())?;
        let mut kept = packet.sockets;
        if kept.len() > usize::from(matches!(ask, BrokerAsk::Enrol { .. })) {
            return Err("it sends sockets that nobody asked for".to_owned());
        }
        let (answer, sockets) = match (role, &ask) {
            (
                PeerRole::Steward,
                BrokerAsk::Enrol { .. } | BrokerAsk::Release(_) | BrokerAsk::Review | BrokerAsk::Sweep,
            )
            | (PeerRole::Proxy, BrokerAsk::Listener(_) | BrokerAsk::Sockets { .. }) => {
                self.answer(ask, kept.pop(), home)
            }
            _ => return Err("it may not ask for that".to_owned()),
        };
        let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(|socket| socket.as_fd()).collect();
        // One that doesn't read its answers isn't waited for.
        send(&self.peers[peer].socket, &answer.encode(), &sockets, SendFlags::DONTWAIT)
            .map_err(|error| error.to_string())
    }

    /// `kept`: the listener that came along.
    fn answer(&mut self, ask: BrokerAsk, kept: Option<OwnedFd>, home: &Home) -> (Answered, Vec<OwnedFd>) {
        let failed = |why: String| (Answered::Failed(why), Vec::new());
        let made = match ask {
            BrokerAsk::Enrol { key, place } => {
                let is_full = self.namespaces.len() >= MOST_NAMESPACES;
                self.in_review.remove(&key);
                let enrolled = match self.namespaces.entry(key) {
                    // The listener that there is stays, as connections may wait in it.
                    Entry::Occupied(entry) => Ok(entry.into_mut()),
                    Entry::Vacant(_) if is_full => {
                        return failed(format!("there are {MOST_NAMESPACES} namespaces already"));
                    }
                    Entry::Vacant(entry) => {
                        Enrolled::at(&place, kept, &mut self.names, home).map(|new| entry.insert(new))
                    }
                };
                enrolled.and_then(|enrolled| {
                    Ok((Answered::Listening { port: enrolled.port }, vec![enrolled.listener()?]))
                })
            }
            BrokerAsk::Release(key) => {
                self.in_review.remove(&key);
                self.namespaces.remove(&key);
                Ok((Answered::Released, Vec::new()))
            }
            BrokerAsk::Review => {
                self.in_review = self.namespaces.keys().cloned().collect();
                Ok((Answered::Released, Vec::new()))
            }
            BrokerAsk::Sweep => {
                for key in std::mem::take(&mut self.in_review) {
                    tracing::info!(%key, "a namespace that no steward knows any more is given up");
                    self.namespaces.remove(&key);
                }
                Ok((Answered::Released, Vec::new()))
            }
            BrokerAsk::Listener(key) => match self.namespaces.get(&key) {
                None => return failed(format!("no namespace is enrolled as {key}")),
                Some(enrolled) => enrolled
                    .listener()
                    .map(|listener| (Answered::Listening { port: enrolled.port }, vec![listener])),
            },
            BrokerAsk::Sockets { key, family, count } => match self.namespaces.get(&key) {
                None => return failed(format!("no namespace is enrolled as {key}")),
                Some(enrolled) => {
                    enrolled.sockets(family, count, home).map(|sockets| (Answered::Sockets(count), sockets))
                }
            },
        };
        made.unwrap_or_else(|error: EnterError| failed(error.to_string()))
    }
}
