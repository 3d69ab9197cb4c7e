//! Kubernetes' own kinds.

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::{Value, json};
use slotmesh_builders::{
    pod, profile, rule, service, service_entry, slice, to, virtual_service, workload_entry,
};
use slotmesh_compile::{CompileOptions, Kind};

use crate::{
    listing::{Leaf, of_type},
    requests::Requests,
    shop,
    trial::{Subject, told, with},
    versions,
};

const KEPT: &str = "e2e/tests/keep_what_services_had.rs";
const SPEC: &str = "e2e/tests/follow_the_specifications.rs";
const CONNECT: &str = "e2e/tests/connect_to_a_service.rs";
const ENDPOINTS: &str = "e2e/tests/change_endpoints.rs";
const SERVICES: &str = "operator/compile/tests/compile/services.rs";
const ENTRIES: &str = "operator/compile/tests/compile/entries.rs";
const ADDRESSES: &str = "operator/compile/tests/compile/entries/addresses.rs";
const SERVICE_NAME: &str = "metadata.labels[\"kubernetes.io/service-name\"]";

pub fn subjects() -> Vec<Subject> {
    vec![services(), slices(), pods(), nodes(), service_cidrs()]
}

fn leaf(path: &str) -> Leaf {
    (path.to_owned(), json!("x"))
}

