//! Makes this machine able to build the eBPF programs and to run tests and demo.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::apt;
use crate::chain::{self, ChainKind};
use crate::cmd::find_program;
use crate::tool;
use crate::workspace::{Workspace, cache_dir};

/// The Debian packages that hold compiler, sources of its library, and the LLVM of the linker.
const CHAIN_PACKAGES: [&str; 6] =
    ["rustc-web", "rust-web-src", "llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"];

/// Programs that tests and demo start, or that libFuzzer is built with (g++) and Envoy fetched by (pip3), and the Debian
/// packages that hold them.
const RUN_TIME: [(&str, &str); 10] = [
    ("busybox", "busybox-static"),
    ("crun", "crun"),
    ("curl", "curl"),
    ("g++", "g++"),
    ("ip", "iproute2"),
    ("nc", "netcat-openbsd"),
    ("nft", "nftables"),
    ("pip3", "python3-pip"),
    ("strace", "strace"),
    ("wget", "wget"),
];

/// Packages that tests need and that hold no program: the filter of system calls that containers have, and a library that
/// lets a process see another time.
const DATA: [&str; 2] = ["golang-github-containers-common", "libfaketime"];

/// Remedy where the chain's packages are not to be had.
const OTHERWISE: &str = "Without them, use a rustup nightly with the rust-src component and a bpf-linker on PATH \
                         (docs/development.md).";

/// `cargo xtask setup`
pub fn run(_: &Workspace) -> Result<()> {
    let cache = cache_dir()?;
    let _alone = lock(&cache)?;
    let kind = chain::choose()?;
    install_packages(&kind)?;
    let chain = match kind {
        ChainKind::Nightly(chain) => chain,
        ChainKind::Debian => {
            tool::BPF_LINKER.ensure(&cache)?;
            chain::debian(&cache)?
        }
    };
    eprintln!("setup: ready ({} chain: {}, {})", chain.name, chain.rustc.display(), chain.linker.display());
    Ok(())
}

/// One set-up at a time in a cache folder: clones share it.
pub fn lock(cache: &Path) -> Result<File> {
    let path = cache.join("setup.lock");
    let file = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another set-up that uses {} …", cache.display());
            file.lock().with_context(|| format!("can't lock {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("can't lock {}", path.display()));
        }
    }
    Ok(file)
}

fn install_packages(kind: &ChainKind) -> Result<()> {
    let absent: Vec<(&str, &str)> =
        RUN_TIME.into_iter().filter(|(program, _)| find_program(program).is_none()).collect();
    if !apt::is_available() {
        return without_apt(kind, &absent);
    }
    let mut wanted: Vec<&str> = absent.iter().map(|(_, package)| *package).collect();
    wanted.extend(apt::missing(&DATA));
    let mut stale = false;
    if matches!(kind, ChainKind::Debian) {
        let missing = apt::missing(&CHAIN_PACKAGES);
        // Installed, but of another version: what apt knows is as old.
        if !missing.contains(&"rustc-web") && chain::debian_compiler_lacks().is_some() {
            wanted.extend(CHAIN_PACKAGES.into_iter().filter(|package| !missing.contains(package)));
            stale = true;
        }
        wanted.extend(missing);
    }
    if !wanted.is_empty() {
        apt::install(&wanted, stale, OTHERWISE)?;
    }
    match (kind, chain::debian_compiler_lacks()) {
        (ChainKind::Debian, Some(reason)) => bail!(
            "{reason}. The right compiler is in bookworm's security updates: add them to the package sources, \
             or use a rustup nightly (docs/development.md)"
        ),
        _ => Ok(()),
    }
}

/// Not a Debian: only a contributor's own chain can be used, and nothing can be installed.
fn without_apt(kind: &ChainKind, absent: &[(&str, &str)]) -> Result<()> {
    if matches!(kind, ChainKind::Debian) {
        bail!(
            "this is no Debian, so the eBPF programs need a rustup nightly of your own:\n    \
             rustup toolchain install nightly --component rust-src\n    cargo install bpf-linker\n\
             docs/development.md has more."
        );
    }
    let names: Vec<&str> = absent.iter().map(|(program, _)| *program).collect();
    if !names.is_empty() {
        bail!(
            "tests and demo start these programs, which are not on PATH: {}. Install them",
            names.join(", ")
        );
    }
    Ok(())
}
