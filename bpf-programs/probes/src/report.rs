//! What the tree reader is told, what the records that it reads are made of, and what it reports.
//!
//! Also part of the tests that write these records (by `#[path]`), so that both sides compute the same.
//!
//! Every word of a tree follows from its owner, its version and its place in the tree, so a record of
//! another owner, of another version, or half of each is told apart wherever it turns up.

use bytemuck::{Pod, Zeroable};
use slotmesh_records::{Endpoint, VipKey};

/// How many trees there are at most.
pub const OWNERS: u32 = 64;

/// The most endpoints of a tree: three chunks.
pub const MOST_ENDPOINTS: u32 = 3 * 126;

/// A tree: its VIP and the hashes of its resources' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Owner {
    /// `name_hash` of the listener.
    pub listener: u64,
    /// `name_hash` of the cluster.
    pub cluster: u64,
    /// `name_hash` of the load assignment.
    pub endpoints: u64,
    /// Its address.
    pub vip: VipKey,
    /// Zero.
    pub reserved: u32,
}

/// How to read, behind the Ethernet header of the test run's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Request {
    /// How many of the owners there are; the program reads one of them at random.
    pub owners: u32,
    /// It lingers at most this many turns of a loop (some ns each) between two loads.
    pub linger: u32,
    /// It lingers at one load of this many; a power of two.
    pub one_in: u32,
    /// Zero.
    pub reserved: u32,
}

/// Counts of all runs since the map was made, and the first tree that was not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Report {
    /// Runs.
    pub reads: u64,
    /// Trees that were read to the last leaf and whole.
    pub complete: u64,
    /// Runs that met a VIP that isn't there, or a handle that leads nowhere.
    pub null: u64,
    /// Trees that were not whole.
    pub bad: u64,
    /// How often it lingered.
    pub lingers: u64,
    /// Records read in complete trees.
    pub records: u64,
    /// Of the first bad tree: what was wrong, a [`Fault`] as a number.
    pub fault: u32,
    /// Its owner.
    pub owner: u32,
    /// The slot that was read.
    pub slot: u32,
    /// Which element of the leaf.
    pub index: u32,
    /// What should have been there.
    pub expected: u64,
    /// What was there.
    pub found: u64,
}

/// What is wrong with a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fault {
    /// A pointer leads out of the slabs.
    Pointer = 1,
    /// A record of another kind.
    Kind = 2,
    /// A handle of another resource.
    Name = 3,
    /// A record of another owner.
    Owner = 4,
    /// A record of another version than a moment before.
    Version = 5,
    /// A record's content isn't its version's.
    Content = 6,
    /// The checksum over the tree.
    Checksum = 7,
}

/// The part that a version number plays: each of a tree's resources has its own numbers.
pub const LISTENER: u32 = 1;
/// See [`LISTENER`].
pub const CLUSTER: u32 = 2;
/// See [`LISTENER`].
pub const ENDPOINTS: u32 = 3;

/// The version number of a resource: whose, which, and the how-manyeth; never 0.
#[inline(always)]
pub const fn version(owner: u32, resource: u32, sequence: u64) -> u64 {
    ((owner + 1) as u64) << 48 | (resource as u64) << 44 | (sequence & 0xfff_ffff_ffff)
}

/// Whether this is a version of this owner's resource.
#[inline(always)]
pub const fn is_of(version_: u64, owner: u32, resource: u32) -> bool {
    version_ >> 44 == version(owner, resource, 0) >> 44
}

/// 32 bits that follow from a version and a number.
#[inline(always)]
pub const fn mix(version: u64, n: u32) -> u32 {
    let x = (version ^ (n as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x >> 32) as u32 ^ x as u32
}

/// How many endpoints a version of a load assignment has: mostly a few, sometimes several chunks of them.
#[inline(always)]
pub const fn endpoint_count(version: u64) -> u32 {
    let m = mix(version, u32::MAX);
    if m & 15 == 0 { 127 + (m >> 8) % (MOST_ENDPOINTS - 127) } else { 1 + (m >> 8) % 40 }
}

/// Endpoint `index` of a version; `sum` is the checksum over all before it, and then over it too.
#[inline(always)]
pub const fn endpoint(owner: u32, version: u64, index: u32, sum: &mut u32) -> Endpoint {
    let m = mix(version, index);
    *sum = (*sum ^ m).wrapping_mul(0x9e37_79b1);
    Endpoint {
        addr: [owner, (version >> 16) as u32, index, m],
        port: version as u16,
        locality: 0,
        threshold: !m,
        alias: *sum,
        weight: m.rotate_left(7),
    }
}