fn services() -> Subject {
    let mut world = shop();
    let slice = slice("web", "web").named_port("http", 8080).endpoint("10.1.0.9");
    let split = virtual_service("web", "web").http([to("web", 50), to("ratings", 50)]);
    let old = workload_entry("old", "10.9.0.1").label("app", "web");
    world.extend([slice.build(), split.build(), old.build()]);
    let of_others = [
        "metadata.labels[\"service.kubernetes.io/service-proxy-name\"]",
        "metadata.annotations[\"service.kubernetes.io/topology-mode\"]",
    ];
    const CONTROLLER: &str =
        "the EndpointSlice controller acts on it, and slotmesh on the slices that it writes";
    const ADDRESSES: &str = "the addresses that are in force say it";
    const OUTSIDE: &str =
        "it is about connections from outside the cluster, which kube-proxy or a load balancer serves";
    Subject {
        kind: Kind::Service,
        api: "v1",
        world,
        options: CompileOptions::default(),
        object: json!({
            "metadata": {"name": "web"},
            "spec": {"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20"], "selector": {"app": "web"},
                     "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }),
        leaves: of_others.map(leaf).into_iter().chain(of_type::<Service>()).collect(),
        before: vec![
            ("status.loadBalancer.ingress[]", "status.loadBalancer.ingress[].ip", json!("192.0.2.9")),
            ("status.conditions[]", "status.conditions[].lastTransitionTime", json!("2025-01-01T00:00:00Z")),
        ],
        trials: vec![
            with("spec.clusterIP", "10.96.0.21").where_is("spec.clusterIPs", Value::Null),
            with("spec.clusterIPs[]", "10.96.0.21"),
            told("spec.clusterIPs[]", "None"),
            with("spec.externalIPs[]", "192.0.2.7"),
            with("spec.type", "LoadBalancer"),
            told("spec.type", "ExternalName"),
            with("spec.internalTrafficPolicy", "Local"),
            with("spec.sessionAffinity", "ClientIP"),
            with("spec.sessionAffinityConfig.clientIP.timeoutSeconds", 60)
                .where_is("spec.sessionAffinity", "ClientIP"),
            with("spec.ports[].appProtocol", "tcp"),
            with("spec.ports[].port", 81),
            with("spec.ports[].protocol", "UDP"),
            told("spec.ports[].protocol", "SCTP"),
            with("spec.ports[].targetPort", 8081),
            with("spec.ports[].nodePort", 30_080).where_is("spec.type", "NodePort"),
            told("spec.externalTrafficPolicy", "Local")
                .where_is("spec.type", "NodePort")
                .where_is("spec.ports[].nodePort", 30_080),
            with("spec.loadBalancerSourceRanges[]", "10.0.0.0/8")
                .where_is("status.loadBalancer.ingress[].ip", "192.0.2.9"),
            with("status.loadBalancer.ingress[].ip", "192.0.2.8"),
            with("status.loadBalancer.ingress[].ipMode", "Proxy"),
        ],
        requests: Requests::default(),
        shown: vec![
            ("metadata.labels", SERVICES, "a_service_of_another_proxy_is_not_ours"),
            (
                "spec.clusterIP",
                CONNECT,
                "by_ipv4_by_ipv6_and_by_ipv4_in_ipv6_and_getpeername_shows_the_cluster_address",
            ),
            ("spec.externalIPs", KEPT, "external_addresses_lead_to_the_service_but_never_from_another_one"),
            ("spec.loadBalancerSourceRanges", SERVICES, "external_addresses_are_the_services"),
            (
                "status.loadBalancer",
                KEPT,
                "external_addresses_lead_to_the_service_but_never_from_another_one",
            ),
            (
                "spec.internalTrafficPolicy",
                KEPT,
                "a_local_service_has_the_endpoints_of_its_node_also_those_that_end",
            ),
            ("spec.sessionAffinity", KEPT, "a_workload_keeps_to_its_endpoint"),
            ("spec.sessionAffinityConfig", KEPT, "who_was_quiet_for_the_time_chooses_anew"),
            ("spec.type", SERVICES, "headless_and_external_services_have_no_listener"),
            ("spec.ports", CONNECT, "with_several_ports_and_named_target_ports"),
            ("spec.ports[].nodePort", KEPT, "node_ports_are_addresses_of_the_service"),
            (
                "spec.ports[].appProtocol",
                "operator/compile/tests/compile/routes.rs",
                "the_protocol_of_a_port_decides_which_routes_apply",
            ),
            (
                "spec.ports[].protocol",
                "e2e/tests/ask_by_udp.rs",
                "and_the_answer_comes_from_the_cluster_address",
            ),
            ("spec.ports[].targetPort", ENTRIES, "a_service_selects_workload_entries_beside_its_slices"),
            (
                "spec.selector",
                "e2e/tests/route_to_a_service_entry.rs",
                "selected_machines_and_pods_of_an_entry_and_of_a_service",
            ),
        ],
        noted: vec![
            ("metadata.annotations", CONTROLLER),
            ("spec.publishNotReadyAddresses", CONTROLLER),
            ("spec.trafficDistribution", CONTROLLER),
            ("spec.externalTrafficPolicy", OUTSIDE),
            ("spec.allocateLoadBalancerNodePorts", OUTSIDE),
            ("spec.healthCheckNodePort", OUTSIDE),
            ("spec.ipFamilies", ADDRESSES),
            ("spec.ipFamilyPolicy", ADDRESSES),
            ("spec.loadBalancerClass", ADDRESSES),
            ("spec.loadBalancerIP", ADDRESSES),
            ("spec.type", ADDRESSES),
            ("spec.externalName", "a Service of type ExternalName is left alone"),
            ("status.loadBalancer.ingress[].hostname", "connections are made to addresses"),
            ("status.loadBalancer.ingress[].ports[]", "the Service's ports are served"),
            ("status.conditions[]", "they are for people"),
        ],
    }
}

fn slices() -> Subject {
    let mut world = shop();
    let local = service("local").ip("10.96.0.21").named_port("http", 80);
    let mut local = local.0;
    local.spec.get_or_insert_default().internal_traffic_policy = Some("Local".to_owned());
    world.extend([
        service("web").ip("10.96.0.20").named_port("http", 80).build(),
        local.into(),
        versions(),
        virtual_service("reviews", "reviews").http([to("reviews/v1", 1), to("reviews/v2", 1)]).build(),
    ]);
    const TARGET: &str = "endpoints[].targetRef";
    Subject {
        kind: Kind::EndpointSlice,
        api: "discovery.k8s.io/v1",
        world,
        options: CompileOptions::default(),
        object: json!({
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.9"]}], "ports": [{"name": "http", "port": 8080}],
        }),
        leaves: [leaf(SERVICE_NAME)].into_iter().chain(of_type::<EndpointSlice>()).collect(),
        before: vec![
            (TARGET, SERVICE_NAME, json!("reviews")),
            (TARGET, "endpoints[].targetRef.kind", json!("Pod")),
            (TARGET, "endpoints[].targetRef.name", json!("reviews-1")),
            ("endpoints[].nodeName", SERVICE_NAME, json!("local")),
        ],
        trials: vec![
            with(SERVICE_NAME, "reviews"),
            with("addressType", "IPv6").where_is("endpoints[].addresses[]", "fd00::9"),
            told("addressType", "FQDN"),
            with("endpoints[].addresses[]", "10.1.0.8"),
            with("endpoints[].conditions.ready", false),
            with("endpoints[].conditions.serving", false)
                .where_is("endpoints[].conditions.ready", false)
                .where_is("endpoints[].conditions.terminating", true),
            with("endpoints[].conditions.terminating", true).where_is("endpoints[].conditions.ready", false),
            with("ports[].port", 8081),
            with("ports[].protocol", "UDP"),
        ],
        requests: Requests::default(),
        shown: vec![
            (
                "metadata.labels",
                CONNECT,
                "by_ipv4_by_ipv6_and_by_ipv4_in_ipv6_and_getpeername_shows_the_cluster_address",
            ),
            (
                "addressType",
                CONNECT,
                "by_ipv4_by_ipv6_and_by_ipv4_in_ipv6_and_getpeername_shows_the_cluster_address",
            ),
            ("endpoints[].addresses", ENDPOINTS, "pods_that_come_and_go_all_the_time_break_no_connection"),
            (
                "endpoints[].conditions",
                ENDPOINTS,
                "pods_that_are_ready_are_chosen_and_else_those_that_still_serve_while_they_end",
            ),
            (
                "endpoints[].hints",
                KEPT,
                "hints_for_nodes_go_before_those_for_zones_and_one_that_is_missing_takes_all_away",
            ),
            (
                "endpoints[].nodeName",
                KEPT,
                "a_local_service_has_the_endpoints_of_its_node_also_those_that_end",
            ),
            (
                "endpoints[].targetRef",
                SERVICES,
                "subsets_follow_the_labels_of_pods_by_reference_and_by_address",
            ),
            ("ports", CONNECT, "with_several_ports_and_named_target_ports"),
            (
                "ports[].protocol",
                "operator/compile/tests/compile/udp.rs",
                "a_slice_serves_the_protocol_that_it_names",
            ),
        ],
        noted: vec![
            (
                "endpoints[].zone",
                "where a policy chooses among localities it is the endpoint's; else the hints say for whom it is",
            ),
            ("endpoints[].deprecatedTopology", "the hints say for whom an endpoint is"),
            ("endpoints[].hostname", "it is for names, and connections are made to addresses"),
            (TARGET, "kind, namespace and name tell the Pod"),
            ("ports[].appProtocol", "the Service's port says what is spoken"),
        ],
    }
}

fn pods() -> Subject {
    let mut world = shop();
    let entry = service_entry("legacy", "legacy.example.com").ip("240.0.0.20").port("http", 80, 8080);
    let other = pod("legacy-2").label("app", "legacy").ip("10.1.0.22").ready(true);
    world.extend([entry.select("app", "legacy").build(), other.build()]);
    let leaves = [
        "metadata.labels",
        "metadata.deletionTimestamp",
        "status.conditions[].status",
        "status.conditions[].type",
        "status.phase",
        "status.podIP",
        "status.podIPs[].ip",
    ];
    Subject {
        kind: Kind::Pod,
        api: "v1",
        world,
        options: CompileOptions::default(),
        object: json!({
            "metadata": {"name": "legacy-1", "labels": {"app": "legacy"}},
            "status": {"phase": "Running", "podIP": "10.1.0.20", "podIPs": [{"ip": "10.1.0.20"}],
                       "conditions": [{"type": "Ready", "status": "True"}]},
        }),
        leaves: leaves.map(leaf).into(),
        before: Vec::new(),
        trials: vec![
            with("metadata.labels", json!({"app": "other"})),
            with("metadata.deletionTimestamp", "2026-01-01T00:00:00Z"),
            with("status.conditions[].status", "False"),
            with("status.phase", "Failed"),
            with("status.podIP", "10.1.0.21").where_is("status.podIPs", Value::Null),
            with("status.podIPs[].ip", "10.1.0.21"),
        ],
        requests: Requests::default(),
        shown: vec![
            ("metadata.labels", SPEC, "a_callers_labels_choose_its_route_and_may_change"),
            (
                "metadata.deletionTimestamp",
                ENTRIES,
                "workload_entries_and_pods_are_selected_by_labels_in_its_namespace",
            ),
            ("status", ENTRIES, "workload_entries_and_pods_are_selected_by_labels_in_its_namespace"),
        ],
        noted: Vec::new(),
    }
}

fn nodes() -> Subject {
    let mut world = shop();
    let entry = service_entry("api", "api.example.com").ip("192.0.2.50").port("http", 80, 8080);
    let rule = rule("api", "api.example.com");
    world.extend([entry.build(), rule.build(), profile("large").select("pool", "large").cap(10).build()]);
    let leaves = [
        "metadata.labels",
        "metadata.labels[\"topology.kubernetes.io/region\"]",
        "metadata.labels[\"topology.kubernetes.io/zone\"]",
        "metadata.labels[\"topology.istio.io/subzone\"]",
        "spec.podCIDR",
        "spec.podCIDRs[]",
        "status.addresses[].address",
    ];
    Subject {
        kind: Kind::Node,
        api: "v1",
        world,
        options: CompileOptions::default(),
        object: json!({"metadata": {"name": "n1"}}),
        leaves: leaves.map(leaf).into(),
        before: vec![("status.addresses[]", "status.addresses[].type", json!("InternalIP"))],
        trials: vec![
            with("metadata.labels", json!({"pool": "large"})),
            with("spec.podCIDR", "192.0.2.0/24"),
            with("spec.podCIDRs[]", "192.0.2.0/24"),
            with("status.addresses[].address", "192.0.2.50"),
        ],
        requests: Requests::default(),
        shown: vec![
            (
                "metadata.labels",
                "operator/compile/tests/compile/profiles.rs",
                "nodes_are_selected_by_label_and_name",
            ),
            ("metadata.labels[", "e2e/tests/choose_by_locality.rs", "the_nearest_go_before_others"),
            ("spec", ADDRESSES, "a_service_entry_takes_no_address_of_the_cluster"),
            ("status", ADDRESSES, "a_service_entry_takes_no_address_of_the_cluster"),
        ],
        noted: Vec::new(),
    }
}

fn service_cidrs() -> Subject {
    let mut world = shop();
    world.push(service_entry("api", "api.example.com").ip("192.0.2.50").port("http", 80, 8080).build());
    Subject {
        kind: Kind::ServiceCidr,
        api: "networking.k8s.io/v1, v1beta1",
        world,
        options: CompileOptions::default(),
        object: json!({"metadata": {"name": "more"}}),
        leaves: vec![leaf("spec.cidrs[]")],
        before: Vec::new(),
        trials: vec![with("spec.cidrs[]", "192.0.2.0/24")],
        requests: Requests::default(),
        shown: vec![("spec", ADDRESSES, "a_service_entry_takes_no_address_of_the_cluster")],
        noted: Vec::new(),
    }
}
