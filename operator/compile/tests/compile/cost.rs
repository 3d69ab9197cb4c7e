//! One event costs what depends on it, however much else there is. Counted, not timed.

use slotmesh_compile::{
    Compiler, Object, Stats,
    builder::{pod, rule, service, service_entry, slice, to, virtual_service, workload_entry},
};

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
