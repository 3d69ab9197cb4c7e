//! Istio's kinds.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use slotmesh_builders::{RuleBuilder, rule, service_entry, to, virtual_service, workload, workload_entry};
use slotmesh_compile::{CompileOptions, Kind, Object};
use slotmesh_crds::{Distribute, LoadBalancer, LocalityLbSetting};

use crate::{
    listing::listed,
    requests::Requests,
    shop,
    trial::{Subject, Trial, told, with},
    versions,
};

const FIELDS: &str = include_str!("fields/istio.txt");
const API: &str = "networking.istio.io/v1, v1beta1, v1alpha3";
const SPEC: &str = "e2e/tests/follow_the_specifications.rs";
const ENTRY: &str = "e2e/tests/route_to_a_service_entry.rs";
const ENTRIES: &str = "operator/compile/tests/compile/entries.rs";
const SHIFT: &str = "e2e/tests/shift_by_weight.rs";
const CALLERS: &str = "operator/compile/tests/compile/callers.rs";
const ROUTES: &str = "operator/compile/tests/compile/routes.rs";

pub fn subjects() -> Vec<Subject> {
    vec![virtual_services(), destination_rules(), service_entries(), workload_entries(), sidecars()]
}

/// VirtualServices without hosts, of both namespaces.
fn delegates() -> [Object; 2] {
    ["default", "other"].map(|namespace| {
        let mut delegate = virtual_service("rest", "nobody").namespace(namespace).http([to("ratings", 1)]).0;
        delegate.spec.hosts.clear();
        delegate.into()
    })
}

fn virtual_services() -> Subject {
    let mut world = shop();
    world.push(versions());
    world.extend(delegates());
    let split = json!([
        {"destination": {"host": "reviews", "subset": "v1"}, "weight": 80},
        {"destination": {"host": "reviews", "subset": "v2"}, "weight": 20},
    ]);
    Subject {
        kind: Kind::VirtualService,
        api: API,
        world,
        options: CompileOptions::default(),
        object: json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "reviews"},
            "spec": {"hosts": ["reviews"], "http": [{"route": split}], "tcp": [{"route": split}]},
        }),
        leaves: listed(FIELDS, "VirtualService"),
        before: Vec::new(),
        trials: vec![
            with("spec.hosts[]", "ratings"),
            with("spec.exportTo[]", "."),
            with("spec.http[].delegate.name", "rest").where_is("spec.http[].route", Value::Null),
            with("spec.http[].delegate.namespace", "other")
                .where_is("spec.http[].route", Value::Null)
                .where_is("spec.http[].delegate.name", "rest"),
            with("spec.http[].match[].sourceLabels", json!({"app": "client"})),
            told("spec.http[].match[].uri.prefix", "/"),
            with("spec.http[].route[].destination.host", "ratings")
                .where_is("spec.http[].route[].destination.subset", Value::Null),
            with("spec.http[].route[].destination.port.number", 81),
            with("spec.http[].route[].destination.subset", "v2"),
            with("spec.http[].route[].weight", 50),
            with("spec.tcp[].match[].destinationSubnets[]", "10.99.0.0/16"),
            with("spec.tcp[].match[].sourceLabels", json!({"app": "client"})),
            with("spec.tcp[].route[].destination.host", "ratings")
                .where_is("spec.tcp[].route[].destination.subset", Value::Null),
            with("spec.tcp[].route[].destination.port.number", 81),
            with("spec.tcp[].route[].destination.subset", "v2"),
            with("spec.tcp[].route[].weight", 50),
        ],
        requests: Requests::of_virtual_services(),
        shown: vec![
            ("spec.hosts", SPEC, "the_narrowest_host_counts"),
            ("spec.exportTo", SPEC, "what_is_exported_to_some_namespaces_is_for_their_callers"),
            ("spec.gateways", ROUTES, "gateways_and_load_balancing_values_are_named"),
            ("spec.http[]", TOGETHER, EVERYTHING),
            ("spec.http[].route[].headers", TOGETHER, EVERYTHING),
            ("spec.http[].retries", REQUESTS, "a_virtual_service_tries_again_as_istio_does"),
            ("spec.http[].delegate", SPEC, "a_delegate_decides_and_a_missing_one_refuses"),
            ("spec.http[].match[].gateways", SPEC, "a_match_of_gateways_is_for_the_mesh_where_it_says_so"),
            (
                "spec.http[].match[].port",
                ROUTES,
                "the_first_decidable_route_is_in_force_and_the_others_are_named",
            ),
            ("spec.http[].match[].source", SPEC, "a_callers_labels_choose_its_route_and_may_change"),
            ("spec.http[].route", SHIFT, "a_canary_gets_its_20_percent_by_an_http_route"),
            ("spec.tcp[].match[].destinationSubnets", CALLERS, "a_match_by_the_address_that_is_connected_to"),
            ("spec.tcp[].match[].gateways", ROUTES, "a_match_is_for_the_mesh_unless_it_names_gateways_only"),
            (
                "spec.tcp[].match[].port",
                ROUTES,
                "the_first_decidable_route_is_in_force_and_the_others_are_named",
            ),
            ("spec.tcp[].match[].source", CALLERS, "matches_by_namespace_and_labels_of_the_caller"),
            ("spec.tcp[].route", SHIFT, "a_canary_gets_its_20_percent_by_a_tcp_route"),
        ],
        noted: vec![
            ("spec.http[].name", "a name for people"),
            ("spec.http[].match[].name", "a name for people"),
            ("spec.http[].match[].uri", "every path has it, so the match is for every connection"),
            ("spec.http[].match[].ignoreUriCase", "a prefix that every path has has no case"),
        ],
    }
}

