//! ServiceEntries and WorkloadEntries.

use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde_json::json;
use slotmesh_builders::{
    EntryBuilder, backend, http_route, node, pod, policy, rule, service, service_entry, slice, to,
    virtual_service, workload, workload_entry,
};
use slotmesh_compile::{CompileOptions, Conditions, Object, Severity};
use slotmesh_crds::WorkloadSelector;
use slotmesh_xds::ResourceType;

use crate::support::{Cluster, NOWHERE, cluster};

const HOST: &str = "db.example.com";

fn db() -> EntryBuilder {
    service_entry("db", HOST).ip("240.0.0.1").port("tcp", 3306, 3307)
}

/// The name of a cluster of a host.
fn of(host: &str, port: u16, subset: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

fn refused(entry: EntryBuilder) -> String {
    Cluster::with([entry.build()]).refused().join("\n")
}

fn unsupported(objects: impl IntoIterator<Item = Object>) -> Vec<String> {
    Cluster::with(objects).said(Severity::NotSupported)
}

#[test]
fn a_static_entry_is_like_a_service_with_endpoints() {
    let mut second = workload("10.9.0.2", "v2");
    second.ports.insert("tcp".into(), 13_306);
    second.weight = Some(3);
    let entry = db().endpoint(workload("10.9.0.1", "v1")).endpoint(second);
    let mut cluster_ = Cluster::with([entry.clone().ip("fd00::1/128").build()]);
    assert_eq!(cluster_.names(ResourceType::Listener), ["240.0.0.1_3306", "[fd00::1]_3306"]);
    assert_eq!(cluster_.goes("240.0.0.1_3306"), of(HOST, 3306, ""));
    assert_eq!(cluster_.endpoints(&of(HOST, 3306, "")), ["10.9.0.1 3307", "10.9.0.2 13306 x3"]);
    assert_eq!(cluster_.reports(), 0);
    // Without targetPort, that of the port itself.
    let own_port = entry.set(|spec| spec.ports[0].target_port = None).build();
    cluster_.apply([own_port.clone()]);
    assert_eq!(cluster_.endpoints(&of(HOST, 3306, "")), ["10.9.0.1 3306", "10.9.0.2 13306 x3"]);
    cluster_.delete(&own_port);
    assert!(cluster_.served().is_empty());
}

#[test]
fn rules_and_routes_are_for_its_hosts_too() {
    for host in [HOST, "example.com"] {
        let entry = service_entry("db", host).ip("240.0.0.1").port("tcp", 3306, 3306);
        let entry = entry.endpoint(workload("10.9.0.1", "v1")).endpoint(workload("10.9.0.2", "v2"));
        let mut cluster_ = Cluster::with([
            rule("db", host).version("v1").version("v2").balance("ROUND_ROBIN").build(),
            virtual_service("db", host)
                .tcp([to(&format!("{host}/v1"), 1), to(&format!("{host}/v2"), 3)])
                .build(),
        ]);
        assert_eq!(cluster_.refused().len(), 2, "{:?}", cluster_.refused());
        cluster_.apply([entry.clone().build()]);
        assert_eq!(cluster_.refused(), [""; 0]);
        let [v1, v2] = ["v1", "v2"].map(|subset| of(host, 3306, subset));
        assert_eq!(cluster_.goes("240.0.0.1_3306"), format!("{v1}=1 {v2}=3"));
        assert_eq!(cluster_.endpoints(&v2), ["10.9.0.2 3306"]);
        assert_eq!(cluster_.traffic(&v1), "ROUND_ROBIN");

        // A Service's connections can go there.
        let spread = virtual_service("web", "web").tcp([to("web", 1), to(host, 1)]).build();
        cluster_.apply([service("web").ip("10.0.0.1").port(3306).build(), spread]);
        let both = format!("{}=1 {}=1", cluster("web", 3306, ""), of(host, 3306, ""));
        assert_eq!(cluster_.goes("10.0.0.1_3306"), both);
        cluster_.delete(&entry.build());
        assert_eq!(cluster_.goes("10.0.0.1_3306"), format!("{}=1 {NOWHERE}=1", cluster("web", 3306, "")));
    }
}

#[test]
fn workload_entries_and_pods_are_selected_by_labels_in_its_namespace() {
    let machine = |name: &str, ip: &str| workload_entry(name, ip).label("app", "db");
    let db_pod = || pod("p").label("app", "db").label("version", "v1").ip("10.1.0.1").ip("fd00::9");
    let mut cluster_ = Cluster::with([
        db().select("app", "db").select("version", "v1").build(),
        machine("a", "10.9.0.1").label("version", "v1").port("tcp", 13_306).weight(2).build(),
        machine("b", "10.9.0.2").label("version", "v2").build(),
        machine("c", "10.9.0.3").label("version", "v1").namespace("other").build(),
        db_pod().ready(true).build(),
    ]);
    let name = of(HOST, 3306, "");
    let [machine_a, of_pod, of_pod6] = ["10.9.0.1 13306 x2", "10.1.0.1 3307", "fd00::9 3307"];
    assert_eq!(cluster_.endpoints(&name), [of_pod, machine_a, of_pod6]);
    // A Pod that isn't ready isn't used, and one that terminates where nothing else is there.
    cluster_.apply([db_pod().ready(false).build()]);
    assert_eq!(cluster_.endpoints(&name), [machine_a]);
    let mut terminating = db_pod().ready(true);
    terminating.0.metadata.deletion_timestamp = serde_json::from_str("\"2020-01-01T00:00:00Z\"").unwrap();
    cluster_.apply([terminating.build()]);
    assert_eq!(cluster_.endpoints(&name), [machine_a, of_pod6]);
    // Another label, and gone.
    cluster_.apply([machine("b", "10.9.0.2").label("version", "v1").build()]);
    cluster_.delete(&machine("a", "").build());
    cluster_.delete(&db_pod().build());
    assert_eq!(cluster_.endpoints(&name), ["10.9.0.2 3307"]);
    assert_eq!(cluster_.reports(), 0);
}

#[test]
fn a_service_selects_workload_entries_beside_its_slices() {
    let mut web = service("web").ip("10.0.0.1").named_port("http", 80).selector("app", "web");
    let ports = web.0.spec.as_mut().unwrap().ports.as_mut().unwrap();
    ports[0].target_port = serde_json::from_str("\"main\"").unwrap();
    let machine = workload_entry("m", "10.9.0.1").label("app", "web");
    let mut cluster_ = Cluster::with([
        web.build(),
        slice("web", "web").named_port("http", 8080).endpoint("10.1.0.1").build(),
        rule("web", "web").version("v1").build(),
        virtual_service("web", "web").http([to("web/v1", 1)]).build(),
        machine.clone().label("version", "v1").port("main", 8081).build(),
        // Pods are in slices.
        pod("p").label("app", "web").ip("10.1.0.2").build(),
    ]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), ["10.1.0.1 8080", "10.9.0.1 8081"]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "v1")), ["10.9.0.1 8081"]);
    cluster_.apply([machine.clone().port("http", 8082).build()]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), ["10.1.0.1 8080", "10.9.0.1 8082"]);
    cluster_.apply([machine.build()]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), ["10.1.0.1 8080"]);
    assert_eq!(
        cluster_.said(Severity::Note),
        ["WorkloadEntry default/m: spec.ports: no port is named main, which Service default/web asks for"]
    );
}

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
fn one_entry_makes_no_more_endpoints_than_are_allowed() {
    let options = CompileOptions { max_entry_endpoints: 12, ..CompileOptions::default() };
    let of_size = |hosts: usize, ports: u32, endpoints: usize| {
        let mut entry = service_entry("e", HOST);
        entry = (1..=ports).fold(entry, |entry, port| entry.port(&format!("p{port}"), port, port));
        entry =
            (1..=endpoints).fold(entry, |entry, n| entry.endpoint(workload(&format!("10.9.0.{n}"), "v1")));
        entry.set(|spec| spec.hosts = (0..hosts).map(|n| format!("h{n}.example.com")).collect()).build()
    };
    for (sizes, allowed) in
        [((2, 2, 3), true), ((2, 2, 4), false), ((13, 1, 0), false), ((1, 12, 0), true), ((1, 1, 13), false)]
    {
        let mut cluster_ = Cluster::new(options.clone());
        cluster_.apply([of_size(sizes.0, sizes.1, sizes.2)]);
        let refused = cluster_.refused();
        assert_eq!(refused.is_empty(), allowed, "{sizes:?}: {refused:?}");
        assert!(
            refused
                .iter()
                .all(|r| r.contains("more than the 12 endpoints") && r.contains("the object is not in force"))
        );
        assert!(allowed || cluster_.served().is_empty());
    }
}

