//! Runs the tests that need the kernel on other kernels than this machine's: Debian's, in QEMU.
//!
//! ```text
//! cargo test --no-run ─> test binaries ┐
//! busybox, libraries, an init script ──┴─> initramfs ─> QEMU, 2 CPUs ─> serial line ─> log ─> table
//! apt-get download ─> vmlinuz (cache folder) ─────────────┘
//! ```
//!
//! The processor is emulated, so this takes no /dev/kvm, and no root but to install packages. The init
//! script reports in lines that start with [`MARK`]; what it doesn't report counts as failed.

use std::collections::BTreeSet;
use std::env::consts::ARCH;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cargo_metadata::{Artifact, Message, TargetKind};

use crate::apt::{self, Candidate};
use crate::cmd::{find_program, host_cargo, run_quietly, stdout_of, step};
use crate::setup;
use crate::workspace::{Workspace, cache_dir};

/// The kernel series: the least that slotmesh supports, and the newest that bookworm has.
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// Programs that are started here, and the Debian packages that hold them.
const PROGRAMS: [(&str, &str); 3] =
    [(QEMU, "qemu-system-x86"), ("busybox", "busybox-static"), ("cpio", "cpio")];

const QEMU: &str = "qemu-system-x86_64";

/// The tests that need the kernel, and those of the slot engine, which they rest on.
const TESTS: [Test; 4] = [
    Test { name: "slotmesh-kernel", target: "slotmesh_kernel", kind: TargetKind::Lib },
    Test { name: "slotmesh-slots", target: "slotmesh_slots", kind: TargetKind::Lib },
    Test { name: "outer", target: "outer", kind: TargetKind::Test },
    Test { name: "kernel", target: "kernel", kind: TargetKind::Test },
];

/// The crates that they belong to.
const CRATES: [&str; 3] = ["slotmesh-kernel", "slotmesh-slots", "slotmesh-agent"];

/// A kernel that takes longer hangs.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The tests need more than one: they wait for each other's CPUs.
const CPUS: &str = "2";

/// What the init script's own lines start with.
const MARK: &str = "slotmesh-kernels: ";

struct Test {
    /// For the table; the file's name in the initramfs.
    name: &'static str,
    /// cargo's name of it.
    target: &'static str,
    kind: TargetKind,
}

struct Kernel {
    /// What its `uname -r` prints.
    release: String,
    image: PathBuf,
}

/// `cargo xtask kernels`
pub fn run(workspace: &Workspace) -> Result<()> {
    if ARCH != "x86_64" {
        bail!(
            "the kernels and the machine in QEMU are x86-64, and this machine is {ARCH}: its test binaries don't run there"
        );
    }
    let kernels = prepare()?;
    let binaries = step("building the tests", || build_tests(workspace))?;
    let dir = workspace.kernels_dir();
    fs::create_dir_all(&dir).with_context(|| format!("can't create {}", dir.display()))?;
    let initramfs = step("packing the initramfs", || pack(&dir, &binaries))?;

    let mut table = vec![header()];
    let mut failed = Vec::new();
    for kernel in &kernels {
        let log = dir.join(format!("{}.log", kernel.release));
        let start = Instant::now();
        step(format!("testing on {}", kernel.release), || boot(kernel, &initramfs, &log))?;
        let took = start.elapsed();
        let text = fs::read(&log).with_context(|| format!("can't read {}", log.display()))?;
        let report = Report::parse(&String::from_utf8_lossy(&text));
        if let Some(reason) = report.complaint(&kernel.release) {
            eprintln!("{}", String::from_utf8_lossy(&text).trim_end());
            eprintln!("{}: {reason}. The log above is {}", kernel.release, log.display());
            failed.push(&*kernel.release);
        }
        table.push(report.row(&kernel.release, took));
    }
    print!("{}", aligned(&table));
    if !failed.is_empty() {
        bail!("failed on {}", failed.join(" and "));
    }
    Ok(())
}

