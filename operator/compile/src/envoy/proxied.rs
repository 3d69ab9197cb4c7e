//! Route configurations of ports whose requests the proxy on the node looks at.
//!
//! They are what a stock Envoy takes. A map of a message stands in it entry by entry, sorted by key, as prost would
//! encode it in random order.

use prost::{Message, Name as _, encoding};
use slotmesh_xds::{
    Resource, ResourceType, RoutedByRequest,
    envoy::{
        envoy::config::core::v3::{Http1ProtocolOptions, Http2ProtocolOptions},
        envoy::{
            config::{
                core::v3::RuntimeFractionalPercent,
                route::v3::{
                    RetryPolicy, Route, RouteAction, RouteConfiguration, VirtualHost, WeightedCluster, route,
                    route_action::{
                        ClusterNotFoundResponseCode, ClusterSpecifier, HashPolicy, RequestMirrorPolicy,
                        hash_policy::{self, PolicySpecifier},
                    },
                    weighted_cluster::ClusterWeight,
                },
            },
            extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options as upstream},
        },
        google::protobuf::{Any, BoolValue, UInt32Value},
    },
};

use super::{any, metadata};
use crate::{
    model::{
        HashedPart, HeaderEdits, MessageEdits, OwnAnswer, RequestCondition, Treatment, default_retries,
        duration, every_request, fraction,
    },
    names::INVALID_BACKEND,
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Where requests go: `None` where that is nothing, so they are answered with 500.
pub(crate) type Backends<'a> = Vec<(Option<String>, u32, &'a MessageEdits)>;

/// A route of requests.
pub(crate) struct RequestRoute<'a> {
    /// Called after the rule that it is of.
    pub(crate) name: String,
    pub(crate) condition: Option<&'a RequestCondition>,
    pub(crate) treatment: &'a Treatment,
    /// Clusters by weight; not used where the treatment has an answer.
    pub(crate) backends: Backends<'a>,
    /// Clusters and millionths.
    pub(crate) mirrors: Vec<(String, u32)>,
    /// Parts of a request by which its clusters choose endpoints; the first counts that a request has.
    pub(crate) hashed: Vec<HashedPart>,
    /// Tells whether requests are tried again as Istio has it where nothing is said.
    pub(crate) retries_by_default: bool,
}

/// An entry of a map of filters' configurations.
#[derive(Clone, PartialEq, Message)]
struct FilterEntry {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    config: Option<Any>,
}

/// The field `typed_per_filter_config` of a Route.
const FILTERS_OF_A_ROUTE: u32 = 13;
/// The field `routes` of a VirtualHost.
const ROUTES_OF_A_HOST: u32 = 3;
/// The field `virtual_hosts` of a RouteConfiguration.
const HOSTS: u32 = 2;

impl RequestRoute<'_> {
    /// The bytes of the route, as [`configuration`] takes them.
    pub(crate) fn encode(self) -> Vec<u8> {
        let Self { name, condition, treatment, backends, mirrors, hashed, retries_by_default } = self;
        let action = match &treatment.answer {
            Some(OwnAnswer::Redirect(redirect)) => route::Action::Redirect(redirect.clone()),
            Some(OwnAnswer::Direct(direct)) => route::Action::DirectResponse(direct.clone()),
            None => {
                let mut action = action(&treatment.action, backends, mirrors);
                action.retry_policy = retry_policy(action.retry_policy, retries_by_default, &hashed);
                action.hash_policy = hashed.into_iter().map(hash_policy).collect();
                route::Action::Route(action)
            }
        };
        let MessageEdits { request, response } = &treatment.edits;
        let route = Route {
            name,
            r#match: Some(condition.map_or_else(every_request, |condition| condition.matches.clone())),
            action: Some(action),
            request_headers_to_add: request.values(),
            request_headers_to_remove: request.remove.clone(),
            response_headers_to_add: response.values(),
            response_headers_to_remove: response.remove.clone(),
            ..Default::default()
        };
        let mut bytes = route.encode_to_vec();
        for (name, config) in &treatment.filters {
            let entry = FilterEntry { name: (*name).to_owned(), config: Some(config.clone()) };
            encoding::message::encode(FILTERS_OF_A_ROUTE, &entry, &mut bytes);
        }
        bytes
    }
}

/// `said`: one that says nothing turns retries off.
fn retry_policy(said: Option<RetryPolicy>, by_default: bool, hashed: &[HashedPart]) -> Option<RetryPolicy> {
    match said {
        Some(policy) => Some(policy).filter(|policy| *policy != RetryPolicy::default()),
        // Where a hash chooses the endpoint, it stays that one.
        None => by_default.then(|| default_retries(hashed.is_empty())),
    }
}