/// Where a DestinationRule may have a traffic policy.
const POLICIES: [(&str, &str); 4] = [
    ("spec.trafficPolicy", ""),
    ("spec.trafficPolicy.portLevelSettings[]", "spec.trafficPolicy.portLevelSettings[].port.number"),
    ("spec.subsets[].trafficPolicy", ""),
    (
        "spec.subsets[].trafficPolicy.portLevelSettings[]",
        "spec.subsets[].trafficPolicy.portLevelSettings[].port.number",
    ),
];

/// The outlier detection of these.
const DETECTIONS: [&str; 4] = [
    "spec.trafficPolicy.outlierDetection",
    "spec.trafficPolicy.portLevelSettings[].outlierDetection",
    "spec.subsets[].trafficPolicy.outlierDetection",
    "spec.subsets[].trafficPolicy.portLevelSettings[].outlierDetection",
];
const GUARDS: &str = "operator/compile/tests/compile/guards.rs";
/// Nobody looks at times; endpoints are left out when that is due.
const INTERVALS: [&str; 4] = [
    "spec.trafficPolicy.outlierDetection.interval",
    "spec.trafficPolicy.portLevelSettings[].outlierDetection.interval",
    "spec.subsets[].trafficPolicy.outlierDetection.interval",
    "spec.subsets[].trafficPolicy.portLevelSettings[].outlierDetection.interval",
];

/// The locality settings of these.
const SETTINGS: [&str; 4] = [
    "spec.trafficPolicy.loadBalancer.localityLbSetting",
    "spec.trafficPolicy.portLevelSettings[].loadBalancer.localityLbSetting",
    "spec.subsets[].trafficPolicy.loadBalancer.localityLbSetting",
    "spec.subsets[].trafficPolicy.portLevelSettings[].loadBalancer.localityLbSetting",
];
/// The parts of a request that these may hash.
const HASHES: [&str; 12] = [
    "spec.trafficPolicy.loadBalancer.consistentHash.httpCookie",
    "spec.trafficPolicy.loadBalancer.consistentHash.httpHeaderName",
    "spec.trafficPolicy.loadBalancer.consistentHash.httpQueryParameterName",
    "spec.trafficPolicy.portLevelSettings[].loadBalancer.consistentHash.httpCookie",
    "spec.trafficPolicy.portLevelSettings[].loadBalancer.consistentHash.httpHeaderName",
    "spec.trafficPolicy.portLevelSettings[].loadBalancer.consistentHash.httpQueryParameterName",
    "spec.subsets[].trafficPolicy.loadBalancer.consistentHash.httpCookie",
    "spec.subsets[].trafficPolicy.loadBalancer.consistentHash.httpHeaderName",
    "spec.subsets[].trafficPolicy.loadBalancer.consistentHash.httpQueryParameterName",
    "spec.subsets[].trafficPolicy.portLevelSettings[].loadBalancer.consistentHash.httpCookie",
    "spec.subsets[].trafficPolicy.portLevelSettings[].loadBalancer.consistentHash.httpHeaderName",
    "spec.subsets[].trafficPolicy.portLevelSettings[].loadBalancer.consistentHash.httpQueryParameterName",
];
const EVERYTHING: &str = "everything_compiles_to_the_golden_file";
const REQUESTS: &str = "operator/compile/tests/compile/requests/istio.rs";
const TOGETHER: &str = "operator/compile/tests/compile/requests/everything.rs";
const LOCALITIES: &str = "operator/compile/tests/compile/localities.rs";
const NEAREST: &str = "as_in_istio_the_nearest_go_before_others_where_there_is_outlier_detection";

