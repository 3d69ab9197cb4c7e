//! Who gets which answer, told by a plain model that looks at every object for every caller.

use proptest::prelude::*;
use slotmesh_compile::{
    Object, ObjectName,
    builder::{backend, http_route, pod, service, sidecar, to, virtual_service},
};
use slotmesh_crds::{HttpMatch, HttpRoute};

use crate::support::{Cluster, NOWHERE, cluster};

const NAMESPACES: [&str; 3] = ["default", "b", "c"];
const LISTENER: &str = "10.0.0.1_80";

/// Somebody who connects to `web` of namespace `default`.
#[derive(Clone, Copy, Debug)]
struct Caller {
    namespace: &'static str,
    has_label: bool,
}

/// A VirtualService of a namespace, seen in some, whose rules are for callers.
#[derive(Clone, Debug)]
struct Virtual {
    namespace: &'static str,
    age: i64,
    seen_in: Vec<&'static str>,
    /// By namespace and label of the caller, to a version.
    rules: Vec<(Option<&'static str>, bool, u8)>,
}

/// A route of Gateway API.
#[derive(Clone, Debug)]
struct Gateway {
    namespace: &'static str,
    age: i64,
    version: u8,
}

/// The sight of callers of a namespace, and what becomes of the rest.
#[derive(Clone, Debug)]
struct Sight {
    namespace: &'static str,
    labelled: bool,
    hosts: &'static str,
    strict: bool,
}

#[derive(Clone, Debug, Default)]
struct World {
    virtuals: Vec<Virtual>,
    gateways: Vec<Gateway>,
    sights: Vec<Sight>,
}

fn version(version: u8) -> String {
    cluster(&format!("web-v{version}"), 80, "")
}

impl World {
    fn objects(&self) -> Vec<Object> {
        let of = |name: &str, ip: u8| service(name).ip(&format!("10.0.0.{ip}")).port(80).build();
        let mut objects = vec![of("web", 1), of("web-v1", 2), of("web-v2", 3), of("web-v3", 4)];
        for namespace in NAMESPACES {
            objects.push(pod("plain").namespace(namespace).build());
            objects.push(pod("labelled").namespace(namespace).label("app", "x").build());
        }
        for (i, vs) in self.virtuals.iter().enumerate() {
            let host = "web.default.svc.cluster.local";
            let mut built = virtual_service(&format!("vs{i}"), host).namespace(vs.namespace).created(vs.age);
            built.0.spec.export_to = vs.seen_in.iter().map(|to| (*to).to_owned()).collect();
            for (namespace, label, version) in &vs.rules {
                let matched = HttpMatch {
                    source_namespace: namespace.map(str::to_owned),
                    source_labels: label.then(|| ("app".to_owned(), "x".to_owned())).into_iter().collect(),
                    ..Default::default()
                };
                built = built.http_route(HttpRoute {
                    matches: vec![matched],
                    route: vec![to(&format!("web-v{version}.default"), 1)],
                    ..Default::default()
                });
            }
            objects.push(built.build());
        }
        for (i, route) in self.gateways.iter().enumerate() {
            let to = [backend(&format!("default/web-v{}:80", route.version), 1)];
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

    /// Where a caller's connections go.
    fn answer(&self, caller: Caller) -> String {
        let sight = self.sight(caller);
        let sees = |namespace: &str| match sight.map(|sight| sight.hosts) {
            None | Some("*/*") => true,
            Some("./*") => namespace == caller.namespace,
            Some("default/*") => namespace == "default",
            Some(other) => panic!("{other}"),
        };
        let own = cluster("web", 80, "");
        if !sees("default") {
            return if sight.is_some_and(|sight| sight.strict) { NOWHERE.to_owned() } else { own };
        }
        let mut virtuals: Vec<_> = self.virtuals.iter().enumerate().collect();
        virtuals.sort_by_key(|(i, vs)| (vs.age, vs.namespace, *i));
        let seen = |vs: &Virtual| {
            sees(vs.namespace) && (vs.seen_in.is_empty() || vs.seen_in.contains(&caller.namespace))
        };
        let first = virtuals.into_iter().find(|(_, vs)| seen(vs));
        let applies = |(namespace, label, _): &&(Option<&str>, bool, u8)| {
            namespace.is_none_or(|namespace| namespace == caller.namespace) && (!label || caller.has_label)
        };
        if let Some((_, _, to)) = first.and_then(|(_, vs)| vs.rules.iter().find(applies)) {
            return version(*to);
        }
        let mut gateways: Vec<_> = self.gateways.iter().enumerate().collect();
        gateways.sort_by_key(|(i, route)| (route.age, route.namespace, *i));
        let of = |namespace: &str| gateways.iter().find(|(_, route)| route.namespace == namespace);
        let route = of(caller.namespace).or_else(|| of("default"));
        route.map_or(own, |(_, route)| version(route.version))
    }
}

fn world() -> impl Strategy<Value = World> {
    let namespace = || prop::sample::select(NAMESPACES.to_vec());
    let rule = (prop::option::of(namespace()), any::<bool>(), 1..4_u8);
    let seen_in = prop::sample::subsequence(NAMESPACES.to_vec(), 0..=2);
    let one = (namespace(), 0..3_i64, seen_in, prop::collection::vec(rule, 1..4));
    let one = one.prop_map(|(namespace, age, seen_in, rules)| Virtual { namespace, age, seen_in, rules });
    let route = (namespace(), 0..3_i64, 1..4_u8);
    let route = route.prop_map(|(namespace, age, version)| Gateway { namespace, age, version });
    let hosts = prop::sample::select(vec!["*/*", "./*", "default/*"]);
    let sight = (namespace(), any::<bool>(), hosts, any::<bool>());
    let sight =
        sight.prop_map(|(namespace, labelled, hosts, strict)| Sight { namespace, labelled, hosts, strict });
    let all = (
        prop::collection::vec(one, 0..4),
        prop::collection::vec(route, 0..4),
        prop::collection::vec(sight, 0..3),
    );
    all.prop_map(|(virtuals, gateways, sights)| World { virtuals, gateways, sights })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn each_caller_gets_what_the_model_says(world in world()) {
        let cluster_ = Cluster::with(world.objects());
        for namespace in NAMESPACES {
            for (name, has_label) in [("plain", false), ("labelled", true)] {
                let class = cluster_.compiler.caller_class(&ObjectName::new(namespace, name));
                let goes = cluster_.goes_for(LISTENER, &class);
                let goes = goes.strip_prefix("http:").unwrap_or(&goes);
                prop_assert_eq!(goes, world.answer(Caller { namespace, has_label }), "{} {}", namespace, name);
            }
        }
        // Nobody has a chain who gets what everybody gets, or all of its namespace.
        for class in cluster_.classes(LISTENER) {
            let own = cluster_.goes_for(LISTENER, &class);
            let rest = match class.split_once('#') {
                Some((namespace, _)) => cluster_.goes_for(LISTENER, namespace),
                None => cluster_.goes(LISTENER),
            };
            prop_assert_ne!(own, rest.strip_prefix("http:").unwrap_or(&rest), "{}", class);
        }
    }
}
