//! A user spreads the connections of a service by turns, to the less busy, or by their source, instead of by
//! chance, and takes that back.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slotmesh_e2e::{
    Cgroup, ClientSpec, Held, Mesh, Pinned, isolated,
    manifests::{SliceBuilder, destination_rule, service, slice, traffic_policy},
    mesh::{at, reviews},
    wait,
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

/// The address, port and pods of a service of its own; the pods are numbered from 1.
mod db {
    pub const VIP: &str = "10.96.0.20";
    pub const PORT: u16 = 5432;
    pub const TARGET: u16 = 8080;

    pub fn pod(number: u16) -> String {
        format!("127.1.9.{number}")
    }
}

/// The service with these pods.
fn db(pods: &[u16]) -> Vec<Value> {
    let of_pod = |slice: SliceBuilder, number: &u16| slice.endpoint(&db::pod(*number));
    let slice = pods.iter().fold(slice("db", "db").port(db::TARGET), of_pod);
    vec![service("db").ip(db::VIP).port(db::PORT).build(), slice.build()]
}

fn open_db(mesh: &mut Mesh, pods: &[u16]) -> Result<()> {
    pods.iter().try_for_each(|&pod| mesh.backends.open(&at(&db::pod(pod), db::TARGET).to_string(), pod))
}

fn by_pod(cgroup: &Cgroup, connects: u64) -> Result<BTreeMap<u16, u64>> {
    let log = ClientSpec::to(at(db::VIP, db::PORT)).count(connects).run(Some(cgroup))?;
    log.expect_all(connects as usize)?;
    Ok(log.by_backend())
}

#[test]
fn to_the_less_busy() {
    const HELD: u64 = 30;
    const CONNECTS: u64 = 2_000;
    const PODS: [u16; 5] = [1, 2, 3, 4, 5];
    isolated(|| {
        let least = traffic_policy("p", "db", &json!({"loadBalancing": {"algorithm": "LeastConnections"}}));
        let mut objects = db(&[1]);
        objects.push(least);
        let mut mesh = Mesh::with(&objects)?;
        open_db(&mut mesh, &PODS)?;
        let mut held = Held::new(&mesh.cgroup)?;
        (0..HELD).try_for_each(|_| held.open(at(db::VIP, db::PORT)))?;
        let pinned = Pinned::below(&mesh.spec().pin_root);
        ensure!(pinned.at_endpoints()? == [HELD], "{:?}", pinned.at_endpoints());

        // Four pods more, which nobody is connected to: the first is taken by those that choose it twice.
        let agent = mesh.agent()?;
        agent.published("endpoints", || {
            mesh.manifests.write("mesh.yaml", &[db(&PODS), objects[2..].to_vec()].concat())
        })?;
        let found = by_pod(&mesh.cgroup, CONNECTS)?;
        let busy = found.get(&1).copied().unwrap_or(0);
        println!("the less busy: {found:?}");
        // A 25th of them, give or take 9; by chance a fifth.
        ensure!(found.len() == PODS.len() && busy < CONNECTS / 10, "{found:?}");

        // Whoever is the agent.
        mesh.kill()?;
        mesh.start()?;
        let found = by_pod(&mesh.cgroup, CONNECTS)?;
        ensure!(found.get(&1).copied().unwrap_or(0) < CONNECTS / 10, "{found:?}");

        // When those are closed, all pods are alike.
        drop(held);
        wait::until_true("no connection to count", || Ok(pinned.at_endpoints()?.is_empty()))?;
        let found = by_pod(&mesh.cgroup, CONNECTS)?;
        ensure!(found.values().all(|&n| n > CONNECTS / 10), "{found:?}");
        mesh.stop()
    });
}

#[test]
fn by_the_source() {
    const CLIENTS: usize = 12;
    const CONNECTS: u64 = 200;
    const PODS: [u16; 5] = [1, 2, 3, 4, 5];
    isolated(|| {
        let mut mesh = Mesh::new()?;
        let hash = json!({"loadBalancing": {"algorithm": "ConsistentHash"}});
        let mut objects = db(&PODS);
        objects.push(traffic_policy("p", "db", &hash));
        mesh.manifests.write("mesh.yaml", &objects)?;
        let clients = (0..CLIENTS).map(|_| Cgroup::new()).collect::<Result<Vec<_>>>()?;
        let named = |(i, cgroup): (usize, &Cgroup)| (format!("default/client-{i}"), cgroup.path().to_owned());
        mesh.spec().workloads.extend(clients.iter().enumerate().map(named));
        mesh.start()?;
        open_db(&mut mesh, &PODS)?;
        let pods = || -> Result<Vec<u16>> {
            let one = |client: &Cgroup| {
                let found = by_pod(client, CONNECTS)?;
                ensure!(found.len() == 1, "one client, several pods: {found:?}");
                found.into_keys().next().context("a pod")
            };
            clients.iter().map(one).collect()
        };
        let before = pods()?;
        println!("by the source: {before:?}");
        let several: BTreeSet<u16> = before.iter().copied().collect();
        ensure!(several.len() > 1, "all clients, one pod: {before:?}");

        // Another agent, and a pod that goes: only its clients go elsewhere.
        mesh.kill()?;
        mesh.start()?;
        ensure!(pods()? == before, "a client has another pod");
        let gone = before[0];
        let left: Vec<u16> = PODS.into_iter().filter(|pod| *pod != gone).collect();
        let agent = mesh.agent()?;
        agent.published("endpoints", || {
            mesh.manifests.write("mesh.yaml", &[db(&left), objects[2..].to_vec()].concat())
        })?;
        let after = pods()?;
        println!("without {gone}: {after:?}");
        ensure!(!after.contains(&gone), "{after:?}");
        let strays = before.iter().zip(&after).filter(|(old, new)| **old != gone && old != new).count();
        // Of the places of the others about one in a hundred moves.
        ensure!(strays <= 1, "{before:?}, {after:?}");

        // A DestinationRule says the same, and where nobody does, it is chance.
        let rule = destination_rule("db")
            .traffic_policy(&json!({"loadBalancer": {"consistentHash": {"useSourceIp": true}}}));
        agent.published("endpoints", || {
            mesh.manifests.write("mesh.yaml", &[db(&PODS), vec![rule.build()]].concat())
        })?;
        ensure!(pods()? == before, "a client has another pod");
        agent.published("cluster", || mesh.manifests.write("mesh.yaml", &db(&PODS)))?;
        let by_chance = by_pod(&clients[0], CONNECTS)?;
        ensure!(by_chance.len() == PODS.len(), "{by_chance:?}");
        mesh.stop()
    });
}
