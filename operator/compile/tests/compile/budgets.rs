//! No namespace makes more than it may on everybody's nodes, whatever kind of object it takes for that.

use serde_json::json;
use slotmesh_builders::{
    backend, grpc_route, http_route, parent, pod, policy, rule, service, service_entry, sidecar, slice,
    tcp_route, tls_route, to, virtual_service, workload, workload_entry,
};
use slotmesh_compile::{CompileOptions, Kind, Object, ObjectKey, ObjectName};
use slotmesh_crds::{Delegate, HttpMatch, HttpRoute};

use crate::support::Cluster;

const MALLORY: &str = "mallory";

/// Narrow bounds of one object, and of all of a kind and namespace.
fn options() -> CompileOptions {
    CompileOptions {
        max_entry_endpoints: 50,
        max_namespace_endpoints: 100,
        max_object_parts: 50,
        max_namespace_parts: 100,
        ..CompileOptions::default()
    }
}

/// One who does as he should.
fn victim() -> Vec<Object> {
    vec![
        service("web").ip("10.0.0.1").port(80).build(),
        slice("web", "web").port(8080).endpoint("10.1.0.1").endpoint("10.1.0.2").build(),
        rule("web", "web").version("v1").build(),
        virtual_service("web", "web").http([to("web/v1", 1), to("web", 3)]).build(),
        policy("web", "web").max(7).build(),
        service("api").ip("10.0.0.2").port(80).build(),
        http_route("api", "api").to([backend("web:80", 1)]).build(),
        service_entry("db", "db.example.com")
            .ip("240.0.0.1")
            .port("tcp", 5432, 5432)
            .endpoint(workload("10.9.0.1", "v1"))
            .build(),
    ]
}

/// Services that the other one has beside, for which the objects are.
fn at_hand() -> Vec<Object> {
    let services = (0..4).map(|i| {
        let of = service(&format!("s{i}")).namespace(MALLORY).ip(&format!("10.0.1.{i}"));
        of.port(80).created(0).build()
    });
    services.collect()
}

/// A way to make much: objects with this number that make so many parts, the one that is bounded first.
type Way = fn(usize, usize) -> Vec<Object>;

fn named(n: usize) -> impl Iterator<Item = String> {
    (0..n).map(|n| format!("n{n}"))
}

fn age(i: usize) -> i64 {
    i64::try_from(i).unwrap() + 1
}

fn ports(i: usize, n: usize) -> Vec<Object> {
    let built = service(&format!("x{i}")).namespace(MALLORY).ip(&format!("10.0.2.{i}")).created(age(i));
    // A listener and a cluster each.
    let ports = 1..=i32::try_from(n / 2).unwrap();
    vec![ports.fold(built, |built, port| built.named_port(&format!("p{port}"), port)).build()]
}

fn external_addresses(i: usize, n: usize) -> Vec<Object> {
    let mut built = service(&format!("x{i}")).namespace(MALLORY).ip(&format!("10.0.2.{i}")).port(80);
    let ips = (0..n - 2).map(|n| format!("192.0.{i}.{n}")).collect();
    built.0.spec.get_or_insert_default().external_ips = Some(ips);
    vec![built.created(age(i)).build()]
}

fn endpoints(i: usize, n: usize) -> Vec<Object> {
    let name = format!("x{i}");
    let built = slice(&name, &name).namespace(MALLORY).port(8080);
    let slice = (0..n - 2).fold(built, |built, n| built.endpoint(&format!("10.2.{i}.{n}")));
    let of = service(&name).namespace(MALLORY).ip(&format!("10.0.2.{i}")).port(80).created(age(i));
    vec![of.build(), slice.build()]
}

fn workloads_of_a_service(i: usize, n: usize) -> Vec<Object> {
    let of = service(&format!("x{i}")).namespace(MALLORY).ip(&format!("10.0.2.{i}")).port(80).created(age(i));
    let mut objects = vec![of.selector("app", &format!("x{i}")).build()];
    objects.extend((0..n - 2).map(|n| {
        let built = workload_entry(&format!("w{i}-{n}"), &format!("10.3.{i}.{n}")).namespace(MALLORY);
        built.label("app", &format!("x{i}")).build()
    }));
    objects
}

