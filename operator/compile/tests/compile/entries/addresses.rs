//! Whose an address is that ServiceEntries want.

use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde_json::json;
use slotmesh_builders::{node, pod, rule, service, service_entry, to, virtual_service, workload};
use slotmesh_compile::{CompileOptions, Object, Severity};
use slotmesh_xds::ResourceType;

use super::{HOST, db, of, said};
use crate::support::{Cluster, cluster};

#[test]
fn the_oldest_namespace_has_a_host_and_the_oldest_entry_an_address() {
    let older = service_entry("z", HOST).ip("240.0.0.1").port("tcp", 80, 80).created(1).build();
    let same_host =
        service_entry("a", HOST).namespace("other").ip("240.0.0.2").port("tcp", 80, 80).created(2).build();
    let same_address =
        service_entry("b", "b.example.com").ip("240.0.0.1").port("tcp", 80, 80).created(3).build();
    let mut cluster_ = Cluster::with([same_host, same_address, older.clone()]);
    assert_eq!(
        cluster_.refused(),
        [
            "ServiceEntry default/b: spec.addresses: 240.0.0.1 port 80 belongs to ServiceEntry default/z, which is older \
             or first by name; this ServiceEntry takes it over when that one goes; choose another address",
            "ServiceEntry other/a: spec.hosts[0]: the host already is that of ServiceEntry default/z, which is of another \
             namespace, and older or first by name; this object has no effect on it for as long; remove it from one of \
             them",
        ]
    );
    assert_eq!(cluster_.names(ResourceType::Listener), ["240.0.0.1_80"]);
    cluster_.delete(&older);
    assert_eq!(cluster_.refused(), [""; 0]);
    assert_eq!(cluster_.goes("240.0.0.1_80"), of("b.example.com", 80, ""));
    assert_eq!(cluster_.goes("240.0.0.2_80"), of(HOST, 80, ""));
}

#[test]
fn entries_of_one_host_are_merged_by_address_and_port() {
    let entry = |name: &str, host: &str, ip: &str, port: u32, created: i64| {
        service_entry(name, host).ip(ip).port("tcp", port, 8080).created(created)
    };
    let sql = entry("db-sql", HOST, "240.0.0.1", 3306, 1).endpoint(workload("10.9.0.1", "v1"));
    let admin = entry("db-admin", HOST, "240.0.0.2", 3307, 2).endpoint(workload("10.9.0.2", "v2"));
    let metrics =
        entry("metrics", "m.example.com", "240.0.0.2", 3307, 3).endpoint(workload("10.9.0.3", "v1"));
    let mut cluster_ = Cluster::with([metrics.build(), admin.clone().build(), sql.clone().build()]);
    assert_eq!(cluster_.names(ResourceType::Listener), ["240.0.0.1_3306", "240.0.0.2_3307"]);
    assert_eq!(cluster_.goes("240.0.0.1_3306"), of(HOST, 3306, ""));
    assert_eq!(cluster_.goes("240.0.0.2_3307"), of(HOST, 3307, ""));
    assert_eq!(cluster_.endpoints(&of(HOST, 3306, "")), ["10.9.0.1 8080"]);
    assert_eq!(cluster_.endpoints(&of(HOST, 3307, "")), ["10.9.0.2 8080"]);
    assert!(cluster_.refused().iter().all(|r| r.starts_with("ServiceEntry default/metrics: spec.addresses")));

    // Routes and rules are for all of it.
    cluster_.apply([
        rule("db", HOST).version("v1").version("v2").build(),
        virtual_service("db", HOST).tcp([to(&format!("{HOST}/v2"), 1)]).build(),
    ]);
    assert_eq!(cluster_.goes("240.0.0.2_3307"), of(HOST, 3307, "v2"));
    assert_eq!(cluster_.endpoints(&of(HOST, 3307, "v2")), ["10.9.0.2 8080"]);
    cluster_.delete(&virtual_service("db", HOST).build());
    cluster_.delete(&rule("db", HOST).build());

    // The same port at another address: its endpoints are those of both.
    let more = entry("db-more", HOST, "240.0.0.3", 3306, 4).endpoint(workload("10.9.0.4", "v1")).build();
    cluster_.apply([more.clone()]);
    assert_eq!(cluster_.goes("240.0.0.3_3306"), of(HOST, 3306, ""));
    assert_eq!(cluster_.endpoints(&of(HOST, 3306, "")), ["10.9.0.1 8080", "10.9.0.4 8080"]);
    cluster_.delete(&more);
    assert_eq!(cluster_.endpoints(&of(HOST, 3306, "")), ["10.9.0.1 8080"]);
    cluster_.delete(&sql.build());
    assert_eq!(cluster_.names(ResourceType::Listener), ["240.0.0.2_3307"]);
    cluster_.delete(&admin.build());
    assert_eq!(cluster_.goes("240.0.0.2_3307"), of("m.example.com", 3307, ""));
    assert_eq!(cluster_.refused(), [""; 0]);
}

