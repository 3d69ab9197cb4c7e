//! UDP ports: their own listeners, clusters and endpoints, beside TCP ports of the same number.

use slotmesh_builders::{
    backend, policy, rule, service, service_entry, sidecar, slice, tcp_route, to, virtual_service, workload,
};
use slotmesh_compile::Severity;
use slotmesh_crds::own::Balancing;
use slotmesh_xds::ResourceType;

use crate::support::{Cluster, NOWHERE, ONWARD, cluster, udp_cluster};

/// A name server, as clusters have it: both protocols at one port, at other ports of its Pods.
fn dns() -> [slotmesh_compile::Object; 2] {
    [
        service("dns").ip("10.0.0.10").ip("fd00::10").udp_port("dns", 53).named_port("dns-tcp", 53).build(),
        slice("dns", "dns").udp_port("dns", 1053).named_port("dns-tcp", 1054).endpoint("10.1.0.1").build(),
    ]
}

#[test]
fn one_number_in_both_protocols_is_two_ports() {
    let mut cluster_ = Cluster::with(dns());
    assert_eq!(cluster_.reports(), 0, "{:?}", cluster_.compiler.reports().collect::<Vec<_>>());
    assert_eq!(
        cluster_.names(ResourceType::Listener),
        ["10.0.0.10_53", "10.0.0.10_53/UDP", "[fd00::10]_53", "[fd00::10]_53/UDP"]
    );
    assert_eq!(cluster_.goes("10.0.0.10_53"), cluster("dns", 53, ""));
    for listener in ["10.0.0.10_53/UDP", "[fd00::10]_53/UDP"] {
        assert_eq!(cluster_.goes(listener), format!("udp:{}", udp_cluster("dns", 53)));
    }
    assert_eq!(cluster_.endpoints(&cluster("dns", 53, "")), ["10.1.0.1 1054"]);
    assert_eq!(cluster_.endpoints(&udp_cluster("dns", 53)), ["10.1.0.1 1053"]);
    // One of both goes.
    cluster_.apply([service("dns").ip("10.0.0.10").udp_port("dns", 53).build()]);
    assert_eq!(cluster_.names(ResourceType::Listener), ["10.0.0.10_53/UDP"]);
    assert_eq!(cluster_.names(ResourceType::Cluster), [udp_cluster("dns", 53)]);
}

#[test]
fn one_number_twice_in_udp_is_refused() {
    let twice = service("dns").ip("10.0.0.10").udp_port("a", 53).udp_port("b", 53).named_port("c", 53);
    let cluster_ = Cluster::with([twice.build()]);
    assert_eq!(
        cluster_.refused(),
        [
            "Service default/dns: spec.ports[1].port: UDP port 53 stands there twice; remove one; the object is not in force"
        ]
    );
}

#[test]
fn a_slice_serves_the_protocol_that_it_names() {
    let cluster_ = Cluster::with([
        service("dns").ip("10.0.0.10").udp_port("dns", 53).build(),
        slice("dns", "dns").named_port("dns", 1053).endpoint("10.1.0.1").build(),
    ]);
    assert_eq!(cluster_.endpoints(&udp_cluster("dns", 53)), [""; 0], "the slice says TCP");
    let [said] = &cluster_.without_endpoints()[..] else { panic!("one report") };
    assert!(said.contains("port 53/UDP"), "{said}");
}

#[test]
fn an_address_has_an_owner_for_each_protocol() {
    let cluster_ = Cluster::with([
        service("a").ip("10.0.0.10").port(53).created(1).build(),
        service("b").ip("10.0.0.10").udp_port("dns", 53).created(2).build(),
        service("c").ip("10.0.0.10").udp_port("dns", 53).created(3).build(),
    ]);
    assert_eq!(cluster_.goes("10.0.0.10_53"), cluster("a", 53, ""));
    assert_eq!(cluster_.goes("10.0.0.10_53/UDP"), format!("udp:{}", udp_cluster("b", 53)));
    let [refused] = &cluster_.refused()[..] else { panic!("one refusal: {:?}", cluster_.refused()) };
    assert!(refused.contains("10.0.0.10 port 53/UDP belongs to Service default/b"), "{refused}");
}

#[test]
fn routes_of_tcp_are_for_tcp_only() {
    let mut cluster_ = Cluster::with(dns());
    cluster_.apply([
        service("other").port(53).build(),
        tcp_route("split", "dns").to([backend("other:53", 1)]).build(),
    ]);
    assert_eq!(cluster_.goes("10.0.0.10_53"), cluster("other", 53, ""));
    assert_eq!(cluster_.goes("10.0.0.10_53/UDP"), format!("udp:{}", udp_cluster("dns", 53)));
    assert_eq!(cluster_.refused(), [""; 0]);
    // Of a Service that has no TCP port, it is told.
    let mut only = Cluster::with([
        service("dns").ip("10.0.0.10").udp_port("dns", 53).build(),
        virtual_service("split", "dns").tcp([to("other", 1)]).build(),
    ]);
    assert_eq!(only.goes("10.0.0.10_53/UDP"), format!("udp:{}", udp_cluster("dns", 53)));
    let [refused] = &only.refused()[..] else { panic!("one refusal: {:?}", only.refused()) };
    assert!(
        refused.contains("no route that can be decided applies") && refused.contains("53/UDP"),
        "{refused}"
    );
    // A backend without a port is the only one of the routed port's protocol.
    only.apply([
        service("other").udp_port("dns", 53).named_port("tcp", 81).build(),
        service("web").ip("10.0.0.11").port(80).build(),
        virtual_service("web", "web").tcp([to("other", 1)]).build(),
    ]);
    assert_eq!(only.goes("10.0.0.11_80"), cluster("other", 81, ""));
    assert!(
        !only.names(ResourceType::Cluster).contains(&udp_cluster("other", 53).as_str()),
        "nothing leads there"
    );
}

