//! Which compiler and linker build the eBPF programs.
//!
//! The target has no precompiled `core`, so a compiler is useful only together with the sources of
//! its standard library, and the linker must be built against the LLVM that the compiler uses. Two
//! sets are known: a contributor's own rustup nightly, and Debian's rustc with LLVM 22.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::cmd::{find_program, is_executable, stdout_of};
use crate::tool;

/// Chooses the chain by hand: `nightly` or `debian`.
const CHOICE: &str = "SLOTMESH_EBPF_CHAIN";

/// The LLVM that Debian's compiler and the linker share.
pub const DEBIAN_LLVM: u32 = 22;
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_LIBRARY: &str = "/usr/lib/rustlib/src/rust/library/Cargo.lock";

/// The chain to use, whether or not it is complete.
pub enum ChainKind {
    /// A rustup nightly with rust-src, and a bpf-linker on PATH.
    Nightly(ToolChain),
    /// Debian's compiler, and a bpf-linker that set-up builds.
    Debian,
}

/// A complete chain.
pub struct ToolChain {
    /// For messages.
    pub name: &'static str,
    /// The cargo to start; `None` is the one that runs this program.
    pub cargo: Option<PathBuf>,
    /// The compiler.
    pub rustc: PathBuf,
    /// The bpf-linker.
    pub linker: PathBuf,
}

/// Decides by what the contributor has.
pub fn choose() -> Result<ChainKind> {
    let choice = env::var(CHOICE).unwrap_or_default();
    match (choice.as_str(), nightly()) {
        ("debian", _) => Ok(ChainKind::Debian),
        ("", Ok(chain)) | ("nightly", Ok(chain)) => Ok(ChainKind::Nightly(chain)),
        ("", Err(_)) => Ok(ChainKind::Debian),
        ("nightly", Err(missing)) => bail!("{CHOICE}=nightly, but {missing}"),
        _ => bail!("{CHOICE}={choice}: it can be `nightly`, `debian` or unset"),
    }
}

/// The contributor's nightly, or what it lacks.
fn nightly() -> Result<ToolChain, &'static str> {
    let sysroot = stdout_of(
        Command::new("rustup")
            .args(["run", "nightly", "rustc", "--print", "sysroot"])
            // Looking must not download anything.
            .env("RUSTUP_AUTO_INSTALL", "0"),
    );
    let sysroot = PathBuf::from(sysroot.as_deref().map(str::trim).ok_or("rustup has no nightly")?);
    nightly_in(&sysroot, find_program("bpf-linker"))
}

fn nightly_in(sysroot: &Path, linker: Option<PathBuf>) -> Result<ToolChain, &'static str> {
    let (cargo, rustc) = (sysroot.join("bin/cargo"), sysroot.join("bin/rustc"));
    if !sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").is_file() {
        return Err(
            "the nightly has no sources of `core`: rustup component add rust-src --toolchain nightly",
        );
    }
    if !is_executable(&cargo) || !is_executable(&rustc) {
        return Err("the nightly has no cargo");
    }
    let linker = linker.ok_or("there is no bpf-linker on PATH: cargo install bpf-linker")?;
    Ok(ToolChain { name: "rustup nightly", cargo: Some(cargo), rustc, linker })
}

/// Debian's chain, or what is missing of it.
pub fn debian(cache: &Path) -> Result<ToolChain> {
    let linker = tool::BPF_LINKER.program(cache);
    if let Some(reason) = debian_compiler_lacks() {
        bail!("{reason}. Run `make setup`");
    }
    if !is_executable(&linker) {
        bail!("{} is not there. Run `make setup`", linker.display());
    }
    Ok(ToolChain { name: "Debian", cargo: None, rustc: DEBIAN_RUSTC.into(), linker })
}

/// The fault of Debian's compiler, if it has one. An older one comes from a machine without security
/// updates: Debian ships new compilers there.
pub fn debian_compiler_lacks() -> Option<String> {
    let Some(version) = stdout_of(Command::new(DEBIAN_RUSTC).arg("-vV").env_remove("LD_LIBRARY_PATH")) else {
        return Some(format!("{DEBIAN_RUSTC} is not there"));
    };
    match llvm_of(&version) {
        Some(DEBIAN_LLVM) if Path::new(DEBIAN_LIBRARY).is_file() => None,
        Some(DEBIAN_LLVM) => Some(format!("{DEBIAN_RUSTC} has no sources of its library (rust-web-src)")),
        Some(other) => Some(format!("{DEBIAN_RUSTC} uses LLVM {other}, and {DEBIAN_LLVM} is needed")),
        None => Some(format!("{DEBIAN_RUSTC} doesn't say which LLVM it uses")),
    }
}

/// The major version of LLVM in what `rustc -vV` prints.
fn llvm_of(version: &str) -> Option<u32> {
    version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_nightly_counts_only_with_sources_and_linker() {
        let sysroot = tempfile::tempdir().unwrap();
        let file = |path: &str| {
            let path = sysroot.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let linker = Some(PathBuf::from("/a/bpf-linker"));
        file("bin/rustc");
        assert!(nightly_in(sysroot.path(), linker.clone()).is_err(), "neither sources nor cargo");
        file("lib/rustlib/src/rust/library/Cargo.lock");
        assert!(nightly_in(sysroot.path(), linker.clone()).is_err(), "no cargo");
        let cargo = file("bin/cargo");
        assert!(nightly_in(sysroot.path(), None).is_err(), "no linker");
        let chain = nightly_in(sysroot.path(), linker).unwrap();
        assert_eq!(chain.cargo, Some(cargo));
    }

    #[test]
    fn the_compiler_names_its_llvm() {
        assert_eq!(llvm_of("rustc 1.96.0\nhost: x\nLLVM version: 22.1.8\n"), Some(22));
        assert_eq!(llvm_of("rustc 1.96.0\n"), None);
    }
}
