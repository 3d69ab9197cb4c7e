//! The result depends on the objects only: not on the order of events, not on what was before.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{
    core::v1::NodeSpec,
    discovery::v1::{EndpointHints, ForZone},
};
use proptest::prelude::*;
use slotmesh_builders::{
    backend, grant, grpc_route, http_route, node, pod, policy, profile, rule, service, service_entry,
    sidecar, slice, tcp_route, tls_route, to, virtual_service, workload, workload_entry,
};
use slotmesh_compile::{CompileOptions, Compiler, Conditions, Object, ObjectKey, ObjectName, Report};
use slotmesh_crds::{CallerSelector, Delegate, HttpMatch, HttpRoute};
use slotmesh_xds::Resource;

use crate::support::Cluster;

/// Objects of few names, so that they meet: in hosts, addresses, labels and subsets.
fn object() -> impl Strategy<Value = Object> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let age = prop::option::of(0..3_i64);
    let services = (name.clone(), age.clone(), 1..4_u8, 0..7_usize).prop_map(|(name, age, ip, shape)| {
        let mut built = service(name).ip(&format!("10.0.0.{ip}"));
        built = match shape {
            0 => built.port(80),
            1 => built.named_port("http", 80).named_port("tcp", 81),
            2 => built.ip("fd00::1").port(80).selector("version", "v2"),
            3 => {
                built.0.spec.get_or_insert_default().session_affinity = Some("ClientIP".to_owned());
                built.port(80)
            }
            4 => {
                let label = ("service.kubernetes.io/service-proxy-name".to_owned(), "other".to_owned());
                built.0.metadata.labels = Some([label].into());
                built.port(80)
            }
            5 => built.named_port("http", 80).udp_port("dns", 80),
            // Refused.
            _ => built.port(0),
        };
        age.map_or(built.clone(), |age| built.created(age)).build()
    });
    // Hosts that only ServiceEntries can have, and one that a Service of the namespace "other" has, too.
    let host = prop::sample::select(vec!["x.example.com", "y.example.com", "a.other"]);
    let entries = (name.clone(), host.clone(), host.clone(), age.clone(), 1..4_u8, 0..5_usize).prop_map(
        |(name, host, second, age, ip, shape)| {
            let place = if age == Some(2) { "other" } else { "default" };
            let (address, port) =
                if shape == 3 { ("10.2.0.1".to_owned(), 81) } else { (format!("10.0.0.{ip}"), 80) };
            let mut built = service_entry(name, host).namespace(place).ip(&address).port("http", port, 8080);
            if shape == 1 {
                built = built.udp_port("dns", port, 8082);
            }
            let built = match shape {
                0 => built.endpoint(workload("10.1.0.9", "v1")).endpoint(workload("10.1.0.8", "v2")),
                1 => built.select("version", "v1"),
                2 => built.select("version", "v1").set(|spec| {
                    spec.hosts.push(second.to_owned());
                    spec.export_to = vec![".".to_owned(), "third".to_owned()];
                }),
                3 => built.ip("10.1.0.4").endpoint(workload("10.1.0.9", "v1")),
                // Refused.
                _ => built.endpoint(workload("", "v1")),
            };
            age.map_or(built.clone(), |age| built.created(age)).build()
        },
    );
    let endpoints = prop::collection::vec((1..5_u8, any::<bool>()), 0..4);
    let slices = (name.clone(), name.clone(), endpoints, prop::bool::weighted(0.2)).prop_map(
        |(name, of, endpoints, hinted)| {
            let mut built = slice(name, of).port(8080).named_port("http", 8081).udp_port("dns", 8082);
            for (i, by_pod) in endpoints {
                let ip = format!("10.1.0.{i}");
                built = if by_pod { built.pod_endpoint(&ip, "a") } else { built.endpoint(&ip) };
            }
            for endpoint in built.0.endpoints.iter_mut().filter(|_| hinted) {
                let zones = vec![ForZone { name: "z".to_owned() }];
                endpoint.hints = Some(EndpointHints { for_zones: Some(zones), for_nodes: None });
            }
            built.build()
        },
    );
    let version = prop::sample::select(vec!["v1", "v2"]);
    let machines = (name.clone(), version.clone(), 1..5_u8, 0..3_u32).prop_map(|(name, v, i, weight)| {
        let built = workload_entry(name, &format!("10.2.0.{i}")).label("version", v).weight(weight);
        built.port("http", 8000 + weight).build()
    });
    let place = prop::sample::select(vec!["default", "default", "other"]);
    let pods = (name.clone(), place, version.clone(), 1..5_u8).prop_map(|(name, place, v, i)| {
        pod(name).namespace(place).label("version", v).ip(&format!("10.1.0.{i}")).build()
    });
    let target = prop_oneof![name.clone(), host];
    // Of the Services' namespace, of the root namespace, of a third.
    let namespace = prop::sample::select(vec!["default", "default", "istio-system", "other"]);
    let versions = prop::sample::subsequence(vec!["v1", "v2"], 0..=2);
    let rules = (name.clone(), target.clone(), age.clone(), versions, namespace, 0..7_usize).prop_map(
        |(name, host, age, versions, namespace, shape)| {
            // A short name is one of the rule's namespace.
            let of_default = format!("{host}.default.svc.cluster.local");
            let host = if host.contains('.') { host } else { &of_default };
            let mut built = versions.into_iter().fold(rule(name, host), |rule, v| rule.version(v));
            match shape {
                0 => built = built.balance("ROUND_ROBIN"),
                1 => built.0.spec.export_to = vec![".".to_owned()],
                2 => built.0.spec.host = "*.cluster.local".to_owned(),
                3 => {
                    let match_labels = [("version".to_owned(), "v1".to_owned())].into();
                    let selector = CallerSelector { match_labels, ..Default::default() };
                    built.0.spec.workload_selector = Some(selector);
                }
                _ => {}
            }
            built = built.namespace(namespace);
            age.map_or(built.clone(), |age| built.created(age)).build()
        },
    );
    let destination = (target.clone(), prop::option::of(version), 0..3_i32).prop_map(
        |(host, subset, weight)| match subset {
            Some(subset) => to(&format!("{host}/{subset}"), weight),
            None => to(host, weight),
        },
    );
    // Some are for a part of the callers, for many hosts, or delegated to others.
    let shape = (0..9_usize, name.clone(), any::<bool>());
    let routes =
        (name.clone(), target, age.clone(), any::<bool>(), prop::collection::vec(destination, 1..3), shape)
            .prop_map(|(name, host, age, http, to, (shape, other, elsewhere))| {
                let mut built =
                    virtual_service(name, if shape == 1 { "*.default.svc.cluster.local" } else { host });
                let matches = match shape {
                    2 => vec![HttpMatch { source_namespace: Some("other".to_owned()), ..Default::default() }],
                    3 => vec![HttpMatch {
                        source_labels: [("version".to_owned(), "v1".to_owned())].into(),
                        source_namespace: elsewhere.then(|| "other".to_owned()),
                        ..Default::default()
                    }],
                    _ => Vec::new(),
                };
                let delegate =
                    (shape == 4).then(|| Delegate { name: other.to_owned(), ..Default::default() });
                built = match (http || (2..=5).contains(&shape), delegate) {
                    (_, Some(_)) if elsewhere => built.http_route(HttpRoute {
                        delegate: Some(Delegate {
                            name: other.to_owned(),
                            namespace: Some("other".to_owned()),
                            ..Default::default()
                        }),
                        ..Default::default()
                    }),
                    (_, delegate @ Some(_)) => built.http_route(HttpRoute { delegate, ..Default::default() }),
                    (true, None) => built.http_route(HttpRoute { matches, route: to, ..Default::default() }),
                    (false, None) => built.tcp(to),
                };
                match shape {
                    5 => built.0.spec.hosts.clear(),
                    6 => built.0.spec.export_to = vec![".".to_owned(), "other".to_owned()],
                    7 => built.0.spec.export_to = vec!["third".to_owned()],
                    _ => {}
                }
                let built = if elsewhere && shape >= 5 { built.namespace("other") } else { built };
                age.map_or(built.clone(), |age| built.created(age)).build()
            });
    let backends = prop::collection::vec((name.clone(), -1..3_i32), 0..3);
    let gateway = (name.clone(), name.clone(), age.clone(), 0..8_u8, backends).prop_map(
        |(name, host, age, kind, to)| {
            // Some are of callers of another namespace.
            if kind >= 4 {
                let mut built = http_route(name, host)
                    .namespace("other")
                    .to(to.into_iter().map(|(name, weight)| backend(&format!("default/{name}:80"), weight)));
                built.0.spec.parent_refs[0].namespace = Some("default".to_owned());
                return built.created(age.unwrap_or(9)).build();
            }
            // Some lead to another namespace, which allows it or doesn't.
            let to = to.into_iter().enumerate().map(|(i, (name, weight))| {
                let place = if i == 1 { format!("other/{name}:80") } else { format!("{name}:80") };
                backend(&place, weight)
            });
            let to: Vec<_> = to.collect();
            let age = age.unwrap_or(9);
            match kind {
                0 => grpc_route(name, host).to(to).created(age).build(),
                1 => http_route(name, host).to(to).created(age).build(),
                2 => tls_route(name, host).to(to).created(age).build(),
                _ => tcp_route(name, host).to(to).created(age).build(),
            }
        },
    );
    let others = (name.clone(), 4..6_u8)
        .prop_map(|(name, ip)| service(name).namespace("other").ip(&format!("10.0.0.{ip}")).port(80).build());
    let grants =
        (name.clone(), any::<bool>(), prop::option::of(name.clone())).prop_map(|(name, http, only)| {
            let built =
                grant(name, if http { "HTTPRoute" } else { "TCPRoute" }, "default").namespace("other");
            only.map_or(built.clone(), |only| built.only(only)).build()
        });
    let name_of_sidecar = name.clone();
    let policies = (name.clone(), name, prop::option::of(Just("http")), age.clone(), 0..3_u32).prop_map(
        |(name, service, port, age, most)| {
            let target = port.map_or(service.to_owned(), |port| format!("{service}/{port}"));
            let built = policy(name, &target).max(most);
            age.map_or(built.clone(), |age| built.created(age)).build()
        },
    );
    let place = prop::sample::select(vec!["default", "other", "third", "istio-system"]);
    let sidecars = (name_of_sidecar, place, 0..4_usize, any::<bool>(), age.clone()).prop_map(
        |(name, place, hosts, strict, age)| {
            let hosts =
                [&["./*"][..], &["*/*.default.svc.cluster.local"], &["~/*"], &["default/*", "./*"]][hosts];
            let mut built = sidecar(name, hosts).namespace(place);
            built = if strict { built.registry_only() } else { built };
            built = if age == Some(1) { built.select("version", "v1") } else { built };
            age.map_or(built.clone(), |age| built.created(age)).build()
        },
    );
    let label = prop::sample::select(vec!["a", "b"]);
    let nodes = (label.clone(), label.clone(), 1..5_u8).prop_map(|(name, value, ip)| {
        let mut built = node(name).label("l", value);
        built.0.spec = Some(NodeSpec { pod_cidr: Some(format!("10.0.0.{ip}/31")), ..NodeSpec::default() });
        built.build()
    });
    let profiles =
        (label.clone(), prop::option::of(label), 0..3_u32, age).prop_map(|(name, select, cap, age)| {
            let built = profile(name).cap(cap);
            let built = select.map_or(built.clone(), |value| built.select("l", value));
            age.map_or(built.clone(), |age| built.created(age)).build()
        });
    prop_oneof![
        2 => services, 2 => slices, 1 => pods, 1 => rules, 2 => routes, 2 => gateway, 1 => others, 1 => grants,
        1 => sidecars, 1 => policies, 1 => nodes, 1 => profiles, 2 => entries, 1 => machines
    ]
}