#[test]
fn subsets_are_of_routes_and_policies_of_a_port() {
    let mut cluster_ = Cluster::with(dns());
    cluster_.apply([
        rule("dns", "dns").version("v1").build(),
        policy("dns", "dns/dns").max(7).build(),
        tcp_route("split", "dns").to([backend("dns:53", 1)]).build(),
    ]);
    assert_eq!(cluster_.traffic(&udp_cluster("dns", 53)), "RANDOM");
    let [said] = &cluster_.said(Severity::NotSupported)[..] else { panic!("one report") };
    assert!(said.contains("spec.maxConnections; UDP has no connections"), "{said}");
    cluster_.apply([policy("dns", "dns/dns").balance(Balancing::RoundRobin).build()]);
    assert_eq!(cluster_.traffic(&udp_cluster("dns", 53)), "ROUND_ROBIN");
    assert_eq!(cluster_.said(Severity::NotSupported), [""; 0]);
    assert_eq!(cluster_.traffic(&cluster("dns", 53, "")), "RANDOM");
    assert_eq!(cluster_.names(ResourceType::Cluster).len(), 2, "{:?}", cluster_.names(ResourceType::Cluster));
}

#[test]
fn another_protocol_of_a_service_entry_is_refused() {
    let entry = service_entry("dns", "dns.example.com").ip("240.0.0.53").port("signals", 2905, 2905);
    let entry = entry.set(|spec| spec.ports[0].protocol = Some("SCTP".to_owned()));
    let cluster_ = Cluster::with([entry.endpoint(workload("10.9.0.1", "v1")).build()]);
    assert_eq!(cluster_.names(ResourceType::Listener), [""; 0]);
    let [refused] = &cluster_.refused()[..] else { panic!("one refusal: {:?}", cluster_.refused()) };
    assert!(refused.contains("spec.ports[0].protocol") && refused.contains("TCP, UDP or HTTP"), "{refused}");
}

#[test]
fn a_service_entry_has_udp_ports() {
    let entry = service_entry("dns", "dns.example.com").ip("240.0.0.53");
    let entry = entry.udp_port("dns", 53, 1053).port("dns-tcp", 53, 1054);
    let cluster_ = Cluster::with([entry.endpoint(workload("10.9.0.1", "v1")).build()]);
    assert_eq!(cluster_.said(Severity::NotSupported), [""; 0]);
    assert_eq!(cluster_.refused(), [""; 0]);
    assert_eq!(cluster_.names(ResourceType::Listener), ["240.0.0.53_53", "240.0.0.53_53/UDP"]);
    assert_eq!(cluster_.endpoints("outbound|53/UDP||dns.example.com"), ["10.9.0.1 1053"]);
    assert_eq!(cluster_.endpoints("outbound|53||dns.example.com"), ["10.9.0.1 1054"]);
}

#[test]
fn callers_are_told_apart_as_those_of_tcp_are() {
    const DNS: &str = "10.0.0.10_53/UDP";
    let mut cluster_ = Cluster::with(dns());
    let own = format!("udp:{}", udp_cluster("dns", 53));
    // A rule of the callers' own namespace.
    let by_turns = rule("dns", "dns.default.svc.cluster.local").namespace("a");
    cluster_.apply([by_turns.balance("ROUND_ROBIN").build()]);
    let of_a = cluster_.goes_for(DNS, "a");
    assert_ne!(of_a, own);
    let of_a = of_a.strip_prefix("udp:").expect("it is of UDP").to_owned();
    assert_eq!(cluster_.traffic(&of_a), "ROUND_ROBIN");
    assert_eq!(cluster_.assignment(&of_a), udp_cluster("dns", 53), "the endpoints are the same");
    assert_eq!((cluster_.goes(DNS), cluster_.goes_for(DNS, "b")), (own.clone(), own.clone()));
    assert_eq!(cluster_.classes(DNS), ["a"]);
    // A Sidecar by which callers don't see it.
    cluster_.apply([sidecar("none", &["./*"]).namespace("b").registry_only().build()]);
    assert_eq!(cluster_.goes_for(DNS, "b"), format!("udp:{NOWHERE}"));
    assert_eq!(cluster_.goes(DNS), own);
    // A ServiceEntry for some.
    let entry = service_entry("e", "dns.example.com").ip("240.0.0.53").udp_port("dns", 53, 1053);
    let entry = entry.set(|spec| spec.export_to = vec![".".to_owned()]);
    cluster_.apply([entry.endpoint(workload("10.9.0.1", "v1")).build()]);
    let entry = "240.0.0.53_53/UDP";
    assert_eq!(cluster_.goes(entry), format!("udp:{ONWARD}"));
    assert_eq!(cluster_.goes_for(entry, "default"), "udp:outbound|53/UDP||dns.example.com");
    assert_eq!(cluster_.refused(), [""; 0]);
}
