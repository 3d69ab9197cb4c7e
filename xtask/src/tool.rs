//! Programs that cargo builds once per machine and version, kept in the cache folder.
//!
//! A tool's folder carries its version and flavour in its name, so another version is another
//! folder, and clones at different commits don't disturb each other.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cmd::{clean_cargo, host_cargo, is_executable, run, stdout_of, step};

/// A program from the public crate registry.
pub struct Tool {
    name: &'static str,
    version: &'static str,
    /// Anything else that decides the binary, for the folder's name.
    flavour: &'static str,
    args: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
    takes: &'static str,
}

/// Links the eBPF programs; its LLVM must be the compiler's ([`crate::chain::DEBIAN_LLVM`]).
pub const BPF_LINKER: Tool = Tool {
    name: "bpf-linker",
    version: "0.13.0",
    flavour: "-llvm22",
    args: &["--no-default-features", "--features", "llvm-22"],
    env: &[("LLVM_PREFIX", "/usr/lib/llvm-22")],
    takes: "1 to 3 minutes",
};

/// Checks licenses, bans and sources. It runs for a second, so it isn't worth the link-time
/// optimization of its own release profile: this is built in half the time.
pub const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    flavour: "",
    args: &[],
    env: &[
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
        ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ],
    takes: "2 to 4 minutes",
};

impl Tool {
    /// Name and version, for messages.
    pub fn title(&self) -> String {
        format!("{} {}", self.name, self.version)
    }

    fn dir(&self, cache: &Path) -> PathBuf {
        cache.join(format!("{}-{}{}", self.name, self.version, self.flavour))
    }

    /// Where the program is, or will be.
    pub fn program(&self, cache: &Path) -> PathBuf {
        self.dir(cache).join("bin").join(self.name)
    }

    /// Builds the program unless it is there and starts. (It doesn't when the shared libraries that
    /// it was linked to went away.)
    pub fn ensure(&self, cache: &Path) -> Result<PathBuf> {
        let program = self.program(cache);
        if is_executable(&program) && stdout_of(Command::new(&program).arg("--version")).is_some() {
            return Ok(program);
        }
        step(format!("building {} ({}, once per machine)", self.title(), self.takes), || self.build(cache))?;
        Ok(program)
    }

    fn build(&self, cache: &Path) -> Result<()> {
        let dir = self.dir(cache);
        // Its own: with a target directory shared by the user's builds, ours would stay behind there.
        let mut target = dir.clone().into_os_string();
        target.push(".build");
        let target = PathBuf::from(target);
        let built = run(clean_cargo(&host_cargo())
            .args(["install", self.name, "--version", self.version, "--locked", "--force"])
            // A terminal shows the progress; a log needs no line for each dependency.
            .args((!io::stderr().is_terminal()).then_some("--quiet"))
            .args(self.args)
            .arg("--root")
            .arg(&dir)
            .envs(self.env.iter().copied())
            .env("CARGO_TARGET_DIR", &target)
            // Not in the checkout, whose cargo settings are for the workspace.
            .current_dir(cache))
        .with_context(|| {
            format!("can't build {}. It takes the crate registry (network), a C compiler and the packages of `make setup`", self.title())
        });
        if target.exists() {
            fs::remove_dir_all(&target).with_context(|| format!("can't remove {}", target.display()))?;
        }
        built
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_keyed_by_version_and_flavour() {
        assert_eq!(
            BPF_LINKER.program(Path::new("/cache")),
            Path::new("/cache/bpf-linker-0.13.0-llvm22/bin/bpf-linker")
        );
        assert!(BPF_LINKER.flavour.ends_with(&crate::chain::DEBIAN_LLVM.to_string()));
    }
}
