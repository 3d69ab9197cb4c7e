//! What takes part is routed by the mesh's objects, from every node; what doesn't, isn't.

use anyhow::{Result, ensure};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use slotmesh_cluster::{Cluster, scenarios::Story, wait};
use slotmesh_e2e::{ClientSpec, stats};

use crate::{
    readme,
    world::{LOAD, NODES, World, agents, all_ready, enrolled, on_node, reached, route, scrape},
};

/// So many that a split which is off by some percent is always seen.
const CONNECTS: u64 = 4_000;

/// How many connections of the example's client each version got.
async fn split(cluster: &Cluster, count: u32) -> Result<[u64; 2]> {
    let clients = cluster.pods("shop", "app=client").await?;
    let address =
        cluster.kubectl(&["get", "service", "reviews", "-n", "shop", "-o", "jsonpath={.spec.clusterIP}"])?;
    let client = cluster.ready("shop", &clients[0].name_any()).await?;
    let script = format!(
        "i=0; while [ $i -lt {count} ]; do i=$((i + 1)); \
         printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 80 | tail -n 1; done"
    );
    let output = cluster.exec(&client, "client", &["/bin/sh", "-c", &script]).await?;
    let said = String::from_utf8_lossy(&output.stdout);
    let counts = ["v1", "v2"].map(|version| said.lines().filter(|line| *line == version).count() as u64);
    ensure!(
        counts.iter().sum::<u64>() == u64::from(count),
        "{counts:?} answers of {count} requests: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(counts)
}

pub fn five_commands(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        const REQUESTS: u32 = 300;
        let commands = readme::commands()?;
        // The first is what installed it.
        commands[1].run(cluster)?;
        for name in ["reviews-v1", "reviews-v2", "client"] {
            cluster.rolled_out("shop", name).await?;
        }
        commands[2].run(cluster)?;
        enrolled(cluster).await?;
        for (command, weights) in [(&commands[3], [90, 10]), (&commands[4], [50, 50])] {
            command.run(cluster)?;
            // Until the route is in force, connections go to any pod of the Service.
            wait::until_true(&format!("a split of {weights:?}"), async || {
                stats::fits(&split(cluster, REQUESTS).await?, &weights)
            })
            .await?;
        }
        cluster.kubectl(&["delete", "namespace", "shop", "--wait=false"])?;
        Ok(())
    })
}

pub fn enrolment(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        all_ready(cluster).await?;
        enrolled(cluster).await?;
        let world = World::look(cluster).await?;
        let all = &world.v1 | &world.v2;

        // Istio's resources aren't there yet: a Service is enough.
        for from in [&world.near, &world.far, &world.out, &world.stranger] {
            let log = world.connect(cluster, from, CONNECTS / 4).await?;
            ensure!(reached(&log) == all, "{} reached {:?}", from.name_any(), log.by_backend());
        }

        // They come, and a route with them.
        route(cluster, 80, 20)?;
        for from in [&world.near, &world.far] {
            wait::until_true("a split of 80 to 20", async || {
                let counts = world.connect(cluster, from, CONNECTS).await?.by_backend();
                let of = |ids: &std::collections::BTreeSet<u16>| -> u64 {
                    ids.iter().filter_map(|id| counts.get(id)).sum()
                };
                stats::fits(&[of(&world.v1), of(&world.v2)], &[80, 20])
            })
            .await?;
        }

        // Whom the route leads: those that take part, from every node; nobody else.
        world.lead_to(cluster, &world.v2).await?;
        for (from, expected) in
            [(&world.near, &world.v2), (&world.far, &world.v2), (&world.out, &all), (&world.stranger, &all)]
        {
            let log = world.connect(cluster, from, CONNECTS / 4).await?;
            ensure!(reached(&log) == *expected, "{} reached {:?}", from.name_any(), log.by_backend());
            let other = log.connects.iter().find(|connect| connect.peer != Some(world.vip));
            ensure!(other.is_none(), "{}: getpeername says {other:?}", from.name_any());
        }
        let agents = agents(cluster).await?;
        for node in NODES {
            let metrics = scrape(on_node(&agents, node)?, 15020)?;
            ensure!(metrics.get("slotmesh_agent_in_sync") == 1.0, "node {node} isn't in sync");
            ensure!(metrics.nacked() == 0, "node {node} refused something");
        }

        // The namespace leaves, and comes back, which costs no connection.
        let load = ClientSpec::load(&[world.vip]).least(CONNECTS).gap(1_000).limit(300);
        let running = world.start(cluster, &world.far, &load).await?;
        let label = |value: &str| cluster.kubectl(&["label", "namespace", LOAD, "--overwrite", value]);
        label("slotmesh.dev/mesh-")?;
        enrolled(cluster).await?;
        let log = world.connect(cluster, &world.near, CONNECTS / 4).await?;
        ensure!(reached(&log) == all, "who takes no part any more reached {:?}", log.by_backend());
        label("slotmesh.dev/mesh=enabled")?;
        enrolled(cluster).await?;
        world.lead_to(cluster, &world.v2).await?;
        running.client.stop()?.expect_all(CONNECTS as usize)
    })
}

pub fn told(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        all_ready(cluster).await?;
        enrolled(cluster).await?;
        let ready = r#"jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status} {end}"#;
        wait::until_true("every node to be told as ready", async || {
            Ok(cluster.kubectl(&["get", "meshnodes", "-o", ready])?.trim() == "a True b True c True")
        })
        .await?;
        // In force on every node, and said so; what can't be is said, too.
        for algorithm in ["ConsistentHash", "LeastConnections", "RoundRobin"] {
            cluster.apply(&policy("turns", algorithm))?;
            says(cluster, "turns", "Programmed", "True").await?;
        }
        cluster.apply(&policy("misspelt", "Random").replace(r#""web""#, r#""Web""#))?;
        says(cluster, "misspelt", "Accepted", "False").await?;
        // The older of two wins, and when it goes the other takes its place.
        cluster.apply(&policy("unheard", "Random"))?;
        says(cluster, "unheard", "Conflicted", "True").await?;
        cluster.kubectl(&["delete", "trafficpolicy", "turns", "--namespace", LOAD])?;
        says(cluster, "unheard", "Programmed", "True").await?;
        says(cluster, "unheard", "Conflicted", "False").await?;
        cluster.kubectl(&["delete", "trafficpolicies", "--all", "--namespace", LOAD])?;
        Ok(())
    })
}

/// A TrafficPolicy for the load's Service.
pub fn policy(name: &str, algorithm: &str) -> String {
    json!({
        "apiVersion": "slotmesh.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": name, "namespace": LOAD},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
                 "loadBalancing": {"algorithm": algorithm}},
    })
    .to_string()
}

/// Waits until a TrafficPolicy has this condition, for what it is now.
pub async fn says(cluster: &Cluster, policy: &str, condition: &str, status: &str) -> Result<()> {
    wait::until_true(&format!("{policy} to be {condition}={status}"), async || {
        let found = cluster.kubectl(&["get", "trafficpolicy", policy, "--namespace", LOAD, "-o", "json"])?;
        let found: Value = serde_json::from_str(&found)?;
        let said = found["status"]["ancestors"][0]["conditions"].as_array();
        let said = said.into_iter().flatten().find(|said| said["type"] == condition);
        let of = |said: &Value| said["observedGeneration"] == found["metadata"]["generation"];
        Ok(said.is_some_and(|said| said["status"] == status && of(said)))
    })
    .await
}
