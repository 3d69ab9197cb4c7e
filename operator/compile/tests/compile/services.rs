//! Services and their endpoints.

use k8s_openapi::{
    api::{
        core::v1::{
            ClientIPConfig, LoadBalancerIngress, LoadBalancerStatus, ServicePort, ServiceSpec, ServiceStatus,
            SessionAffinityConfig,
        },
        discovery::v1::{Endpoint, EndpointConditions, EndpointHints, ForNode, ForZone},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use slotmesh_builders::{
    ServiceBuilder, pod, rule, service, service_entry, slice, to, virtual_service, workload,
};
use slotmesh_compile::{Object, Severity};
use slotmesh_xds::{Change, ResourceType};

use crate::support::{Cluster, cluster};

#[test]
fn a_dual_stack_service_has_a_listener_per_address_and_one_assignment() {
    let cluster_ = Cluster::with([
        service("web").ip("10.0.0.1").ip("fd00::1").port(80).build(),
        slice("web-4", "web").port(8080).endpoint("10.1.0.2").endpoint("10.1.0.1").build(),
        slice("web-6", "web").port(8080).endpoint("fd01::1").build(),
    ]);
    assert_eq!(cluster_.names(ResourceType::Listener), ["10.0.0.1_80", "[fd00::1]_80"]);
    assert_eq!(cluster_.names(ResourceType::Cluster), [cluster("web", 80, "")]);
    assert_eq!(
        cluster_.endpoints(&cluster("web", 80, "")),
        ["10.1.0.1 8080", "10.1.0.2 8080", "fd01::1 8080"]
    );
    assert_eq!(cluster_.goes("[fd00::1]_80"), cluster("web", 80, ""));
    assert_eq!(cluster_.reports(), 0);
}

#[test]
fn ports_are_matched_by_name_and_others_than_tcp_and_udp_are_named() {
    let named = ServicePort {
        name: Some("admin".into()),
        port: 9000,
        target_port: Some(IntOrString::String("adm".into())),
        ..Default::default()
    };
    let sctp = ServicePort {
        name: Some("signals".into()),
        port: 2905,
        protocol: Some("SCTP".into()),
        ..Default::default()
    };
    let cluster_ = Cluster::with([
        service("web").ip("10.0.0.1").named_port("http", 80).full_port(named).full_port(sctp).build(),
        slice("a", "web").named_port("http", 8080).named_port("admin", 9001).endpoint("10.1.0.1").build(),
        slice("b", "web").named_port("admin", 9002).endpoint("10.1.0.2").build(),
    ]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), ["10.1.0.1 8080"]);
    assert_eq!(cluster_.endpoints(&cluster("web", 9000, "")), ["10.1.0.1 9001", "10.1.0.2 9002"]);
    assert_eq!(cluster_.names(ResourceType::Listener), ["10.0.0.1_80", "10.0.0.1_9000"]);
    assert_eq!(
        cluster_.said(Severity::NotSupported),
        ["Service default/web: not supported: field spec.ports[2].protocol; SCTP port 2905 is left alone"]
    );
}

#[test]
fn endpoints_are_used_as_kube_proxy_does() {
    let web = || service("web").ip("10.0.0.1").ip("fd00::1").port(80).build();
    let ready = |ready| {
        slice("v4", "web")
            .port(80)
            .endpoint_when("10.1.0.1", ready, true, false)
            .endpoint_when("10.1.0.2", false, true, true)
            .endpoint_when("10.1.0.3", false, false, true)
            .endpoint_when("10.1.0.4", false, true, false)
            .build()
    };
    let v6 = slice("v6", "web").port(80).endpoint_when("fd01::1", false, true, true).build();
    let mut cluster_ = Cluster::with([web(), ready(true), v6]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), ["10.1.0.1 80", "fd01::1 80"]);
    cluster_.apply([ready(false)]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), ["10.1.0.2 80", "fd01::1 80"]);
}

