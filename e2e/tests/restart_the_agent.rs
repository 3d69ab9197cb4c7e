//! A user's agent is killed, or replaced, while connections are made.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use nix::errno::Errno;
use slotmesh_e2e::{
    Cgroup, ClientSpec, Log, Mesh, bpf::Footprint, client::LEAST, connect::now, isolated, mesh::reviews,
};

/// One time without an agent, and what was removed meanwhile.
struct Gap {
    killed: u64,
    ready: u64,
    removed: u16,
}

impl Gap {
    fn check(&self, log: &Log, until: u64) -> Result<()> {
        let without = log.during(self.killed, self.ready);
        ensure!(without.len() >= 100, "{} connects between kill and ready", without.len());
        let after = log.during(self.ready, until);
        ensure!(!after.is_empty(), "no connect was made after the restart");
        let late = after.connects.iter().find(|c| c.backend == Some(self.removed));
        ensure!(late.is_none(), "pod {}, removed without an agent, was chosen: {late:?}", self.removed);
        Ok(())
    }
}

#[test]
fn connections_go_on_without_it_and_what_changed_meanwhile_takes_effect() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        reviews::open(&mut mesh.backends)?;
        let load = mesh.load(&reviews::addresses())?;
        thread::sleep(Duration::from_millis(500));
        let mut gaps = Vec::new();
        for removed in [21, 11, 31] {
            let killed = now();
            mesh.kill()?;
            mesh.manifests.write("mesh.yaml", &reviews::objects_without(&[removed]))?;
            thread::sleep(Duration::from_millis(300));
            mesh.start()?;
            gaps.push(Gap { killed, ready: now(), removed });
            thread::sleep(Duration::from_secs(1));
            reviews::close_pod(&mut mesh.backends, removed)?;
            thread::sleep(Duration::from_millis(100));
            reviews::open_pod(&mut mesh.backends, removed)?;
        }
        thread::sleep(Duration::from_millis(500));
        let end = now();
        let log = load.stop()?;
        println!("{} connects, {:?}", log.len(), log.by_backend());
        log.expect_all(LEAST)?;
        let ends = gaps.iter().skip(1).map(|gap| gap.killed).chain([end]);
        gaps.iter().zip(ends).try_for_each(|(gap, until)| gap.check(&log, until))?;
        leave_nothing(mesh)
    });
}

#[test]
fn being_killed_in_the_middle_of_a_change_breaks_no_connection() {
    const ROUNDS: u64 = 12;
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        reviews::open(&mut mesh.backends)?;
        let load = mesh.load(&reviews::addresses())?;
        let mut without = 0..0;
        for round in 0..ROUNDS {
            let gone: &[u16] = if round % 2 == 0 { &[11, 31] } else { &[] };
            mesh.manifests.write("mesh.yaml", &reviews::objects_without(gone))?;
            // A change is read 20 ms after it is made: before, while and after it is written.
            thread::sleep(Duration::from_millis(17 + round));
            let killed = now();
            mesh.kill()?;
            mesh.start()?;
            without = killed..now();
        }
        thread::sleep(Duration::from_secs(2));
        let log = load.stop()?;
        println!("{} connects, {:?}", log.len(), log.by_backend());
        log.expect_all(LEAST)?;
        ensure!(log.during(without.start, without.end).len() >= 100, "few connects between kill and ready");
        leave_nothing(mesh)
    });
}

#[test]
fn being_replaced_by_another_that_takes_over_what_was_kept() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        mesh.manifests.write("mesh.yaml", &reviews::objects())?;
        mesh.spec().keep = true;
        mesh.start()?;
        reviews::open(&mut mesh.backends)?;
        let load = mesh.load(&reviews::addresses())?;
        let mut gaps = Vec::new();
        for removed in [21, 11] {
            thread::sleep(Duration::from_millis(300));
            let began = now();
            mesh.stop()?;
            mesh.manifests.write("mesh.yaml", &reviews::objects_without(&[removed]))?;
            thread::sleep(Duration::from_millis(300));
            mesh.start()?;
            gaps.push(Gap { killed: began, ready: now(), removed });
        }
        thread::sleep(Duration::from_millis(300));
        mesh.stop()?;
        mesh.spec().keep = false;
        mesh.start()?;
        let end = now();
        let log = load.stop()?;
        log.expect_all(LEAST)?;
        let ends = gaps.iter().skip(1).map(|gap| gap.killed).chain([end]);
        gaps.iter().zip(ends).try_for_each(|(gap, until)| gap.check(&log, until))?;
        leave_nothing(mesh)
    });
}

/// The second agent doesn't know the workload of the first, and detaches it.
#[test]
fn with_another_workload_leaves_the_first_alone() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        reviews::open(&mut mesh.backends)?;
        let [to, ..] = reviews::addresses();
        mesh.connect(to, 100)?.expect_all(100)?;
        mesh.kill()?;
        mesh.connect(to, 100)?.expect_all(100)?;
        let other = Cgroup::new()?;
        mesh.spec().workloads = vec![("default/other".to_owned(), other.path().to_owned())];
        mesh.start()?;
        mesh.connect(to, 3)?.expect_errno(Errno::ENETUNREACH)?;
        ClientSpec::to(to).count(100).run(Some(&other))?.expect_all(100)?;
        leave_nothing(mesh)
    });
}

/// The kernel takes the links along with a cgroup: their pins stay and lead nowhere.
#[test]
fn with_a_workload_whose_cgroup_was_made_again_meanwhile() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        reviews::open(&mut mesh.backends)?;
        let [to, ..] = reviews::addresses();
        for _ in 0..2 {
            mesh.connect(to, 100)?.expect_all(100)?;
            mesh.kill()?;
            mesh.cgroup.renew()?;
            mesh.connect(to, 3)?.expect_errno(Errno::ENETUNREACH)?;
            mesh.start()?;
        }
        mesh.connect(to, 100)?.expect_all(100)?;
        leave_nothing(mesh)
    });
}

/// Stops the agent; no map, program, link or pin of it stays.
fn leave_nothing(mut mesh: Mesh) -> Result<()> {
    let footprint = Footprint::of(mesh.agent()?)?;
    println!("in the kernel: {}", footprint.describe());
    mesh.stop()?;
    footprint.expect_gone()
}
