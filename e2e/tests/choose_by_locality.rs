//! A user keeps connections near, shares them out among zones, and lets regions stand in for each other. IPv4 and IPv6.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use slotmesh_e2e::{
    Mesh, isolated,
    manifests::{destination_rule, service, slice, traffic_policy},
    mesh::at,
    net, wait,
};

const V4: &str = "10.96.0.70";
const V6: &str = "fd00:96::70";
const TARGET: u16 = 8080;
/// Each pod with its node and zone. A server's id is the pod's number.
const PODS: [(u16, &str, &str); 5] =
    [(1, "n1", "a"), (2, "n2", "a"), (3, "n3", "b"), (4, "n4", "c"), (5, "n5", "d")];
/// The regions of the nodes.
const REGIONS: [(&str, &str); 5] = [("n1", "eu"), ("n2", "eu"), ("n3", "eu"), ("n4", "us"), ("n5", "ap")];

fn v4(pod: u16) -> String {
    format!("127.3.1.{pod}")
}

fn v6(pod: u16) -> String {
    format!("fd00:3:1::{pod}")
}

fn place(region: &str, zone: &str) -> [String; 4] {
    let labels = format!("topology.kubernetes.io/region={region},topology.kubernetes.io/zone={zone}");
    ["--node-name", "here", "--node-labels", &labels].map(str::to_owned)
}

/// The Service with those of its pods that are ready, and the nodes.
fn objects(ready: &[u16]) -> Vec<Value> {
    let mut objects = vec![service("web").ip(V4).ip(V6).port(80).build()];
    for (name, family) in [("web-v4", "IPv4"), ("web-v6", "IPv6")] {
        let address = if family == "IPv4" { v4 } else { v6 };
        let mut slice = slice(name, "web").port(TARGET).build();
        slice["addressType"] = json!(family);
        let endpoint = |(pod, node, zone): &(u16, &str, &str)| {
            json!({
                "addresses": [address(*pod)],
                "conditions": {"ready": ready.contains(pod)},
                "nodeName": node,
                "zone": zone,
            })
        };
        slice["endpoints"] = PODS.iter().map(endpoint).collect();
        objects.push(slice);
    }
    let node = |(name, region): &(&str, &str)| {
        let labels = json!({"topology.kubernetes.io/region": region});
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
    };
    objects.extend(REGIONS.iter().map(node));
    objects
}

fn counts(mesh: &Mesh, vip: SocketAddr, connects: u64) -> Result<BTreeMap<u16, u64>> {
    let log = mesh.connect(vip, connects)?;
    log.expect_all(connects as usize)?;
    Ok(log.by_backend())
}

/// Waits until connections get these pods, all of them and no other. What says where the node is has its own way to the
/// agent, so nothing else tells when it is in force.
fn until(mesh: &Mesh, pods: &[u16]) -> Result<()> {
    for vip in [at(V4, 80), at(V6, 80)] {
        wait::until_true(&format!("{vip} to lead to {pods:?}"), || {
            let reached: BTreeSet<u16> = counts(mesh, vip, 120)?.into_keys().collect();
            Ok(reached == pods.iter().copied().collect())
        })?;
    }
    Ok(())
}

#[test]
fn the_nearest_go_before_others() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        for (pod, ..) in PODS {
            net::add_loopback_v6(&v6(pod))?;
            for ip in [v4(pod), v6(pod)] {
                mesh.backends.open(&at(&ip, TARGET).to_string(), pod)?;
            }
        }
        mesh.manifests.write("web.yaml", &objects(&[1, 2, 3, 4, 5]))?;
        let args = mesh.spec().args.clone();
        mesh.spec().args.extend(place("eu", "a"));
        mesh.start()?;
        until(&mesh, &[1, 2, 3, 4, 5])?;

        let failover = json!({"locality": {"failover": [{"from": "eu", "to": "ap"}]}});
        mesh.manifests.write("policy.yaml", &[traffic_policy("p", "web", &failover)])?;
        until(&mesh, &[1, 2])?;
        // Of the zone, then of the region, then of the region that stands in for it, then all.
        for (ready, reached) in
            [(vec![2, 3, 4, 5], vec![2]), (vec![3, 4, 5], vec![3]), (vec![4, 5], vec![5]), (vec![4], vec![4])]
        {
            mesh.manifests.write("web.yaml", &objects(&ready))?;
            until(&mesh, &reached)?;
        }
        mesh.manifests.write("web.yaml", &objects(&[1, 2, 3, 4, 5]))?;
        until(&mesh, &[1, 2])?;

        // The same objects, seen from another node.
        mesh.kill()?;
        mesh.spec().args.clone_from(&args);
        mesh.spec().args.extend(place("us", "c"));
        mesh.start()?;
        until(&mesh, &[4])?;
        mesh.stop()
    });
}