#[test]
fn a_service_without_endpoints_has_an_empty_assignment() {
    let web = slice("web", "web").port(80).endpoint("10.1.0.1").build();
    let mut cluster_ = Cluster::with([service("web").ip("10.0.0.1").port(80).build()]);
    assert!(cluster_.endpoints(&cluster("web", 80, "")).is_empty());
    assert_eq!(cluster_.apply([web.clone()]).changes.len(), 1);
    assert_eq!(cluster_.delete(&web).changes.len(), 1);
    assert!(cluster_.endpoints(&cluster("web", 80, "")).is_empty());
}

#[test]
fn headless_and_external_services_have_no_listener() {
    let mut external = service("ext").port(80);
    external.0.spec.as_mut().unwrap().type_ = Some("ExternalName".into());
    let cluster_ = Cluster::with([service("db").ip("None").port(5432).build(), external.build()]);
    assert!(cluster_.names(ResourceType::Listener).is_empty());
    assert!(cluster_.names(ResourceType::Cluster).is_empty(), "nobody can connect to it");
    assert_eq!(cluster_.said(Severity::Note).len(), 1);
}

/// A change to a Service that asks for what isn't known, and the field that is named.
type Asks = (fn(&mut ServiceSpec), &'static str);

#[test]
fn only_that_is_compiled_to_which_an_address_or_a_route_leads() {
    let mut cluster_ = Cluster::with([
        service("db").ip("None").port(5432).build(),
        rule("db", "db").version("v1").version("v2").build(),
        service("web").ip("10.0.0.1").port(5432).build(),
        rule("web", "web").version("v1").build(),
        service_entry("e", "e.example.com")
            .port("tcp", 5432, 5432)
            .endpoint(workload("10.9.0.1", "v1"))
            .build(),
    ]);
    let [db, web] = [("db", ""), ("web", "")].map(|(name, subset)| cluster(name, 5432, subset));
    let entry = "outbound|5432||e.example.com".to_owned();
    assert_eq!(cluster_.names(ResourceType::Cluster), [&*web]);
    let http = |name: &str, to_: &str| virtual_service(name, "web").http([to(to_, 1)]).build();
    cluster_.apply([http("r", "db")]);
    assert_eq!(cluster_.names(ResourceType::Cluster), [&*db, &*web]);
    // Of the oldest or not: it takes over at once.
    cluster_.apply([http("s", "db/v1"), http("t", "e.example.com")]);
    let v1 = cluster("db", 5432, "v1");
    assert_eq!(cluster_.names(ResourceType::Cluster), [&*v1, &*db, &*entry, &*web]);
    assert_eq!(cluster_.names(ResourceType::Endpoints), [&*v1, &*db, &*entry, &*web]);
    for name in ["r", "s", "t"] {
        cluster_.delete(&http(name, "db"));
    }
    assert_eq!(cluster_.names(ResourceType::Cluster), [&*web]);
}

#[test]
fn a_service_that_asks_for_what_is_not_known_is_left_to_kube_proxy() {
    let asks: [Asks; 2] = [
        (|spec| spec.session_affinity = Some("Cookie".into()), "spec.sessionAffinity"),
        (|spec| spec.internal_traffic_policy = Some("Nearest".into()), "spec.internalTrafficPolicy"),
    ];
    let does_not: [fn(&mut ServiceSpec); 3] = [
        |spec| spec.session_affinity = Some("None".into()),
        |spec| spec.internal_traffic_policy = Some("Cluster".into()),
        // Without hints all endpoints are meant.
        |spec| spec.traffic_distribution = Some("PreferSameZone".into()),
    ];
    let web = |set: fn(&mut ServiceSpec)| {
        let mut built = service("web").ip("10.0.0.1").named_port("http", 80).named_port("tcp", 81);
        set(built.0.spec.as_mut().unwrap());
        built.build()
    };
    let listeners = ["10.0.0.1_80", "10.0.0.1_81"];
    let mut cluster_ = Cluster::default();
    for plain in does_not {
        cluster_.apply([web(plain)]);
        assert_eq!(cluster_.names(ResourceType::Listener), listeners);
        assert_eq!((cluster_.reports(), cluster_.compiler.left_to_kube_proxy()), (0, 0));
    }
    for (ask, field) in asks {
        cluster_.apply([web(ask)]);
        assert!(cluster_.names(ResourceType::Listener).is_empty());
        assert_eq!(
            cluster_.said(Severity::NotSupported),
            [format!(
                "Service default/web: not supported: field {field}; connections to the Service are left to kube-proxy"
            )]
        );
        assert_eq!(cluster_.compiler.left_to_kube_proxy(), 1);
        // Where a route says where connections go, that counts; and routes of others lead to it.
        let route = virtual_service("web", "web").http([to("web", 1)]).build();
        let api = service("api").ip("10.0.0.2").port(80).build();
        cluster_.apply([
            route.clone(),
            api.clone(),
            virtual_service("api", "api").tcp([to("web", 1)]).build(),
        ]);
        assert_eq!(cluster_.names(ResourceType::Listener), ["10.0.0.1_80", "10.0.0.2_80"]);
        assert_eq!(cluster_.goes("10.0.0.2_80"), cluster("web", 80, ""));
        assert!(
            cluster_.said(Severity::NotSupported)[0]
                .ends_with("but for port 80, where a route says where they go")
        );
        assert_eq!(cluster_.compiler.left_to_kube_proxy(), 1);
        for gone in [route, api, virtual_service("api", "api").build()] {
            cluster_.delete(&gone);
        }
    }
    cluster_.apply([web(does_not[0])]);
    assert_eq!(cluster_.names(ResourceType::Listener), listeners);
    assert_eq!(cluster_.compiler.left_to_kube_proxy(), 0);
}

#[test]
fn hints_of_endpoints_travel_with_them() {
    let hinted = |ip: &str, hints: Option<EndpointHints>| {
        let endpoint = Endpoint { addresses: vec![ip.into()], hints, ..Endpoint::default() };
        slice(ip, "web").port(8080).full_endpoint(endpoint).build()
    };
    let zone = |name: &str| ForZone { name: name.into() };
    let zones = EndpointHints { for_zones: Some(vec![zone("b"), zone("a")]), for_nodes: None };
    let nodes = EndpointHints { for_nodes: Some(vec![ForNode { name: "n".into() }]), for_zones: None };
    let mut cluster_ = Cluster::with([
        service("web").ip("10.0.0.1").port(80).build(),
        hinted("10.1.0.1", Some(zones.clone())),
        hinted("10.1.0.2", Some(zones)),
        hinted("10.1.0.3", Some(nodes)),
        hinted("10.1.0.4", Some(EndpointHints::default())),
    ]);
    let name = cluster("web", 80, "");
    let sent = |cluster_: &Cluster| -> Vec<String> {
        let show = |(hints, at): (slotmesh_xds::EndpointHints, Vec<String>)| {
            format!("{:?} {:?}: {}", hints.for_nodes, hints.for_zones, at.join(" "))
        };
        cluster_.hinted(&name).into_iter().map(show).collect()
    };
    assert_eq!(
        sent(&cluster_),
        [
            "[] []: 10.1.0.4 8080",
            r#"[] ["a", "b"]: 10.1.0.1 8080 10.1.0.2 8080"#,
            r#"["n"] []: 10.1.0.3 8080"#,
        ]
    );
    assert_eq!((cluster_.reports(), cluster_.compiler.left_to_kube_proxy()), (0, 0));
    // Nobody's hints, nobody's metadata.
    let output = cluster_.apply(["10.1.0.1", "10.1.0.2", "10.1.0.3"].map(|ip| hinted(ip, None)));
    assert_eq!(output.changes.len(), 1, "no listener depends on hints");
    assert_eq!(sent(&cluster_), ["[] []: 10.1.0.1 8080 10.1.0.2 8080 10.1.0.3 8080 10.1.0.4 8080"]);
}

#[test]
fn local_endpoints_are_for_their_node() {
    let endpoint = |ip: &str, node: Option<&str>, ready: bool| Endpoint {
        addresses: vec![ip.into()],
        node_name: node.map(Into::into),
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(true),
            terminating: Some(!ready),
        }),
        ..Endpoint::default()
    };
    let mut web = service("web").ip("10.0.0.1").port(80);
    web.0.spec.as_mut().unwrap().internal_traffic_policy = Some("Local".into());
    let mut of_web = slice("web", "web").port(8080);
    for (ip, node, ready) in [
        ("10.1.0.1", Some("a"), true),
        ("10.1.0.2", Some("b"), true),
        // Serves while it terminates, beside one that is ready, and where no other is.
        ("10.1.0.3", Some("a"), false),
        ("10.1.0.4", Some("c"), false),
        // Of no node.
        ("10.1.0.5", None, true),
    ] {
        of_web = of_web.full_endpoint(endpoint(ip, node, ready));
    }
    let cluster_ = Cluster::with([web.build(), of_web.build()]);
    let sent: Vec<_> = cluster_
        .hinted(&cluster("web", 80, ""))
        .into_iter()
        .map(|(hints, at)| (hints.only_node, at.join(" ")))
        .collect();
    let expected = [
        ("a", "10.1.0.1 8080 10.1.0.3 8080 degraded"),
        ("b", "10.1.0.2 8080"),
        ("c", "10.1.0.4 8080 degraded"),
    ];
    assert_eq!(sent, expected.map(|(node, at)| (node.to_owned(), at.to_owned())));
    assert_eq!(cluster_.names(ResourceType::Listener), ["10.0.0.1_80"]);
}

