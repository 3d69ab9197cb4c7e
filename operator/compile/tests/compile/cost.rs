//! One event costs what depends on it, however much else there is. Counted, not timed.

use slotmesh_builders::{pod, rule, service, service_entry, slice, to, virtual_service, workload_entry};
use slotmesh_compile::{Compiler, Object, Stats};

fn shop(services: usize) -> Vec<Object> {
    let mut objects = Vec::new();
    for s in 0..services {
        let name = format!("s{s}");
        objects.push(service(&name).ip(&format!("10.0.{}.{}", s / 250, s % 250 + 1)).port(80).build());
        objects.push(endpoints(s, 10));
        objects.push(rule(&name, &name).version("v1").version("v2").build());
        objects.push(split(&name, [1, 1]));
        for e in 0..10 {
            objects.push(pod(&format!("{name}-{e}")).label("version", "v1").build());
        }
    }
    objects
}

/// The connections of a Service to its subsets by weight.
fn split(name: &str, weights: [i32; 2]) -> Object {
    let [v1, v2] =
        [("v1", weights[0]), ("v2", weights[1])].map(|(v, weight)| to(&format!("{name}/{v}"), weight));
    virtual_service(name, name).http([v1, v2]).build()
}

fn endpoints(s: usize, count: usize) -> Object {
    let name = format!("s{s}");
    let mut slice = slice(&name, &name).port(8080);
    for e in 0..count {
        slice =
            slice.pod_endpoint(&format!("10.{}.{}.{}", s / 250 + 1, s % 250, e + 1), &format!("{name}-{e}"));
    }
    slice.build()
}

fn cost(compiler: &mut Compiler, objects: &[Object]) -> (Stats, usize) {
    let before = compiler.stats();
    objects.iter().for_each(|object| compiler.apply(object, None));
    let changes = compiler.flush().changes.len();
    let after = compiler.stats();
    let stats = Stats { units: after.units - before.units, resources: after.resources - before.resources };
    (stats, changes)
}

#[test]
fn one_change_compiles_only_what_depends_on_it() {
    let costs = [10, 1_000].map(|services| {
        let mut compiler = Compiler::default();
        cost(&mut compiler, &shop(services));
        let endpoint = cost(&mut compiler, &[endpoints(3, 9)]);
        // Three assignments (the Service, v1, v2), of which v2 stays empty.
        assert_eq!(endpoint, (Stats { units: 1, resources: 3 }, 2));
        let label = cost(&mut compiler, &[pod("s3-0").label("version", "v2").build()]);
        assert_eq!(label, (Stats { units: 1, resources: 3 }, 2));
        let route = cost(&mut compiler, &[split("s3", [1, 2])]);
        assert_eq!(route, (Stats { units: 1, resources: 2 }, 1));
        // Where nobody leads any more there is nothing.
        let narrower = cost(&mut compiler, &[virtual_service("s3", "s3").http([to("s3/v2", 1)]).build()]);
        assert_eq!(narrower, (Stats { units: 3, resources: 6 }, 3));
        let same = cost(&mut compiler, &shop(services)[..2]);
        assert_eq!(same, (Stats::default(), 0));
        compiler.stats().units - (services as u64) * 3
    });
    assert_eq!(costs[0], costs[1]);
}

#[test]
fn a_workload_costs_only_what_selects_it() {
    let costs = [10, 1_000].map(|entries| {
        let mut compiler = Compiler::default();
        let entry = |e: usize| {
            let ip = format!("240.0.{}.{}", e / 250, e % 250 + 1);
            let entry = service_entry(&format!("e{e}"), &format!("e{e}.example.com")).ip(&ip);
            entry.port("tcp", 80, 8080).select("app", &format!("e{e}")).build()
        };
        let machine = |e: usize, ip: u8| {
            let ip = format!("10.{}.{}.{ip}", e / 250 + 1, e % 250);
            workload_entry(&format!("m{e}"), &ip).label("app", &format!("e{e}")).build()
        };
        let ready = |e: usize, ready| {
            pod(&format!("p{e}")).label("app", &format!("e{e}")).ip("10.9.9.9").ready(ready).build()
        };
        let all = (0..entries).flat_map(|e| [entry(e), machine(e, 1), ready(e, true)]);
        cost(&mut compiler, &all.collect::<Vec<_>>());
        let one = (Stats { units: 1, resources: 1 }, 1);
        assert_eq!(cost(&mut compiler, &[machine(3, 2)]), one);
        assert_eq!(cost(&mut compiler, &[ready(3, false)]), one);
        assert_eq!(cost(&mut compiler, &[machine(3, 2), ready(3, false)]), (Stats::default(), 0));
        compiler.stats().units - (entries as u64) * 3
    });
    assert_eq!(costs[0], costs[1]);
}

/// Each of so many namespaces has a route of its own for one Service, and a rule that sees its subset otherwise.
fn with_classes(compiler: &mut Compiler, classes: usize) -> usize {
    let mut objects = vec![service("web").ip("10.0.0.1").port(80).build(), endpoints_of_web(9)];
    objects.push(rule("web", "web").version("v1").build());
    objects.push(virtual_service("web", "web").http([to("web/v1", 1)]).build());
    for class in 0..classes {
        let namespace = format!("team-{class}");
        let host = "web.default.svc.cluster.local";
        let own = rule("web", host).namespace(&namespace).version("v1").balance("ROUND_ROBIN");
        objects.push(own.build());
    }
    cost(compiler, &objects);
    compiler.resources().len()
}

fn endpoints_of_web(count: usize) -> Object {
    let slice = slice("web", "web").port(8080);
    (0..count).fold(slice, |slice, e| slice.endpoint(&format!("10.1.0.{}", e + 1))).build()
}

#[test]
fn an_endpoint_costs_the_same_with_a_thousand_classes_of_callers() {
    let costs = [1, 1_000].map(|classes| {
        let mut compiler = Compiler::default();
        let resources = with_classes(&mut compiler, classes);
        let endpoint = cost(&mut compiler, &[endpoints_of_web(10)]);
        // What differs for a class is two clusters; the endpoints are the same.
        (endpoint, resources - 2 * classes)
    });
    assert_eq!(costs[0], costs[1]);
    assert_eq!(costs[0].0, (Stats { units: 1, resources: 2 }, 1));
}

#[test]
fn a_class_that_appears_costs_what_differs_for_it() {
    let mut compiler = Compiler::default();
    with_classes(&mut compiler, 1_000);
    let before = compiler.resources();
    let host = "web.default.svc.cluster.local";
    let own = rule("web", host).namespace("one-more").version("v1").balance("ROUND_ROBIN");
    compiler.apply(&own.build(), None);
    let changes = compiler.flush().changes;
    // Its two clusters, and the listener that has a chain more.
    assert_eq!(changes.len(), 3, "{changes:?}");
    assert_eq!(compiler.resources().len(), before.len() + 2);
    // A pod that no rule asks for anything costs nothing.
    let same = cost(&mut compiler, &[pod("p").namespace("one-more").label("a", "b").build()]);
    assert_eq!(same, (Stats::default(), 0));
}
