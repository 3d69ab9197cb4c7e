//! Requests to the programs that the agent runs by BPF_PROG_TEST_RUN: to explain where a connection would go, and to
//! remove state of what runs.
//!
//! They travel in its packet buffer. The response to an explanation stands behind the request.

use bytemuck::{Pod, Zeroable};

use crate::{BucketKey, EndpointKey, VipKey};

/// Which of a cluster's endpoints can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4, also in its IPv6-mapped form.
    V4,
    /// IPv6.
    V6,
}

/// A connect that isn't made: the request to the explain program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ExplainRequest {
    /// Where to.
    pub vip: VipKey,
    /// Zero.
    pub reserved: u32,
    /// [`Identity::namespace`](crate::Identity::namespace) of who connects.
    pub namespace: u64,
    /// [`Identity::class`](crate::Identity::class) of who connects.
    pub class: u64,
    /// The random number by which a cluster is chosen.
    pub cluster_random: u32,
    /// The random number by which an endpoint is chosen; where the source decides, its
    /// [`source_hash`](crate::source_hash).
    pub endpoint_random: u32,
    /// The random number by which another endpoint is chosen, where the less busy of two is taken.
    pub other_random: u32,
    /// Zero.
    pub padding: u32,
}

/// The outcome that it would have: the response of the explain program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ExplainResponse {
    /// [`LAYOUT_HASH`](crate::LAYOUT_HASH) of the program that answered.
    pub layout: u64,
    /// [`name_hash`](crate::name_hash) of the chosen cluster.
    pub cluster: u64,
    /// The chosen endpoint's address, network order.
    pub addr: [u32; 4],
    /// The chosen endpoint's port, network order.
    pub port: u16,
    /// A [`Verdict`] as a number.
    pub verdict: u16,
    /// Zero.
    pub reserved: u32,
}

/// A request to the removal program, in the same way: to remove the state of a cluster or an endpoint where
/// no connection counts in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Removal {
    /// The cluster; or the endpoint, where its port isn't 0; with [`OUTLIER`](Self::OUTLIER) what is known of its
    /// failures.
    pub of: EndpointKey,
    /// The answer: 1 where it was removed.
    pub removed: u64,
}

impl Removal {
    /// In [`EndpointKey::reserved`]: not the connections at the endpoint, but its failures.
    pub const OUTLIER: u32 = 1;
    /// Likewise: the bucket of a caller, whose hash stands in the first two words of the address.
    pub const BUCKET: u32 = 2;

    /// What stands for the failures of an endpoint.
    pub const fn outlier(of: EndpointKey) -> EndpointKey {
        EndpointKey { reserved: Self::OUTLIER, ..of }
    }

    /// What stands for a bucket.
    pub const fn bucket(of: BucketKey) -> EndpointKey {
        let addr = [of.caller as u32, (of.caller >> 32) as u32, 0, 0];
        EndpointKey { reserved: Self::BUCKET, ..EndpointKey::new(of.cluster, addr, 0) }
    }

    /// The bucket that this stands for.
    #[inline(always)]
    pub const fn bucket_of(of: &EndpointKey) -> BucketKey {
        BucketKey { cluster: of.cluster, caller: (of.at.addr[1] as u64) << 32 | of.at.addr[0] as u64 }
    }
}

/// The decision of a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Verdict {
    /// Not an address of ours: the connection goes where it was meant to go.
    Pass = 0,
    /// A known service without an endpoint: refused at once.
    Refuse = 1,
    /// Redirected to the endpoint.
    Redirect = 2,
}

impl TryFrom<u16> for Verdict {
    type Error = u16;

    fn try_from(verdict: u16) -> Result<Self, u16> {
        match verdict {
            0 => Ok(Self::Pass),
            1 => Ok(Self::Refuse),
            2 => Ok(Self::Redirect),
            other => Err(other),
        }
    }
}