#[test]
fn session_affinity_is_the_clusters() {
    let web = |seconds: Option<i32>, affinity: &str| {
        let mut built = service("web").ip("10.0.0.1").port(80);
        let spec = built.0.spec.as_mut().unwrap();
        spec.session_affinity = Some(affinity.into());
        spec.session_affinity_config = seconds.map(|seconds| SessionAffinityConfig {
            client_ip: Some(ClientIPConfig { timeout_seconds: Some(seconds) }),
        });
        built.build()
    };
    let mut cluster_ = Cluster::default();
    let name = cluster("web", 80, "");
    for (service, seconds) in [
        (web(None, "ClientIP"), Some(10_800)),
        (web(Some(7), "ClientIP"), Some(7)),
        (web(Some(86_400), "ClientIP"), Some(86_400)),
        (web(Some(7), "None"), None),
    ] {
        cluster_.apply([service]);
        assert_eq!(cluster_.affinity(&name), seconds);
        assert_eq!(cluster_.reports(), 0);
    }
    for seconds in [0, -1, 86_401] {
        cluster_.apply([web(Some(seconds), "ClientIP")]);
        assert!(cluster_.refused()[0].contains("clientIP.timeoutSeconds"), "{:?}", cluster_.refused());
    }
}

/// A Service with external addresses, some of a load balancer with a mode.
fn external(name: &str, ip: &str, ips: &[&str], balancer: &[(&str, Option<&str>)]) -> ServiceBuilder {
    let mut built = service(name).ip(ip).port(80);
    built.0.spec.as_mut().unwrap().external_ips = Some(ips.iter().map(ToString::to_string).collect());
    let ingress = balancer.iter().map(|(ip, mode)| LoadBalancerIngress {
        ip: Some((*ip).into()),
        ip_mode: mode.map(Into::into),
        ..LoadBalancerIngress::default()
    });
    built.0.status = Some(ServiceStatus {
        load_balancer: Some(LoadBalancerStatus { ingress: Some(ingress.collect()) }),
        ..ServiceStatus::default()
    });
    built
}