/// Connects until none fails and these pods get all of them.
fn until_all(mesh: &Mesh, vip: SocketAddr, pods: &[u16]) -> Result<()> {
    wait::until_true(&format!("all connections to {vip} to go to {pods:?}"), || {
        let log = mesh.connect(vip, 60)?;
        let reached: BTreeSet<u16> = log.by_backend().into_keys().collect();
        Ok(log.expect_all(60).is_ok() && reached == pods.iter().copied().collect())
    })
}

#[test]
fn the_next_nearest_stand_in_for_those_to_which_connects_fail() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        let open = |mesh: &mut Mesh, pod| {
            let addresses = [v4(pod), v6(pod)];
            addresses.iter().try_for_each(|ip| mesh.backends.open(&at(ip, TARGET).to_string(), pod))
        };
        for (pod, ..) in PODS {
            net::add_loopback_v6(&v6(pod))?;
        }
        // Those of the caller's zone don't run.
        [3, 4, 5].into_iter().try_for_each(|pod| open(&mut mesh, pod))?;
        mesh.manifests.write("web.yaml", &objects(&[1, 2, 3, 4, 5]))?;
        let detection =
            json!({"consecutive5xxErrors": 2, "baseEjectionTime": "3600s", "maxEjectionPercent": 100});
        let locality = json!({"localityLbSetting": {"failover": [{"from": "eu", "to": "ap"}]}});
        let rule = destination_rule("web")
            .traffic_policy(&json!({"outlierDetection": detection, "loadBalancer": locality}));
        mesh.manifests.write("rule.yaml", &[rule.build()])?;
        mesh.spec().args.extend(place("eu", "a"));
        mesh.start()?;
        let vips = [at(V4, 80), at(V6, 80)];
        vips.iter().try_for_each(|vip| until_all(&mesh, *vip, &[3]))?;
        // Then the region that stands in for it.
        for ip in [v4(3), v6(3)] {
            mesh.backends.close(&at(&ip, TARGET).to_string())?;
        }
        vips.iter().try_for_each(|vip| until_all(&mesh, *vip, &[5]))?;
        // Where nobody asks for it any more, those of the zone are chosen, whatever becomes of it.
        [1, 2].into_iter().try_for_each(|pod| open(&mut mesh, pod))?;
        let locality = json!({"locality": {}});
        mesh.manifests.write("policy.yaml", &[traffic_policy("p", "web", &locality)])?;
        mesh.manifests.remove("rule.yaml")?;
        vips.iter().try_for_each(|vip| until_all(&mesh, *vip, &[1, 2]))?;
        mesh.stop()
    });
}

#[test]
fn zones_have_their_shares() {
    const CONNECTS: u64 = 4_000;
    isolated(|| {
        let mut mesh = Mesh::new()?;
        for (pod, ..) in PODS {
            net::add_loopback_v6(&v6(pod))?;
            for ip in [v4(pod), v6(pod)] {
                mesh.backends.open(&at(&ip, TARGET).to_string(), pod)?;
            }
        }
        mesh.manifests.write("web.yaml", &objects(&[1, 2, 3, 4, 5]))?;
        mesh.spec().args.extend(place("eu", "a"));
        mesh.start()?;
        let shares = json!([
            {"from": "us", "to": {"us": 100}},
            {"from": "eu/a", "to": {"eu/a/*": 60, "eu": 10, "us/c": 30}},
        ]);
        let setting = json!({"loadBalancer": {"localityLbSetting": {"distribute": shares}}});
        let rule = destination_rule("web").traffic_policy(&setting);
        mesh.manifests.write("rule.yaml", &[rule.build()])?;
        until(&mesh, &[1, 2, 3, 4])?;
        for vip in [at(V4, 80), at(V6, 80)] {
            let counts = counts(&mesh, vip, CONNECTS)?;
            println!("{vip}: {counts:?}");
            let of = |pod: u16| counts.get(&pod).copied().unwrap_or(0) * 100 / CONNECTS;
            ensure!(!counts.contains_key(&5), "it has no share: {counts:?}");
            // Each within more than six standard deviations.
            for (pod, share) in [(1, 30), (2, 30), (3, 10), (4, 30)] {
                ensure!(of(pod).abs_diff(share) <= 5, "pod {pod}: {counts:?}");
            }
        }
        // A share of nobody goes to the others.
        mesh.manifests.write("web.yaml", &objects(&[1, 2, 4, 5]))?;
        until(&mesh, &[1, 2, 4])?;
        mesh.stop()
    });
}