fn destination_rules() -> Subject {
    const POLICY: &str = "operator/compile/tests/compile/policies.rs";
    let mut world = shop();
    let split = [to("reviews/v1", 50), to("reviews/v2", 25), to("reviews", 25)];
    world.push(virtual_service("reviews", "reviews").http(split).build());
    let mut trials = vec![
        with("spec.host", "ratings"),
        with("spec.exportTo[]", ".").where_is("spec.trafficPolicy.loadBalancer.simple", "ROUND_ROBIN"),
        with("spec.subsets[].name", "v3"),
        with("spec.subsets[].labels", json!({"version": "v2"})),
        with("spec.workloadSelector.matchLabels", json!({"app": "client"})),
    ];
    for (at, port) in POLICIES {
        let simple = format!("{at}.loadBalancer.simple");
        trials.push(with(simple.as_str(), "ROUND_ROBIN"));
        trials.push(told(simple.as_str(), "PASSTHROUGH"));
        if !port.is_empty() {
            trials.push(with(port, 81).where_is(simple, "ROUND_ROBIN"));
        }
        trials.extend(localities(at));
        trials.push(with(format!("{at}.outlierDetection.baseEjectionTime"), "10s"));
        trials.push(with(format!("{at}.outlierDetection.interval"), "10s").where_is(detection(at), 3));
        trials.push(with(format!("{at}.outlierDetection.maxEjectionPercent"), 50));
        trials.push(with(format!("{at}.outlierDetection.minHealthPercent"), 50));
    }
    Subject {
        kind: Kind::DestinationRule,
        api: API,
        world,
        options: CompileOptions::default(),
        object: json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "reviews"},
            "spec": {"host": "reviews", "subsets": [
                {"name": "v1", "labels": {"version": "v1"}}, {"name": "v2", "labels": {"version": "v2"}},
            ]},
        }),
        leaves: listed(FIELDS, "DestinationRule"),
        before: POLICIES
            .into_iter()
            .filter(|(_, port)| !port.is_empty())
            .map(|(at, port)| (at, port, json!(80)))
            .collect(),
        trials,
        requests: Requests::of_destination_rules(&POLICIES),
        shown: [
            ("spec.host", SPEC, "destination_rules_of_one_host_are_merged"),
            ("spec.exportTo", "operator/compile/tests/compile/rules.rs", "for_whom_a_rule_is"),
            ("spec.subsets", SPEC, "destination_rules_of_one_host_are_merged"),
            (
                "spec.subsets[].trafficPolicy",
                POLICY,
                "a_destination_rule_may_choose_the_less_busy_or_by_the_source",
            ),
            (
                "spec.subsets[].trafficPolicy.portLevelSettings",
                POLICY,
                "what_a_rule_says_of_a_port_stands_by_itself",
            ),
            ("spec.trafficPolicy", POLICY, "a_destination_rule_may_choose_the_less_busy_or_by_the_source"),
            ("spec.trafficPolicy.portLevelSettings", POLICY, "what_a_rule_says_of_a_port_stands_by_itself"),
            (
                "spec.workloadSelector",
                "operator/compile/tests/compile/rules.rs",
                "a_rule_may_choose_callers_of_its_namespace",
            ),
        ]
        .into_iter()
        .chain(HASHES.map(|at| (at, REQUESTS, "a_part_of_the_request_chooses_the_endpoint")))
        .chain(SETTINGS.map(|at| (at, LOCALITIES, NEAREST)))
        .chain(DETECTIONS.map(|at| (at, GUARDS, "a_rule_says_it_as_istio_does")))
        .collect(),
        noted: INTERVALS.map(|at| (at, "an endpoint is left out, and comes back, when that is due")).into(),
    }
}