fn state(compiler: &Compiler) -> (Vec<Resource>, Vec<Report>) {
    (compiler.resources(), compiler.reports().cloned().collect())
}

/// The caller class of every Pod that may be there.
fn classes(compiler: &Compiler) -> Vec<String> {
    let pods = ["default", "other"]
        .into_iter()
        .flat_map(|namespace| ["a", "b", "c"].into_iter().map(move |name| ObjectName::new(namespace, name)));
    pods.map(|pod| compiler.caller_class(&pod)).collect()
}

/// Follows the conditions of all objects by what each flush says may have changed.
#[derive(Default)]
struct Statuses(BTreeMap<ObjectKey, Conditions>);

impl Statuses {
    fn follow(&mut self, compiler: &Compiler, affected: BTreeSet<ObjectKey>) {
        for key in affected {
            match compiler.conditions(&key) {
                Some(conditions) => drop(self.0.insert(key, conditions)),
                None => drop(self.0.remove(&key)),
            }
        }
    }
}

fn by_key(objects: Vec<Object>) -> BTreeMap<ObjectKey, Object> {
    objects.into_iter().map(|object| (object.key(), object)).collect()
}

/// So narrow that some objects of each kind don't fit.
fn options() -> CompileOptions {
    CompileOptions {
        max_entry_endpoints: 4,
        max_namespace_endpoints: 5,
        max_object_parts: 9,
        max_namespace_parts: 12,
        ..CompileOptions::default()
    }
}