#[test]
fn what_is_not_in_force_claims_nothing() {
    // The older entry's host is that of a Service, so its address is the younger one's.
    let older = service_entry("a", "web.other").ip("240.0.0.1").port("tcp", 80, 80).created(1).build();
    let younger = service_entry("b", "b.example.com").ip("240.0.0.1").port("tcp", 80, 80).created(2).build();
    let own = service("web").namespace("other").ip("10.0.0.1").port(80).build();
    let mut cluster_ = Cluster::with([older.clone(), younger, own.clone()]);
    assert_eq!(cluster_.goes("240.0.0.1_80"), of("b.example.com", 80, ""));
    cluster_.delete(&own);
    assert_eq!(cluster_.goes("240.0.0.1_80"), of("web.other", 80, ""));
    cluster_.apply([own]);
    assert_eq!(cluster_.goes("240.0.0.1_80"), of("b.example.com", 80, ""));
    // Nor does one that is refused, or whose host is another namespace's.
    let before = service_entry("c", "web.other").namespace("x").port("tcp", 81, 81).created(0).build();
    cluster_.delete(&service("web").namespace("other").build());
    cluster_.apply([before.clone()]);
    assert_eq!(cluster_.goes("240.0.0.1_80"), of("b.example.com", 80, ""));
    cluster_.delete(&before);
    assert_eq!(cluster_.goes("240.0.0.1_80"), of("web.other", 80, ""));
    cluster_.apply([service_entry("a", "web.other").ip("240.0.0.1").port("tcp", 0, 80).created(1).build()]);
    assert_eq!(cluster_.goes("240.0.0.1_80"), of("b.example.com", 80, ""));
}

fn service_cidr(ranges: &[&str]) -> Object {
    let object: ServiceCIDR =
        serde_json::from_value(json!({"metadata": {"name": "more"}, "spec": {"cidrs": ranges}})).unwrap();
    object.into()
}

#[test]
fn a_range_of_services_that_can_not_be_is_refused() {
    let cluster_ = Cluster::with([service_cidr(&["10.0.0.0/8", "10.0.0.0/40"])]);
    assert_eq!(
        cluster_.refused(),
        [
            "ServiceCIDR more: spec.cidrs[1]: \"10.0.0.0/40\" is no range of addresses such as 10.96.0.0/12; the object is not \
          in force"
        ]
    );
}

#[test]
fn a_service_entry_takes_no_address_of_the_cluster() {
    let entry = |ip: &str| {
        service_entry("e", HOST)
            .ip(ip)
            .ip("240.0.0.9")
            .port("tcp", 80, 80)
            .endpoint(workload("10.9.0.1", "v1"))
    };
    let mut of_node = node("n").label("a", "b");
    of_node.0.status = serde_json::from_value(json!({"addresses": [
        {"type": "Hostname", "address": "n"},
        {"type": "InternalIP", "address": "192.168.0.7"},
        {"type": "InternalIP", "address": "fd07::7"},
    ]}))
    .unwrap();
    of_node.0.spec = serde_json::from_value(
        json!({"podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.3.0/24", "fd00:3::/64"]}),
    )
    .unwrap();
    let cluster_objects = [
        of_node.build(),
        pod("p").ip("10.250.0.1").build(),
        service("web").ip("10.96.0.7").port(443).created(9).build(),
        service_cidr(&["172.20.0.0/16", "fd00:20::/108"]),
    ];
    for (ip, why) in [
        ("127.0.0.1", Some("of the node itself")),
        ("169.254.169.254", Some("of the node itself")),
        ("fe80::1", Some("of the node itself")),
        ("192.168.0.7", Some("an address of Node n")),
        ("fd07::7", Some("an address of Node n")),
        ("10.244.3.255", Some("of the Pods of Node n")),
        ("fd00:3::9", Some("of the Pods of Node n")),
        ("10.250.0.1", Some("an address of Pod default/p")),
        ("10.96.0.7", Some("an address of Service default/web")),
        ("10.111.0.1", Some("of 10.96.0.0/12, which the installation keeps for the cluster")),
        ("172.20.255.1", Some("of the cluster's Services (ServiceCIDR more)")),
        ("fd00:20::7", Some("of the cluster's Services (ServiceCIDR more)")),
        ("172.21.0.1", None),
        ("10.97.5.5", None),
        ("10.244.4.1", None),
        ("192.168.0.8", None),
    ] {
        let options = CompileOptions {
            reserved_addresses: vec!["10.96.0.0/12".parse().unwrap()],
            allowed_addresses: vec!["10.97.0.0/16".parse().unwrap()],
            ..CompileOptions::default()
        };
        // Whichever comes first.
        let mut after = Cluster::new(options.clone());
        after.apply(cluster_objects.clone());
        after.apply([entry(ip).build()]);
        let mut before = Cluster::new(options);
        before.apply([entry(ip).build()]);
        before.apply(cluster_objects.clone());
        for cluster_ in [&after, &before] {
            let taken =
                cluster_.names(ResourceType::Listener).iter().filter(|name| name.ends_with("_80")).count();
            // The other address is another matter.
            assert_eq!(taken, if why.is_some() { 1 } else { 2 }, "{ip}");
            let refused = cluster_.refused();
            assert_eq!(refused.len(), usize::from(why.is_some()), "{ip}: {refused:?}");
            let said = why.map(|why| format!("ServiceEntry default/e: spec.addresses: {ip} is {why}"));
            assert!(said.is_none_or(|said| refused[0].starts_with(&said)), "{ip}: {refused:?}");
        }
        cluster_objects.iter().for_each(|object| drop(before.delete(object)));
        let fixed = ["127.", "169.", "fe80", "10.96.", "10.111"].iter().any(|fixed| ip.starts_with(fixed));
        assert_eq!(before.refused().is_empty(), !fixed, "{ip}: {:?}", before.refused());
    }
}

