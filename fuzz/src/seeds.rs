//! Inputs to start from: what the operator makes of the example shop, whole and in pieces. Made, not
//! stored, so that they follow the code.

use std::sync::OnceLock;

use prost::Message as _;
use slotmesh_operator::fuzz::Manifests;
use slotmesh_records::UNIT_BYTES;
use slotmesh_xds::{
    Change, Resource, ResourceType,
    envoy::{
        envoy::{
            config::{
                core::v3::{HeaderValue, HeaderValueOption, Node},
                route::v3::{
                    DirectResponseAction, HeaderMatcher, RedirectAction, RetryPolicy, Route, RouteAction,
                    RouteConfiguration, RouteMatch, VirtualHost,
                    redirect_action::PathRewriteSpecifier,
                    route::Action,
                    route_action::{
                        ClusterSpecifier, HashPolicy, HostRewriteSpecifier, RequestMirrorPolicy,
                        hash_policy::{Header, PolicySpecifier},
                    },
                    route_match::PathSpecifier,
                },
            },
            service::discovery::v3::{
                DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource,
            },
            r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher},
        },
        google::protobuf::Any,
    },
    status_from_rejections,
};

use crate::{
    HASHED, NAMES, REMOVE, TABLE, config, frame, http1, manifests, recovery, request_code, requests,
    responses, routing,
};

/// A fuzz target.
#[derive(Clone, Copy)]
pub struct Target {
    /// The name of its binary.
    pub name: &'static str,
    /// The function that it runs.
    pub run: fn(&[u8]),
    /// The inputs that it starts from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All fuzz targets.
pub const TARGETS: [Target; 7] = [
    Target { name: "config", run: config, seeds: of_config },
    Target { name: "http1", run: http1, seeds: of_http1 },
    Target { name: "manifests", run: manifests, seeds: of_manifests },
    Target { name: "recovery", run: recovery, seeds: of_recovery },
    Target { name: "requests", run: requests, seeds: of_requests },
    Target { name: "responses", run: responses, seeds: of_responses },
    Target { name: "routing", run: routing, seeds: of_routing },
];

const SHOP: [&str; 6] = [
    include_str!("../../e2e/shop/web.yaml"),
    include_str!("../../e2e/shop/reviews.yaml"),
    include_str!("../../e2e/shop/reviews-v1.yaml"),
    include_str!("../../e2e/shop/reviews-v2.yaml"),
    include_str!("../../e2e/shop/canary.yaml"),
    POLICIES,
];

/// Ways of choosing an endpoint.
const POLICIES: &str = r#"
apiVersion: slotmesh.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  loadBalancing: {algorithm: LeastConnections}
---
apiVersion: slotmesh.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: reviews, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: reviews}]
  loadBalancing: {algorithm: ConsistentHash}
"#;

/// Resources that the operator makes of the shop.
pub(crate) fn examples() -> &'static [Resource] {
    static EXAMPLES: OnceLock<Vec<Resource>> = OnceLock::new();
    EXAMPLES.get_or_init(|| {
        let mut manifests = Manifests::default();
        let upsert = |change| match change {
            Change::Upsert(resource) => Some(resource),
            Change::Remove(..) => None,
        };
        manifests.save("shop.yaml", Some(&SHOP.join("\n---\n"))).into_iter().filter_map(upsert).collect()
    })
}

fn code_of(ty: ResourceType) -> u8 {
    ResourceType::ALL.iter().position(|&other| other == ty).expect("ALL holds all") as u8
}

fn of_config() -> Vec<Vec<u8>> {
    let write = |resource: &Resource| frame(code_of(resource.ty), &resource.content);
    let remove =
        |resource: &Resource| frame(code_of(resource.ty) | REMOVE, resource.name.as_str().as_bytes());
    let hashed = |resource: &Resource| frame(code_of(resource.ty) | HASHED, &resource.content);
    let mut seeds: Vec<Vec<u8>> = examples().iter().map(write).collect();
    // With tables of sources, then without.
    seeds
        .push(examples().iter().map(hashed).chain(examples().iter().map(write)).collect::<Vec<_>>().concat());
    seeds
        .push(examples().iter().map(write).chain(examples().iter().map(remove)).collect::<Vec<_>>().concat());
    // Referred to before it exists, and written twice.
    seeds.push(examples().iter().rev().chain(examples()).map(write).collect::<Vec<_>>().concat());
    seeds
}

