//! A stream that fuzzing drives: one whose agent says what it likes.

use std::collections::{HashSet, VecDeque};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use slotmesh_xds::{Change, Rejection, status_from_rejections};

use crate::{resources::Resources, status::StreamId, stream::Stream};

/// A small limit, so that answers are sent in parts.
const MAX_MESSAGE: usize = 256;
/// More answers than any of the few resources can need: beyond it, the stream doesn't come to rest.
const MANY: usize = 10_000;

/// Something that happens to a stream.
#[derive(Debug)]
pub enum Step {
    /// The agent sends this.
    Request(Box<DeltaDiscoveryRequest>),
    /// The agent accepts the oldest response that it hasn't answered.
    Accept,
    /// The agent refuses all of it.
    Refuse,
    /// The served resources change.
    Change(Vec<Change>),
}

/// Takes one stream through these steps, then accepts whatever still comes.
///
/// # Panics
/// Where a response contradicts itself, or the stream doesn't come to rest.
pub fn requests(steps: impl IntoIterator<Item = Step>) {
    let mut resources = Resources::default();
    let mut stream = Stream::new(StreamId(1), MAX_MESSAGE);
    let mut unanswered = VecDeque::new();
    for step in steps {
        match step {
            Step::Request(request) => {
                if stream.on_request(*request, &resources).is_err() {
                    return;
                }
            }
            Step::Change(changes) => {
                let dirty = resources.apply(changes);
                stream.absorb(dirty, None, &resources);
            }
            Step::Accept | Step::Refuse => {
                let refuse = matches!(step, Step::Refuse);
                if let Some(response) = unanswered.pop_front() {
                    answer(&mut stream, &resources, &response, refuse);
                }
            }
        }
        drain(&mut stream, &resources, &mut unanswered);
    }
    let mut answered = 0;
    while let Some(response) = unanswered.pop_front() {
        answered += 1;
        assert!(answered < MANY, "there is no end of responses");
        answer(&mut stream, &resources, &response, false);
        drain(&mut stream, &resources, &mut unanswered);
    }
    if let Some(status) = stream.status(StreamId(1)).filter(|_| resources.generation() > 0) {
        assert!(status.up_to_date, "all is answered: {status:?}");
    }
}

fn drain(stream: &mut Stream, resources: &Resources, unanswered: &mut VecDeque<DeltaDiscoveryResponse>) {
    loop {
        if let Some(response) = stream.next_response() {
            let upserts = response.resources.iter().map(|resource| &resource.name);
            let mut names = HashSet::new();
            for name in upserts.chain(&response.removed_resources) {
                assert!(names.insert(name), "{name} twice in a response");
            }
            unanswered.push_back(response);
            assert!(unanswered.len() < MANY, "there is no end of responses");
        } else if !stream.begin_round(resources) {
            return;
        }
    }
}

fn answer(stream: &mut Stream, resources: &Resources, response: &DeltaDiscoveryResponse, refuse: bool) {
    let refusal = |resource: &envoy_types::pb::envoy::service::discovery::v3::Resource| Rejection {
        name: resource.name.as_str().into(),
        reason: "no".to_owned(),
    };
    let refused: Vec<Rejection> = response.resources.iter().map(refusal).collect();
    let request = DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        error_detail: refuse.then(|| status_from_rejections(&refused)),
        ..DeltaDiscoveryRequest::default()
    };
    stream.on_request(request, resources).expect("an answer asks for nothing");
}
