//! Who gets which answer, told by a plain model that looks at every object for every caller.

use std::collections::BTreeMap;

use proptest::prelude::*;
use slotmesh_builders::{
    backend, http_route, pod, service, service_entry, sidecar, to, virtual_service, workload,
};
use slotmesh_compile::{Object, ObjectName};
use slotmesh_crds::{HttpMatch, HttpRoute};

use crate::support::{Cluster, NOWHERE, ONWARD, cluster, udp_cluster};

const NAMESPACES: [&str; 3] = ["default", "b", "c"];
const LISTENER: &str = "10.0.0.1_80";
/// The same Service's UDP port.
const UDP: &str = "10.0.0.1_53/UDP";
const ENTRY: &str = "240.0.0.1_80";
/// A version of which no Service is there: its share is refused.
const MISSING: u8 = 4;

/// Somebody who connects to `web` of namespace `default`.
#[derive(Clone, Copy, Debug)]
struct Caller {
    namespace: &'static str,
    has_label: bool,
}

/// Versions, and the weight of each.
type Shares = Vec<(u8, u32)>;

/// A VirtualService of a namespace, seen in some, whose rules are for callers.
#[derive(Clone, Debug)]
struct Virtual {
    namespace: &'static str,
    age: i64,
    seen_in: Vec<&'static str>,
    /// By namespace and label of the caller, to versions by weight.
    rules: Vec<(Option<&'static str>, bool, Shares)>,
}

/// A route of Gateway API.
#[derive(Clone, Debug)]
struct Gateway {
    namespace: &'static str,
    age: i64,
    shares: Shares,
}

/// The sight of callers of a namespace, and what becomes of the rest.
#[derive(Clone, Debug)]
struct Sight {
    namespace: &'static str,
    labelled: bool,
    hosts: &'static str,
    strict: bool,
}

/// A ServiceEntry of a namespace, seen in some.
#[derive(Clone, Debug)]
struct Entry {
    namespace: &'static str,
    seen_in: Vec<&'static str>,
}

#[derive(Clone, Debug, Default)]
struct World {
    virtuals: Vec<Virtual>,
    gateways: Vec<Gateway>,
    sights: Vec<Sight>,
    entry: Option<Entry>,
}

/// How many random worlds there are: `make stress` asks for 100,000.
fn cases() -> u32 {
    let asked = std::env::var("SLOTMESH_MODEL_WORLDS").ok();
    asked.map_or(1_000, |worlds| worlds.parse().expect("SLOTMESH_MODEL_WORLDS is a number"))
}

/// The clusters of shares: what is missing, or has no weight at all, refuses.
fn split(shares: &Shares) -> String {
    let mut there: Vec<(String, u32)> = shares
        .iter()
        .filter(|(version, weight)| *version != MISSING && *weight > 0)
        .map(|(version, weight)| (cluster(&format!("web-v{version}"), 80, ""), *weight))
        .collect();
    let missing: u32 =
        shares.iter().filter(|(version, _)| *version == MISSING).map(|(_, weight)| weight).sum();
    if missing > 0 || there.is_empty() {
        there.push((NOWHERE.to_owned(), missing.max(1)));
    }
    match &there[..] {
        [(only, _)] => only.clone(),
        all => all.iter().map(|(name, weight)| format!("{name}={weight}")).collect::<Vec<_>>().join(" "),
    }
}

impl World {
    fn objects(&self) -> Vec<Object> {
        let of = |name: &str, ip: u8| service(name).ip(&format!("10.0.0.{ip}")).port(80).build();
        let web = service("web").ip("10.0.0.1").named_port("http", 80).udp_port("dns", 53).build();
        let mut objects = vec![web, of("web-v1", 2), of("web-v2", 3), of("web-v3", 4)];
        if let Some(Entry { namespace, seen_in }) = &self.entry {
            let entry = service_entry("e", "e.example.com").namespace(namespace).ip("240.0.0.1");
            let entry = entry.port("tcp", 80, 80).endpoint(workload("10.9.0.1", "v1"));
            let seen_in = seen_in.iter().map(|to| (*to).to_owned()).collect();
            objects.push(entry.set(|spec| spec.export_to = seen_in).build());
        }
        for namespace in NAMESPACES {
            objects.push(pod("plain").namespace(namespace).build());
            objects.push(pod("labelled").namespace(namespace).label("app", "x").build());
        }
        for (i, vs) in self.virtuals.iter().enumerate() {
            let host = "web.default.svc.cluster.local";
            let mut built = virtual_service(&format!("vs{i}"), host).namespace(vs.namespace).created(vs.age);
            built.0.spec.export_to = vs.seen_in.iter().map(|to| (*to).to_owned()).collect();
            for (namespace, label, shares) in &vs.rules {
                let matched = HttpMatch {
                    source_namespace: namespace.map(str::to_owned),
                    source_labels: label.then(|| ("app".to_owned(), "x".to_owned())).into_iter().collect(),
                    ..Default::default()
                };
                built = built.http_route(HttpRoute {
                    matches: vec![matched],
                    route: shares
                        .iter()
                        .map(|(version, weight)| {
                            to(&format!("web-v{version}.default"), i32::try_from(*weight).expect("small"))
                        })
                        .collect(),
                    ..Default::default()
                });
            }
            objects.push(built.build());
        }
        for (i, route) in self.gateways.iter().enumerate() {
            let backends = route.shares.iter();
            let to = backends.map(|(version, weight)| {
                backend(&format!("default/web-v{version}:80"), i32::try_from(*weight).expect("small"))
            });
            let mut built =
                http_route(&format!("r{i}"), "web").namespace(route.namespace).created(route.age).to(to);
            built.0.spec.parent_refs[0].namespace = Some("default".to_owned());
            objects.push(built.build());
        }
        for (i, sight) in self.sights.iter().enumerate() {
            let mut built =
                sidecar(&format!("s{i}"), &[sight.hosts]).namespace(sight.namespace).created(i as i64);
            built = if sight.labelled { built.select("app", "x") } else { built };
            objects.push(if sight.strict { built.registry_only() } else { built }.build());
        }
        objects
    }

