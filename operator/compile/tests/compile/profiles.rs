//! SlotProfiles: which node gets which settings.

use prost::Message as _;
use slotmesh_builders::{node, profile, service};
use slotmesh_compile::{Compiler, Object, Severity, Stats};
use slotmesh_crds::own::{GrowthMode, SlotProfileSpec};
use slotmesh_xds::{ResourceType, SlotGrowth, SlotSettings};

use crate::support::Cluster;

/// Sets some fields.
type Set = fn(&mut SlotProfileSpec);

/// Node and profile in force, for each node that has one.
fn in_force(cluster: &Cluster) -> Vec<(&str, String, Option<u32>)> {
    let settings = cluster.served().iter().filter(|((ty, _), _)| *ty == ResourceType::Settings);
    settings
        .map(|((_, node), content)| {
            let settings = SlotSettings::decode(content.as_slice()).unwrap();
            (node.as_str(), settings.profile, settings.cap)
        })
        .collect()
}

#[test]
fn nodes_are_selected_by_label_and_name() {
    let mut cluster = Cluster::with([
        node("a").label("tier", "small").label("zone", "1").build(),
        node("b").label("tier", "small").build(),
        node("c").label("tier", "large").build(),
        node("d").build(),
        profile("small").select("tier", "small").select("zone", "1").cap(8).build(),
        profile("by-name").on("c").on("missing").cap(9).build(),
    ]);
    let small = ("a", "small".to_owned(), Some(8));
    assert_eq!(in_force(&cluster), [small.clone(), ("c", "by-name".to_owned(), Some(9))]);
    // A name and a label have to hold both.
    cluster.apply([profile("by-name").on("c").select("tier", "small").cap(9).build()]);
    assert_eq!(in_force(&cluster), [small]);
    let note = cluster.said(Severity::Note);
    assert_eq!(
        note,
        ["SlotProfile by-name: spec.nodeSelector: no node is selected, so the profile has no effect"]
    );
    cluster.apply([node("c").label("tier", "small").build()]);
    assert_eq!(in_force(&cluster).len(), 2);
    assert_eq!(cluster.reports(), 0);
}

#[test]
fn the_oldest_profile_is_in_force_and_the_others_are_told_where_not() {
    let mut cluster = Cluster::with([
        node("a").label("tier", "small").build(),
        node("b").build(),
        profile("all").created(2).cap(1).build(),
        profile("small").created(1).select("tier", "small").cap(2).build(),
        profile("late").cap(3).build(),
    ]);
    assert_eq!(in_force(&cluster), [("a", "small".to_owned(), Some(2)), ("b", "all".to_owned(), Some(1))]);
    assert_eq!(
        cluster.refused(),
        [
            "SlotProfile all: spec.nodeSelector: on 1 of 2 nodes (a) another profile is in force, such as SlotProfile \
             small, which is older or first by name; let each node be selected by one profile",
            "SlotProfile late: spec.nodeSelector: on 2 of 2 nodes (a, b) another profile is in force, such as \
             SlotProfile small, which is older or first by name; let each node be selected by one profile",
        ]
    );
    cluster.delete(&profile("small").build());
    assert_eq!(in_force(&cluster), [("a", "all".to_owned(), Some(1)), ("b", "all".to_owned(), Some(1))]);
    assert_eq!(cluster.refused().len(), 1);
    cluster.delete(&profile("all").build());
    cluster.delete(&profile("late").build());
    assert!(cluster.served().is_empty() && cluster.refused().is_empty());
}

#[test]
fn all_settings_travel_and_what_is_not_set_is_not_said() {
    let all = profile("all").set(|spec| {
        (spec.initial, spec.cap, spec.batch) = (Some(1), None, Some(4));
        (spec.low_watermark, spec.high_watermark) = (Some(0), Some(9));
        spec.growth = Some(GrowthMode::OnDemand);
        spec.memory_budget = Some("68Mi".into());
    });
    let cluster = Cluster::with([node("a").build(), all.build()]);
    let content = &cluster.served()[&(ResourceType::Settings, "a".to_owned())];
    assert_eq!(
        SlotSettings::decode(content.as_slice()).unwrap(),
        SlotSettings {
            profile: "all".into(),
            initial: Some(1),
            // What fits the budget.
            cap: Some(1_024),
            low_watermark: Some(0),
            high_watermark: Some(9),
            batch: Some(4),
            growth: SlotGrowth::OnDemand.into(),
            zone: String::new(),
            ..SlotSettings::default()
        }
    );
    let cluster = Cluster::with([node("a").build(), profile("nothing").build()]);
    let content = &cluster.served()[&(ResourceType::Settings, "a".to_owned())];
    let nothing = SlotSettings { profile: "nothing".into(), ..SlotSettings::default() };
    assert_eq!(SlotSettings::decode(content.as_slice()).unwrap(), nothing);
}

