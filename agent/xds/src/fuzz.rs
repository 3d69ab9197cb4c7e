//! What fuzzing drives: a stream whose control plane says what it likes.

use std::collections::HashSet;

use envoy_types::pb::envoy::{config::core::v3::Node, service::discovery::v3::DeltaDiscoveryResponse};
use slotmesh_xds::{Rejection, ResourceType, Version, rejections_from_status};

use crate::{
    session::{HeldVersions, Session},
    subscriptions::{Subscription, Subscriptions},
    versions::Foreign,
};

/// Hands the responses to one session; with each comes whether the agent refuses the first resource.
///
/// # Panics
/// Where what the session makes of a response breaks what its readers rely on.
pub fn responses(responses: impl IntoIterator<Item = (bool, DeltaDiscoveryResponse)>) {
    let mut wanted = Subscriptions::from_fn(|_| Subscription::Wildcard);
    wanted[ResourceType::Route] = ["web", "api"].into_iter().collect();
    let mut session = Session::new(Node { id: "node".to_owned(), ..Node::default() });
    session.subscribe(&wanted, &HeldVersions::default());
    let mut foreign = Foreign::default();
    for (refuse, response) in responses {
        let (nonce, type_url) = (response.nonce.clone(), response.type_url.clone());
        let Some((update, unanswered)) = session.on_response(response) else {
            assert!(type_url.parse::<ResourceType>().is_err(), "{type_url} is ignored");
            continue;
        };
        let mut names = HashSet::new();
        for resource in &update.upserts {
            assert!(names.insert(&resource.name), "{} twice", resource.name);
            assert!(!resource.name.as_str().is_empty() && wanted[update.ty].covers(&resource.name));
            assert_eq!((resource.ty, resource.version), (update.ty, Version::of(&resource.content)));
        }
        assert!(!update.removed.iter().any(|name| names.contains(name)), "present and removed");
        let refused: Vec<Rejection> = update
            .upserts
            .first()
            .filter(|_| refuse)
            .map(|resource| Rejection { name: resource.name.clone(), reason: "no".to_owned() })
            .into_iter()
            .collect();
        let (request, rejections) = session.answer(unanswered, refused.clone(), &mut foreign);
        assert_eq!((request.response_nonce, request.type_url), (nonce, type_url));
        assert!(refused.iter().all(|refusal| rejections.contains(refusal)));
        let named = request.error_detail.map(|status| rejections_from_status(&status));
        assert_eq!(named.unwrap_or_default(), rejections, "a NACK names what is refused");
    }
    let again = session.subscribe(&wanted, &HeldVersions::default());
    assert!(again.is_empty(), "all is requested already");
}
