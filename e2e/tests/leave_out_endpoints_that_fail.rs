//! A user has endpoints left out to which connects fail, by a TrafficPolicy or a DestinationRule. IPv4 and IPv6.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Result, ensure};
use nix::errno::Errno;
use serde_json::{Value, json};
use slotmesh_e2e::{
    Log, Mesh, isolated,
    manifests::{destination_rule, service, slice, traffic_policy},
    mesh::at,
    net, wait,
};

const V4: &str = "10.96.0.75";
const V6: &str = "fd00:96::75";
const PORT: u16 = 80;
const TARGET: u16 = 8080;
/// Both addresses, and the first as an IPv6 socket may name it.
const ADDRESSES: [&str; 3] = [V4, V6, "::ffff:10.96.0.75"];
const PODS: [u16; 3] = [1, 2, 3];
/// The pod whose server doesn't run.
const BAD: u16 = 3;
/// So many that each pod is chosen often: none is by chance less often than once in 10^30 runs.
const CONNECTS: u64 = 200;

fn addresses(pod: u16) -> [String; 2] {
    [format!("127.3.2.{pod}"), format!("fd00:3:2::{pod}")]
}

fn objects() -> Vec<Value> {
    let [mut four, mut six] = ["web-v4", "web-v6"].map(|name| slice(name, "web").port(TARGET));
    for pod in PODS {
        let [v4, v6] = addresses(pod);
        (four, six) = (four.endpoint(&v4), six.endpoint(&v6));
    }
    vec![service("web").ip(V4).ip(V6).port(PORT).build(), four.build(), six.build()]
}

/// A mesh in which the servers of all pods but one run.
fn mesh() -> Result<Mesh> {
    let mut mesh = Mesh::with(&objects())?;
    for pod in PODS {
        net::add_loopback_v6(&addresses(pod)[1])?;
    }
    PODS.into_iter().filter(|pod| *pod != BAD).try_for_each(|pod| open(&mut mesh, pod))?;
    Ok(mesh)
}

fn open(mesh: &mut Mesh, pod: u16) -> Result<()> {
    addresses(pod).iter().try_for_each(|ip| mesh.backends.open(&at(ip, TARGET).to_string(), pod))
}

/// How many connects were refused; no other one failed.
fn refused(log: &Log) -> Result<usize> {
    let failed: Vec<_> = log.connects.iter().filter(|c| c.errno != 0).collect();
    let other = failed.iter().find(|c| c.errno != Errno::ECONNREFUSED as i32);
    ensure!(other.is_none(), "not refused: {other:?}");
    Ok(failed.len())
}

fn by_pod(mesh: &Mesh, to: SocketAddr) -> Result<BTreeMap<u16, u64>> {
    let log = mesh.connect(to, CONNECTS)?;
    log.expect_all(CONNECTS as usize)?;
    Ok(log.by_backend())
}

fn left_out(mesh: &Mesh) -> Result<f64> {
    Ok(mesh.agent()?.metrics()?.get("slotmesh_agent_endpoints_ejected"))
}

