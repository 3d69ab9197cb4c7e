//! Bad input is reported by name and disturbs nothing that is in force.

use slotmesh_builders::{rule, service, service_entry, slice, to, virtual_service, workload};
use slotmesh_compile::{Severity, Source};
use slotmesh_crds::PortSelector;
use slotmesh_xds::ResourceType;

use crate::{
    routes::shop,
    support::{Cluster, NOWHERE, cluster, count},
};

fn v1() -> String {
    format!("http:{}", cluster("web", 80, "v1"))
}

/// The shop with all connections to v1.
fn routed() -> Cluster {
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([virtual_service("web", "web").http([to("web/v1", 1)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), v1());
    cluster_
}

#[test]
fn a_missing_host_subset_or_port_refuses_its_share_and_heals() {
    let web = |to_| virtual_service("web", "web").http([to("web/v1", 1), to_]).build();
    let two = || service("two").ip("10.0.0.3").named_port("a", 81).named_port("b", 82);
    for (destination, field, heals, healed) in [
        (
            "blue",
            "spec.http[0].route[1].destination.host: there is no Service default/blue",
            service("blue").ip("10.0.0.9").port(80).build(),
            cluster("blue", 80, ""),
        ),
        (
            "web/v3",
            "spec.http[0].route[1].destination.subset: no DestinationRule in force defines subset v3 of Service \
             default/web (defined: v1, v2)",
            rule("web", "web").version("v1").version("v3").build(),
            cluster("web", 80, "v3"),
        ),
        (
            "two",
            "spec.http[0].route[1].destination.port.number: Service default/two has no TCP port 80 (it has 81, 82)",
            two().named_port("c", 80).build(),
            cluster("two", 80, ""),
        ),
    ] {
        let mut cluster_ = routed();
        cluster_.apply([two().build()]);
        let output = cluster_.apply([web(to(destination, 3))]);
        let message = format!(
            "VirtualService default/web: {field}; until it exists, its share of the connections to port 80 is refused"
        );
        assert_eq!(cluster_.refused(), [message]);
        assert_eq!(count(&output.appeared), 1);
        assert_eq!(cluster_.goes("10.0.0.1_80"), format!("{}=1 {NOWHERE}=3", v1()));
        assert!(cluster_.names(ResourceType::Cluster).contains(&NOWHERE));

        let output = cluster_.apply([heals]);
        assert_eq!(count(&output.disappeared), 1);
        assert_eq!(cluster_.goes("10.0.0.1_80"), format!("{}=1 {healed}=3", v1()));
        assert!(!cluster_.names(ResourceType::Cluster).contains(&NOWHERE), "nothing leads there any more");
    }
}

#[test]
fn a_route_that_leads_only_to_what_is_missing_refuses_every_connection() {
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([virtual_service("web", "web").http([to("web/v3", 1)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{NOWHERE}"));
    assert!(cluster_.refused()[0].ends_with("until it exists, every connection to port 80 is refused"));
}

#[test]
fn no_route_leads_to_a_cluster_that_went() {
    let mut cluster_ = routed();
    cluster_.apply([rule("web", "web").version("v2").build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{NOWHERE}"));
    assert_eq!(cluster_.refused().len(), 1);
    cluster_.apply([rule("web", "web").version("v1").build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), v1());
    assert!(cluster_.refused().is_empty());
}

#[test]
fn without_any_weight_nobody_gets_the_connections() {
    let mut cluster_ = routed();
    cluster_.apply([virtual_service("web", "web").http([to("web/v1", 0), to("web/v2", 0)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{NOWHERE}"));
    assert!(cluster_.refused().is_empty(), "it is what the object says");
    assert_eq!(
        cluster_.said(Severity::Note),
        [
            "VirtualService default/web: spec.http[0].route: no destination has a weight above 0, so connections are \
             refused"
        ]
    );
}

#[test]
fn a_destination_that_can_not_be_refuses_its_share_only() {
    let mut port = to("web/v2", 1);
    port.destination.port = Some(PortSelector { number: Some(70_000), ..Default::default() });
    for (bad, field, goes) in [
        (
            to("*.shop", 1),
            "spec.http[0].route[1].destination.host: \"*.shop\" is no host",
            "=5 BlackHoleCluster=1",
        ),
        (port, "spec.http[0].route[1].destination.port.number: 70000 is not a port", "=5 BlackHoleCluster=1"),
        (
            to("web/v2", -1),
            "spec.http[0].route[1].weight: -1 is below 0, so the destination gets no connection",
            "",
        ),
    ] {
        let mut cluster_ = routed();
        cluster_.apply([virtual_service("web", "web").http([to("web/v1", 5), bad]).build()]);
        assert_eq!(cluster_.goes("10.0.0.1_80"), format!("{}{goes}", v1()), "{field}");
        let refused = cluster_.refused();
        assert!(refused.len() == 1 && refused[0].contains(field), "{refused:?}");
    }
}

#[test]
fn weights_of_any_size_keep_their_proportions() {
    let mut cluster_ = routed();
    let most = i32::MAX;
    let all = [to("web/v1", most), to("web/v2", most), to("web", most), to("web/v9", 1)];
    cluster_.apply([virtual_service("web", "web").http(all).build()]);
    let half = most as u32 / 2;
    let [v2, own] = ["v2", ""].map(|subset| cluster("web", 80, subset));
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("{}={half} {v2}={half} {own}={half} {NOWHERE}=1", v1()));
}

#[test]
fn ten_thousand_namespaces_are_refused_by_field_and_thousands_cost_one_chain() {
    let mut cluster_ = routed();
    let exported = |count: usize| {
        let mut built = virtual_service("web", "web").http([to("web/v2", 1)]);
        built.0.spec.export_to = (0..count).map(|i| format!("ns-{i}")).collect();
        built.build()
    };
    cluster_.apply([exported(10_000)]);
    let refused = cluster_.refused();
    assert!(
        refused[0].contains("spec.exportTo: 10000 namespaces are named, and at most 4096 can be"),
        "{refused:?}"
    );
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""), "what it said before is gone");
    cluster_.apply([exported(4_000)]);
    assert_eq!(cluster_.classes("10.0.0.1_80").len(), 4_000);
    assert_eq!(cluster_.goes_for("10.0.0.1_80", "ns-3999"), cluster("web", 80, "v2"));
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
    assert!(cluster_.refused().is_empty());
}

/// Three namespaces say contradictory things of one Service, for all callers. Who counts follows from their places and ages,
/// in whatever order they come, and whose routes don't is told.
#[test]
fn what_several_namespaces_say_of_one_host_is_decided_in_whatever_order_they_come() {
    const HOST: &str = "web.default.svc.cluster.local";
    let base = || {
        let of = |name: &str, ip: &str| service(name).ip(ip).port(80).build();
        vec![of("web", "10.0.0.1"), of("v1", "10.0.0.2"), of("v2", "10.0.0.3"), of("v3", "10.0.0.4")]
    };
    // Each routes all connections to another version, has its own limit, and wants the address and the name.
    let of = |namespace: &str, version: &str, age: i64| {
        let mut limit = rule("web", HOST).namespace(namespace).created(age);
        let pool = serde_json::json!({"connectionPool": {"tcp": {"maxConnections": age}}});
        limit.0.spec.traffic_policy = Some(serde_json::from_value(pool).unwrap());
        let route = virtual_service("web", HOST).namespace(namespace).created(age);
        let entry = service_entry("web", HOST).namespace(namespace).ip("10.0.0.1").port("tcp", 80, 80);
        vec![
            route.http([to(&format!("{version}.default"), 1)]).build(),
            limit.build(),
            entry.endpoint(workload("10.66.0.1", "x")).created(age).build(),
        ]
    };
    let [a, b, c] = [of("a", "v1", 3), of("b", "v2", 1), of("c", "v3", 2)];
    let mut seen = Vec::new();
    for order in [[&a, &b, &c], [&a, &c, &b], [&b, &a, &c], [&b, &c, &a], [&c, &a, &b], [&c, &b, &a]] {
        let mut cluster_ = Cluster::with(base());
        order.iter().for_each(|objects| drop(cluster_.apply(objects.iter().cloned())));
        // The oldest route; of no rule's namespace is the Service, and no caller of these is told apart by it.
        assert_eq!(cluster_.goes_for("10.0.0.1_80", "elsewhere"), format!("http:{}", cluster("v2", 80, "")));
        let refused: std::collections::BTreeSet<_> = cluster_.refused().into_iter().collect();
        let about = |of: &str| refused.iter().any(|text| text.contains(of));
        assert!(about("VirtualService a/web") && about("VirtualService c/web"), "{refused:?}");
        // What calls itself by the Service's name has neither its address nor its connections.
        for name in cluster_.names(ResourceType::Cluster) {
            let is_there = cluster_.served().contains_key(&(ResourceType::Endpoints, name.to_owned()));
            assert!(!is_there || !cluster_.endpoints(name).contains(&"10.66.0.1 80".to_owned()), "{name}");
        }
        seen.push((cluster_.served().clone(), refused));
    }
    seen.windows(2).for_each(|two| assert_eq!(two[0], two[1]));
    // The next oldest takes over.
    let mut cluster_ = Cluster::with(base().into_iter().chain(a).chain(b.clone()).chain(c));
    b.iter().for_each(|object| drop(cluster_.delete(object)));
    assert_eq!(cluster_.goes_for("10.0.0.1_80", "elsewhere"), format!("http:{}", cluster("v3", 80, "")));
}

#[test]
fn hundreds_of_rules_for_one_host_are_merged_or_told_apart() {
    let mut cluster_ = routed();
    let rules = (0..300).map(|i| {
        let namespace = if i < 150 { "default".to_owned() } else { format!("team-{i}") };
        let built = rule(&format!("r{i}"), "web.default.svc.cluster.local").namespace(&namespace);
        built.created(i).version(&format!("v{}", i % 7)).build()
    });
    cluster_.apply(rules);
    // Of the Service's own namespace each of the seven subsets is there, once.
    assert_eq!(cluster_.goes("10.0.0.1_80"), v1());
    // A team whose own rules say the same of v1 needs no cluster of its own.
    assert_eq!(cluster_.goes_for("10.0.0.1_80", "team-155"), v1());
    // A team whose own rules define no v1 gets it from the author of the route.
    assert_eq!(cluster_.goes_for("10.0.0.1_80", "team-150"), v1());
}

#[test]
fn of_two_services_with_one_address_the_oldest_keeps_it() {
    let older = service("z").ip("10.0.0.1").port(80).created(1).build();
    let younger = service("a").ip("10.0.0.1").named_port("main", 80).named_port("b", 81).created(2).build();
    let mut cluster_ = Cluster::with([younger.clone()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("a", 80, ""));
    cluster_.apply([older.clone()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("z", 80, ""));
    assert_eq!(cluster_.goes("10.0.0.1_81"), cluster("a", 81, ""), "another port is no conflict");
    assert_eq!(
        cluster_.refused(),
        [
            "Service default/a: spec.clusterIPs: 10.0.0.1 port 80 belongs to Service default/z, which is older or \
          first by name; this Service takes it over when that one goes; choose another cluster IP"
        ]
    );
    let output = cluster_.delete(&older);
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("a", 80, ""));
    assert_eq!(count(&output.disappeared), 1);
}

#[test]
fn an_invalid_service_is_as_if_it_were_not_there() {
    for (bad, message) in [
        (
            service("web").ip("10.0.0").port(80),
            r#"spec.clusterIPs[0]: "10.0.0" is not an IP address; write an address such as"#,
        ),
        (service("web").ip("10.0.0.1").port(0), "spec.ports[0].port: 0 is not a port; ports are 1 to 65535"),
        (service("web").ip("10.0.0.1").port(65536), "spec.ports[0].port: 65536 is not a port"),
        (service("web").ip("10.0.0.1").port(80).port(81), "must name each of them"),
        (
            service("web").ip("10.0.0.1").named_port("a", 80).named_port("b", 80),
            "TCP port 80 stands there twice",
        ),
        (service("web").ip("::ffff:10.0.0.1").port(80), "write it as IPv4"),
    ] {
        let mut cluster_ = routed();
        cluster_.apply([bad.clone().build()]);
        assert!(cluster_.served().is_empty(), "{:?}", cluster_.served());
        let refused = cluster_.refused();
        let of_it: Vec<_> = refused.iter().filter(|r| r.starts_with("Service default/web: ")).collect();
        assert!(of_it.len() == 1 && of_it[0].contains(message), "{refused:?}");
        assert!(of_it[0].ends_with("the object is not in force"), "{}", of_it[0]);
        let mut fresh = Cluster::default();
        assert!(fresh.apply([bad.build()]).changes.is_empty());
    }
}

#[test]
fn names_that_are_too_long_are_refused() {
    let long = "n".repeat(254);
    let cluster_ = Cluster::with([service(&long).ip("10.0.0.1").port(80).build()]);
    assert!(cluster_.served().is_empty());
    assert!(cluster_.refused()[0].contains("metadata.name: the name has 254 characters"));
}

#[test]
fn an_endpoint_without_address_is_left_out_alone() {
    let bad = slice("web", "web").port(80).endpoint("10.1.0.1").full_endpoint(Default::default());
    let bad = bad.endpoint("10.1.0.300").endpoint("fd01::1").endpoint("10.1.0.2");
    let mut bad = bad;
    "IPv4".clone_into(&mut bad.0.address_type);
    let cluster_ = Cluster::with([service("web").ip("10.0.0.1").port(80).build(), bad.build()]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), ["10.1.0.1 80", "10.1.0.2 80"]);
    let refused = cluster_.refused();
    assert_eq!(refused.len(), 3);
    assert_eq!(
        refused[0],
        "EndpointSlice default/web: endpoints[1].addresses: the endpoint has no address and is left out; the \
         others are used"
    );
}

#[test]
fn a_slice_that_cannot_be_is_as_if_it_were_not_there() {
    let good = slice("web", "web").port(8080).endpoint("10.1.0.1");
    let other = slice("web-2", "web").port(8080).endpoint("10.1.0.2").build();
    let web = service("web").ip("10.0.0.1").port(80).build();
    let mut cluster_ = Cluster::with([web, other, good.clone().build()]);
    let held = |cluster_: &Cluster| cluster_.endpoints(&cluster("web", 80, ""));
    assert_eq!(held(&cluster_), ["10.1.0.1 8080", "10.1.0.2 8080"]);
    cluster_.apply([slice("web", "web").port(80_800).endpoint("10.1.0.1").build()]);
    assert_eq!(held(&cluster_), ["10.1.0.2 8080"]);
    assert!(cluster_.refused()[0].contains("80800 is not a port"), "{:?}", cluster_.refused());
    let mut bad = good.clone();
    "IPV4".clone_into(&mut bad.0.address_type);
    cluster_.apply([bad.build()]);
    assert_eq!(held(&cluster_), ["10.1.0.2 8080"]);
    assert!(cluster_.refused()[0].contains("addressType"), "{:?}", cluster_.refused());
    cluster_.apply([good.build()]);
    assert_eq!(held(&cluster_), ["10.1.0.1 8080", "10.1.0.2 8080"]);
    assert_eq!(cluster_.refused(), [""; 0]);
}

#[test]
fn a_slice_whose_ports_have_other_names_is_told() {
    let cluster_ = Cluster::with([
        service("web").ip("10.0.0.1").named_port("http", 80).build(),
        slice("web", "web").port(8080).endpoint("10.1.0.1").build(),
    ]);
    assert_eq!(
        cluster_.said(Severity::Note),
        ["EndpointSlice default/web: its endpoints are not used: its ports are named \"\", those of \
             Service default/web \"http\"; name them alike"]
    );
}

#[test]
fn reports_name_where_an_object_was_read() {
    let mut cluster_ = Cluster::default();
    let source = Source { document: Some(2), ..Source::file("shop/web.yaml".into()) };
    cluster_.compiler.apply(&service("web").ip("10.0.0.1").port(0).build(), Some(source));
    cluster_.flush();
    assert!(
        cluster_.refused()[0].starts_with("Service default/web (shop/web.yaml, document 2): spec.ports[0]")
    );
}