fn of_http1() -> Vec<Vec<u8>> {
    [
        "GET /a?b=c HTTP/1.1\r\nHost: web:80\r\nAccept: */*\r\ncookie: a=1\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n0\r\ny: 2\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
        "HTTP/1.0 404\ncontent-type: text/plain\n\n",
        "\u{5}5;ext\r\nhello\r\n0a\r\n0123456789\r\n0\r\nx-sum: 1\r\n\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

fn of_manifests() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = SHOP.iter().map(|text| frame(0, text.as_bytes())).collect();
    seeds.push((0..).zip(SHOP).map(|(i, text)| frame(i & 3, text.as_bytes())).collect::<Vec<_>>().concat());
    seeds
}

fn of_recovery() -> Vec<Vec<u8>> {
    let at = |code, slab: u8, byte: u16, bytes: &[u8]| {
        let [low, high] = byte.to_le_bytes();
        frame(code, &[&[slab, 0, low, high][..], bytes].concat())
    };
    let unit = UNIT_BYTES as u16;
    // Nothing, everything, each word of the superblock and of the first handles, and a root.
    let mut seeds = vec![Vec::new(), at(1, 0, 0, &[]), at(0x80, 0, 1, &[])];
    seeds.extend((0..8 * unit).step_by(4).map(|byte| at(0, 0, byte, &1_u32.to_le_bytes())));
    seeds.extend((0..2 * unit).step_by(4).map(|byte| at(0, 1, byte, &u32::MAX.to_le_bytes())));
    seeds
}

fn of_requests() -> Vec<Vec<u8>> {
    let node = || Some(Node { id: "node".to_owned(), ..Node::default() });
    let request = |request: DeltaDiscoveryRequest| frame(request_code::REQUEST, &request.encode_to_vec());
    let subscribe = |ty: ResourceType, names: &[&str]| {
        request(DeltaDiscoveryRequest {
            node: node(),
            type_url: ty.type_url().to_owned(),
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            initial_resource_versions: [("web".to_owned(), "0123456789abcdef".to_owned())].into(),
            ..Default::default()
        })
    };
    let change = |ty, name: u8, content: &str| {
        frame(request_code::CHANGE, &[&[code_of(ty) | name << 3], content.as_bytes()].concat())
    };
    let (accept, refuse) = (frame(request_code::ACCEPT, &[]), frame(request_code::REFUSE, &[]));
    let all = ResourceType::ALL.map(|ty| subscribe(ty, &["*"])).concat();
    let nack = request(DeltaDiscoveryRequest {
        type_url: ResourceType::Cluster.type_url().to_owned(),
        response_nonce: "1-1".to_owned(),
        error_detail: Some(status_from_rejections(&[slotmesh_xds::Rejection {
            name: NAMES[0].into(),
            reason: "no".to_owned(),
        }])),
        resource_names_unsubscribe: vec!["web".to_owned(), "*".to_owned()],
        ..Default::default()
    });
    let (cluster, route) = (ResourceType::Cluster, ResourceType::Route);
    vec![
        all.clone(),
        [change(cluster, 0, "1"), all.clone(), accept.clone(), change(cluster, 0, "2"), refuse].concat(),
        [subscribe(cluster, &["web"]), change(cluster, 0, "1"), nack, accept.clone()].concat(),
        [subscribe(cluster, &["web", "api"]), change(route, 1, "1"), change(cluster, 1 | 0x10, "")].concat(),
        [all, change(cluster, 2, "1"), accept, change(cluster, 2 | 0x10, "")].concat(),
    ]
}

fn of_responses() -> Vec<Vec<u8>> {
    let response = |ty: ResourceType, resources: &[Resource], removed: &[&str], more: bool| {
        let wire = |resource: &Resource| WireResource {
            name: resource.name.to_string(),
            version: resource.version.to_string(),
            resource: Some(Any {
                type_url: resource.ty.type_url().to_owned(),
                value: resource.content.to_vec(),
            }),
            ..WireResource::default()
        };
        DeltaDiscoveryResponse {
            type_url: ty.type_url().to_owned(),
            nonce: "1-1".to_owned(),
            system_version_info: slotmesh_xds::system_version_info(1, "Pod=1", more),
            resources: resources.iter().filter(|resource| resource.ty == ty).map(wire).collect(),
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        }
        .encode_to_vec()
    };
    let whole = |more| ResourceType::ALL.map(|ty| frame(0, &response(ty, examples(), &[], more))).concat();
    let mut seeds = vec![whole(false), [whole(true), whole(false)].concat()];
    for ty in ResourceType::ALL {
        let twice: Vec<Resource> = examples().iter().chain(examples()).cloned().collect();
        seeds.push(frame(1, &response(ty, examples(), &["gone", "web"], false)));
        seeds.push(frame(0, &response(ty, &twice, &["gone"], true)));
    }
    seeds
}

fn of_routing() -> Vec<Vec<u8>> {
    let requests = [
        "GET web.shop /",
        "GET 10.96.0.10:80 /a/../b?q=1\nx-a: 1",
        "OPTIONS reviews /a\norigin: http://a.test\naccess-control-request-method: GET",
        "POST a.shop /pkg.Service/Call\ncontent-type: application/grpc\ngrpc-timeout: 1S",
    ];
    let requests = (0..).zip(requests).map(|(code, text)| frame(code, text.as_bytes()));
    let requests = requests.collect::<Vec<_>>().concat();
    let with_requests = |config: &[u8]| [frame(TABLE, config), requests.clone()].concat();
    let mut seeds: Vec<Vec<u8>> = examples()
        .iter()
        .filter(|resource| resource.ty == ResourceType::Route)
        .map(|resource| with_requests(&resource.content))
        .collect();
    seeds.extend(routes().iter().map(|config| with_requests(&config.encode_to_vec())));
    seeds
}

/// A configuration a sort of match and action: the operator doesn't make all of them.
fn routes() -> Vec<RouteConfiguration> {
    let regex = |regex: &str| RegexMatcher { regex: regex.to_owned(), ..Default::default() };
    let substitution =
        || RegexMatchAndSubstitute { pattern: Some(regex("/(a|b)*")), substitution: "\\1-\\0".to_owned() };
    let forward = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster("c".to_owned())),
        regex_rewrite: Some(substitution()),
        host_rewrite_specifier: Some(HostRewriteSpecifier::HostRewritePathRegex(substitution())),
        append_x_forwarded_host: true,
        retry_policy: Some(RetryPolicy { retry_on: "5xx,reset".to_owned(), ..Default::default() }),
        request_mirror_policies: vec![RequestMirrorPolicy { cluster: "m".to_owned(), ..Default::default() }],
        hash_policy: vec![HashPolicy {
            policy_specifier: Some(PolicySpecifier::Header(Header {
                header_name: "x-a".to_owned(),
                regex_rewrite: Some(substitution()),
            })),
            ..Default::default()
        }],
        ..Default::default()
    };
    let redirect = RedirectAction {
        host_redirect: "other".to_owned(),
        port_redirect: 81,
        strip_query: true,
        path_rewrite_specifier: Some(PathRewriteSpecifier::PrefixRewrite("/new".to_owned())),
        ..Default::default()
    };
    let response = DirectResponseAction { status: 418, ..Default::default() };
    let matches = [
        PathSpecifier::Prefix("/a".to_owned()),
        PathSpecifier::PathSeparatedPrefix("/a".to_owned()),
        PathSpecifier::Path("/a".to_owned()),
        PathSpecifier::SafeRegex(regex("/[a-z]+.*")),
    ];
    let actions = [Action::Route(forward), Action::Redirect(redirect), Action::DirectResponse(response)];
    let route = |matcher: &PathSpecifier, action: &Action| Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(matcher.clone()),
            headers: vec![HeaderMatcher {
                name: "x-a".to_owned(),
                invert_match: true,
                treat_missing_header_as_empty: true,
                ..Default::default()
            }],
            ..Default::default()
        }),
        action: Some(action.clone()),
        request_headers_to_add: vec![HeaderValueOption {
            header: Some(HeaderValue { key: "x-b".to_owned(), value: "1".to_owned(), ..Default::default() }),
            ..Default::default()
        }],
        ..Default::default()
    };
    let config = |action| RouteConfiguration {
        virtual_hosts: vec![VirtualHost {
            domains: ["*", "*.shop", "web.*", "reviews"].map(str::to_owned).into(),
            routes: matches.iter().map(|matcher| route(matcher, action)).collect(),
            ..Default::default()
        }],
        ..Default::default()
    };
    actions.iter().map(config).collect()
}
