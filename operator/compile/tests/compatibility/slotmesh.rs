//! slotmesh's own kinds. MeshNode and MeshReplica aren't here: the operator writes them, for people and for itself.

use kube::CustomResourceExt as _;
use serde_json::json;
use slotmesh_builders::node;
use slotmesh_compile::{CompileOptions, Kind};
use slotmesh_crds::own;

use crate::{
    listing::of_schema,
    requests::Requests,
    shop,
    trial::{Subject, with},
};

const API: &str = "slotmesh.dev/v1alpha1";

pub fn subjects() -> Vec<Subject> {
    vec![policies(), profiles()]
}

fn policies() -> Subject {
    const FAILING: &str = "e2e/tests/leave_out_endpoints_that_fail.rs";
    const RATES: &str = "e2e/tests/bound_how_fast_connections_come.rs";
    const SHARES: &str = "spec.locality.distribute[]";
    const AWAY: &str = "spec.locality.failover[]";
    const BALANCE: &str = "e2e/tests/balance_by_a_traffic_policy.rs";
    const COMPILE: &str = "operator/compile/tests/compile/policies.rs";
    Subject {
        kind: Kind::TrafficPolicy,
        api: API,
        world: shop(),
        options: CompileOptions::default(),
        object: json!({
            "apiVersion": API, "kind": "TrafficPolicy", "metadata": {"name": "reviews"},
            "spec": {
                "targetRefs": [{"group": "", "kind": "Service", "name": "reviews"}],
                "loadBalancing": {"algorithm": "RoundRobin"},
            },
        }),
        leaves: of_schema(&own::TrafficPolicy::crd()),
        before: Vec::new(),
        trials: vec![
            with("spec.targetRefs[].group", "").where_is("spec.targetRefs[].group", "example.com"),
            with("spec.targetRefs[].kind", "Service").where_is("spec.targetRefs[].kind", "Pod"),
            with("spec.targetRefs[].name", "ratings"),
            with("spec.targetRefs[].sectionName", "http"),
            with("spec.loadBalancing.algorithm", "ConsistentHash"),
            with("spec.maxConnections", 10),
            with(format!("{SHARES}.from"), "us")
                .where_is(format!("{SHARES}.from"), "*")
                .where_is(format!("{SHARES}.to"), json!({"*": 100})),
            with(format!("{SHARES}.to"), json!({"eu": 100}))
                .where_is(format!("{SHARES}.from"), "*")
                .where_is(format!("{SHARES}.to"), json!({"*": 100})),
            with(format!("{AWAY}.from"), "ap")
                .where_is(format!("{AWAY}.from"), "eu")
                .where_is(format!("{AWAY}.to"), "us"),
            with(format!("{AWAY}.to"), "ap")
                .where_is(format!("{AWAY}.from"), "eu")
                .where_is(format!("{AWAY}.to"), "us"),
            with("spec.outlierDetection.consecutiveFailures", 3),
            with("spec.outlierDetection.baseSeconds", 10),
            with("spec.outlierDetection.maxSeconds", 600),
            with("spec.outlierDetection.maxPercent", 50),
            with("spec.outlierDetection.minHealthyPercent", 50),
            with("spec.newConnections.perSecond", 100),
            with("spec.newConnections.burst", 10).where_is("spec.newConnections.perSecond", 100),
            with("spec.newConnections.per", "Caller").where_is("spec.newConnections.perSecond", 100),
            with("spec.locality.failoverPriority[]", "topology.kubernetes.io/zone"),
        ],
        requests: Requests::default(),
        shown: vec![
            ("spec.loadBalancing", BALANCE, "by_the_source"),
            ("spec.outlierDetection", FAILING, "after_so_many_failed_connects_in_a_row"),
            ("spec.newConnections", RATES, "of_all_callers_together_or_of_each"),
            ("spec.locality", "e2e/tests/choose_by_locality.rs", "the_nearest_go_before_others"),
            ("spec.maxConnections", "e2e/tests/limit_connections.rs", "as_many_as_the_policy_says"),
            ("spec.targetRefs", BALANCE, "by_turns_and_by_chance"),
            (
                "spec.targetRefs[].sectionName",
                COMPILE,
                "a_policy_for_a_port_goes_before_one_for_the_service_field_by_field",
            ),
        ],
        noted: Vec::new(),
    }
}

fn profiles() -> Subject {
    const COMPILE: &str = "operator/compile/tests/compile/profiles.rs";
    let mut world = shop();
    world.push(node("n1").label("pool", "small").build());
    Subject {
        kind: Kind::SlotProfile,
        api: API,
        world,
        options: CompileOptions::default(),
        object: json!({"apiVersion": API, "kind": "SlotProfile", "metadata": {"name": "large"}, "spec": {}}),
        leaves: of_schema(&own::SlotProfile::crd()),
        before: Vec::new(),
        trials: vec![
            with("spec.nodeSelector", json!({"pool": "large"})),
            with("spec.nodeNames[]", "n2"),
            with("spec.initial", 10),
            with("spec.cap", 20),
            with("spec.lowWatermark", 1),
            with("spec.highWatermark", 5),
            with("spec.growth", "Eager"),
            with("spec.batch", 4),
            with("spec.memoryBudget", "64Mi"),
        ],
        requests: Requests::default(),
        shown: vec![
            ("spec", COMPILE, "all_settings_travel_and_what_is_not_set_is_not_said"),
            ("spec.cap", "e2e/tests/give_nodes_a_slot_profile.rs", "the_cap_rises_and_falls_under_load"),
            ("spec.node", COMPILE, "nodes_are_selected_by_label_and_name"),
        ],
        noted: Vec::new(),
    }
}