#[test]
fn a_node_is_told_its_zone_with_a_profile_or_without() {
    let zoned = |zone: &str| node("a").label("topology.kubernetes.io/zone", zone).build();
    let mut cluster = Cluster::with([zoned("z1"), node("b").build()]);
    let of_a = |cluster: &Cluster| {
        let content = &cluster.served()[&(ResourceType::Settings, "a".to_owned())];
        let settings = SlotSettings::decode(content.as_slice()).unwrap();
        (settings.profile, settings.zone, settings.cap)
    };
    assert_eq!(cluster.names(ResourceType::Settings), ["a"]);
    assert_eq!(of_a(&cluster), (String::new(), "z1".to_owned(), None));
    cluster.apply([profile("small").on("a").cap(8).build()]);
    assert_eq!(of_a(&cluster), ("small".to_owned(), "z1".to_owned(), Some(8)));
    cluster.apply([zoned("z2")]);
    assert_eq!(of_a(&cluster).1, "z2");
    cluster.apply([node("a").build()]);
    assert_eq!(of_a(&cluster), ("small".to_owned(), String::new(), Some(8)));
}

#[test]
fn a_profile_that_contradicts_itself_is_refused_by_field_and_not_in_force() {
    let cases: [(Set, &str); 7] = [
        (
            |s| (s.initial, s.cap) = (Some(9), Some(8)),
            "spec.initial: 9 initial outer records are more than the cap, 8",
        ),
        (
            |s| (s.memory_budget, s.cap) = (Some("680Ki".into()), Some(11)),
            "spec.cap: 11 outer records take more than memoryBudget, which is for 10; set only one",
        ),
        (|s| s.cap = Some(0), "spec.cap: 0 is not between 1 and 16384"),
        (|s| s.high_watermark = Some(0), "spec.highWatermark: 0 is below lowWatermark and batch together, 1"),
        (
            |s| s.memory_budget = Some("67Ki".into()),
            "spec.memoryBudget: 67Ki is less than one outer record takes, 68 KiB",
        ),
        (
            |s| s.memory_budget = Some("much".into()),
            "spec.memoryBudget: \"much\" is not a quantity such as 64Mi",
        ),
        (
            |s| (s.memory_budget, s.initial) = (Some("680Ki".into()), Some(11)),
            "spec.initial: 11 initial outer records are more than the cap, 10",
        ),
    ];
    for (set, said) in cases {
        let mut cluster = Cluster::with([node("a").build(), profile("p").cap(5).build()]);
        cluster.apply([profile("p").set(set).build()]);
        let refused = cluster.refused();
        assert!(
            refused.len() == 1 && refused[0].starts_with(&format!("SlotProfile p: {said}")),
            "{refused:?}"
        );
        assert!(refused[0].ends_with("the object is not in force"), "{refused:?}");
        assert_eq!(in_force(&cluster), []);
    }
}

/// The cost of compiling these.
fn cost(compiler: &mut Compiler, objects: &[Object]) -> Stats {
    let before = compiler.stats();
    objects.iter().for_each(|object| compiler.apply(object, None));
    compiler.flush();
    let after = compiler.stats();
    Stats { units: after.units - before.units, resources: after.resources - before.resources }
}

#[test]
fn one_change_costs_the_nodes_that_it_touches() {
    let costs = [10, 1_000].map(|nodes| {
        let mut compiler = Compiler::default();
        let mut objects: Vec<_> = (0..nodes)
            .map(|n| node(&format!("n{n}")).label("pool", if n < 3 { "a" } else { "b" }).build())
            .collect();
        objects.push(profile("a").select("pool", "a").cap(1).build());
        objects.push(profile("b").select("pool", "b").cap(2).build());
        objects.push(service("web").ip("10.0.0.1").port(80).build());
        cost(&mut compiler, &objects);
        let same = cost(&mut compiler, &objects[..2]);
        assert_eq!(same, Stats::default(), "a heartbeat of a node costs nothing");
        let profile = cost(&mut compiler, &[profile("a").select("pool", "a").cap(3).build()]);
        // Three nodes, and which profile is in force where, for both profiles.
        assert_eq!(profile, Stats { units: 5, resources: 3 });
        let node = cost(&mut compiler, &[node("n0").label("pool", "a").label("more", "1").build()]);
        assert_eq!(node, Stats { units: 2, resources: 1 });
        (profile, node)
    });
    assert_eq!(costs[0], costs[1]);
}