fn cluster(objects: impl IntoIterator<Item = Object>) -> Cluster {
    let mut cluster = Cluster::new(options());
    cluster.apply(objects);
    cluster
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_events_does_not_matter(
        (objects, shuffled) in prop::collection::vec(object(), 0..20).prop_flat_map(|objects| {
            let objects: Vec<_> = by_key(objects).into_values().collect();
            (Just(objects.clone()), Just(objects).prop_shuffle())
        }),
        batches in prop::collection::vec(any::<bool>(), 20),
    ) {
        let at_once = cluster(objects);
        let mut one_by_one = Cluster::new(options());
        for (object, batch_ends) in shuffled.iter().zip(batches) {
            one_by_one.compiler.apply(object, None);
            if batch_ends {
                one_by_one.flush();
            }
        }
        one_by_one.flush();
        prop_assert_eq!(state(&at_once.compiler), state(&one_by_one.compiler));
        prop_assert_eq!(at_once.served(), one_by_one.served());
    }

    /// Whatever was before: objects are replaced, refused and deleted, one compiler has seen all of it, another
    /// one was started half-way from what was held then, and the third knows what is left only.
    #[test]
    fn step_by_step_is_the_same_as_from_scratch(
        events in prop::collection::vec((object(), prop::bool::weighted(0.2)), 0..60),
        restart in 0..60_usize,
    ) {
        let mut held = BTreeMap::new();
        let mut incremental = Cluster::new(options());
        let mut restarted = Cluster::new(options());
        let mut statuses = Statuses::default();
        for (i, (object, delete)) in events.into_iter().enumerate() {
            if i == restart {
                restarted = cluster(held.values().rev().cloned());
            }
            let key = object.key();
            let output = if delete {
                held.remove(&key);
                restarted.delete(&object);
                incremental.delete(&object)
            } else {
                held.insert(key, object.clone());
                restarted.apply([object.clone()]);
                incremental.apply([object])
            };
            statuses.follow(&incremental.compiler, output.affected);
        }
        let keys: Vec<_> = held.keys().cloned().collect();
        let fresh = cluster(held.into_values());
        // Whoever asks only for what is said to have changed misses nothing.
        for key in keys {
            prop_assert_eq!(statuses.0.remove(&key), fresh.compiler.conditions(&key), "{}", key);
        }
        prop_assert!(statuses.0.is_empty());
        for other in [&incremental, &restarted] {
            prop_assert_eq!(classes(&fresh.compiler), classes(&other.compiler));
            prop_assert_eq!(state(&fresh.compiler), state(&other.compiler));
            prop_assert_eq!(fresh.served(), other.served());
        }
    }
}

