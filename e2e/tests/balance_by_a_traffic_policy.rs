//! A user spreads the connections of a service by turns instead of by chance, and takes that back.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::json;
use slotmesh_e2e::{
    Mesh, isolated,
    manifests::traffic_policy,
    mesh::{at, reviews},
};

/// The pods of the service.
const PODS: u64 = 5;
/// Enough that chance would never be this even: its standard deviation is 40.
const CONNECTS: u64 = 10_000;
/// By turns, each pod gets its share but for what is under way on each processor.
const MOST_OFF: u64 = 16;

fn counts(mesh: &Mesh) -> Result<BTreeMap<u16, u64>> {
    let log = mesh.connect(at(reviews::V4, reviews::PORT), CONNECTS)?;
    log.expect_all(CONNECTS as usize)?;
    Ok(log.by_backend())
}

/// How far the busiest and the idlest pod are from their share.
fn off(counts: &BTreeMap<u16, u64>) -> u64 {
    let share = CONNECTS / PODS;
    if counts.len() as u64 == PODS {
        counts.values().map(|n| n.abs_diff(share)).max().unwrap_or(share)
    } else {
        share
    }
}

#[test]
fn by_turns_and_by_chance() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        reviews::open(&mut mesh.backends)?;
        let agent = mesh.agent()?;
        let round_robin = json!({"loadBalancing": {"algorithm": "RoundRobin"}});
        agent.published("cluster", || {
            mesh.manifests.write("policy.yaml", &[traffic_policy("p", "reviews", &round_robin)])
        })?;
        let by_turns = counts(&mesh)?;
        ensure!(off(&by_turns) <= MOST_OFF, "by turns: {by_turns:?}");

        // What isn't there yet is refused by its field, and the policy in force stays.
        let hash = json!({"loadBalancing": {"algorithm": "ConsistentHash"}});
        mesh.manifests.write("policy.yaml", &[traffic_policy("p", "reviews", &hash)])?;
        agent.expect_report(&["TrafficPolicy default/p", "spec.loadBalancing.algorithm", "refused"])?;
        let by_turns = counts(&mesh)?;
        ensure!(off(&by_turns) <= MOST_OFF, "by turns: {by_turns:?}");

        agent.published("cluster", || mesh.manifests.remove("policy.yaml"))?;
        // Chance, too, may be that even once, in a few of a hundred tries.
        let mut by_chance = counts(&mesh)?;
        for _ in 0..5 {
            if off(&by_chance) > MOST_OFF {
                break;
            }
            by_chance = counts(&mesh)?;
        }
        ensure!(off(&by_chance) > MOST_OFF, "by chance: {by_chance:?}");
        println!("by turns {by_turns:?}, by chance {by_chance:?}");
        mesh.stop()
    });
}