/// Fields that make an endpoint one that fails.
fn detection(at: &str) -> String {
    format!("{at}.outlierDetection.consecutive5xxErrors")
}

/// Of a traffic policy at this place.
fn localities(at: &str) -> Vec<Trial> {
    let setting = format!("{at}.loadBalancer.localityLbSetting");
    let field = |name: &str| format!("{setting}.{name}");
    let detects = detection(at);
    let [from, to] = ["distribute[].from", "distribute[].to"].map(field);
    let [away_from, away_to] = ["failover[].from", "failover[].to"].map(field);
    vec![
        with(from.as_str(), "*").where_is(to.as_str(), json!({"*": 100})),
        with(to, json!({"*": 100})).where_is(from, "*"),
        with(field("enabled"), false).where_is(detects.as_str(), 3),
        with(away_from.as_str(), "eu").where_is(away_to.as_str(), "us").where_is(detects.as_str(), 3),
        with(away_to, "us").where_is(away_from, "eu").where_is(detects.as_str(), 3),
        with(field("failoverPriority[]"), "topology.kubernetes.io/zone").where_is(detects, 3),
    ]
}

/// A rule by which it matters where endpoints are.
fn located(name: &str, host: &str) -> RuleBuilder {
    let mut built = rule(name, host);
    let all = BTreeMap::from([("*".to_owned(), 100)]);
    let distribute = vec![Distribute { from: "*".to_owned(), to: all, ..Distribute::default() }];
    let setting = LocalityLbSetting { distribute, ..LocalityLbSetting::default() };
    let balancer = LoadBalancer { locality_lb_setting: Some(setting), ..LoadBalancer::default() };
    built.0.spec.traffic_policy.get_or_insert_default().load_balancer = Some(balancer);
    built
}

fn service_entries() -> Subject {
    let mut world = shop();
    world.extend([
        workload_entry("legacy", "10.9.0.9").label("app", "legacy").build(),
        located("api", "api.example.com").version("v1").build(),
        virtual_service("api", "api.example.com")
            .http([to("api.example.com/v1", 50), to("api.example.com", 50)])
            .build(),
    ]);
    Subject {
        kind: Kind::ServiceEntry,
        api: API,
        world,
        options: CompileOptions::default(),
        object: json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "api"},
            "spec": {"hosts": ["api.example.com"], "addresses": ["240.0.0.10"], "resolution": "STATIC",
                     "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
                     "endpoints": [{"address": "10.9.0.1"}]},
        }),
        leaves: listed(FIELDS, "ServiceEntry"),
        before: Vec::new(),
        trials: vec![
            with("spec.addresses[]", "240.0.0.11"),
            told("spec.addresses[]", "240.1.0.0/16"),
            with("spec.endpoints[].address", "10.9.0.2"),
            with("spec.endpoints[].labels", json!({"version": "v1"})),
            with("spec.endpoints[].locality", "eu/a"),
            with("spec.endpoints[].ports", json!({"http": 8081})),
            with("spec.endpoints[].weight", 5),
            with("spec.exportTo[]", "."),
            with("spec.hosts[]", "www.example.com"),
            told("spec.hosts[]", "*.example.com"),
            with("spec.location", "MESH_INTERNAL"),
            with("spec.ports[].number", 81),
            with("spec.ports[].protocol", "TCP"),
            with("spec.ports[].name", "web").where_is("spec.endpoints[].ports", json!({"http": 8081})),
            with("spec.ports[].targetPort", 8081),
            with("spec.resolution", "STATIC").where_is("spec.resolution", Value::Null),
            told("spec.resolution", "DNS").where_is("spec.resolution", Value::Null),
            told("spec.resolution", "NONE"),
            with("spec.workloadSelector.labels", json!({"app": "legacy"}))
                .where_is("spec.endpoints", Value::Null),
        ],
        requests: Requests::default(),
        shown: vec![
            ("spec.addresses", ENTRY, "several_entries_of_one_host_are_one_service"),
            ("spec.endpoints", ENTRY, "weights_of_endpoints_and_routes_to_subsets_of_a_host"),
            ("spec.endpoints[].locality", LOCALITIES, "workloads_say_where_they_are"),
            ("spec.endpoints[].ports", ENTRIES, "a_static_entry_is_like_a_service_with_endpoints"),
            ("spec.exportTo", SPEC, "a_service_entry_is_for_those_who_see_it"),
            ("spec.hosts", ENTRY, "weights_of_endpoints_and_routes_to_subsets_of_a_host"),
            ("spec.ports", ENTRIES, "a_static_entry_is_like_a_service_with_endpoints"),
            ("spec.resolution", ENTRIES, "what_is_resolved_elsewhere_is_left_alone"),
            ("spec.workloadSelector", ENTRY, "selected_machines_and_pods_of_an_entry_and_of_a_service"),
        ],
        noted: vec![("spec.location", "it decides what sidecars encrypt, and there are none")],
    }
}