/// Installs what is missing and fetches the kernels.
fn prepare() -> Result<Vec<Kernel>> {
    let cache = cache_dir()?;
    let _alone = setup::lock(&cache)?;
    if !apt::is_available() {
        bail!("this is no Debian: its kernels come from Debian's package sources, with apt-get");
    }
    let absent: Vec<&str> = PROGRAMS
        .into_iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| package)
        .collect();
    if !absent.is_empty() {
        apt::install(&absent, false, "Only `make kernels` needs them.")?;
    }
    SERIES.into_iter().map(|series| fetch_kernel(&cache, series)).collect()
}

fn fetch_kernel(cache: &Path, series: &str) -> Result<Kernel> {
    let newest = || apt::newest(&format!("linux-image-{series}."), "-cloud-amd64");
    if let Some(candidate) = newest()
        && let Ok(kernel) = ensure_kernel(cache, &candidate)
    {
        return Ok(kernel);
    }
    // Each security update has a name of its own, and replaces the one before it after a while.
    apt::refresh(&format!("the package lists know no kernel {series} that can be fetched"))?;
    let Some(candidate) = newest() else {
        bail!(
            "no linux-image-{series}.…-cloud-amd64 is to be had from this machine's package sources. It is in \
             Debian bookworm's security updates: do the sources name bookworm-security?"
        );
    };
    ensure_kernel(cache, &candidate)
}

/// The kernel's image in the cache folder, fetched unless it is there.
fn ensure_kernel(cache: &Path, candidate: &Candidate) -> Result<Kernel> {
    let Candidate { package, version } = candidate;
    let release = package.strip_prefix("linux-image-").unwrap_or(package).to_owned();
    let dir = cache.join(format!("{package}_{version}"));
    let image = dir.join("vmlinuz");
    if !image.is_file() {
        step(format!("fetching {package} (once per machine)"), || {
            let part = cache.join(format!("{package}_{version}.part"));
            remove_dir(&part)?;
            let done = unpack(candidate, &part, &dir, &release);
            remove_dir(&part)?;
            done
        })?;
    }
    Ok(Kernel { release, image })
}

/// Only the image is kept: what the tests need is built in, so its modules (100 MB) are not.
fn unpack(candidate: &Candidate, part: &Path, dir: &Path, release: &str) -> Result<()> {
    fs::create_dir(part).with_context(|| format!("can't create {}", part.display()))?;
    apt::download(candidate, part)?;
    let files = fs::read_dir(part)?.collect::<Result<Vec<_>, _>>()?;
    let [file] = &files[..] else { bail!("apt-get download left {} files instead of one", files.len()) };
    let tree = part.join("tree");
    run_quietly(Command::new("dpkg-deb").arg("-x").arg(file.path()).arg(&tree))?;
    let kept = part.join("kept");
    fs::create_dir(&kept)?;
    fs::rename(tree.join(format!("boot/vmlinuz-{release}")), kept.join("vmlinuz"))
        .with_context(|| format!("{} holds no kernel {release}", candidate.package))?;
    remove_dir(dir)?;
    fs::rename(&kept, dir).with_context(|| format!("can't write {}", dir.display()))
}

fn remove_dir(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("can't remove {}", dir.display()))?;
    }
    Ok(())
}