    /// The Sidecar in force for a caller: one that chooses it, else one for all, the oldest.
    fn sight(&self, caller: Caller) -> Option<&Sight> {
        let own = |labelled: bool| {
            let mut of = self.sights.iter().filter(|sight| sight.namespace == caller.namespace);
            of.find(|sight| sight.labelled == labelled && (!labelled || caller.has_label))
        };
        own(true).or_else(|| own(false))
    }

    /// Tells whether a caller sees what is in a namespace.
    fn sees(&self, caller: Caller, namespace: &str) -> bool {
        match self.sight(caller).map(|sight| sight.hosts) {
            None | Some("*/*") => true,
            Some("./*") => namespace == caller.namespace,
            Some("default/*") => namespace == "default",
            Some(other) => panic!("{other}"),
        }
    }

    /// The cluster of connections to what a caller doesn't see.
    fn unseen(&self, caller: Caller, else_to: String) -> String {
        if self.sight(caller).is_some_and(|sight| sight.strict) { NOWHERE.to_owned() } else { else_to }
    }

    /// The cluster of a caller's datagrams.
    fn answer_by_udp(&self, caller: Caller) -> String {
        let own = udp_cluster("web", 53);
        if self.sees(caller, "default") { own } else { self.unseen(caller, own) }
    }

    /// The cluster of a caller's connections to the ServiceEntry.
    fn answer_of_entry(&self, caller: Caller) -> Option<String> {
        let Entry { namespace, seen_in } = self.entry.as_ref()?;
        let exported = seen_in.is_empty() || seen_in.contains(&caller.namespace);
        Some(match exported && self.sees(caller, namespace) {
            true => "outbound|80||e.example.com".to_owned(),
            false => self.unseen(caller, ONWARD.to_owned()),
        })
    }