fn entry(i: usize) -> slotmesh_builders::EntryBuilder {
    let built = service_entry(&format!("x{i}"), &format!("x{i}.mallory.example")).namespace(MALLORY);
    built.ip(&format!("240.0.1.{i}")).port("tcp", 80, 80).created(age(i))
}

fn hosts_and_endpoints_of_an_entry(i: usize, n: usize) -> Vec<Object> {
    let built = (0..n / 2).fold(entry(i), |built, n| built.endpoint(workload(&format!("10.4.0.{n}"), "v1")));
    vec![built.set(|spec| spec.hosts.push(format!("y{i}.mallory.example"))).build()]
}

fn addresses_of_an_entry(i: usize, n: usize) -> Vec<Object> {
    let built = (1..n).fold(entry(i), |built, n| built.ip(&format!("240.1.{i}.{n}")));
    vec![built.endpoint(workload("10.4.0.1", "v1")).build()]
}

fn pods_of_an_entry(i: usize, n: usize) -> Vec<Object> {
    let mut objects = vec![entry(i).select("app", &format!("x{i}")).build()];
    objects.extend((0..n).map(|n| {
        let built = pod(&format!("p{i}-{n}")).namespace(MALLORY).label("app", &format!("x{i}"));
        built.ip(&format!("10.5.{i}.{n}")).build()
    }));
    objects
}

fn shares(i: usize, n: usize) -> Vec<Object> {
    let built = virtual_service(&format!("x{i}"), &format!("s{i}")).namespace(MALLORY).created(age(i));
    vec![built.http((0..n).map(|_| to("s0", 1))).build()]
}

fn hosts(i: usize, n: usize) -> Vec<Object> {
    let mut built = virtual_service(&format!("x{i}"), &format!("s{i}")).namespace(MALLORY).created(age(i));
    built.0.spec.hosts.extend(named(n - 1));
    vec![built.http([to("s0", 1)]).build()]
}

fn callers(i: usize, n: usize) -> Vec<Object> {
    let wanted = |n| HttpMatch { source_namespace: Some(n), ..HttpMatch::default() };
    let route =
        HttpRoute { matches: named(n).map(wanted).collect(), route: vec![to("s0", 1)], ..Default::default() };
    let built = virtual_service(&format!("x{i}"), &format!("s{i}")).namespace(MALLORY).created(age(i));
    vec![built.http_route(route).build()]
}

/// Two hosts each, whose routes somebody else's object says.
fn delegated(i: usize, n: usize) -> Vec<Object> {
    let (name, place) = (format!("d{i}"), "another".to_owned());
    let delegate =
        Some(Delegate { name: name.clone(), namespace: Some(place.clone()), ..Delegate::default() });
    let mut root = virtual_service(&format!("x{i}"), &format!("s{i}")).namespace(MALLORY).created(age(i));
    root.0.spec.hosts.push("n".to_owned());
    let mut routes = virtual_service(&name, "none").namespace(&place).created(age(i));
    routes.0.spec.hosts.clear();
    let shares = (0..n / 2).map(|_| to("s0.mallory", 1));
    vec![root.http_route(HttpRoute { delegate, ..HttpRoute::default() }).build(), routes.http(shares).build()]
}

fn a_wildcard(i: usize, n: usize) -> Vec<Object> {
    // Of each of the four Services.
    let host = "*.mallory.svc.cluster.local";
    let built = virtual_service(&format!("x{i}"), host).namespace(MALLORY).created(age(i));
    vec![built.http((0..n.div_ceil(4)).map(|_| to("s0", 1))).build()]
}

fn backends_of_http(i: usize, n: usize) -> Vec<Object> {
    let built = http_route(&format!("x{i}"), &format!("s{i}")).namespace(MALLORY).created(age(i));
    vec![built.to((0..n).map(|_| backend("s0:80", 1))).build()]
}

