//! The two ends of a stream of delta ADS, each against a peer that says what it likes.

use prost::Message as _;
use slotmesh_serve::fuzz::Step;
use slotmesh_xds::{
    Change, Resource, Version,
    envoy::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};

use crate::{Frames, resources::type_of};

/// The names in the server's store.
pub const NAMES: [&str; 4] = ["web", "api", "shop", "*"];

/// Frames of responses to the agent. The lowest bit of a frame's code says whether the agent finds
/// fault with what it got.
pub fn responses(data: &[u8]) {
    let responses = Frames::new(data)
        .filter_map(|(code, bytes)| Some((code & 1 != 0, DeltaDiscoveryResponse::decode(bytes).ok()?)));
    slotmesh_ads::fuzz::responses(responses);
}

/// Meanings of a frame of [`requests`].
pub mod request_code {
    /// A request, as it stands.
    pub const REQUEST: u8 = 0;
    /// The oldest response that wasn't answered is accepted.
    pub const ACCEPT: u8 = 1;
    /// The oldest response that wasn't answered is refused.
    pub const REFUSE: u8 = 2;
    /// The store changes: a byte says type, name and whether it is a removal, the rest is the content.
    pub const CHANGE: u8 = 3;
}

/// Frames of requests to the server, between changes of its store.
pub fn requests(data: &[u8]) {
    let steps = Frames::new(data).filter_map(|(code, bytes)| match code & 3 {
        request_code::REQUEST => Some(Step::Request(Box::new(DeltaDiscoveryRequest::decode(bytes).ok()?))),
        request_code::ACCEPT => Some(Step::Accept),
        request_code::REFUSE => Some(Step::Refuse),
        _ => change(bytes).map(|change| Step::Change(vec![change])),
    });
    slotmesh_serve::fuzz::requests(steps);
}

fn change(bytes: &[u8]) -> Option<Change> {
    let (&code, content) = bytes.split_first()?;
    let (ty, name) = (type_of(code), NAMES[usize::from(code >> 3 & 3)].into());
    Some(if code & 0x80 == 0 {
        let content = content.to_vec();
        Change::Upsert(Resource { ty, name, version: Version::of(&content), content: content.into() })
    } else {
        Change::Remove(ty, name)
    })
}
