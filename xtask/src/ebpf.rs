//! Builds the eBPF programs: to the object that the agent embeds, to one with those of the tests, and to
//! one for the agent with another record layout that tests upgrade to. Programs that would need more stack than the
//! oldest kernel gives them are refused.

use std::env::consts::ARCH;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};

use crate::chain::{self, ChainKind, ToolChain};
use crate::cmd::{clean_cargo, host_cargo, run as run_command};
use crate::frames;
use crate::workspace::{Workspace, cache_dir};

/// Separator of the flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";

/// The programs' byte order is the machine's: maps are shared memory.
const TARGET: &str = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// `cargo xtask ebpf`
pub fn run(workspace: &Workspace) -> Result<()> {
    let chain = match chain::choose()? {
        ChainKind::Nightly(chain) => chain,
        ChainKind::Debian => chain::debian(&cache_dir()?)?,
    };
    build(workspace, &chain, &["--workspace"])?;
    take(workspace, "slotmesh", &workspace.bpf_object())?;
    take(workspace, "probes", &workspace.probes_object())?;
    // The same sources and the same binary's name: it is taken before and after.
    build(workspace, &chain, &["--package", "slotmesh-programs", "--features", "next-layout"])?;
    take(workspace, "slotmesh", &workspace.next_object())?;
    frames::check(&workspace.probes_object())?;
    frames::check(&workspace.next_object())?;
    eprintln!("ebpf: the deepest program takes {}", frames::check(&workspace.bpf_object())?);
    Ok(())
}

/// Puts a binary that was built where the agent's build, or a test, looks for it.
fn take(workspace: &Workspace, binary: &str, object: &Path) -> Result<()> {
    let built = workspace.bpf_dir().join(TARGET).join("release").join(binary);
    let outcome = if copy_if_changed(&built, object)? { "new" } else { "unchanged" };
    let size = object.metadata()?.len().div_ceil(1024);
    let shown = object.strip_prefix(workspace.root()).unwrap_or(object).display();
    eprintln!("ebpf: {shown} is {outcome} ({size} KiB)");
    Ok(())
}

fn build(workspace: &Workspace, chain: &ToolChain, what: &[&str]) -> Result<()> {
    run_command(
        clean_cargo(&chain.cargo.clone().unwrap_or_else(host_cargo))
            .env_remove("RUSTUP_TOOLCHAIN")
            .env("RUSTC", &chain.rustc)
            // Lets Debian's compiler, a stable one, use `build-std` and what aya-ebpf needs.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags(ARCH, &chain.linker))
            .args(["build", "--release", "--locked", "-Z", "build-std=core", "--target", TARGET])
            .args(what)
            .arg("--manifest-path")
            .arg(workspace.programs_manifest())
            .arg("--target-dir")
            .arg(workspace.bpf_dir())
            // Not the workspace's own cargo settings.
            .current_dir(workspace.root()),
    )
    .with_context(|| format!("the eBPF programs can't be built with the {} chain", chain.name))
}

fn flags(arch: &str, linker: &Path) -> String {
    [
        // Which registers hold a hook's arguments is the machine's matter.
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        format!("-Clinker={}", linker.display()),
        // BTF is made from debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ]
    .join(SEPARATOR)
}

/// Copies `from` to `to` unless `to` holds the same bytes already: a new time stamp would rebuild the
/// agent and what depends on it. Says whether it copied.
fn copy_if_changed(from: &Path, to: &Path) -> Result<bool> {
    let new = fs::read(from).with_context(|| format!("the build left no {}", from.display()))?;
    match fs::read(to) {
        Ok(old) if old == new => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("can't read {}", to.display())),
    }
    // In one step, so that a build of the agent at the same time never sees half of it.
    let part = to.with_extension("o.part");
    fs::write(&part, new).with_context(|| format!("can't write {}", part.display()))?;
    fs::rename(&part, to).with_context(|| format!("can't write {}", to.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_is_touched_only_when_its_bytes_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("built"), dir.path().join("slotmesh.bpf.o"));
        let modified = || to.metadata().unwrap().modified().unwrap();
        assert!(copy_if_changed(&from, &to).is_err(), "nothing was built");

        fs::write(&from, "one").unwrap();
        assert!(copy_if_changed(&from, &to).unwrap());
        let first = modified();
        fs::write(&from, "one").unwrap();
        assert!(!copy_if_changed(&from, &to).unwrap());
        assert_eq!(modified(), first);
        fs::write(&from, "two").unwrap();
        assert!(copy_if_changed(&from, &to).unwrap());
        assert_eq!(fs::read(&to).unwrap(), b"two");
    }

    #[test]
    fn a_linker_s_path_with_spaces_stays_one_flag() {
        let flags = flags("x86_64", Path::new("/a folder/bpf-linker"));
        let flags: Vec<&str> = flags.split(SEPARATOR).collect();
        assert_eq!(flags[..2], ["--cfg=bpf_target_arch=\"x86_64\"", "-Clinker=/a folder/bpf-linker"]);
    }
}
