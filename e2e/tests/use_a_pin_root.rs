//! A user says where slotmesh pins, and nothing else there is touched.

use std::{fs, os::unix::fs::MetadataExt as _};

use anyhow::{Result, ensure};
use slotmesh_e2e::{Mesh, isolated, mesh::reviews, net};

#[test]
fn whose_parent_is_in_use_is_refused_and_nothing_is_mounted_there() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("precious"), "")?;
        let root = dir.path().join("pins");
        mesh.spec().pin_root.clone_from(&root);
        let (status, said) = mesh.spec().run_to_end()?;
        ensure!(!status.success() && said.contains("mount -t bpf bpf"), "{said}");
        ensure!(dir.path().join("precious").exists() && !root.exists(), "something is mounted there");
        Ok(())
    });
}

#[test]
fn that_is_the_bpf_file_system_itself_is_refused() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        mesh.spec().pin_root = "/sys/fs/bpf".into();
        let (status, said) = mesh.spec().run_to_end()?;
        ensure!(!status.success() && said.contains("/sys/fs/bpf/slotmesh"), "{said}");
        Ok(())
    });
}

#[test]
fn in_an_empty_directory_of_ones_own() {
    isolated(|| {
        let dir = tempfile::tempdir()?;
        // The mount stays when slotmesh ends: in a mount namespace that goes.
        net::without_mounts("no such file system", || -> Result<()> {
            let mut mesh = Mesh::new()?;
            mesh.manifests.write("mesh.yaml", &reviews::objects())?;
            reviews::open(&mut mesh.backends)?;
            let root = dir.path().join("pins");
            mesh.spec().pin_root.clone_from(&root);
            mesh.start()?;
            ensure!(fs::metadata(&root)?.mode() & 0o077 == 0, "others can look into the pin root");
            mesh.connect(reviews::addresses()[0], 100)?.expect_all(100)?;
            // What somebody else puts there survives, and the pin root with it.
            fs::create_dir(root.join("others"))?;
            mesh.stop()?;
            let left: Vec<_> = fs::read_dir(&root)?.flatten().map(|entry| entry.file_name()).collect();
            ensure!(left == ["others"], "{left:?}");
            Ok(())
        })
    });
}