fn workload_entries() -> Subject {
    let mut world = shop();
    let entry = service_entry("legacy", "legacy.example.com").ip("240.0.0.20").port("http", 80, 8080);
    let other = service_entry("other", "other.example.com").endpoint(workload("10.9.0.1", "v1"));
    let near = located("legacy", "legacy.example.com");
    world.extend([entry.select("app", "legacy").build(), other.build(), near.build()]);
    Subject {
        kind: Kind::WorkloadEntry,
        api: API,
        world,
        options: CompileOptions::default(),
        object: json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {"name": "legacy"},
            "spec": {"address": "10.9.0.9", "labels": {"app": "legacy"}},
        }),
        leaves: listed(FIELDS, "WorkloadEntry"),
        before: Vec::new(),
        trials: vec![
            with("spec.address", "10.9.0.8"),
            with("spec.labels", json!({"app": "other"})),
            with("spec.locality", "eu/a"),
            with("spec.ports", json!({"http": 8081})),
            with("spec.weight", 5),
        ],
        requests: Requests::default(),
        shown: vec![
            ("spec", ENTRIES, "workload_entries_and_pods_are_selected_by_labels_in_its_namespace"),
            ("spec.locality", LOCALITIES, "workloads_say_where_they_are"),
        ],
        noted: Vec::new(),
    }
}

fn sidecars() -> Subject {
    let mut world = shop();
    let away = virtual_service("reviews", "reviews").namespace("other").http([to("ratings.default", 1)]);
    world.push(away.build());
    Subject {
        kind: Kind::Sidecar,
        api: API,
        world,
        options: CompileOptions::default(),
        object: json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": {"name": "default"},
            "spec": {"egress": [{"hosts": ["./*"]}]},
        }),
        leaves: listed(FIELDS, "Sidecar"),
        before: Vec::new(),
        trials: vec![
            with("spec.egress[].hosts[]", "other/*"),
            with("spec.outboundTrafficPolicy.mode", "REGISTRY_ONLY"),
            with("spec.workloadSelector.labels", json!({"app": "client"})),
        ],
        requests: Requests::default(),
        shown: vec![
            ("spec.egress", SPEC, "a_sidecar_says_what_callers_see_and_what_becomes_of_the_rest"),
            (
                "spec.outboundTrafficPolicy",
                SPEC,
                "a_sidecar_says_what_callers_see_and_what_becomes_of_the_rest",
            ),
            ("spec.workloadSelector", CALLERS, "a_sidecar_says_what_callers_see"),
        ],
        noted: Vec::new(),
    }
}
