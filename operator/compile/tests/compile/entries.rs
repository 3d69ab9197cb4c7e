//! ServiceEntries and WorkloadEntries.

mod addresses;

use slotmesh_builders::{
    EntryBuilder, backend, http_route, pod, policy, rule, service, service_entry, slice, to, virtual_service,
    workload, workload_entry,
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
                .all(|r| r.contains("may make at most 12 endpoints")
                    && r.contains("the object is not in force"))
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
    assert!(refused[0].contains("may make at most 3 endpoints"), "{refused:?}");
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
        ancestor.conditions.iter().map(move |c| format!("{at} {}={} {}", c.ty.as_str(), c.holds(), c.reason))
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
