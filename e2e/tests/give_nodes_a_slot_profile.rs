//! A user gives a running agent more slots, and fewer, by a SlotProfile that selects its node.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use slotmesh_e2e::{
    Log, Mesh, isolated,
    manifests::{service, slice, slot_profile},
    mesh::{at, reviews},
    wait,
};

/// Endpoints of a service: they take a slot of 4096 bytes, of which an outer record has 16.
const PODS: u8 = 120;
/// Services that are more than 4 outer records hold.
const FILLING: u8 = 80;
/// Services that are more than the idle slots of outer records in use hold.
const LATE: u8 = 34;

/// A service with address `10.97.0.number` and the pods `127.9.number.1` and following.
fn big(number: u8) -> [Value; 2] {
    let name = format!("big-{number}");
    let pods = (1..=PODS)
        .fold(slice(&name, &name).port(9999), |slice, pod| slice.endpoint(&format!("127.9.{number}.{pod}")));
    [service(&name).ip(&format!("10.97.0.{number}")).port(80).build(), pods.build()]
}

/// Whether all connects went well.
fn fine(log: &Log) -> bool {
    log.connects.iter().all(|connect| connect.errno == 0)
}

fn outer_records(mesh: &Mesh, what: &str) -> Result<f64> {
    Ok(mesh.agent()?.metrics()?.get(&format!("slotmesh_agent_outer_records{what}")))
}

fn write_profile(mesh: &Mesh, spec: &Value) -> Result<()> {
    mesh.manifests.write("profile.yaml", &[slot_profile("edge", spec)])
}

fn expect_cap(mesh: &Mesh, cap: f64) -> Result<()> {
    wait::until_true(&format!("a cap of {cap} outer records"), || Ok(outer_records(mesh, "_cap")? == cap))
}

#[test]
fn the_cap_rises_and_falls_under_load() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        let args = [
            "--slab-initial",
            "2",
            "--slab-cap",
            "4",
            "--slab-low-watermark",
            "1",
            "--slab-batch",
            "4",
            "--slab-high-watermark",
            "8",
            "--node-name",
            "edge-1",
            "--node-labels",
            "tier=edge,zone=a",
        ];
        mesh.spec().args = args.map(str::to_owned).into();
        mesh.manifests.write("mesh.yaml", &reviews::objects())?;
        mesh.start()?;
        reviews::open(&mut mesh.backends)?;
        mesh.backends.open_all_v4(9999)?;
        let load = mesh.load(&reviews::addresses())?;
        let agent = mesh.agent()?;

        let filling: Vec<_> = (1..=FILLING).flat_map(big).collect();
        mesh.manifests.write("filling.yaml", &filling)?;
        wait::until_true("a resource to be refused", || Ok(agent.metrics()?.nacked() > 0))?;
        wait::until_true("the log to say what to do", || Ok(agent.said().contains("SlotProfile")))?;

        // Not for this node.
        write_profile(&mesh, &json!({"nodeSelector": {"tier": "core"}, "cap": 64}))?;
        agent.expect_report(&["SlotProfile edge", "no node is selected"])?;
        ensure!(outer_records(&mesh, "_cap")? == 4.0);

        // More: what was refused takes effect by itself.
        write_profile(&mesh, &json!({"nodeSelector": {"tier": "edge"}, "cap": 64}))?;
        expect_cap(&mesh, 64.0)?;
        agent.expect_no_report(&["SlotProfile edge"])?;
        for number in 1..=FILLING {
            wait::until_true(&format!("service {number} to be in force"), || {
                Ok(fine(&mesh.connect(at(&format!("10.97.0.{number}"), 80), 5)?))
            })?;
        }
        let created = outer_records(&mesh, "")?;
        ensure!(created > 4.0, "{created} outer records hold all services");

        // A profile that contradicts the flags is refused by the agent, and the old one stays.
        write_profile(&mesh, &json!({"nodeSelector": {"tier": "edge"}, "cap": 1}))?;
        let refused =
            |line: &str| line.contains("edge-1") && line.contains("2 initial slabs are more than the cap, 1");
        wait::until_true("the agent to refuse it", || Ok(agent.said().lines().any(refused)))?;
        ensure!(outer_records(&mesh, "_cap")? == 64.0, "the refused settings are in force");

        // Fewer than there are: what is in force stays, and nothing new is taken.
        let profile =
            json!({"nodeSelector": {"tier": "edge"}, "nodeNames": ["edge-1"], "memoryBudget": "272Ki"});
        write_profile(&mesh, &profile)?;
        expect_cap(&mesh, 4.0)?;
        for number in 1..=FILLING {
            mesh.connect(at(&format!("10.97.0.{number}"), 80), 5)?.expect_all(5)?;
        }
        let late = FILLING + 1..=FILLING + LATE;
        let connect = |number| mesh.connect(at(&format!("10.97.0.{number}"), 80), 5);
        let nacked = agent.metrics()?.nacked();
        mesh.manifests.write("late.yaml", &late.clone().flat_map(big).collect::<Vec<_>>())?;
        wait::until_true("late services to be refused", || Ok(agent.metrics()?.nacked() > nacked))?;
        ensure!(late.map(connect).any(|log| log.is_ok_and(|log| !fine(&log))), "there was room for all");

        // When there is less to hold, outer records above the cap are given back, and there is room again.
        mesh.manifests.remove("late.yaml")?;
        mesh.manifests.remove("filling.yaml")?;
        wait::until_true("outer records to be given back", || Ok(outer_records(&mesh, "")? <= 4.0))?;
        mesh.manifests.write("late.yaml", &big(FILLING + 1))?;
        wait::until_true("the late service", || Ok(fine(&connect(FILLING + 1)?)))?;

        // Without a profile, the flags are in force again.
        write_profile(&mesh, &json!({"nodeNames": ["edge-1"], "cap": 10}))?;
        expect_cap(&mesh, 10.0)?;
        mesh.manifests.remove("profile.yaml")?;
        expect_cap(&mesh, 4.0)?;

        let log = load.stop()?;
        println!("{} connects", log.len());
        log.expect_all(1_000)?;
        mesh.stop()
    });
}
