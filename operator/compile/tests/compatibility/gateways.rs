//! Gateway API's kinds.

use serde_json::{Value, json};
use slotmesh_builders::{backend, http_route};
use slotmesh_compile::{CompileOptions, Kind};

use crate::{
    listing::listed,
    requests::Requests,
    shop,
    trial::{Subject, with},
};

const FIELDS: &str = include_str!("fields/gateway-api.txt");
const SPEC: &str = "e2e/tests/follow_the_specifications.rs";
const ROUTE: &str = "e2e/tests/route_by_gateway_api.rs";
const REQUESTS: &str = "operator/compile/tests/compile/requests.rs";
const TOGETHER: &str = "operator/compile/tests/compile/requests/everything.rs";
const EVERYTHING: &str = "everything_compiles_to_the_golden_file";
const COMPILE: &str = "operator/compile/tests/compile/gateway.rs";

pub fn subjects() -> Vec<Subject> {
    vec![
        route(
            Kind::HttpRoute,
            "gateway.networking.k8s.io/v1, v1beta1",
            80,
            ROUTE,
            "the_weights_of_an_http_route",
        ),
        route(
            Kind::GrpcRoute,
            "gateway.networking.k8s.io/v1, v1alpha2",
            80,
            SPEC,
            "a_grpc_route_without_matches_can_be_decided",
        ),
        route(
            Kind::TlsRoute,
            "gateway.networking.k8s.io/v1, v1alpha3, v1alpha2",
            443,
            COMPILE,
            "which_ports_a_kind_of_route_is_for",
        ),
        route(
            Kind::TcpRoute,
            "gateway.networking.k8s.io/v1, v1alpha2",
            80,
            ROUTE,
            "the_weights_of_a_tcp_route",
        ),
        grants(),
    ]
}

/// Routes of a kind, of Services' ports with this number.
fn route(kind: Kind, api: &'static str, port: u16, file: &'static str, test: &'static str) -> Subject {
    let takes_requests = matches!(kind, Kind::HttpRoute | Kind::GrpcRoute);
    Subject {
        kind,
        api,
        world: shop(),
        options: CompileOptions::default(),
        object: json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind.as_str(), "metadata": {"name": "reviews"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "reviews"}],
                "rules": [{"backendRefs": [
                    {"name": "reviews", "port": port, "weight": 80}, {"name": "ratings", "port": port, "weight": 20},
                ]}],
            },
        }),
        leaves: listed(FIELDS, kind.as_str()),
        before: Vec::new(),
        trials: vec![
            with("spec.parentRefs[].group", "").where_is("spec.parentRefs[].group", Value::Null),
            with("spec.parentRefs[].kind", "Service").where_is("spec.parentRefs[].kind", Value::Null),
            with("spec.parentRefs[].name", "ratings"),
            with("spec.parentRefs[].namespace", "other"),
            with("spec.parentRefs[].port", port).where_is("spec.parentRefs[].port", port + 1),
            with("spec.parentRefs[].sectionName", if port == 443 { "tls-admin" } else { "http" }),
            with("spec.rules[].backendRefs[].group", "")
                .where_is("spec.rules[].backendRefs[].group", "example.com"),
            with("spec.rules[].backendRefs[].kind", "Service")
                .where_is("spec.rules[].backendRefs[].kind", "Bucket"),
            with("spec.rules[].backendRefs[].name", "ratings"),
            with("spec.rules[].backendRefs[].namespace", "other"),
            with("spec.rules[].backendRefs[].port", port + 1),
            with("spec.rules[].backendRefs[].weight", 50),
        ],
        requests: if takes_requests { Requests::of_routes(port) } else { Requests::default() },
        shown: vec![
            ("spec.rules", file, test),
            ("spec.rules[].backendRefs[].filters", TOGETHER, EVERYTHING),
            ("spec.rules[].filters", TOGETHER, EVERYTHING),
            ("spec.rules[].matches", REQUESTS, "the_most_specific_match_of_all_routes_goes_before"),
            ("spec.rules[].matches[].method", REQUESTS, "methods_of_grpc_are_paths"),
            ("spec.rules[].retry", TOGETHER, EVERYTHING),
            ("spec.rules[].timeouts", TOGETHER, EVERYTHING),
            ("spec.parentRefs", file, test),
            ("spec.parentRefs[].namespace", SPEC, "a_consumers_route_is_for_callers_of_its_namespace"),
            ("spec.parentRefs[].port", COMPILE, "a_parent_port_limits_the_route_to_it"),
            ("spec.parentRefs[].sectionName", COMPILE, "a_parent_port_limits_the_route_to_it"),
        ],
        noted: vec![("spec.rules[].name", "a name for people")],
    }
}

fn grants() -> Subject {
    let mut world = shop();
    let crossing =
        http_route("crossing", "reviews").namespace("other").to([backend("default/ratings:80", 1)]);
    world.push(crossing.build());
    Subject {
        kind: Kind::ReferenceGrant,
        api: "gateway.networking.k8s.io/v1, v1beta1",
        world,
        options: CompileOptions { require_grants: true, ..CompileOptions::default() },
        object: json!({
            "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant", "metadata": {"name": "other"},
            "spec": {
                "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "other"}],
                "to": [{"group": "", "kind": "Service"}],
            },
        }),
        leaves: listed(FIELDS, "ReferenceGrant"),
        before: Vec::new(),
        trials: vec![with("spec.to[].name", "reviews")],
        requests: Requests::default(),
        shown: vec![("spec", COMPILE, "another_namespace_has_to_allow_it_where_grants_are_asked_for")],
        noted: Vec::new(),
    }
}
