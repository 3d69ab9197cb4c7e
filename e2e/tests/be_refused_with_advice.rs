//! A user starts slotmesh where it can't run, and is told what is missing and what to do.

use std::path::Path;

use anyhow::{Result, ensure};
use slotmesh_e2e::{Mesh, bpf, isolated, mesh::reviews, names, net};

/// The refusal of a call whose manifests are fine.
fn expect_refusal(refusal: (std::process::ExitStatus, String), words: &[&str]) -> Result<()> {
    let (status, said) = refusal;
    println!("{status}: {said}");
    ensure!(!status.success(), "slotmesh up ended well: {said}");
    let missing: Vec<_> = words.iter().filter(|word| !said.contains(**word)).collect();
    ensure!(missing.is_empty(), "{missing:?} isn't said: {said}");
    ensure!(!said.contains("panicked"), "a refusal is no panic: {said}");
    Ok(())
}

#[test]
fn without_root() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        // Readable by all, so that nothing but the privilege is missing.
        use std::os::unix::fs::PermissionsExt as _;
        let open = std::fs::Permissions::from_mode(0o755);
        for dir in mesh.manifests.path().ancestors().take(2) {
            std::fs::set_permissions(dir, open.clone())?;
        }
        expect_refusal(
            mesh.spec().run_to_end_as_nobody()?,
            &["missing capabilities", "CAP_BPF", "run as root"],
        )
    });
}

#[test]
fn without_cgroup_v2() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        let refusal = net::without_mounts("cgroup2", || mesh.spec().run_to_end())?;
        expect_refusal(refusal, &["no cgroup v2 hierarchy is mounted", "mount -t cgroup2"])
    });
}

/// This is no refusal: a BPF file system is mounted where one is missing.
#[test]
fn but_not_without_a_bpf_file_system() {
    isolated(|| {
        let mut mesh = Mesh::with(&[])?;
        mesh.manifests.write("mesh.yaml", &reviews::objects())?;
        mesh.stop()?;
        reviews::open(&mut mesh.backends)?;
        net::without_mounts("bpf", || {
            mesh.start()?;
            mesh.connect(reviews::addresses()[0], 100)?.expect_all(100)?;
            mesh.stop()
        })
    });
}

#[test]
fn with_a_pin_root_that_another_agent_holds() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        reviews::open(&mut mesh.backends)?;
        let mut second = mesh.spec().clone();
        second.admin = names::admin_port();
        let pin_root = second.pin_root.display().to_string();
        expect_refusal(
            second.run_to_end()?,
            &["another slotmesh agent", &pin_root, "stop it first", "--pin-root"],
        )?;
        // The first is not disturbed.
        mesh.connect(reviews::addresses()[0], 100)?.expect_all(100)?;
        mesh.stop()
    });
}

#[test]
fn with_an_admin_address_that_is_taken() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        let taken = format!("127.0.0.1:{}", mesh.spec().admin);
        mesh.backends.open(&taken, 1)?;
        expect_refusal(mesh.spec().run_to_end()?, &["--admin", &taken])
    });
}

#[test]
fn with_a_directory_that_is_no_cgroup() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        let dir = mesh.manifests.path().to_owned();
        let spec = mesh.spec().clone().workload("default/wrong", &dir);
        expect_refusal(
            spec.run_to_end()?,
            &[&dir.display().to_string(), "is not a cgroup", "name a directory below"],
        )?;
        let spec = mesh.spec().clone().workload("default/wrong", Path::new("/no/such/cgroup"));
        expect_refusal(
            spec.run_to_end()?,
            &["there is no cgroup /no/such/cgroup", "create it", "mkdir -p /no/such/cgroup"],
        )?;
        // A refused start leaves nothing attached and nothing pinned.
        let pins = if spec.pin_root.exists() { bpf::pins(&spec.pin_root)? } else { Vec::new() };
        ensure!(pins.is_empty(), "{} pins stay, such as {:?}", pins.len(), pins.first());
        Ok(())
    });
}

/// The agent of a node attaches later, so it pins before it looks for pods.
#[test]
fn as_an_agent_with_a_cgroup_root_that_is_none() {
    isolated(|| {
        let root = names::PinRoot::new();
        let mut agent = std::process::Command::new(names::binary("slotmesh", "slotmesh")?);
        agent.args(["agent", "--node", "n", "--operator", "http://127.0.0.1:1", "--cgroup-root", "/no/such"]);
        agent.arg("--pin-root").arg(root.path());
        agent.arg("--admin").arg(format!("127.0.0.1:{}", names::admin_port()));
        let output = agent.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        expect_refusal((output.status, said), &["/no/such", "--cgroup-root"])?;
        ensure!(!root.path().exists(), "pins stay: {:?}", bpf::pins(root.path())?);
        Ok(())
    });
}

#[test]
fn with_a_file_instead_of_a_directory_of_manifests() {
    isolated(|| {
        let mut mesh = Mesh::with(&[])?;
        mesh.stop()?;
        let folder = mesh.manifests.path().display().to_string();
        mesh.spec().manifests = mesh.manifests.path().join("mesh.yaml");
        std::fs::write(&mesh.spec().manifests, "")?;
        expect_refusal(mesh.spec().run_to_end()?, &["is a file", &folder])
    });
}

#[test]
fn with_a_directory_of_manifests_that_is_not_there() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        mesh.spec().manifests = mesh.manifests.beside("missing");
        expect_refusal(mesh.spec().run_to_end()?, &["missing", "directory", "--manifests"])
    });
}