#[test]
fn external_addresses_are_the_services() {
    let balancer = [("192.0.2.1", None), ("192.0.2.2", Some("VIP")), ("192.0.2.3", Some("Proxy"))];
    let ips = ["192.0.2.9", "192.0.2.1", "10.0.0.1", "2001:db8::1"];
    let web = || external("web", "10.0.0.1", &ips, &balancer);
    let mut cluster_ = Cluster::with([web().build()]);
    let listeners = ["10.0.0.1_80", "192.0.2.1_80", "192.0.2.2_80", "192.0.2.9_80"];
    // Of IPv6 it has no cluster IP, and so no endpoints.
    assert_eq!(cluster_.names(ResourceType::Listener), listeners);
    assert!(listeners.iter().all(|listener| cluster_.goes(listener) == cluster("web", 80, "")));
    assert!(cluster_.said(Severity::NotSupported).is_empty() && cluster_.refused().is_empty());
    let mut ranged = web();
    let spec = ranged.0.spec.as_mut().unwrap();
    spec.load_balancer_source_ranges = Some(vec!["192.0.2.0/24".into()]);
    cluster_.apply([ranged.build()]);
    assert_eq!(cluster_.names(ResourceType::Listener), ["10.0.0.1_80", "192.0.2.1_80", "192.0.2.9_80"]);
    assert!(
        cluster_.said(Severity::NotSupported)[0].ends_with("connections to 192.0.2.2 are left to kube-proxy")
    );
    let mut local = web();
    local.0.spec.as_mut().unwrap().internal_traffic_policy = Some("Local".into());
    cluster_.apply([local.build()]);
    assert_eq!(cluster_.names(ResourceType::Listener), ["10.0.0.1_80"]);
    assert_eq!(cluster_.said(Severity::NotSupported).len(), 4);
    cluster_.apply([external("web", "10.0.0.1", &["nonsense"], &[]).build()]);
    assert_eq!(cluster_.names(ResourceType::Listener), ["10.0.0.1_80"]);
    assert!(cluster_.said(Severity::NotSupported)[0].contains("\"nonsense\" is not an IP address"));
}

