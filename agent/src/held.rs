//! What records hold, read back: a load assignment for people, and to be written anew when its clusters want
//! other records of it than they did; the addresses and filter chains of a listener, however many slots they have.

use std::{
    collections::BTreeMap,
    num::{NonZeroU16, NonZeroU32},
};

use slotmesh_records::{
    self as records, Action, CallerChain, CallerIndex, Callers, Chain, ChainIndex, Chains, EndpointChunk,
    EndpointIndex, HashTable, Listener, Owned, RecordHeader, SlotPtr, Text, VipChunk, VipKey, WideListener,
};
use slotmesh_slots::Stored;

use crate::{
    config::{Endpoint, Endpoints, Locality},
    packed::Unpacker,
};

/// A load assignment in force.
pub(crate) struct Held {
    header: RecordHeader,
    /// IPv4 first.
    elements: Vec<records::Endpoint>,
    localities: Vec<u8>,
    hashes: Owned<HashTable>,
}

impl Held {
    /// What `root` leads to; `None` where that is no load assignment.
    pub fn read(stored: &impl Stored, root: SlotPtr) -> Option<Self> {
        let mut elements = Vec::new();
        let (header, hashes, localities) =
            if let Some((record, tail)) = stored.record::<records::Endpoints>(root) {
                elements.extend(tail);
                (record.header, record.hashes, record.localities)
            } else {
                let (record, chunks) = stored.record::<EndpointIndex>(root)?;
                for chunk in chunks {
                    elements.extend(stored.record::<EndpointChunk>(chunk.ptr())?.1);
                }
                (record.header, record.hashes, record.localities)
            };
        Some(Self { header, elements, localities: text(stored, localities)?, hashes })
    }

    /// The content hash of the resource.
    pub const fn version(&self) -> u64 {
        self.header.version
    }

    /// How many endpoints there are.
    pub const fn len(&self) -> usize {
        self.elements.len()
    }

    /// The table of sources, if there is one.
    pub const fn hashes(&self) -> Owned<HashTable> {
        self.hashes
    }

    /// The endpoints, IPv4 first, and the localities; `None` where the records are damaged.
    pub fn endpoints(&self) -> Option<Endpoints<'_>> {
        let (localities, viewed) = self.localities()?;
        let mut endpoints = Endpoints { localities, viewed, ..Endpoints::default() };
        for element in &self.elements {
            let at =
                VipKey { addr: element.addr, port: element.port, protocol: 0, reserved: 0 }.socket_addr();
            let family = if at.is_ipv4() { &mut endpoints.v4 } else { &mut endpoints.v6 };
            family.push(Endpoint {
                ip: at.ip(),
                port: NonZeroU16::new(at.port())?,
                locality: element.locality,
                weight: NonZeroU32::new(element.weight)?,
                degraded: false,
            });
        }
        Some(endpoints)
    }

    fn localities(&self) -> Option<(Vec<Locality<'_>>, bool)> {
        localities(&self.localities)
    }
}

/// Tells a load assignment whose endpoints were chosen by where the node is.
pub(crate) fn is_viewed(stored: &impl Stored, root: SlotPtr) -> bool {
    let of_one = stored.record::<records::Endpoints>(root).map(|(record, _)| record.localities);
    let of_many = || stored.record::<EndpointIndex>(root).map(|(record, _)| record.localities);
    let bytes = of_one.or_else(of_many).and_then(|at| text(stored, at));
    bytes.is_some_and(|bytes| localities(&bytes).is_some_and(|(_, viewed)| viewed))
}

/// The localities of a load assignment, and whether its endpoints were chosen by where the node is.
fn localities(bytes: &[u8]) -> Option<(Vec<Locality<'_>>, bool)> {
    if bytes.is_empty() {
        return Some((Vec::new(), false));
    }
    let mut text = Unpacker(bytes);
    let localities = (0..text.number()?)
        .map(|_| {
            Some(Locality {
                region: text.text()?,
                zone: text.text()?,
                sub_zone: text.text()?,
                priority: text.number()?,
                weight: NonZeroU32::new(text.number()?),
            })
        })
        .collect::<Option<Vec<_>>>()?;
    Some((localities, text.number()? != 0))
}

/// The addresses of a listener; `None` where `root` is none, or damaged.
pub(crate) fn vips(stored: &impl Stored, root: SlotPtr) -> Option<Vec<VipKey>> {
    if let Some((_, vips)) = stored.record::<Listener>(root) {
        return Some(vips.iter().map(|vip| vip.key).collect());
    }
    let (_, chunks) = stored.record::<WideListener>(root)?;
    let mut vips = Vec::new();
    for chunk in chunks {
        vips.extend(stored.record::<VipChunk>(chunk.ptr())?.1.iter().map(|vip| vip.key));
    }
    Some(vips)
}

/// Where the connections of each class of callers go that a listener tells apart; `None` where the records are damaged.
pub(crate) fn of_callers(stored: &impl Stored, at: Owned<Chains>) -> Option<BTreeMap<u64, Action>> {
    let Some((_, ranges)) = stored.record::<CallerIndex>(at.ptr()) else { return Some(BTreeMap::new()) };
    let mut actions = BTreeMap::new();
    for range in ranges {
        for entry in stored.record::<Callers>(range.callers.ptr())?.1 {
            actions.insert(entry.class, stored.record::<CallerChain>(entry.chain.ptr())?.0.action);
        }
    }
    Some(actions)
}

/// The filter chains of a listener that match ports; `None` where they are damaged.
pub(crate) fn chains(stored: &impl Stored, at: Owned<Chains>) -> Option<Vec<Chain>> {
    if at.ptr().is_null() || stored.record::<CallerIndex>(at.ptr()).is_some() {
        return Some(Vec::new());
    }
    if let Some((_, chains)) = stored.record::<Chains>(at.ptr()) {
        return Some(chains.to_vec());
    }
    let (_, ranges) = stored.record::<ChainIndex>(at.ptr())?;
    let mut chains = Vec::new();
    for range in ranges {
        chains.extend(stored.record::<Chains>(range.chains.ptr())?.1);
    }
    Some(chains)
}

/// All pieces of a text behind each other.
pub(crate) fn text(stored: &impl Stored, mut at: Owned<Text>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    while !at.ptr().is_null() {
        let (record, piece) = stored.record::<Text>(at.ptr())?;
        bytes.extend_from_slice(piece);
        at = record.next;
    }
    Some(bytes)
}