fn parents_of_http(i: usize, n: usize) -> Vec<Object> {
    let mut built = http_route(&format!("x{i}"), &format!("s{i}")).namespace(MALLORY).created(age(i));
    built.0.spec.parent_refs.extend(named(n - 1).map(|name| parent(&name)));
    vec![built.to([backend("s0:80", 1)]).build()]
}

fn backends_of_grpc(i: usize, n: usize) -> Vec<Object> {
    let built = grpc_route(&format!("x{i}"), &format!("s{i}")).namespace(MALLORY).created(age(i));
    vec![built.to((0..n).map(|_| backend("s0:80", 1))).build()]
}

fn backends_of_tls(i: usize, n: usize) -> Vec<Object> {
    let built = tls_route(&format!("x{i}"), &format!("s{i}")).namespace(MALLORY).created(age(i));
    vec![built.to((0..n).map(|_| backend("s0:80", 1))).build()]
}

fn backends_of_tcp(i: usize, n: usize) -> Vec<Object> {
    let built = tcp_route(&format!("x{i}"), &format!("s{i}")).namespace(MALLORY).created(age(i));
    vec![built.to((0..n).map(|_| backend("s0:80", 1))).build()]
}

fn subsets(i: usize, n: usize) -> Vec<Object> {
    let built = rule(&format!("x{i}"), &format!("s{i}")).namespace(MALLORY).created(age(i));
    vec![named(n - 1).fold(built, |built, version| built.version(&version)).build()]
}

/// Each has the same endpoints: ten of them, which the victim has.
fn subsets_of_the_same(i: usize, n: usize) -> Vec<Object> {
    let host = "web.default.svc.cluster.local";
    let mut built = rule(&format!("x{i}"), host).namespace(MALLORY).created(age(i));
    built = named(n.div_ceil(3) - 1).fold(built, |built, version| built.version(&version));
    built.0.spec.subsets.iter_mut().for_each(|subset| subset.labels.clear());
    vec![built.build()]
}

fn targets(i: usize, n: usize) -> Vec<Object> {
    let built = policy(&format!("x{i}"), &format!("s{i}")).max(1).namespace(MALLORY).created(age(i));
    vec![named(n - 1).fold(built, |built, name| built.target(&name)).build()]
}

