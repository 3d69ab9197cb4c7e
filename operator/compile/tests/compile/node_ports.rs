//! NodePorts: a Service's ports at the addresses of all nodes.

use envoy::config::listener::v3::Listener;
use prost::Message as _;
use slotmesh_builders::{node, service, slice, to, virtual_service};
use slotmesh_compile::{Object, Severity};
use slotmesh_xds::{Change, OF_NODES, ResourceType, envoy::envoy};

use crate::support::{Cluster, address, cluster, udp_cluster};

/// A dual-stack Service with a NodePort for each protocol.
fn web() -> Object {
    let web = service("web").ip("10.0.0.1").ip("fd00::1").named_port("http", 80).node_port(30_080);
    web.udp_port("dns", 53).node_port(30_053).build()
}

/// The names and content of what a flush changed.
fn changed(changes: &[Change]) -> Vec<String> {
    let name = |change: &Change| match change {
        Change::Upsert(resource) => format!("+{}", resource.name),
        Change::Remove(_, name) => format!("-{name}"),
    };
    changes.iter().map(name).collect()
}

/// The addresses of a listener, which is marked as one of NodePorts.
fn addresses(of: &Cluster, name: &str) -> Vec<String> {
    let content = &of.served()[&(ResourceType::Listener, name.to_owned())];
    let listener = Listener::decode(&content[..]).unwrap();
    let metadata = listener.metadata.expect("it is marked");
    assert!(metadata.typed_filter_metadata.contains_key(OF_NODES));
    let more = listener.additional_addresses.iter().filter_map(|more| more.address.as_ref());
    listener.address.iter().chain(more).map(address).collect()
}

#[test]
fn a_node_port_leads_where_the_service_does() {
    let mut all = Cluster::with([
        web(),
        slice("web", "web").named_port("http", 8080).udp_port("dns", 53).endpoint("10.1.0.1").build(),
        node("a").ip("10.9.0.1").ip("fd09::1").build(),
    ]);
    assert_eq!(
        all.names(ResourceType::Listener),
        [
            "0.0.0.0_30053/UDP",
            "0.0.0.0_30080",
            "10.0.0.1_53/UDP",
            "10.0.0.1_80",
            "[::]_30053/UDP",
            "[::]_30080",
            "[fd00::1]_53/UDP",
            "[fd00::1]_80",
            "node/a"
        ]
    );
    for listener in ["0.0.0.0_30080", "[::]_30080"] {
        assert_eq!(all.goes(listener), cluster("web", 80, ""));
    }
    for listener in ["0.0.0.0_30053/UDP", "[::]_30053/UDP"] {
        assert_eq!(all.goes(listener), format!("udp:{}", udp_cluster("web", 53)));
    }
    assert_eq!(addresses(&all, "0.0.0.0_30080"), ["0.0.0.0 30080"]);
    assert_eq!(addresses(&all, "node/a"), ["10.9.0.1 0", "fd09::1 0"]);
    assert_eq!(all.reports(), 0, "{:?}", all.compiler.reports().collect::<Vec<_>>());
    // Routes are for it, too.
    all.apply([
        service("other").port(80).build(),
        virtual_service("web", "web").http([to("other", 1)]).build(),
    ]);
    assert_eq!(all.goes("0.0.0.0_30080"), format!("http:{}", cluster("other", 80, "")));
    assert_eq!(all.goes("0.0.0.0_30080"), all.goes("10.0.0.1_80"));
}

#[test]
fn nodes_cost_what_they_touch_and_nothing_without_node_ports() {
    let nodes = |n: u8| node(&format!("n{n}")).ip(&format!("10.9.0.{n}")).build();
    let mut all = Cluster::with((1..=20).map(nodes));
    assert!(all.names(ResourceType::Listener).is_empty(), "nobody asks for nodes' addresses");
    all.apply([web()]);
    assert_eq!(all.names(ResourceType::Listener).len(), 8 + 20);
    let units = all.compiler.stats().units;
    assert_eq!(changed(&all.apply([nodes(21)]).changes), ["+node/n21"]);
    assert_eq!(changed(&all.delete(&nodes(3)).changes), ["-node/n3"]);
    assert!(all.compiler.stats().units <= units + 4, "settings and addresses of two nodes");
    // Of two nodes with one address the first has it, and then the other.
    let twin = node("a-twin").ip("10.9.0.7").build();
    assert_eq!(changed(&all.apply([twin.clone()]).changes), ["+node/a-twin", "-node/n7"]);
    assert_eq!(changed(&all.delete(&twin).changes), ["+node/n7", "-node/a-twin"]);
    // Another Service changes none of it, and the last one takes all along.
    let other = service("other").ip("10.0.0.2").port(81).node_port(30_081).build();
    assert_eq!(
        changed(&all.apply([other.clone()]).changes).iter().filter(|name| name.contains("node/")).count(),
        0
    );
    all.delete(&web());
    assert!(all.names(ResourceType::Listener).contains(&"node/n7"));
    all.delete(&other);
    assert!(all.names(ResourceType::Listener).is_empty());
}

#[test]
fn what_has_other_endpoints_at_node_ports_is_left_to_kube_proxy_and_told() {
    type Set = fn(&mut k8s_openapi::api::core::v1::ServiceSpec);
    let asks: [(&str, Set); 2] = [
        ("spec.externalTrafficPolicy", |spec| spec.external_traffic_policy = Some("Local".to_owned())),
        ("spec.internalTrafficPolicy", |spec| spec.internal_traffic_policy = Some("Local".to_owned())),
    ];
    for (field, set) in asks {
        let mut web = service("web").ip("10.0.0.1").port(80).node_port(30_080);
        set(web.0.spec.as_mut().unwrap());
        let all = Cluster::with([web.build(), node("a").ip("10.9.0.1").build()]);
        assert_eq!(all.names(ResourceType::Listener), ["10.0.0.1_80"], "{field}");
        let [said] = &all.said(Severity::NotSupported)[..] else { panic!("one report of {field}") };
        assert!(said.contains(field) && said.contains("NodePorts are left to kube-proxy"), "{said}");
    }
    // The number stays there for a while when the type changes.
    let mut plain = service("web").ip("10.0.0.1").port(80).node_port(30_080);
    plain.0.spec.as_mut().unwrap().type_ = Some("ClusterIP".to_owned());
    assert_eq!(Cluster::with([plain.build()]).names(ResourceType::Listener), ["10.0.0.1_80"]);
}

#[test]
fn a_node_port_has_one_owner() {
    let web =
        |name: &str, ip: &str, age: i64| service(name).ip(ip).port(80).node_port(30_080).created(age).build();
    let mut all = Cluster::with([web("first", "10.0.0.1", 1), web("second", "10.0.0.2", 2)]);
    assert_eq!(all.goes("0.0.0.0_30080"), cluster("first", 80, ""));
    let [refused] = &all.refused()[..] else { panic!("one refusal: {:?}", all.refused()) };
    assert!(
        refused.contains("Service default/second") && refused.contains("choose another nodePort"),
        "{refused}"
    );
    all.delete(&web("first", "10.0.0.1", 1));
    assert_eq!(all.goes("0.0.0.0_30080"), cluster("second", 80, ""));
    let all = Cluster::with([service("web").ip("10.0.0.1").port(80).node_port(70_000).build()]);
    let [refused] = &all.refused()[..] else { panic!("one refusal: {:?}", all.refused()) };
    assert!(refused.contains("spec.ports[0].nodePort") && refused.contains("70000"), "{refused}");
}
