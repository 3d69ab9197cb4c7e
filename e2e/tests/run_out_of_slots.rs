//! A user has more than fits below the cap that was set: what doesn't fit is refused and said, what is
//! in force stays, and when there is room again, what was refused takes effect by itself.

use anyhow::ensure;
use serde_json::Value;
use slotmesh_e2e::{
    Log, Mesh, isolated,
    manifests::{service, slice},
    mesh::{at, reviews},
    wait,
};

/// Endpoints of a service: they take a slot of 4096 bytes, of which an outer record has 16.
const PODS: u8 = 120;
/// Services that are more than the cap allows.
const FILLING: u8 = 80;

/// A service with address `10.97.0.number` and the pods `127.net.number.1` and following.
fn big(number: u8, net: u8) -> [Value; 2] {
    let name = format!("big-{number}");
    let pods = (1..=PODS).fold(slice(&name, &name).port(9999), |slice, pod| {
        slice.endpoint(&format!("127.{net}.{number}.{pod}"))
    });
    [service(&name).ip(&format!("10.97.0.{number}")).port(80).build(), pods.build()]
}

/// In force from the beginning.
const KEPT: u8 = 200;
/// Comes when nothing fits any more.
const LATE: u8 = 201;
/// Where the pods of `KEPT` move to while nothing fits: their ids then begin with this.
const MOVED: u8 = 202;

/// `KEPT`, with its pods where `of` has them.
fn kept(of: u8) -> Vec<Value> {
    let [service, _] = big(KEPT, 9);
    let name = format!("big-{KEPT}");
    let pods = (1..=PODS)
        .fold(slice(&name, &name).port(9999), |slice, pod| slice.endpoint(&format!("127.9.{of}.{pod}")));
    vec![service, pods.build()]
}

/// Connects that went to pods of `of`, of all.
fn share(log: &Log, of: u8) -> (usize, usize) {
    let ids = log.connects.iter().filter_map(|connect| connect.backend);
    (ids.filter(|id| id >> 8 == u16::from(of)).count(), log.len())
}

#[test]
fn what_does_not_fit_is_refused_and_comes_by_itself_when_there_is_room() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        let limits = ["--slab-initial", "2", "--slab-cap", "4", "--slab-low-watermark", "1"];
        mesh.spec().args = limits.map(str::to_owned).into();
        mesh.manifests.write("mesh.yaml", &reviews::objects())?;
        mesh.manifests.write("kept.yaml", &kept(KEPT))?;
        mesh.start()?;
        reviews::open(&mut mesh.backends)?;
        mesh.backends.open_all_v4(9999)?;
        let (to_kept, to_late) = (at(&format!("10.97.0.{KEPT}"), 80), at(&format!("10.97.0.{LATE}"), 80));
        mesh.connect(to_kept, 200)?.expect_all(200)?;
        let load = mesh.load(&reviews::addresses())?;

        let agent = mesh.agent()?;
        let filling: Vec<_> = (1..=FILLING).flat_map(|number| big(number, 9)).collect();
        mesh.manifests.write("filling.yaml", &filling)?;
        wait::until_true("a resource to be refused", || Ok(agent.metrics()?.nacked() > 0))?;
        let remaining = agent.metrics()?.get("slotmesh_agent_outer_records_remaining");
        ensure!(remaining == 0.0, "refused while {remaining} outer records can be created");
        wait::until_true("the log to say what to do", || Ok(agent.said().contains("--slab-cap")))?;

        // Neither a new service nor a new version of one in force fits.
        mesh.manifests.write("late.yaml", &big(LATE, 9))?;
        mesh.manifests.write("kept.yaml", &kept(MOVED))?;
        for number in [LATE, KEPT] {
            let name = format!("big-{number}.default");
            let refused = |line: &str| line.contains(&name) && line.contains("--slab-cap");
            wait::until_true(&format!("the refusal of {name}"), || Ok(agent.said().lines().any(refused)))?;
        }
        let log = mesh.connect(to_late, 20)?;
        ensure!(log.connects.iter().all(|connect| connect.errno != 0), "the new service is there");
        let log = mesh.connect(to_kept, 500)?;
        log.expect_all(500)?;
        ensure!(share(&log, KEPT) == (500, 500), "what was in force isn't: {:?}", log.by_backend());

        // Room, and nothing else is written any more.
        mesh.manifests.remove("filling.yaml")?;
        wait::until_true("what was refused to be in force", || {
            let (late, kept) = (mesh.connect(to_late, 20)?, mesh.connect(to_kept, 20)?);
            Ok(share(&late, LATE) == (20, 20) && share(&kept, MOVED) == (20, 20))
        })?;
        mesh.connect(to_kept, 200)?.expect_all(200)?;
        let log = load.stop()?;
        println!("{} connects, {:?}", log.len(), log.by_backend());
        log.expect_all(1_000)?;
        mesh.stop()
    });
}
