//! Starting other programs: looked up, with a clean environment, failures said in words.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Variables that the outer cargo or its caller set for the host build, and that would change what
/// an inner cargo builds or with which compiler. (`LD_LIBRARY_PATH`: `cargo run` points it at the
/// host toolchain's libraries, which another compiler must not load.)
const HOST_ONLY: [&str; 12] = [
    "CARGO",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_INCREMENTAL",
    "CARGO_MAKEFLAGS",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTC_BOOTSTRAP",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
];

/// The same by family. `CARGO_BUILD_JOBS` stays: it limits the load and changes no result.
const HOST_ONLY_PREFIXES: [&str; 7] = [
    "CARGO_BIN_",
    "CARGO_BUILD_",
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_PROFILE_",
    "CARGO_TARGET_",
    "CARGO_UNSTABLE_",
];

fn is_host_only(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    name != "CARGO_BUILD_JOBS"
        && (HOST_ONLY.contains(&name) || HOST_ONLY_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

/// A cargo that is not told about the build that runs this program. The compiler that rustup chose
/// (`RUSTUP_TOOLCHAIN`) stays chosen.
pub fn clean_cargo(cargo: &Path) -> Command {
    let mut command = Command::new(cargo);
    for (name, _) in env::vars_os().filter(|(name, _)| is_host_only(name)) {
        command.env_remove(name);
    }
    command
}

/// The cargo that runs this program.
pub fn host_cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Runs a command whose output the user sees.
pub fn run(command: &mut Command) -> Result<()> {
    let name = name_of(command);
    let status = command.status().with_context(|| format!("can't start {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// Runs a command whose output is shown only when it fails.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    let name = name_of(command);
    let Output { status, stdout, stderr } =
        command.output().with_context(|| format!("can't start {name}"))?;
    if !status.success() {
        eprint!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// Output of a command; nothing when it can't be started or fails.
pub fn stdout_of(command: &mut Command) -> Option<String> {
    let Output { status, stdout, .. } = command.output().ok()?;
    status.success().then(|| String::from_utf8_lossy(&stdout).into_owned())
}

fn name_of(command: &Command) -> String {
    Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Finds a program on PATH, or in the system folders that an unprivileged PATH leaves out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

/// True of a file that can be started.
pub fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Announces something that takes more than a second, runs it and says how long it took.
pub fn step<T>(what: impl fmt::Display, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("{what} …");
    let start = Instant::now();
    let done = work()?;
    eprintln!("  done in {:.1} s", start.elapsed().as_secs_f32());
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_outer_build_set_is_dropped_and_the_user_s_own_settings_are_kept() {
        for name in
            ["RUSTFLAGS", "RUSTC", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET", "CARGO_PROFILE_RELEASE_LTO"]
        {
            assert!(is_host_only(OsStr::new(name)), "{name}");
        }
        for name in
            ["PATH", "HOME", "CARGO_HOME", "CARGO_BUILD_JOBS", "CARGO_NET_OFFLINE", "CARGO_HTTP_PROXY"]
        {
            assert!(!is_host_only(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn programs_are_found_by_name_only_when_they_can_be_started() {
        assert!(find_program("sh").is_some());
        assert_eq!(find_program("slotmesh-no-such-program"), None);
    }
}