#[test]
fn a_services_address_goes_before_everything() {
    let mut cluster_ = Cluster::with([
        service_entry("e", HOST).ip("240.0.0.2").port("tcp", 80, 80).created(1).build(),
        service("web").ip("240.0.0.2").port(80).created(9).build(),
    ]);
    assert_eq!(cluster_.goes("240.0.0.2_80"), cluster("web", 80, ""));
    assert_eq!(
        cluster_.refused(),
        [
            "ServiceEntry default/e: spec.addresses: 240.0.0.2 port 80 belongs to Service default/web, which goes before; \
             this ServiceEntry takes it over when that one goes; choose another address"
        ]
    );
    cluster_.delete(&service("web").build());
    assert_eq!(cluster_.goes("240.0.0.2_80"), of(HOST, 80, ""));
}

#[test]
fn of_several_hosts_the_first_has_the_addresses() {
    let entry =
        db().endpoint(workload("10.9.0.1", "v1")).set(|spec| spec.hosts.push("old.example.com".into()));
    let web = service("web").ip("10.0.0.1").port(3306).build();
    let cluster_ = Cluster::with([
        entry.build(),
        web,
        virtual_service("w", "web").tcp([to("old.example.com", 1)]).build(),
    ]);
    assert_eq!(cluster_.goes("240.0.0.1_3306"), of(HOST, 3306, ""));
    assert_eq!(cluster_.endpoints(&of("old.example.com", 3306, "")), ["10.9.0.1 3307"]);
    let notes = cluster_.said(Severity::Note);
    assert!(notes[0].starts_with("ServiceEntry default/db: spec.hosts[1]: connections to the"), "{notes:?}");
}

#[test]
fn an_entry_whose_addresses_are_all_anothers_is_not_in_force() {
    let entry = |name: &str, created: i64| {
        let host = format!("{name}.example.com");
        service_entry(name, &host).ip("240.0.0.1").port("tcp", 80, 80).created(created)
    };
    let (first, second) = (entry("a", 1).build(), entry("b", 2));
    let mut cluster_ = Cluster::with([first.clone(), second.clone().build()]);
    let of = |cluster_: &Cluster, object: &Object| cluster_.compiler.conditions(&object.key()).unwrap();
    let lost = of(&cluster_, &second.clone().build());
    let host = "b.example.com";
    let both = |accepted: &str, conflicted: &str| {
        [format!("{host} Accepted={accepted}"), format!("{host} Conflicted={conflicted}")]
    };
    assert_eq!(said(&lost), both("false Conflicted", "true Conflicted"));
    assert!(lost.ancestors[0].resources.is_empty());
    // With one of two it has a part of what it wants.
    let more = second.ip("240.0.0.2").build();
    cluster_.apply([more.clone()]);
    let part = of(&cluster_, &more);
    assert_eq!(said(&part), both("true Accepted", "true Conflicted"));
    assert!(part.ancestors[0].resources.iter().any(|r| r.ty == ResourceType::Listener));
    cluster_.delete(&first);
    assert_eq!(said(&of(&cluster_, &more)), both("true Accepted", "false NoConflict"));
}
