//! A user follows README.md's section "Use it": the example for one machine, and two servers on loopback.

use std::{fs, path::Path};

use anyhow::ensure;
use slotmesh_e2e::{Mesh, isolated, mesh::at, stats};

/// So many that a split which is off by two percent is always seen.
const CONNECTS: u64 = 20_000;

#[test]
fn the_example_for_one_machine_is_routed_by_its_weights() {
    isolated(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let readme = fs::read_to_string(root.join("README.md"))?;
        for said in ["up --manifests examples/local", "curl --silent 10.96.0.20"] {
            ensure!(readme.contains(said), "README.md doesn't say {said:?} any more");
        }
        let mut mesh = Mesh::new()?;
        mesh.spec().manifests = root.join("examples/local");
        (1..=2).try_for_each(|n| mesh.backends.open(&format!("127.0.0.1:808{n}"), n))?;
        mesh.start()?;
        let log = mesh.connect(at("10.96.0.20", 80), CONNECTS)?;
        log.expect_all(CONNECTS as usize)?;
        let counts = log.by_backend();
        let of = |id: u16| counts.get(&id).copied().unwrap_or_default();
        stats::expect_fit(&[of(1), of(2)], &[90, 10])?;
        mesh.stop()
    });
}