fn hash_policy(part: HashedPart) -> HashPolicy {
    let specifier = match part {
        HashedPart::Header(header_name) => {
            PolicySpecifier::Header(hash_policy::Header { header_name, ..Default::default() })
        }
        HashedPart::Query(name) => PolicySpecifier::QueryParameter(hash_policy::QueryParameter { name }),
        HashedPart::Cookie { name, path, ttl, attributes } => {
            let attribute = |(name, value)| hash_policy::CookieAttribute { name, value };
            PolicySpecifier::Cookie(hash_policy::Cookie {
                name,
                path,
                ttl: ttl.map(duration),
                attributes: attributes.into_iter().map(attribute).collect(),
            })
        }
    };
    HashPolicy { terminal: true, policy_specifier: Some(specifier) }
}

#[expect(
    deprecated,
    reason = "the newer field for gRPC's deadlines turns the timeout off, and as a limit of the stream says 408"
)]
fn action(template: &RouteAction, backends: Backends<'_>, mirrors: Vec<(String, u32)>) -> RouteAction {
    let name = |cluster: Option<String>| cluster.unwrap_or_else(|| INVALID_BACKEND.to_owned());
    let is_plain = |edits: &MessageEdits| *edits == MessageEdits::default();
    let specifier = match <[_; 1]>::try_from(backends) {
        Ok([(cluster, _, edits)]) if is_plain(edits) => ClusterSpecifier::Cluster(name(cluster)),
        Ok(backends) => weighted(backends.into(), name),
        Err(backends) => weighted(backends, name),
    };
    let mirror = |(cluster, share): (String, u32)| RequestMirrorPolicy {
        cluster,
        runtime_fraction: Some(RuntimeFractionalPercent {
            default_value: Some(fraction(share)),
            ..Default::default()
        }),
        ..Default::default()
    };
    RouteAction {
        cluster_specifier: Some(specifier),
        cluster_not_found_response_code: ClusterNotFoundResponseCode::InternalServerError.into(),
        // Unset is 15 seconds.
        timeout: Some(template.timeout.unwrap_or_default()),
        // The deadline of who calls by gRPC counts, up to the timeout where there is one.
        max_grpc_timeout: Some(template.timeout.unwrap_or_default()),
        request_mirror_policies: mirrors.into_iter().map(mirror).collect(),
        ..template.clone()
    }
}

fn weighted(backends: Backends<'_>, name: impl Fn(Option<String>) -> String) -> ClusterSpecifier {
    let remove = |edits: &HeaderEdits| edits.remove.clone();
    let clusters = backends.into_iter().map(|(cluster, weight, edits)| ClusterWeight {
        name: name(cluster),
        weight: Some(UInt32Value { value: weight }),
        request_headers_to_add: edits.request.values(),
        request_headers_to_remove: remove(&edits.request),
        response_headers_to_add: edits.response.values(),
        response_headers_to_remove: remove(&edits.response),
        ..Default::default()
    });
    ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: clusters.collect(), ..Default::default() })
}

/// The route configuration of these routes, the first that matches counts. Its metadata says that requests are to be
/// looked at.
pub(crate) fn configuration(name: &str, routes: &[Vec<u8>]) -> Resource {
    let host = VirtualHost { name: name.to_owned(), domains: vec!["*".to_owned()], ..Default::default() };
    let mut host = host.encode_to_vec();
    for route in routes {
        encoding::bytes::encode(ROUTES_OF_A_HOST, route, &mut host);
    }
    let marked = metadata(RoutedByRequest::KEY, RoutedByRequest::TYPE_URL, &RoutedByRequest {});
    let message = RouteConfiguration {
        name: name.to_owned(),
        // A cluster that isn't there is what a destination is that can't be resolved.
        validate_clusters: Some(BoolValue { value: false }),
        metadata: Some(marked),
        ..Default::default()
    };
    let mut bytes = message.encode_to_vec();
    encoding::bytes::encode(HOSTS, &host, &mut bytes);
    Resource::encoded(ResourceType::Route, name, bytes)
}

/// How requests are sent to a cluster: in HTTP/2 where its port says so, else in what the caller speaks.
pub(super) fn http_options(http2: bool) -> (String, Any) {
    let (one, two) = (Http1ProtocolOptions::default(), Http2ProtocolOptions::default());
    let options = match http2 {
        true => upstream::UpstreamProtocolOptions::ExplicitHttpConfig(upstream::ExplicitHttpConfig {
            protocol_config: Some(upstream::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(two)),
        }),
        false => upstream::UpstreamProtocolOptions::UseDownstreamProtocolConfig(
            upstream::UseDownstreamHttpConfig {
                http_protocol_options: Some(one),
                http2_protocol_options: Some(two),
                ..Default::default()
            },
        ),
    };
    let options = HttpProtocolOptions { upstream_protocol_options: Some(options), ..Default::default() };
    debug_assert_eq!(HttpProtocolOptions::full_name(), HTTP_OPTIONS);
    (HTTP_OPTIONS.to_owned(), any(&options))
}
