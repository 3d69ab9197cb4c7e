//! Changes of configuration that come thick, or at a bad moment.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use slotmesh_cluster::{Cluster, scenarios::Story, wait};
use tokio::time::sleep;

use crate::{
    faults::{kill_all, meanwhile, under_load, upgrade},
    mesh::{policy, says},
    world::{LOAD, SYSTEM, World, address, all_ready, id, operators, reached},
};

/// How often a leader is killed, each time a little later after a change.
const KILLS: u64 = 4;
/// Services whose endpoints change all the time, how often those of each do, and how many requests are made of the
/// API server at a time: 10,000 writes together.
const SERVICES: usize = 500;
const CHANGES: usize = 18;
const AT_A_TIME: usize = 16;
const MANY: &str = "many";

/// The leader is killed while it writes what has become of a change: the change is in force, and is said to be.
pub fn leader_killed(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        meanwhile(cluster, async |cluster| {
            for kill in 0..KILLS {
                let algorithm = ["Random", "RoundRobin"][kill as usize % 2];
                cluster.apply(&policy("turns", algorithm))?;
                sleep(Duration::from_millis(10 * kill)).await;
                let lease = ["get", "lease", "slotmesh-operator", "-n", SYSTEM];
                let holder =
                    cluster.kubectl(&[&lease[..], &["-o", "jsonpath={.spec.holderIdentity}"]].concat())?;
                let all = operators(cluster).await?;
                let leader = all.iter().find(|pod| holder == pod.name_any());
                let leader = leader.with_context(|| format!("{holder} holds the Lease"))?;
                kill_all(cluster, std::slice::from_ref(leader)).await?;
                says(cluster, "turns", "Programmed", "True").await?;
            }
            cluster.kubectl(&["delete", "trafficpolicies", "--all", "--namespace", LOAD])?;
            Ok(())
        })
        .await
    })
}

/// 10,000 objects are written, as fast as the API server takes them. What the last of each says is in force.
pub fn many(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        meanwhile(cluster, async |cluster| {
            let client = cluster.client().await?;
            let namespaces: Api<Namespace> = Api::all(client.clone());
            namespaces.create(&PostParams::default(), &object(json!({"metadata": {"name": MANY}}))?).await?;
            let services: Api<Service> = Api::namespaced(client.clone(), MANY);
            let slices: Api<EndpointSlice> = Api::namespaced(client, MANY);
            let made = stream::iter(0..SERVICES).map(async |number| {
                let name = format!("s{number}");
                let service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
                let service = services.create(&PostParams::default(), &object(service)?).await?;
                slices.create(&PostParams::default(), &object(slice(&name, &nobody(0)))?).await?;
                let ip = service.spec.and_then(|spec| spec.cluster_ip).context("it has an address")?;
                anyhow::Ok((name, SocketAddr::new(ip.parse()?, 80)))
            });
            let made: Vec<(String, SocketAddr)> = made.buffer_unordered(AT_A_TIME).try_collect().await?;

            let world = World::look(cluster).await?;
            let pods = cluster.pods(LOAD, "app=web,version=v2").await?;
            let last = address(pods.first().context("there is a pod of v2")?)?;
            for change in 1..=CHANGES {
                let to = if change == CHANGES { last.to_owned() } else { nobody(change) };
                let write = async |(name, _): &(String, SocketAddr)| {
                    let patch = Patch::Merge(json!({"endpoints": [endpoint(&to)]}));
                    slices.patch(name, &PatchParams::default(), &patch).await
                };
                stream::iter(&made).map(write).buffer_unordered(AT_A_TIME).try_collect::<Vec<_>>().await?;
            }
            let expected: BTreeSet<u16> = [id(last)?].into();
            for (name, vip) in made.iter().step_by(SERVICES / 10) {
                for from in [&world.near, &world.far] {
                    let to = World { vip: *vip, ..World::look(cluster).await? };
                    wait::until_true(&format!("{name} to lead where it says"), async || {
                        Ok(to.connect(cluster, from, 20).await.is_ok_and(|log| reached(&log) == expected))
                    })
                    .await?;
                }
            }
            namespaces.delete(MANY, &DeleteParams::default()).await?;
            wait::until_true("all of it to be gone", async || Ok(namespaces.get_opt(MANY).await?.is_none()))
                .await
        })
        .await
    })
}

/// A Service's only slice, with this endpoint.
fn slice(service: &str, to: &str) -> Value {
    json!({
        "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": [endpoint(to)],
    })
}

fn endpoint(to: &str) -> Value {
    json!({"addresses": [to], "conditions": {"ready": true}})
}

/// An address that nobody has.
fn nobody(number: usize) -> String {
    format!("192.0.2.{}", number + 1)
}

fn object<T: DeserializeOwned>(value: Value) -> Result<T> {
    Ok(serde_json::from_value(value)?)
}

/// Istio's resources and slotmesh's own policies are removed, all objects with them, and come back.
pub fn uninstalled(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let (world, _) = under_load(cluster, async |cluster| {
            cluster.apply(&policy("turns", "RoundRobin"))?;
            says(cluster, "turns", "Programmed", "True").await?;
            let kinds = ["virtualservices.networking.istio.io", "destinationrules.networking.istio.io"];
            for kind in kinds.iter().chain(&["trafficpolicies.slotmesh.dev"]) {
                cluster.kubectl(&["delete", "crd", kind])?;
            }
            let world = World::look(cluster).await?;
            let all = &world.v1 | &world.v2;
            for from in [&world.near, &world.far] {
                wait::until_true("the route to be gone", async || {
                    Ok(reached(&world.connect(cluster, from, 100).await?) == all)
                })
                .await?;
            }
            // helm brings its own back; Istio's come with the next route.
            upgrade(cluster, &[])?;
            all_ready(cluster).await?;
            world.lead_to(cluster, &world.v2).await?;
            cluster.apply(&policy("turns", "RoundRobin"))?;
            says(cluster, "turns", "Programmed", "True").await?;
            cluster.kubectl(&["delete", "trafficpolicies", "--all", "--namespace", LOAD])?;
            Ok(())
        })
        .await?;
        world.lead_to(cluster, &world.v1).await
    })
}