#[test]
fn nobody_has_the_cluster_ip_of_a_service_as_an_external_address() {
    let thief = external("a", "10.0.0.2", &["10.0.0.1"], &[]).created(1).build();
    let mut cluster_ = Cluster::with([thief]);
    // Nobody's: as kube-proxy does.
    assert_eq!(cluster_.names(ResourceType::Listener), ["10.0.0.1_80", "10.0.0.2_80"]);
    // Whatever port it has, and however young it is.
    for port in [80, 81] {
        let owner = service("web").ip("10.0.0.1").port(port).created(9).build();
        cluster_.apply([owner.clone()]);
        let listener = format!("10.0.0.1_{port}");
        assert_eq!(cluster_.names(ResourceType::Listener), [&*listener, "10.0.0.2_80"]);
        assert_eq!(cluster_.goes(&listener), cluster("web", port as u16, ""));
        let said = cluster_.refused();
        assert!(said[0].starts_with("Service default/a: spec.externalIPs: 10.0.0.1 "), "{said:?}");
        cluster_.delete(&owner);
        assert_eq!(cluster_.names(ResourceType::Listener), ["10.0.0.1_80", "10.0.0.2_80"]);
        assert!(cluster_.refused().is_empty());
    }
}

#[test]
fn a_service_of_another_proxy_is_not_ours() {
    let labelled = |label: &str| {
        let mut built = service("web").ip("10.0.0.1").port(80);
        built.0.metadata.labels = Some([(label.to_owned(), "other".to_owned())].into());
        built.build()
    };
    let mut cluster_ = Cluster::with([labelled("service.kubernetes.io/service-proxy-name")]);
    assert!(cluster_.names(ResourceType::Listener).is_empty());
    assert!(cluster_.said(Severity::Note)[0].contains("the Service is that of the proxy \"other\""));
    assert!(cluster_.refused().is_empty());
    cluster_.apply([labelled("service.kubernetes.io/other")]);
    assert_eq!(cluster_.names(ResourceType::Listener), ["10.0.0.1_80"]);
}