    /// The clusters of a caller's connections.
    fn answer(&self, caller: Caller) -> String {
        let sees = |namespace: &str| self.sees(caller, namespace);
        let own = cluster("web", 80, "");
        if !sees("default") {
            return self.unseen(caller, own);
        }
        let mut virtuals: Vec<_> = self.virtuals.iter().enumerate().collect();
        virtuals.sort_by_key(|(i, vs)| (vs.age, vs.namespace, *i));
        let seen = |vs: &Virtual| {
            sees(vs.namespace) && (vs.seen_in.is_empty() || vs.seen_in.contains(&caller.namespace))
        };
        let first = virtuals.into_iter().find(|(_, vs)| seen(vs));
        let applies = |(namespace, label, _): &&(Option<&str>, bool, Shares)| {
            namespace.is_none_or(|namespace| namespace == caller.namespace) && (!label || caller.has_label)
        };
        if let Some((_, _, to)) = first.and_then(|(_, vs)| vs.rules.iter().find(applies)) {
            return split(to);
        }
        let mut gateways: Vec<_> = self.gateways.iter().enumerate().collect();
        gateways.sort_by_key(|(i, route)| (route.age, route.namespace, *i));
        let of = |namespace: &str| gateways.iter().find(|(_, route)| route.namespace == namespace);
        let route = of(caller.namespace).or_else(|| of("default"));
        route.map_or(own, |(_, route)| split(&route.shares))
    }
}

fn world() -> impl Strategy<Value = World> {
    let namespace = || prop::sample::select(NAMESPACES.to_vec());
    let shares = || prop::collection::vec((1..=MISSING, 0..4_u32), 1..4);
    // As one object names each once.
    let shares =
        move || shares().prop_map(|shares| BTreeMap::from_iter(shares).into_iter().collect::<Shares>());
    // A VirtualService's sum up to something.
    let some = shares().prop_map(|mut shares| {
        if shares.iter().all(|(_, weight)| *weight == 0) {
            shares[0].1 = 1;
        }
        shares
    });
    let rule = (prop::option::of(namespace()), any::<bool>(), some);
    let seen_in = prop::sample::subsequence(NAMESPACES.to_vec(), 0..=2);
    let one = (namespace(), 0..3_i64, seen_in, prop::collection::vec(rule, 1..4));
    let one = one.prop_map(|(namespace, age, seen_in, rules)| Virtual { namespace, age, seen_in, rules });
    let route = (namespace(), 0..3_i64, shares());
    let route = route.prop_map(|(namespace, age, shares)| Gateway { namespace, age, shares });
    let seen_in = prop::sample::subsequence(NAMESPACES.to_vec(), 0..=2);
    let entry = (namespace(), seen_in).prop_map(|(namespace, seen_in)| Entry { namespace, seen_in });
    let hosts = prop::sample::select(vec!["*/*", "./*", "default/*"]);
    let sight = (namespace(), any::<bool>(), hosts, any::<bool>());
    let sight =
        sight.prop_map(|(namespace, labelled, hosts, strict)| Sight { namespace, labelled, hosts, strict });
    let all = (
        prop::collection::vec(one, 0..4),
        prop::collection::vec(route, 0..4),
        prop::collection::vec(sight, 0..3),
        prop::option::of(entry),
    );
    all.prop_map(|(virtuals, gateways, sights, entry)| World { virtuals, gateways, sights, entry })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn each_caller_gets_what_the_model_says(world in world()) {
        let cluster_ = Cluster::with(world.objects());
        for namespace in NAMESPACES {
            for (name, has_label) in [("plain", false), ("labelled", true)] {
                let class = cluster_.compiler.caller_class(&ObjectName::new(namespace, name));
                let goes = cluster_.goes_for(LISTENER, &class);
                let goes = goes.strip_prefix("http:").unwrap_or(&goes);
                let caller = Caller { namespace, has_label };
                prop_assert_eq!(goes, world.answer(caller), "{} {}", namespace, name);
                let by_udp = cluster_.goes_for(UDP, &class);
                prop_assert_eq!(by_udp, format!("udp:{}", world.answer_by_udp(caller)), "{} {}", namespace, name);
                if let Some(expected) = world.answer_of_entry(caller) {
                    prop_assert_eq!(cluster_.goes_for(ENTRY, &class), expected, "{} {}", namespace, name);
                }
            }
        }
        // Nobody has a chain who gets what everybody gets, or all of its namespace.
        for listener in [LISTENER, UDP] {
            for class in cluster_.classes(listener) {
                let own = cluster_.goes_for(listener, &class);
                let rest = match class.split_once('#') {
                    Some((namespace, _)) => cluster_.goes_for(listener, namespace),
                    None => cluster_.goes(listener),
                };
                prop_assert_ne!(own, rest.strip_prefix("http:").unwrap_or(&rest), "{}", class);
            }
        }
    }
}
