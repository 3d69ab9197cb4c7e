//! A workload is restarted, and its cgroup with it: it stays routed.

use anyhow::{Context as _, Result, ensure};
use slotmesh_e2e::{Mesh, isolated, mesh::reviews, names, wait};

fn attached(mesh: &Mesh) -> Result<usize> {
    Ok(mesh.agent()?.said().matches("attached workload=default/client").count())
}

#[test]
fn and_the_workload_is_attached_again() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        reviews::open(&mut mesh.backends)?;
        for _ in 0..3 {
            mesh.connect(reviews::addresses()[0], 20)?.expect_all(20)?;
            let before = attached(&mesh)?;
            mesh.cgroup.renew()?;
            wait::until_true("it to be attached again", || Ok(attached(&mesh)? > before))?;
        }
        mesh.connect(reviews::addresses()[0], 20)?.expect_all(20)?;
        mesh.stop()
    });
}

#[test]
fn and_a_second_agent_beside_the_first_is_warned_of() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        let others = names::PinRoot::new();
        let mut second = mesh.spec().clone();
        (second.admin, second.pin_root) = (names::admin_port(), others.path().to_owned());
        let second = second.start_ready()?;
        let said = second.said();
        ensure!(said.contains("other programs are attached to its cgroup"), "{said}");
        let first = mesh.agent().context("the first runs on")?.said();
        ensure!(!first.contains("other programs are attached"), "{first}");
        second.stop()?;
        mesh.stop()
    });
}