fn hosts_of_a_sidecar(i: usize, n: usize) -> Vec<Object> {
    // Beside those seven of Services and ServiceEntries that there are.
    let hosts: Vec<String> = named(n - 7).map(|name| format!("*/{name}.example.com")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    vec![sidecar(&format!("x{i}"), &hosts).namespace(MALLORY).created(age(i)).build()]
}

/// A share for each of so many localities.
fn shares_of_localities(n: usize) -> serde_json::Value {
    let from = named(n).map(|zone| json!({"from": format!("eu/{zone}"), "to": {"eu": 100}}));
    json!({ "distribute": from.collect::<Vec<_>>() })
}

/// Two for each locality, and a cluster.
fn localities_of_a_rule(i: usize, n: usize) -> Vec<Object> {
    let mut built = rule(&format!("x{i}"), &format!("s{i}")).namespace(MALLORY).created(age(i));
    let setting = json!({"loadBalancer": {"localityLbSetting": shares_of_localities(n / 2 - 1)}});
    built.0.spec.traffic_policy = Some(serde_json::from_value(setting).unwrap());
    vec![built.build()]
}

/// Once more for each of its subsets.
fn localities_of_subsets(i: usize, n: usize) -> Vec<Object> {
    let objects = localities_of_a_rule(i, n / 2);
    let Object::DestinationRule(rule) = &objects[0] else { panic!("a rule") };
    let mut rule = rule.clone();
    let subset = json!({"name": "v1", "labels": {"version": "v1"}});
    std::sync::Arc::make_mut(&mut rule).spec.subsets = vec![serde_json::from_value(subset).unwrap()];
    vec![Object::DestinationRule(rule)]
}

fn localities_of_a_policy(i: usize, n: usize) -> Vec<Object> {
    let mut built = policy(&format!("x{i}"), &format!("s{i}")).namespace(MALLORY).created(age(i));
    built.0.spec.locality = Some(serde_json::from_value(shares_of_localities(n / 2 - 1)).unwrap());
    vec![built.build()]
}

const WAYS: [(&str, Way); 24] = [
    ("ports", ports),
    ("external addresses", external_addresses),
    ("endpoints in slices", endpoints),
    ("workloads of a Service", workloads_of_a_service),
    ("hosts and endpoints of a ServiceEntry", hosts_and_endpoints_of_an_entry),
    ("addresses of a ServiceEntry", addresses_of_an_entry),
    ("Pods of a ServiceEntry", pods_of_an_entry),
    ("shares", shares),
    ("hosts", hosts),
    ("callers", callers),
    ("delegated", delegated),
    ("a wildcard", a_wildcard),
    ("backends of HTTP", backends_of_http),
    ("parents of HTTP", parents_of_http),
    ("backends of GRPC", backends_of_grpc),
    ("backends of TLS", backends_of_tls),
    ("backends of TCP", backends_of_tcp),
    ("subsets", subsets),
    ("subsets of the same", subsets_of_the_same),
    ("targets", targets),
    ("localities of a rule", localities_of_a_rule),
    ("localities of subsets", localities_of_subsets),
    ("localities of a policy", localities_of_a_policy),
    ("hosts of a Sidecar", hosts_of_a_sidecar),
];

/// The reports about this object's being too much.
fn beyond(cluster: &Cluster, key: &ObjectKey) -> Vec<String> {
    let about = cluster.refused().into_iter().filter(|text| text.starts_with(&format!("{key}: ")));
    about.filter(|text| text.contains("beyond that")).collect()
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new(options());
    cluster.apply(victim().into_iter().chain(at_hand()));
    cluster
}

/// Where the victim's connections go.
fn of_victim(cluster: &Cluster) -> Vec<String> {
    let listeners = ["10.0.0.1_80", "10.0.0.2_80", "240.0.0.1_5432"];
    let mut all: Vec<_> = listeners.map(|name| cluster.goes_for(name, "default")).into();
    for name in ["outbound|80||web.default.svc.cluster.local", "outbound|5432||db.example.com"] {
        all.push(format!("{name}: {} {:?}", cluster.traffic(name), cluster.endpoints(name)));
    }
    all
}

#[test]
fn an_object_that_makes_too_much_is_as_if_it_were_not_there() {
    for (what, way) in WAYS {
        let mut cluster_ = cluster();
        let (before, resources) = (of_victim(&cluster_), cluster_.served().clone());
        let too_much = way(0, 56);
        let key = too_much[0].key();
        cluster_.apply(too_much.clone());
        let said = beyond(&cluster_, &key);
        assert_eq!(said.len(), 1, "{what}: {:?}", cluster_.refused());
        for part in ["the object may make at most 50 ", "the object is not in force: ", "raise --max-"] {
            assert!(said[0].contains(part), "{what}: {said:?}");
        }
        if let Some(conditions) = cluster_.compiler.conditions(&key) {
            let all = conditions.ancestors.iter().flat_map(|at| &at.conditions);
            let accepted: Vec<_> = all.filter(|of| of.ty.as_str() == "Accepted").collect();
            assert!(!accepted.is_empty(), "{what}");
            assert!(
                accepted.iter().all(|of| !of.holds() && of.reason == "OverBudget"),
                "{what}: {accepted:?}"
            );
        }
        assert_eq!(*cluster_.served(), resources, "{what}");
        // What is small enough heals it.
        cluster_.apply(way(0, 40));
        let gone = |object: &&Object| !way(0, 40).iter().any(|other| other.key() == object.key());
        too_much.iter().filter(gone).for_each(|object| drop(cluster_.delete(object)));
        assert_eq!(beyond(&cluster_, &key), [""; 0], "{what}");
        assert_eq!(of_victim(&cluster_), before, "{what}");
    }
}

#[test]
fn the_objects_of_a_kind_and_namespace_make_no_more_than_they_may_together() {
    for (what, way) in WAYS {
        let all: Vec<Vec<Object>> = (0..4).map(|i| way(i, 30)).collect();
        let mut cluster_ = cluster();
        // Those that are at hand would count along.
        let alone = |cluster: &mut Cluster| {
            if all[0][0].kind() == Kind::Service {
                at_hand().iter().for_each(|object| drop(cluster.delete(object)));
            }
        };
        alone(&mut cluster_);
        let before = of_victim(&cluster_);
        // The youngest first.
        all.iter().rev().for_each(|objects| drop(cluster_.apply(objects.clone())));
        let out = |cluster: &Cluster| {
            let out = all.iter().map(|objects| beyond(cluster, &objects[0].key()));
            out.map(|said| {
                assert!(said.len() <= 1);
                assert!(said.iter().all(|said| said.contains("namespace mallory may make at most 100 ")));
                said.len()
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(out(&cluster_), [0, 0, 0, 1], "{what}: {:?}", cluster_.refused());
        assert_eq!(of_victim(&cluster_), before, "{what}");
        // Whoever comes in another order has the same.
        let mut other = cluster();
        alone(&mut other);
        let empty = other.served().clone();
        other.apply(all.iter().flatten().cloned());
        assert_eq!(other.served(), cluster_.served(), "{what}");
        // Where one goes, the next takes over.
        all[1].iter().for_each(|object| drop(cluster_.delete(object)));
        assert_eq!(out(&cluster_), [0; 4], "{what}: {:?}", cluster_.refused());
        all.iter().flatten().for_each(|object| drop(cluster_.delete(object)));
        assert_eq!(*cluster_.served(), empty, "{what}");
    }
}

#[test]
fn what_routes_say_of_requests_counts_by_its_size() {
    let mut cluster_ = Cluster::new(CompileOptions { proxy: true, ..options() });
    cluster_.apply(victim().into_iter().chain(at_hand()));
    let before = of_victim(&cluster_);
    // One route, which each of its two hosts would have once more.
    let of = |bytes: usize| {
        let mut built = virtual_service("x", "s0").namespace(MALLORY).created(1);
        built.0.spec.hosts.push("s1".to_owned());
        let route = json!({
            "headers": {"request": {"set": {"x-long": "x".repeat(bytes)}}},
            "route": [{"destination": {"host": "s2"}}],
        });
        built.http_route(serde_json::from_value(route).unwrap()).build()
    };
    let too_much = of(30 * 128);
    cluster_.apply([too_much.clone()]);
    assert_eq!(beyond(&cluster_, &too_much.key()).len(), 1, "{:?}", cluster_.refused());
    assert_eq!(of_victim(&cluster_), before);
    cluster_.apply([of(20 * 128)]);
    assert_eq!(beyond(&cluster_, &too_much.key()), [""; 0]);
    // Where nobody looks at requests nothing of it is sent.
    let mut without = Cluster::new(options());
    without.apply(victim().into_iter().chain(at_hand()).chain([too_much.clone()]));
    assert_eq!(beyond(&without, &too_much.key()), [""; 0]);
    // A delegate's counts for whom it is.
    cluster_.delete(&too_much);
    let mut delegate = virtual_service("d", "none").namespace("another").created(1);
    delegate.0.spec.hosts.clear();
    let long = json!({
        "headers": {"request": {"set": {"x-long": "x".repeat(30 * 128)}}},
        "route": [{"destination": {"host": "s2.mallory"}}],
    });
    let delegate = delegate.http_route(serde_json::from_value(long).unwrap());
    let mut root = virtual_service("root", "s0").namespace(MALLORY).created(1);
    root.0.spec.hosts.push("s1".to_owned());
    let to_it = json!({"delegate": {"name": "d", "namespace": "another"}});
    let root = root.http_route(serde_json::from_value(to_it).unwrap()).build();
    cluster_.apply([delegate.build(), root.clone()]);
    assert_eq!(beyond(&cluster_, &root.key()).len(), 1, "{:?}", cluster_.refused());
    assert_eq!(of_victim(&cluster_), before);
}

/// A route for callers with each of so many labels, of which every Pod has its own.
fn sets_of_labels(i: usize, n: usize) -> Object {
    let wanted =
        |label| HttpMatch { source_labels: [(label, "yes".to_owned())].into(), ..HttpMatch::default() };
    let matches = named(n).map(|name| wanted(format!("{name}-{i}"))).collect();
    let route = HttpRoute { matches, route: vec![to("s0", 1)], ..HttpRoute::default() };
    let built = virtual_service(&format!("x{i}"), &format!("s{i}")).namespace(MALLORY).created(age(i));
    built.http_route(route).build()
}

#[test]
fn no_namespace_splits_the_callers_of_others_without_a_bound() {
    let options = CompileOptions { max_object_label_sets: 5, max_namespace_label_sets: 12, ..options() };
    let mut cluster = Cluster::new(options.clone());
    cluster.apply(victim().into_iter().chain(at_hand()));
    // The victim's Pod has all labels of which anybody could think, and its own rules count with one.
    let labelled = (0..4).flat_map(|i| named(9).map(move |name| format!("{name}-{i}")));
    let caller = labelled
        .fold(pod("caller").ip("10.7.0.1").label("app", "web"), |pod, label| pod.label(&label, "yes"));
    let own =
        HttpMatch { source_labels: [("app".to_owned(), "web".to_owned())].into(), ..HttpMatch::default() };
    let own = HttpRoute { matches: vec![own], route: vec![to("web", 1)], ..HttpRoute::default() };
    let caller = [caller.build(), virtual_service("own", "api").http_route(own).build()];
    cluster.apply(caller.clone());
    let name = ObjectName::new("default", "caller");
    let (before, class) = (of_victim(&cluster), cluster.compiler.caller_class(&name));
    assert!(class.starts_with("default#"), "{class}");

    // One that asks for too much is as if it weren't there.
    let too_much = sets_of_labels(0, 6);
    cluster.apply([too_much.clone()]);
    let said = beyond(&cluster, &too_much.key());
    assert_eq!(said.len(), 1, "{:?}", cluster.refused());
    for part in ["may ask for at most 5 sets of callers' labels", "raise --max-object-label-sets"] {
        assert!(said[0].contains(part), "{said:?}");
    }
    let conditions = cluster.compiler.conditions(&too_much.key()).expect("a VirtualService has conditions");
    let accepted = conditions.ancestors.iter().flat_map(|at| &at.conditions);
    let accepted: Vec<_> = accepted.filter(|of| of.ty.as_str() == "Accepted").collect();
    assert!(!accepted.is_empty() && accepted.iter().all(|of| !of.holds() && of.reason == "OverBudget"));
    assert_eq!(cluster.compiler.caller_class(&name), class, "nobody's class follows from it");
    assert_eq!(of_victim(&cluster), before);

    // So are the youngest that ask for too much together, in whatever order they come.
    let all: Vec<Object> = (0..4).map(|i| sets_of_labels(i, 5)).collect();
    cluster.apply(all.iter().rev().cloned());
    let out = |cluster: &Cluster| {
        let said = all.iter().map(|object| beyond(cluster, &object.key()));
        said.map(|said| said.iter().any(|said| said.contains("may ask for at most 12 sets")))
            .collect::<Vec<_>>()
    };
    assert_eq!(out(&cluster), [false, false, true, true], "{:?}", cluster.refused());
    assert_eq!(of_victim(&cluster), before);
    assert_ne!(cluster.compiler.caller_class(&name), class, "what is in force tells callers apart");
    let mut other = Cluster::new(options);
    other.apply(all.iter().cloned().chain(victim()).chain(at_hand()).chain(caller));
    assert_eq!(other.served(), cluster.served());
    // Where one goes, the next takes over; without them all is as before.
    cluster.delete(&all[0]);
    assert_eq!(out(&cluster), [false, false, false, true]);
    all.iter().skip(1).for_each(|object| drop(cluster.delete(object)));
    assert_eq!(cluster.compiler.caller_class(&name), class);
    assert_eq!(of_victim(&cluster), before);

    // What a workload is chosen by counts likewise: those of one kind and namespace together.
    let rules: Vec<Object> = (0..13)
        .map(|i| {
            let mut built = rule(&format!("r{i}"), &format!("s{}", i % 4)).namespace(MALLORY).created(age(i));
            let selector = json!({"matchLabels": {(format!("l{i}")): "yes"}});
            built.0.spec.workload_selector = Some(serde_json::from_value(selector).unwrap());
            built.version("v1").build()
        })
        .collect();
    cluster.apply(rules.clone());
    let out: Vec<usize> = rules.iter().map(|object| beyond(&cluster, &object.key()).len()).collect();
    assert_eq!(out, [vec![0; 12], vec![1]].concat(), "{:?}", cluster.refused());
    assert_eq!(of_victim(&cluster), before);
}

#[test]
fn what_others_make_counts_for_whom_it_is_for() {
    // Endpoints come and go behind a Service of the victim's: who repeats them is bounded, the victim isn't.
    let mut cluster_ = cluster();
    let mine = subsets_of_the_same(0, 21);
    let key = mine[0].key();
    cluster_.apply(mine);
    assert_eq!(beyond(&cluster_, &key), [""; 0], "7 clusters and 6 times 2 endpoints");
    let of = |n: usize| {
        let built = slice("web", "web").port(8080);
        (0..n).fold(built, |built, n| built.endpoint(&format!("10.1.0.{n}"))).build()
    };
    cluster_.apply([of(8)]);
    assert_eq!(beyond(&cluster_, &key).len(), 1, "7 clusters and 6 times 8 endpoints");
    cluster_.apply([of(7)]);
    assert_eq!(beyond(&cluster_, &key), [""; 0]);
    // So are those who see a Service by a wildcard.
    let mut wild = subsets(0, 9);
    let Object::DestinationRule(rule) = &mut wild[0] else { panic!("a rule") };
    std::sync::Arc::make_mut(rule).spec.host = "*.mallory.svc.cluster.local".to_owned();
    cluster_.apply(wild.clone());
    assert_eq!(beyond(&cluster_, &wild[0].key()), [""; 0], "of four Services");
    cluster_.apply(ports(0, 4).into_iter().chain(ports(1, 4)));
    assert_eq!(beyond(&cluster_, &wild[0].key()).len(), 1, "of six");
    ports(0, 4).iter().for_each(|object| drop(cluster_.delete(object)));
    assert_eq!(beyond(&cluster_, &wild[0].key()), [""; 0], "of five");
}

#[test]
fn the_root_namespace_is_not_bounded() {
    let mut cluster_ = Cluster::new(CompileOptions { root_namespace: MALLORY.into(), ..options() });
    cluster_.apply(victim().into_iter().chain(at_hand()));
    for (what, way) in WAYS {
        let objects = way(0, 60);
        cluster_.apply(objects.clone());
        assert_eq!(beyond(&cluster_, &objects[0].key()), [""; 0], "{what}");
    }
}

#[test]
fn a_route_to_what_is_beyond_its_budget_refuses_its_share_and_says_why() {
    let mut cluster_ = cluster();
    cluster_.apply(ports(0, 60));
    let route = virtual_service("r", "s0").namespace(MALLORY).http([to("x0", 1), to("s1", 1)]);
    cluster_.apply([route.build()]);
    assert_eq!(
        cluster_.goes("10.0.1.0_80"),
        format!("http:{}=1 BlackHoleCluster=1", "outbound|80||s1.mallory.svc.cluster.local")
    );
    let refused = cluster_.refused();
    let why = "Service mallory/x0 is beyond what it, or its namespace, may make";
    assert!(refused.iter().any(|text| text.contains(why)), "{refused:?}");
    cluster_.apply(ports(0, 20));
    assert!(!cluster_.refused().iter().any(|text| text.contains(why)));
}