#[test]
fn after_so_many_failed_connects_in_a_row() {
    isolated(|| {
        let mut mesh = mesh()?;
        let [four, six, mapped] = ADDRESSES.map(|ip| at(ip, PORT));
        // Nobody says so: it is chosen as the others are.
        ensure!(refused(&mesh.connect(four, CONNECTS)?)? > 3, "the pod without a server is chosen");
        let policy = json!({"outlierDetection": {"consecutiveFailures": 3, "baseSeconds": 3_600, "maxSeconds": 3_600, "maxPercent": 50}});
        mesh.agent()?.published("cluster", || {
            mesh.manifests.write("policy.yaml", &[traffic_policy("p", "web", &policy)])
        })?;
        // Each family by itself, and an IPv6 socket that names an IPv4 address is of IPv4.
        for (to, failing) in [(four, 3), (six, 3), (mapped, 0)] {
            let found = refused(&mesh.connect(to, CONNECTS)?)?;
            ensure!(found == failing, "{to}: {found} failed, not {failing}");
        }
        ensure!(left_out(&mesh)? == 2.0, "one endpoint of each family");
        let metrics = mesh.agent()?.metrics()?;
        ensure!(metrics.get("slotmesh_agent_ejections_total") == 2.0);

        // While it is left out nobody finds that its server runs again; and that outlives the agent.
        open(&mut mesh, BAD)?;
        mesh.kill()?;
        ensure!(!by_pod(&mesh, four)?.contains_key(&BAD));
        mesh.start()?;
        for to in [four, six] {
            let found = by_pod(&mesh, to)?;
            ensure!(found.keys().copied().eq([1, 2]), "{to}: {found:?}");
        }
        // Without the policy it is an endpoint as any other.
        mesh.agent()?.published("cluster", || mesh.manifests.remove("policy.yaml"))?;
        for to in [four, six, mapped] {
            let found = by_pod(&mesh, to)?;
            ensure!(found.keys().copied().eq(PODS), "{to}: {found:?}");
        }
        mesh.stop()
    });
}

#[test]
fn and_they_come_back_when_their_time_is_over() {
    isolated(|| {
        let mut mesh = mesh()?;
        let detection = json!({"outlierDetection": {"consecutive5xxErrors": 2, "baseEjectionTime": "1s", "maxEjectionPercent": 100}});
        let rule = destination_rule("web").traffic_policy(&detection);
        mesh.agent()?.published("cluster", || mesh.manifests.write("rule.yaml", &[rule.build()]))?;
        let times = || Ok::<_, anyhow::Error>(mesh.agent()?.metrics()?.get("slotmesh_agent_ejections_total"));
        for to in [at(V4, PORT), at(V6, PORT)] {
            let before = times()?;
            wait::until_true("an endpoint to be left out", || {
                refused(&mesh.connect(to, CONNECTS)?)?;
                Ok(times()? > before)
            })?;
        }
        open(&mut mesh, BAD)?;
        for to in ADDRESSES.map(|ip| at(ip, PORT)) {
            wait::until_true(
                "the endpoint to be chosen again",
                || Ok(by_pod(&mesh, to)?.contains_key(&BAD)),
            )?;
        }
        wait::until_true("no endpoint to be left out", || Ok(left_out(&mesh)? == 0.0))?;
        mesh.stop()
    });
}

#[test]
fn and_where_all_are_left_out_connects_are_refused_until_a_policy_says_otherwise() {
    isolated(|| {
        let mut mesh = mesh()?;
        for pod in PODS.into_iter().filter(|pod| *pod != BAD) {
            addresses(pod).iter().try_for_each(|ip| mesh.backends.close(&at(ip, TARGET).to_string()))?;
        }
        let policy = |least: u32| {
            let detection = json!({
                "consecutiveFailures": 1, "baseSeconds": 3_600, "maxSeconds": 3_600, "maxPercent": 100,
                "minHealthyPercent": least,
            });
            traffic_policy("p", "web", &json!({"outlierDetection": detection}))
        };
        mesh.agent()?.published("cluster", || mesh.manifests.write("policy.yaml", &[policy(0)]))?;
        let both = ADDRESSES.map(|ip| at(ip, PORT));
        wait::until_true("all endpoints of both families to be left out", || {
            for to in both {
                mesh.connect(to, CONNECTS)?.expect_errno(Errno::ECONNREFUSED)?;
            }
            Ok(left_out(&mesh)? == 2.0 * PODS.len() as f64)
        })?;
        PODS.into_iter().try_for_each(|pod| open(&mut mesh, pod))?;
        for to in both {
            mesh.connect(to, CONNECTS)?.expect_errno(Errno::ECONNREFUSED)?;
        }
        // Where fewer than a third are left, all are used.
        mesh.agent()?.published("cluster", || mesh.manifests.write("policy.yaml", &[policy(33)]))?;
        for to in both {
            let found = by_pod(&mesh, to)?;
            ensure!(found.keys().copied().eq(PODS), "{to}: {found:?}");
        }
        mesh.stop()
    });
}
