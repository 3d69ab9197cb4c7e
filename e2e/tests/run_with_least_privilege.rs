//! A user gives slotmesh three capabilities and nothing else.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use slotmesh_e2e::{Mesh, isolated, mesh::reviews};

/// CAP_NET_ADMIN (12), CAP_PERFMON (38), CAP_BPF (39), by the names that setpriv of Debian bookworm knows.
const CAPABILITIES: [&str; 3] = ["net_admin", "cap_38", "cap_39"];
const MASK: u64 = 1 << 12 | 1 << 38 | 1 << 39;

#[test]
fn and_it_takes_over_routes_and_cleans_up() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        mesh.manifests.write("mesh.yaml", &reviews::objects())?;
        reviews::open(&mut mesh.backends)?;
        // Somebody has mounted the file system and an earlier agent, with all rights, has used it.
        mesh.start()?;
        mesh.kill()?;
        mesh.spec().capabilities = CAPABILITIES.to_vec();
        mesh.start()?;
        let status = fs::read_to_string(format!("/proc/{}/status", mesh.agent()?.pid()))?;
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
        ensure!(u64::from_str_radix(effective.trim(), 16)? == MASK, "CapEff is {effective}");
        mesh.connect(reviews::addresses()[0], 500)?.expect_all(500)?;
        mesh.stop()
    });
}

#[test]
fn and_is_told_which_one_is_missing() {
    isolated(|| -> Result<()> {
        let mut mesh = Mesh::new()?;
        mesh.spec().capabilities = CAPABILITIES[..2].to_vec();
        let (status, said) = mesh.spec().run_to_end()?;
        ensure!(!status.success() && said.contains("CAP_BPF") && said.contains("run as root"), "{said}");
        ensure!(!said.contains("CAP_NET_ADMIN, "), "it names what isn't missing: {said}");
        Ok(())
    });
}