#[test]
fn a_service_goes_before_an_entry_of_the_same_host_and_has_its_own_kinds_of_policy() {
    let entry = || service_entry("e", "web.other").ip("240.0.0.1").port("tcp", 80, 80);
    let objects = [
        entry().endpoint(workload("10.9.0.1", "v1")).build(),
        // Neither is for hosts of ServiceEntries, nor is a slice.
        policy("p", "web").max(7).namespace("other").build(),
        http_route("r", "web").to([backend("web:80", 1)]).namespace("other").build(),
        slice("s", "web").port(80).endpoint("10.1.0.1").namespace("other").build(),
    ];
    let mut cluster_ = Cluster::with(objects);
    assert_eq!(cluster_.traffic(&of("web.other", 80, "")), "RANDOM");
    assert_eq!(cluster_.endpoints(&of("web.other", 80, "")), ["10.9.0.1 80"]);
    assert_eq!(cluster_.goes("240.0.0.1_80"), of("web.other", 80, ""));
    let refused = cluster_.refused();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(refused.iter().all(|r| r.contains("there is no Service other/web")), "{refused:?}");

    let own = service("web").namespace("other").ip("10.0.0.1").port(80).build();
    cluster_.apply([own.clone()]);
    let name = "outbound|80||web.other.svc.cluster.local";
    assert_eq!(cluster_.names(ResourceType::Cluster), [name]);
    assert_eq!(
        (cluster_.traffic(name), cluster_.endpoints(name)),
        ("RANDOM 7".into(), vec!["10.1.0.1 80".into()])
    );
    assert_eq!(cluster_.names(ResourceType::Listener), ["10.0.0.1_80"]);
    let refused = cluster_.refused();
    assert!(
        refused[0].contains("already is that of Service other/web, a Service goes before"),
        "{refused:?}"
    );
    cluster_.delete(&own);
    assert_eq!(cluster_.names(ResourceType::Listener), ["240.0.0.1_80"]);
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
fn the_entries_of_a_namespace_make_no_more_endpoints_than_it_may_have() {
    let options = CompileOptions { max_namespace_endpoints: 3, ..CompileOptions::default() };
    let entry = |namespace: &str, n: u8, endpoints: u8| {
        let ip = if namespace == "default" { format!("240.0.0.{n}") } else { format!("240.0.1.{n}") };
        let entry =
            service_entry(&format!("e{n}"), &format!("e{n}.{namespace}.example")).namespace(namespace);
        let entry = entry.ip(&ip).port("tcp", 80, 80).created(n.into());
        (1..=endpoints).fold(entry, |entry, n| entry.endpoint(workload(&format!("10.9.0.{n}"), "v1"))).build()
    };
    let mut cluster_ = Cluster::new(options);
    cluster_.apply([entry("default", 3, 1), entry("default", 2, 2), entry("other", 1, 3)]);
    let all = ["240.0.0.2_80", "240.0.0.3_80", "240.0.1.1_80"];
    assert_eq!(cluster_.names(ResourceType::Listener), all);
    assert!(cluster_.refused().is_empty());
    // An older one goes before the younger; other namespaces don't notice.
    cluster_.apply([entry("default", 1, 1)]);
    assert_eq!(cluster_.names(ResourceType::Listener), ["240.0.0.1_80", "240.0.0.2_80", "240.0.1.1_80"]);
    let refused = cluster_.refused();
    assert!(refused.len() == 1 && refused[0].starts_with("ServiceEntry default/e3: "), "{refused:?}");
    assert!(refused[0].contains("make more than the 3 endpoints"), "{refused:?}");
    // What it wanted is free for others.
    let taker =
        service_entry("t", "t.example").namespace("third").ip("240.0.0.3").port("tcp", 80, 80).created(9);
    cluster_.apply([taker.build()]);
    assert_eq!(cluster_.goes("240.0.0.3_80"), of("t.example", 80, ""));
    cluster_.delete(&entry("default", 1, 1));
    assert_eq!(cluster_.goes("240.0.0.3_80"), of("e3.default.example", 80, ""));
}

#[test]
fn what_does_not_act_is_named_by_field() {
    let mut endpoint = workload("10.9.0.1", "v1");
    for field in ["network", "serviceAccount", "new"] {
        endpoint.rest.insert(field.into(), "x".into());
    }
    let entry = db().ip("240.1.0.0/16").endpoint(endpoint).set(|spec| {
        spec.hosts.push("*.example.com".into());
        spec.hosts.push("web.shop.svc.cluster.local".into());
        spec.rest.insert("subjectAltNames".into(), "x".into());
    });
    let cluster_ = Cluster::with([entry.build()]);
    assert_eq!(cluster_.names(ResourceType::Listener), ["240.0.0.1_3306"]);
    let fields: Vec<_> =
        cluster_.compiler.reports().map(|r| (r.severity, r.field.clone().unwrap())).collect();
    let fields: Vec<_> = fields.iter().map(|(severity, field)| (*severity, field.as_str())).collect();
    let expected = [
        "spec.addresses[1]",
        "spec.endpoints[0].network",
        "spec.endpoints[0].new",
        "spec.endpoints[0].serviceAccount",
        "spec.hosts[1]",
        "spec.hosts[2]",
        "spec.subjectAltNames",
    ];
    assert_eq!(fields, expected.map(|field| (Severity::NotSupported, field)));
}

#[test]
fn what_is_resolved_elsewhere_is_left_alone() {
    for (resolution, why) in [
        (None, "without endpoints"),
        (Some("NONE"), "without endpoints"),
        (Some("DNS"), "names aren't looked up"),
        (Some("DNS_ROUND_ROBIN"), "names aren't looked up"),
        (Some("DYNAMIC_DNS"), "names aren't looked up"),
    ] {
        let entry = db().set(|spec| spec.resolution = resolution.map(str::to_owned)).build();
        let cluster_ =
            Cluster::with([entry.clone(), virtual_service("web", HOST).tcp([to(HOST, 1)]).build()]);
        assert!(cluster_.served().is_empty(), "{resolution:?}");
        let said = unsupported([entry]);
        assert!(said[0].contains("spec.resolution") && said[0].contains(why), "{said:?}");
    }
    // DNS with addresses is as good as STATIC; names are left out.
    let entry = db().endpoint(workload("10.9.0.1", "v1")).endpoint(workload("db-2.example.com", "v1"));
    let cluster_ = Cluster::with([entry.set(|spec| spec.resolution = Some("DNS".into())).build()]);
    assert_eq!(cluster_.endpoints(&of(HOST, 3306, "")), ["10.9.0.1 3307"]);
    let said = cluster_.said(Severity::NotSupported);
    assert!(said[0].contains("spec.endpoints[1].address"), "{said:?}");
    // Without an address nobody connects to it, but routes lead there.
    let nowhere = service_entry("db", HOST).port("tcp", 80, 80).endpoint(workload("10.9.0.1", "v1"));
    let cluster_ = Cluster::with([nowhere.build(), virtual_service("w", "web").tcp([to(HOST, 1)]).build()]);
    assert_eq!(cluster_.names(ResourceType::Cluster), [of(HOST, 80, "")]);
    assert!(cluster_.said(Severity::Note)[0].contains("spec.addresses"));
}

#[test]
fn what_can_not_be_is_refused_by_field() {
    type Wrong = (&'static str, fn(EntryBuilder) -> EntryBuilder);
    let wrong: [Wrong; 18] = [
        ("spec.hosts: no host", |e| e.set(|s| s.hosts.clear())),
        ("spec.hosts[0]: \"db\" is a short name", |e| e.set(|s| s.hosts = vec!["db".into()])),
        ("spec.hosts[0]: the host contains", |e| e.set(|s| s.hosts = vec!["a|b.c".into()])),
        ("spec.addresses[1]: 240.0.0.1 stands there twice", |e| e.ip("240.0.0.1/32")),
        ("spec.addresses[1]: \"x\" is not an IP", |e| e.ip("x")),
        ("spec.addresses[1]: \"240.0.0.2/33\" is neither", |e| e.ip("240.0.0.2/33")),
        ("spec.addresses[1]: \"240.0.0.2/\" is neither", |e| e.ip("240.0.0.2/")),
        ("spec.ports[1].number: port 3306 stands there twice", |e| e.port("b", 3306, 1)),
        ("spec.ports[1].number: 0 is not a port", |e| e.port("b", 0, 1)),
        ("spec.ports[1].targetPort: 65536 is not a port", |e| e.port("b", 1, 65_536)),
        ("spec.ports[1].name: the name \"tcp\" stands there twice", |e| e.port("tcp", 1, 1)),
        ("spec.ports[1].name: it is missing", |e| e.port("", 1, 1)),
        ("spec.ports[0].protocol: \"ftp\" is no protocol", |e| {
            e.set(|s| s.ports[0].protocol = Some("FTP".into()))
        }),
        ("spec.resolution: \"static\" is no resolution", |e| e.set(|s| s.resolution = Some("static".into()))),
        ("spec.location: \"here\" is no location", |e| e.set(|s| s.location = Some("here".into()))),
        ("spec.endpoints[1].address: \"db-2\" is not an IP", |e| e.endpoint(workload("db-2", "v1"))),
        ("spec.workloadSelector: there are endpoints already", |e| e.select("app", "db")),
        ("spec.workloadSelector.labels: no label", |e| {
            e.set(|s| s.workload_selector = Some(WorkloadSelector::default()))
        }),
    ];
    for (expected, change) in wrong {
        let said = refused(change(db().endpoint(workload("10.9.0.1", "v1"))));
        assert!(said.contains(expected), "{expected}: {said}");
        assert!(said.ends_with("the object is not in force"), "{said}");
    }
    let machines = [
        ("spec.address: \"\" is not an IP address", workload_entry("m", "")),
        ("spec.address: \"unix:///run/m\" is not", workload_entry("m", "unix:///run/m")),
        ("spec.ports.tcp: 0 is not a port", workload_entry("m", "10.9.0.1").port("tcp", 0)),
    ];
    for (expected, machine) in machines {
        let said = Cluster::with([machine.build()]).refused();
        assert!(said[0].contains(expected), "{expected}: {said:?}");
    }
}

/// `type=holds reason` of all conditions at all places.
fn said(conditions: &Conditions) -> Vec<String> {
    let of = conditions.ancestors.iter().flat_map(|ancestor| {
        let at = ancestor.at.as_ref().map(|at| at.service.to_string()).unwrap_or_default();
        ancestor.conditions.iter().map(move |c| format!("{at} {}={} {}", c.ty.as_str(), c.holds, c.reason))
    });
    of.collect()
}

#[test]
fn their_status_tells_what_became_of_each_host() {
    let other = service_entry("a", "old.example.com").namespace("old").port("tcp", 80, 80).created(1).build();
    let entry = db().select("app", "db").set(|spec| spec.hosts.push("old.example.com".into())).build();
    let machine = workload_entry("m", "10.9.0.1").label("app", "db").build();
    let cluster_ = Cluster::with([entry.clone(), machine.clone(), other]);
    let conditions = cluster_.compiler.conditions(&entry.key()).unwrap();
    assert_eq!(
        said(&conditions),
        [
            "db.example.com Accepted=true Accepted",
            "db.example.com Conflicted=false NoConflict",
            "old.example.com Accepted=false Conflicted",
            "old.example.com Conflicted=true Conflicted",
        ]
    );
    let types: Vec<_> = conditions.ancestors[0].resources.iter().map(|r| r.ty).collect();
    assert_eq!(types, [ResourceType::Cluster, ResourceType::Listener], "endpoints don't count");
    assert!(conditions.ancestors[1].resources.is_empty());
    let of_machine = cluster_.compiler.conditions(&machine.key()).unwrap();
    assert_eq!(said(&of_machine), [" Accepted=true Accepted", " Conflicted=false NoConflict"]);
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
