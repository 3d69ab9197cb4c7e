//! Bad input is reported by name and disturbs nothing that is in force.

use slotmesh_compile::{
    Source,
    builder::{rule, service, slice, to, virtual_service},
};

use crate::{
    routes::shop,
    support::{Cluster, cluster},
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
fn a_missing_host_or_subset_keeps_the_last_route_and_heals() {
    let web = |to_| virtual_service("web", "web").http([to("web/v1", 1), to_]).build();
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
    ] {
        let mut cluster_ = routed();
        let output = cluster_.apply([web(to(destination, 1))]);
        assert!(output.changes.is_empty());
        let message = format!(
            "VirtualService default/web: {field}; until it exists, port 80 keeps the route's last good version"
        );
        assert_eq!(cluster_.refused(), [message]);
        assert_eq!(output.appeared.len(), 1);
        assert_eq!(cluster_.goes("10.0.0.1_80"), v1());

        let output = cluster_.apply([heals]);
        assert_eq!(output.disappeared.len(), 1);
        assert_eq!(cluster_.goes("10.0.0.1_80"), format!("{}=1 {healed}=1", v1()));
    }
}

#[test]
fn a_missing_subset_without_a_last_route_leaves_the_service_as_it_is() {
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([virtual_service("web", "web").http([to("web/v3", 1)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
    assert!(cluster_.refused()[0].ends_with("port 80 goes to the Service's own endpoints"));
}

#[test]
fn no_route_leads_to_a_cluster_that_went() {
    let mut cluster_ = routed();
    cluster_.apply([rule("web", "web").version("v2").build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
    assert_eq!(cluster_.refused().len(), 1);
    cluster_.apply([rule("web", "web").version("v1").build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), v1());
    assert!(cluster_.refused().is_empty());
}

#[test]
fn a_missing_port_is_named() {
    let mut cluster_ = routed();
    cluster_.apply([service("two").ip("10.0.0.3").named_port("a", 81).named_port("b", 82).build()]);
    cluster_.apply([virtual_service("web", "web").http([to("two", 1)]).build()]);
    assert!(cluster_.refused()[0].contains(
        "spec.http[0].route[0].destination.port.number: Service default/two has no TCP port 80 (it has 81, 82)"
    ));
    assert_eq!(cluster_.goes("10.0.0.1_80"), v1());
}

#[test]
fn weights_that_sum_to_0_are_refused() {
    let bad = || virtual_service("web", "web").http([to("web/v1", 0), to("web/v2", 0)]).build();
    let mut cluster_ = routed();
    assert!(cluster_.apply([bad()]).changes.is_empty());
    assert_eq!(
        cluster_.refused(),
        ["VirtualService default/web: spec.http[0].route: the weights sum to 0, so no destination could be \
          chosen; give at least one a weight above 0; the object's last good version stays in force"]
    );
    cluster_.apply([virtual_service("web", "web").http([to("web/v1", -1), to("web/v2", 5)]).build()]);
    assert!(cluster_.refused()[0].contains("spec.http[0].route[0].weight: -1 is below 0"));
    assert_eq!(cluster_.goes("10.0.0.1_80"), v1());

    let mut fresh = Cluster::with(shop());
    fresh.apply([bad()]);
    assert_eq!(fresh.goes("10.0.0.1_80"), cluster("web", 80, ""));
    assert!(fresh.refused()[0].ends_with("the object is not in force"));
}

#[test]
fn narrower_visibility_is_refused() {
    let mut cluster_ = routed();
    let mut narrow = virtual_service("web", "web").http([to("web/v2", 1)]);
    narrow.0.spec.export_to = vec![".".into()];
    cluster_.apply([narrow.clone().build()]);
    assert!(cluster_.refused()[0].contains("not supported: field spec.exportTo"));
    assert_eq!(cluster_.goes("10.0.0.1_80"), v1());
    narrow.0.spec.export_to = vec!["*".into()];
    cluster_.apply([narrow.build()]);
    assert!(cluster_.refused().is_empty());
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
    assert_eq!(output.disappeared.len(), 1);
}

#[test]
fn an_invalid_service_leaves_its_last_good_version() {
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
        let output = cluster_.apply([bad.clone().build()]);
        assert!(output.changes.is_empty());
        let refused = cluster_.refused();
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert!(refused[0].starts_with("Service default/web: "), "{}", refused[0]);
        assert!(refused[0].contains(message), "{}", refused[0]);
        assert!(refused[0].ends_with("the object's last good version stays in force"), "{}", refused[0]);
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
fn a_slice_that_cannot_be_leaves_the_endpoints_as_they_were() {
    let good = slice("web", "web").port(8080).endpoint("10.1.0.1");
    let mut cluster_ = Cluster::with([service("web").ip("10.0.0.1").port(80).build(), good.clone().build()]);
    let held = ["10.1.0.1 8080"];
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), held);
    cluster_.apply([slice("web", "web").port(80_800).endpoint("10.1.0.1").build()]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), held);
    assert!(cluster_.refused()[0].contains("80800 is not a port"), "{:?}", cluster_.refused());
    let mut bad = good.clone();
    "IPV4".clone_into(&mut bad.0.address_type);
    cluster_.apply([bad.build()]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), held);
    assert!(cluster_.refused()[0].contains("addressType"), "{:?}", cluster_.refused());
    cluster_.apply([good.build()]);
    assert_eq!(cluster_.refused(), [""; 0]);
}

#[test]
fn a_slice_whose_ports_have_other_names_is_told() {
    let cluster_ = Cluster::with([
        service("web").ip("10.0.0.1").named_port("http", 80).build(),
        slice("web", "web").port(8080).endpoint("10.1.0.1").build(),
    ]);
    let reports: Vec<String> = cluster_.compiler.reports().map(ToString::to_string).collect();
    assert_eq!(
        reports,
        ["EndpointSlice default/web: its endpoints are not used: its TCP ports are named \"\", those of \
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