#[test]
fn subsets_follow_the_labels_of_pods_by_reference_and_by_address() {
    let mut cluster_ = Cluster::with([
        service("web").ip("10.0.0.1").port(80).build(),
        slice("web", "web").port(80).pod_endpoint("10.1.0.1", "a").endpoint("10.1.0.2").build(),
        rule("web", "web.default.svc.cluster.local").version("v1").version("v2").build(),
        pod("a").label("version", "v1").build(),
        pod("b").label("version", "v2").ip("10.1.0.2").build(),
        virtual_service("web", "web").http([to("web/v1", 1), to("web/v2", 1)]).build(),
    ]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "v1")), ["10.1.0.1 80"]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "v2")), ["10.1.0.2 80"]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), ["10.1.0.1 80", "10.1.0.2 80"]);

    // One label changes: two assignments, nothing else.
    let output = cluster_.apply([pod("a").label("version", "v2").build()]);
    assert_eq!(output.changes.len(), 2);
    assert!(cluster_.endpoints(&cluster("web", 80, "v1")).is_empty());
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "v2")).len(), 2);

    // A label that nobody asks for changes nothing.
    let output = cluster_.apply([pod("a").label("version", "v2").label("x", "y").build()]);
    assert!(output.changes.is_empty());
}

#[test]
fn changes_come_in_make_before_break_order() {
    let objects: [Object; 2] = [
        service("web").ip("10.0.0.1").port(80).build(),
        slice("web", "web").port(80).endpoint("10.1.0.1").build(),
    ];
    let mut cluster_ = Cluster::default();
    let added = cluster_.apply(objects.clone()).changes;
    let types: Vec<_> = added
        .iter()
        .map(|c| match c {
            Change::Upsert(r) => r.ty,
            Change::Remove(ty, name) => panic!("{ty} {name}"),
        })
        .collect();
    assert_eq!(types, [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Listener]);
    let removed = cluster_.delete(&objects[0]).changes;
    let types: Vec<_> = removed
        .iter()
        .map(|c| match c {
            Change::Remove(ty, _) => *ty,
            Change::Upsert(r) => panic!("{}", r.name),
        })
        .collect();
    assert_eq!(types, [ResourceType::Listener, ResourceType::Endpoints, ResourceType::Cluster]);
}

#[test]
fn nothing_is_truncated() {
    let long = "n".repeat(253);
    let mut many = slice("many", &long).port(80);
    for i in 0..300 {
        many = many.endpoint(&format!("10.1.{}.{}", i / 250, i % 250 + 1));
    }
    let subset = "s".repeat(253);
    let mut subsets = rule(&long, &format!("{long}.default.svc.cluster.local"));
    subsets.0.spec.subsets.push(slotmesh_crds::RuleSubset { name: subset.clone(), ..Default::default() });
    let route = virtual_service("r", &format!("{long}.default.svc.cluster.local"));
    let route = route.http([to(&format!("{long}.default.svc.cluster.local/{subset}"), 1)]);
    let cluster_ = Cluster::with([
        service(&long).ip("10.0.0.1").port(80).build(),
        many.build(),
        subsets.build(),
        route.build(),
    ]);
    assert_eq!(cluster_.endpoints(&cluster(&long, 80, "")).len(), 300);
    assert_eq!(cluster_.endpoints(&cluster(&long, 80, &subset)).len(), 300);
    assert_eq!(cluster_.reports(), 0);
}

#[test]
fn an_endpoint_in_two_slices_stands_there_once_and_ready() {
    let held =
        |name, ready| slice(name, "web").port(80).endpoint_when("10.1.0.1", ready, true, false).build();
    for (a, b) in [(true, false), (false, true)] {
        let web = service("web").ip("10.0.0.1").port(80).build();
        let cluster_ = Cluster::with([web, held("a", a), held("b", b)]);
        assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), ["10.1.0.1 80"]);
    }
}

#[test]
fn slices_of_names_are_reported() {
    let mut names = slice("names", "web").port(80);
    "FQDN".clone_into(&mut names.0.address_type);
    let cluster_ = Cluster::with([service("web").ip("10.0.0.1").port(80).build(), names.build()]);
    assert_eq!(
        cluster_.said(Severity::NotSupported),
        [
            r#"EndpointSlice default/names: not supported: field addressType; endpoints of type "FQDN" are not used"#
        ]
    );
}
