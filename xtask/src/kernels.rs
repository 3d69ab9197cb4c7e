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

use std::env::consts::ARCH;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cargo_metadata::TargetKind;

use crate::apt;
use crate::cmd::{find_program, step};
use crate::setup;
use crate::workspace::{Workspace, cache_dir};

mod initramfs;
mod outcome;
mod vmlinuz;

use initramfs::{build_tests, pack};
use outcome::{BootReport, aligned, header};
use vmlinuz::Kernel;

/// The kernel series: the least that slotmesh supports, and the newest that bookworm has.
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// Programs that are started here, and the Debian packages that hold them.
const PROGRAMS: [(&str, &str); 3] =
    [(QEMU, "qemu-system-x86"), ("busybox", "busybox-static"), ("cpio", "cpio")];

const QEMU: &str = "qemu-system-x86_64";

/// The tests that need the kernel, and those of the slot engine, which they rest on. The slow ones come last: what
/// is quick has said what it has to say by then.
const TESTS: [Test; 6] = [
    Test { name: "slotmesh-kernel", target: "slotmesh_kernel", kind: TargetKind::Lib, environment: &[] },
    Test { name: "slotmesh-slots", target: "slotmesh_slots", kind: TargetKind::Lib, environment: &[] },
    Test { name: "outer", target: "outer", kind: TargetKind::Test, environment: &[] },
    Test { name: "kernel", target: "kernel", kind: TargetKind::Test, environment: &[] },
    Test { name: "torn_reads", target: "torn_reads", kind: TargetKind::Test, environment: FEWER_READS },
    Test { name: "faults", target: "faults", kind: TargetKind::Test, environment: &[] },
];

/// A read takes many times longer there.
const FEWER_READS: &[(&str, &str)] = &[("SLOTMESH_TORN_READS", "100000"), ("SLOTMESH_TORN_RUNS", "1")];

/// The crates that they belong to.
const CRATES: [&str; 3] = ["slotmesh-kernel", "slotmesh-slots", "slotmesh-agent"];

/// A kernel that prints nothing for so long hangs. How long all takes isn't bounded: that depends on the machine, and
/// each test says something while it goes on.
const SILENCE: Duration = Duration::from_secs(300);

/// The tests need more than one: they wait for each other's CPUs.
const CPUS: &str = "2";

/// Beginning of a line that is shown also where all is well: what a test measured of the kernel.
const MEASURED: &str = "measured: ";

/// Beginning of the init script's own lines.
const MARK: &str = "slotmesh-kernels: ";

struct Test {
    /// For the table; the file's name in the initramfs.
    name: &'static str,
    /// cargo's name of it.
    target: &'static str,
    kind: TargetKind,
    /// Variables that it is started with.
    environment: &'static [(&'static str, &'static str)],
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
    let initramfs = step("packing the initramfs", || pack(workspace, &dir, &binaries))?;

    let mut table = vec![header()];
    let (mut measured, mut failed) = (Vec::new(), Vec::new());
    for kernel in &kernels {
        let log = dir.join(format!("{}.log", kernel.release));
        let start = Instant::now();
        step(format!("testing on {}", kernel.release), || boot(kernel, &initramfs, &log))?;
        let took = start.elapsed();
        let text = fs::read(&log).with_context(|| format!("can't read {}", log.display()))?;
        let report = BootReport::parse(&String::from_utf8_lossy(&text));
        if let Some(reason) = report.complaint(&kernel.release) {
            eprintln!("{}", String::from_utf8_lossy(&text).trim_end());
            eprintln!("{}: {reason}. The log above is {}", kernel.release, log.display());
            failed.push(&*kernel.release);
        }
        table.push(report.row(&kernel.release, took));
        measured.extend(report.measured().map(|line| format!("{}  {line}\n", kernel.release)));
    }
    print!("{}", measured.concat());
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
    SERIES.into_iter().map(|series| vmlinuz::fetch(&cache, series)).collect()
}

/// Runs a kernel until it reboots, or has printed nothing for [`SILENCE`]. What it printed stands in the log.
fn boot(kernel: &Kernel, initramfs: &Path, log: &Path) -> Result<()> {
    let output = File::create(log).with_context(|| format!("can't write {}", log.display()))?;
    let mut qemu = Command::new(QEMU)
        .args(["-M", "q35", "-smp", CPUS, "-cpu", "max", "-accel", "tcg,thread=multi", "-m", "1536"])
        .args(["-nodefaults", "-no-reboot", "-serial", "stdio", "-display", "none"])
        // A kernel that panics reboots at once, which ends QEMU. On a busy machine the emulated timer's first
        // ticks come too late for the kernel's check of it.
        .args(["-append", "console=ttyS0 quiet no_timer_check panic=-1 reboot=t"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stderr(output.try_clone()?)
        .stdout(output)
        .spawn()
        .with_context(|| format!("can't start {QEMU}"))?;
    let mut silence = Silence::new(Instant::now());
    while qemu.try_wait()?.is_none() {
        if silence.lasted(fs::metadata(log)?.len(), Instant::now()) > SILENCE {
            qemu.kill()?;
            qemu.wait()?;
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// How long a log has not grown.
struct Silence {
    length: u64,
    since: Instant,
}

impl Silence {
    fn new(now: Instant) -> Self {
        Self { length: 0, since: now }
    }

    /// Takes the log's length of now.
    fn lasted(&mut self, length: u64, now: Instant) -> Duration {
        if length != self.length {
            *self = Self { length, since: now };
        }
        now - self.since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_grows_is_not_silent_however_long_all_takes() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        for minute in 1..100 {
            let now = start + Duration::from_secs(60 * minute);
            assert_eq!(silence.lasted(minute, now), Duration::ZERO);
        }
        let end = start + Duration::from_secs(60 * 99);
        assert_eq!(silence.lasted(99, end + SILENCE), SILENCE);
        assert!(silence.lasted(99, end + SILENCE + Duration::from_secs(1)) > SILENCE);
    }

    #[test]
    fn a_kernel_that_never_says_a_word_is_silent() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        assert!(silence.lasted(0, start + SILENCE * 2) > SILENCE);
    }
}