/// Builds the tests as `cargo test` does, so that both share what is built. In the order of [`TESTS`].
fn build_tests(workspace: &Workspace) -> Result<Vec<PathBuf>> {
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

/// Packs init script, busybox, the tests and the libraries of all of them.
fn pack(dir: &Path, binaries: &[PathBuf]) -> Result<PathBuf> {
    let root = dir.join("root");
    remove_dir(&root)?;
    let busybox = find_program("busybox").context("busybox is not there")?;
    let mut files: Vec<(PathBuf, PathBuf)> = vec![("bin/busybox".into(), busybox.clone())];
    files.extend(
        TESTS.iter().zip(binaries).map(|(test, file)| (Path::new("bin").join(test.name), file.clone())),
    );
    let libraries: BTreeSet<PathBuf> =
        binaries.iter().chain([&busybox]).flat_map(|file| libraries(file)).collect();
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
export PATH=/bin RUST_BACKTRACE=0
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
    for Test { name, .. } in &TESTS {
        script += &format!("/bin/{name} --test-threads=1\necho \"{MARK}{name} rc=$?\"\n");
    }
    script + &format!("echo \"{MARK}end\"\nend\n")
}

/// Runs a kernel until it reboots, or for [`TIMEOUT`]: what it said by then stands in the log.
fn boot(kernel: &Kernel, initramfs: &Path, log: &Path) -> Result<()> {
    let output = File::create(log).with_context(|| format!("can't write {}", log.display()))?;
    let mut qemu = Command::new(QEMU)
        .args(["-M", "q35", "-smp", CPUS, "-cpu", "max", "-accel", "tcg,thread=multi", "-m", "1536"])
        .args(["-nodefaults", "-no-reboot", "-serial", "stdio", "-display", "none"])
        // A kernel that panics reboots at once, which ends QEMU.
        .args(["-append", "console=ttyS0 quiet panic=-1 reboot=t"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stderr(output.try_clone()?)
        .stdout(output)
        .spawn()
        .with_context(|| format!("can't start {QEMU}"))?;
    let end = Instant::now() + TIMEOUT;
    while qemu.try_wait()?.is_none() {
        if Instant::now() > end {
            qemu.kill()?;
            qemu.wait()?;
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// What a log says.
#[derive(Default)]
struct Report {
    release: String,
    cpus: String,
    /// In the order of [`TESTS`].
    outcomes: [Outcome; TESTS.len()],
    complete: bool,
}

/// What a log says of one binary.
#[derive(Clone, Copy, Default)]
struct Outcome {
    /// Passed and failed tests, when it came to that.
    counts: Option<(u32, u32)>,
    exit: Option<u32>,
}

impl Report {
    fn parse(log: &str) -> Self {
        let mut report = Self::default();
        let mut counts = None;
        for line in log.lines() {
            if let Some((_, result)) = line.split_once("test result: ") {
                counts = Some((count(result, " passed"), count(result, " failed")));
            }
            // What the kernel prints has no line of its own always.
            let Some((_, said)) = line.split_once(MARK) else { continue };
            let said = said.trim();
            if let Some(release) = said.strip_prefix("release=") {
                report.release = release.to_owned();
            } else if let Some(cpus) = said.strip_prefix("cpus=") {
                report.cpus = cpus.to_owned();
            } else if let Some((name, exit)) = said.split_once(" rc=") {
                if let Some(i) = TESTS.iter().position(|test| test.name == name) {
                    report.outcomes[i] = Outcome { counts: counts.take(), exit: exit.parse().ok() };
                }
            } else if said == "end" {
                report.complete = true;
            }
        }
        report
    }

    /// Why this is a failure, if it is one.
    fn complaint(&self, release: &str) -> Option<String> {
        if self.release != release {
            return Some(if self.release.is_empty() {
                "the kernel didn't come up".to_owned()
            } else {
                format!("the kernel calls itself {}", self.release)
            });
        }
        if self.cpus != CPUS {
            return Some(format!("{CPUS} CPUs are needed, and nproc says {:?}", self.cpus));
        }
        let bad: Vec<String> = TESTS
            .iter()
            .zip(&self.outcomes)
            .filter(|(_, outcome)| !outcome.is_good())
            .map(|(test, outcome)| format!("{}: {}", test.name, outcome.shown()))
            .collect();
        if !bad.is_empty() {
            return Some(bad.join(", "));
        }
        (!self.complete).then(|| format!("it ended, or {} s passed, before all was done", TIMEOUT.as_secs()))
    }

    fn row(&self, release: &str, took: Duration) -> Vec<String> {
        let mut row = vec![release.to_owned()];
        row.extend(self.outcomes.iter().map(Outcome::shown));
        row.push(format!("{:.1} s", took.as_secs_f32()));
        row
    }
}

impl Outcome {
    /// A binary without tests is no success: then they are elsewhere now.
    fn is_good(&self) -> bool {
        self.exit == Some(0) && matches!(self.counts, Some((1.., 0)))
    }

    fn shown(&self) -> String {
        match (self.counts, self.exit) {
            (Some((0, 0)), Some(0)) => "no tests".to_owned(),
            (Some((passed, 0)), Some(0)) => format!("{passed} passed"),
            (Some((passed, failed)), Some(_)) if failed > 0 => format!("{passed} passed, {failed} FAILED"),
            (_, Some(exit)) => format!("ENDED with {exit}"),
            (_, None) => "NOT DONE".to_owned(),
        }
    }
}

/// The number before `what`.
fn count(result: &str, what: &str) -> u32 {
    let before = result.split(what).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn header() -> Vec<String> {
    let mut header = vec!["Linux".to_owned()];
    header.extend(TESTS.iter().map(|test| test.name.to_owned()));
    header.push("duration".to_owned());
    header
}

/// A table in columns, with a space of two between them.
fn aligned(table: &[Vec<String>]) -> String {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> =
        (0..columns).map(|i| table.iter().map(|row| row[i].len()).max().unwrap_or(0)).collect();
    table
        .iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "6.1.0-56-cloud-amd64";

    /// What a kernel on which all passes prints.
    fn log() -> String {
        let mut log = format!("{MARK}release={RELEASE}\r\n{MARK}cpus=2\r\n");
        for test in &TESTS {
            log += "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\r\n";
            log += &format!("{MARK}{} rc=0\r\n", test.name);
        }
        log + MARK + "end\r\n"
    }

    fn complaint(log: &str) -> Option<String> {
        Report::parse(log).complaint(RELEASE)
    }

    #[test]
    fn a_log_that_says_all_is_a_success() {
        assert_eq!(complaint(&log()), None);
        let row = Report::parse(&log()).row(RELEASE, Duration::from_millis(14_300));
        assert_eq!(row, [RELEASE, "12 passed", "12 passed", "12 passed", "12 passed", "14.3 s"]);
    }

    #[test]
    fn whatever_a_log_leaves_out_is_a_failure() {
        let log = log();
        let lines: Vec<&str> = log.lines().collect();
        for i in 0..lines.len() {
            let mut rest = lines.clone();
            rest.remove(i);
            assert!(complaint(&rest.join("\n")).is_some(), "without {}", lines[i]);
            assert!(complaint(&lines[..i].join("\n")).is_some(), "cut before {}", lines[i]);
        }
    }

    #[test]
    fn a_wrong_line_is_a_failure_that_says_what_is_wrong() {
        for (right, wrong, said) in [
            ("cpus=2", "cpus=1", "nproc says \"1\""),
            ("release=6.1.0-56", "release=6.1.0-55", "calls itself 6.1.0-55-cloud-amd64"),
            ("outer rc=0", "outer rc=137", "outer: ENDED with 137"),
            ("12 passed; 0 failed", "0 passed; 0 failed", "slotmesh-kernel: no tests"),
            ("12 passed; 0 failed", "9 passed; 3 failed", "slotmesh-kernel: 9 passed, 3 FAILED"),
        ] {
            let log = log();
            assert!(log.contains(right), "{right}");
            let said_now = complaint(&log.replacen(right, wrong, 1)).unwrap_or_default();
            assert!(said_now.contains(said), "{said_now} doesn't say {said}");
        }
    }

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

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let table = [["Linux", "outer"], ["6.1.0", "3 passed"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&table), "Linux  outer\n6.1.0  3 passed\n");
    }
}
