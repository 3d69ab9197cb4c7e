//! The file system that a kernel is started with: the test binaries, their libraries, busybox and an init script.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use cargo_metadata::{Artifact, Message, TargetKind};

use super::{CPUS, CRATES, MARK, TESTS, Test};
use crate::cmd::{find_program, host_cargo, run_quietly, stdout_of};
use crate::workspace::{Workspace, remove_dir};

/// Where the programs of the tests lie in the initramfs.
const PROBES: &str = "lib/probes.bpf.o";

/// Builds the tests as `cargo test` does, so that both share what is built. In the order of [`TESTS`].
pub fn build_tests(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let mut cargo = Command::new(host_cargo());
    cargo
        .args(["test", "--no-run", "--locked", "--message-format=json-render-diagnostics", "--lib"])
        .args(
            TESTS
                .iter()
                .filter(|test| test.kind == TargetKind::Test)
                .flat_map(|test| ["--test", test.target]),
        )
        .args(CRATES.iter().flat_map(|name| ["-p", name]))
        .current_dir(workspace.root())
        // `cargo run` points it at the toolchain's libraries.
        .env_remove("LD_LIBRARY_PATH")
        .stderr(Stdio::inherit());
    let output = cargo.output().context("can't start cargo")?;
    if !output.status.success() {
        bail!("the tests can't be built: cargo's reason stands above");
    }
    let artifacts = Message::parse_stream(&output.stdout[..])
        .filter_map(|message| match message {
            Ok(Message::CompilerArtifact(artifact)) => Some(artifact),
            _ => None,
        })
        .collect::<Vec<_>>();
    TESTS.iter().map(|test| test.find(&artifacts)).collect()
}

impl Test {
    fn find(&self, artifacts: &[Artifact]) -> Result<PathBuf> {
        artifacts
            .iter()
            .filter(|artifact| artifact.profile.test && artifact.target.name == self.target)
            .filter(|artifact| artifact.target.kind.contains(&self.kind))
            .find_map(|artifact| artifact.executable.clone())
            .map(Into::into)
            .with_context(|| {
                format!("cargo built no test {}: is xtask/src/kernels.rs up to date?", self.name)
            })
    }
}

/// Packs init script, busybox, bash (which a test starts), the tests and the libraries of all of them.
pub fn pack(workspace: &Workspace, dir: &Path, binaries: &[PathBuf]) -> Result<PathBuf> {
    let root = dir.join("root");
    remove_dir(&root)?;
    let busybox = find_program("busybox").context("busybox is not there")?;
    let bash = find_program("bash").context("bash is not there")?;
    let mut files: Vec<(PathBuf, PathBuf)> = vec![
        ("bin/busybox".into(), busybox.clone()),
        ("bin/bash".into(), bash.clone()),
        (PROBES.into(), workspace.probes_object()),
    ];
    files.extend(
        TESTS.iter().zip(binaries).map(|(test, file)| (Path::new("bin").join(test.name), file.clone())),
    );
    let libraries: BTreeSet<PathBuf> =
        binaries.iter().chain([&busybox, &bash]).flat_map(|file| libraries(file)).collect();
    files
        .extend(libraries.into_iter().map(|file| (file.strip_prefix("/").unwrap_or(&file).to_owned(), file)));
    for (to, from) in &files {
        let to = root.join(to);
        fs::create_dir_all(to.parent().unwrap_or(&root))?;
        fs::copy(from, &to).with_context(|| format!("can't copy {} to {}", from.display(), to.display()))?;
    }
    let init = root.join("init");
    fs::write(&init, init_script())?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;

    let names = stdout_of(Command::new("find").arg(".").current_dir(&root)).context("find failed")?;
    let archive = dir.join("initramfs");
    let mut cpio = Command::new("cpio")
        .args(["-o", "-H", "newc", "--quiet", "-F"])
        .arg(&archive)
        .current_dir(&root)
        .stdin(Stdio::piped())
        .spawn()
        .context("can't start cpio")?;
    // Dropped at once: its end tells cpio that the list is complete.
    cpio.stdin.take().context("cpio has no input")?.write_all(names.as_bytes())?;
    if !cpio.wait()?.success() {
        bail!("cpio failed");
    }
    remove_dir(&root)?;
    run_quietly(Command::new("gzip").args(["-1", "-f"]).arg(&archive))?;
    Ok(archive.with_extension("gz"))
}

/// The libraries that a program loads, and the loader. None of a static one, which `ldd` fails for.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let listing = stdout_of(Command::new("ldd").arg(program).env_remove("LD_LIBRARY_PATH"));
    paths_of(&listing.unwrap_or_default())
}

fn paths_of(listing: &str) -> Vec<PathBuf> {
    listing.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

fn init_script() -> String {
    let mut script = format!(
        r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /etc /tmp /run
/bin/busybox --install -s /bin
export PATH=/bin RUST_BACKTRACE=0 SLOTMESH_PROBES_OBJECT=/{PROBES}
# Tests take it for granted, as a file that is on every machine.
echo root:x:0:0:root:/:/bin/sh > /etc/passwd
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
end() {{
    # The last lines are still on their way through the serial line.
    sleep 1
    reboot -f
}}
echo "{MARK}release=$(uname -r)"
echo "{MARK}cpus=$(nproc)"
[ "$(nproc)" = {CPUS} ] || end
"#
    );
    for Test { name, environment, .. } in &TESTS {
        let environment: String =
            environment.iter().map(|(name, value)| format!("{name}={value} ")).collect();
        script += &format!("{environment}/bin/{name} --test-threads=1 --nocapture\n");
        script += &format!("echo \"{MARK}{name} rc=$?\"\n");
    }
    script + &format!("echo \"{MARK}end\"\nend\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_loader_are_found_in_what_ldd_prints() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            paths_of(listing),
            [Path::new("/lib/x86_64-linux-gnu/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]
        );
        assert_eq!(paths_of("\tstatically linked\n"), Vec::<PathBuf>::new());
    }
}
