//! Where things lie: the checkout, what is built in it, and the cache that clones share.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The paths of one checkout.
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Finds the checkout this program was built from.
    ///
    /// cargo says it at run time; the value compiled in would be another clone's if two clones share
    /// a target directory.
    pub fn locate() -> Result<Self> {
        let xtask = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = xtask.parent().context("xtask lies in no workspace")?.to_owned();
        if !root.join("Cargo.lock").is_file() {
            bail!(
                "{} is not the root of the workspace: run this as `cargo xtask` in a checkout",
                root.display()
            );
        }
        Ok(Self { root })
    }

    /// The root of the checkout.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The manifest of the eBPF programs, which are no members of the workspace.
    pub fn programs_manifest(&self) -> PathBuf {
        self.root.join("bpf-programs/programs/Cargo.toml")
    }

    /// Where the eBPF programs are built. Not moved by `CARGO_TARGET_DIR`: `agent/build.rs` must find
    /// the object, and it can't see where that variable pointed when the object was built.
    pub fn bpf_dir(&self) -> PathBuf {
        self.root.join("target/bpf")
    }

    /// The object that the agent embeds.
    pub fn bpf_object(&self) -> PathBuf {
        self.bpf_dir().join("slotmesh.bpf.o")
    }

    /// The object that the agent with another record layout embeds.
    pub fn next_object(&self) -> PathBuf {
        self.bpf_dir().join("next.bpf.o")
    }

    /// The object with the programs of the tests and benchmarks.
    pub fn probes_object(&self) -> PathBuf {
        self.bpf_dir().join("probes.bpf.o")
    }

    /// The Go module of the control plane for the end-to-end tests.
    pub fn control_plane_module(&self) -> PathBuf {
        self.root.join("e2e/control-plane")
    }

    /// Leads to the programs of that module, in the cache folder. Not moved by `CARGO_TARGET_DIR`: the
    /// tests look here.
    pub fn control_plane(&self) -> PathBuf {
        self.root.join("target/control-plane")
    }

    /// Leads to the folder with Prometheus; the tests look here, too.
    pub fn prometheus(&self) -> PathBuf {
        self.root.join("target/prometheus")
    }

    /// A build or its results, apart from the others. Not moved by `CARGO_TARGET_DIR` either.
    pub fn target(&self, name: &str) -> PathBuf {
        self.root.join("target").join(name)
    }

    /// The initramfs and the logs of the tests on other kernels.
    pub fn kernels_dir(&self) -> PathBuf {
        self.root.join("target/kernels")
    }
}

/// Removes a folder with all that is in it, if it is there.
pub fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The folder for tools that every clone of this user shares, created when missing.
pub fn cache_dir() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = match (set("SLOTMESH_CACHE"), set("XDG_CACHE_HOME"), set("HOME")) {
        (Some(dir), _, _) => dir,
        (None, Some(dir), _) => dir.join("slotmesh"),
        (None, None, Some(home)) => home.join(".cache/slotmesh"),
        (None, None, None) => bail!("no cache folder: set SLOTMESH_CACHE (or HOME)"),
    };
    fs::create_dir_all(&dir).with_context(|| {
        format!("can't create the cache folder {} (SLOTMESH_CACHE moves it)", dir.display())
    })?;
    // Absolute, because tools are started with other working directories.
    fs::canonicalize(&dir).with_context(|| format!("can't open the cache folder {}", dir.display()))
}