#[test]
fn nothing_is_left_when_all_is_deleted() {
    let mut cluster = Cluster::default();
    let objects = [
        service("web").ip("10.0.0.1").port(80).build(),
        service("bad").ip("x").port(80).build(),
        slice("web", "web").port(80).pod_endpoint("10.1.0.1", "a").build(),
        rule("web", "web").version("v1").build(),
        virtual_service("web", "web").http([to("web/v1", 1)]).build(),
        virtual_service("lost", "nowhere").http([to("web/v9", 1)]).build(),
        pod("a").label("version", "v1").ip("10.1.0.1").build(),
        service_entry("e", "x.example.com")
            .ip("10.0.0.2")
            .port("tcp", 80, 80)
            .select("version", "v1")
            .build(),
        service_entry("f", "x.example.com").ip("10.0.0.2").port("tcp", 80, 80).build(),
        workload_entry("m", "10.2.0.1").label("version", "v1").build(),
        http_route("h", "web").to([backend("other/web:80", 1)]).build(),
        grant("g", "HTTPRoute", "default").namespace("other").build(),
        policy("p", "web").max(1).build(),
        node("n").label("l", "1").build(),
        profile("n").select("l", "1").build(),
    ];
    cluster.apply(objects.clone());
    objects.iter().for_each(|object| cluster.compiler.delete(&object.key()));
    cluster.flush();
    assert!(cluster.served().is_empty());
    assert_eq!(state(&cluster.compiler), (Vec::new(), Vec::new()));
}
