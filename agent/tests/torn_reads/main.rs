//! Torn reads: a program on one core reads whole trees, VIP to last endpoint, and lingers between handle
//! and leaf, while the engine flushes, deletes and makes anew at full speed on the other. Every word of
//! every tree must be of the one version that its handle led to.
//!
//! ```text
//! core 0: Writer -> Engine -> slabs <- tree (bpf-programs/probes, test runs) <- Reader: core 1
//!                     `- barrier of the outer map: real, or left out (then the reader must notice)
//! ```
//!
//! Needs root, BPF and two CPUs; fails with the reason where one is missing. `SLOTMESH_TORN_READS` sets
//! how many reads are made, `SLOTMESH_TORN_RUNS` how many runs without the barrier.

mod reader;
#[path = "../../../bpf-programs/probes/src/report.rs"]
#[expect(dead_code, reason = "the probe itself uses the rest")]
mod report;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread::ScopedJoinHandle,
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use slotmesh_kernel::ensure_bpffs;

use reader::Reader;
use report::Report;
use writer::{Barrier, Counts, Writer};

/// How many trees there are: few, so that reader and writer often meet.
const TREES: u32 = 6;
/// Reads without any bad one in a usual run of the tests.
const READS: u64 = 1_000_000;
/// Runs without the barrier in a usual run of the tests.
const RUNS: u64 = 2;
/// By then a reader must have noticed that the barrier is left out.
const NOTICED: Duration = Duration::from_secs(10);
/// Longer than any machine takes for as many reads as are asked for.
const READ_IN: Duration = Duration::from_secs(3600);
/// How often progress is told.
const TOLD: Duration = Duration::from_secs(5);

/// A directory on bpffs that goes when dropped.
struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/sys/fs/bpf/slotmesh-torn-{}-{name}", std::process::id()));
        ensure_bpffs(&path).expect("a BPF file system (root, and /sys/fs/bpf)");
        std::fs::create_dir_all(&path).expect("root");
        Self(path)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What both sides did.
struct Outcome {
    report: Report,
    counts: Counts,
    took: Duration,
}

/// Lets both run until the reader has made `reads`, found a bad tree, or `limit` has passed.
fn run(root: &Path, barrier: Barrier, reads: u64, limit: Duration) -> Outcome {
    let [one, other] = two_cpus();
    let mut writer = Writer::open(root, barrier, TREES);
    let mut reader = Reader::load(root, &writer.owners());
    let (writer, stop) = (&mut writer, &AtomicBool::new(false));
    let started = Instant::now();
    std::thread::scope(|scope| {
        // However one ends, the other does too.
        let writing = scope.spawn(move || {
            let _stop = Stop(stop);
            pin_to(one);
            while !stop.load(Ordering::Relaxed) {
                writer.step();
            }
            writer.finish()
        });
        let reading = scope.spawn(move || {
            let _stop = Stop(stop);
            pin_to(other);
            let mut told = Instant::now();
            loop {
                let report = reader.read();
                let over = report.bad > 0 || report.reads >= reads || started.elapsed() > limit;
                if over || stop.load(Ordering::Relaxed) {
                    return report;
                }
                if told.elapsed() > TOLD {
                    told = Instant::now();
                    let Report { reads: made, complete, null, lingers, .. } = report;
                    println!(
                        "{made} of {reads} reads ({complete} complete, {null} null, {lingers} lingered) after {} s",
                        started.elapsed().as_secs()
                    );
                }
            }
        });
        let report = joined(reading);
        let took = started.elapsed();
        Outcome { report, counts: joined(writing), took }
    })
}

/// Tells both to stop when dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Two CPUs that this thread may use.
fn two_cpus() -> [usize; 2] {
    let ours = sched_getaffinity(Pid::from_raw(0)).expect("the CPUs of this thread are known");
    let mut cpus = (0..CpuSet::count()).filter(|&cpu| ours.is_set(cpu).unwrap_or(false));
    match (cpus.next(), cpus.next()) {
        (Some(one), Some(other)) => [one, other],
        _ => panic!("reader and writer need a CPU each, and this machine has one"),
    }
}

fn pin_to(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("the CPU is there");
    sched_setaffinity(Pid::from_raw(0), &set).expect("a thread may choose among its CPUs");
}

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name)
        .map_or(usual, |text| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// One test, as both halves need both CPUs: with the barrier nothing is torn; without it the same reader
/// sees it, so that what it says is worth something.
#[test]
fn no_read_is_torn_and_without_grace_periods_some_are() {
    let reads = setting("SLOTMESH_TORN_READS", READS);
    let root = Root::new("with");
    let Outcome { report, counts, took } = run(&root.0, Barrier::Real, reads, READ_IN);
    println!(
        "measured: with grace periods {} reads, {} complete ({} records), {} null, {} lingered, {} bad; {counts}; {:.1} s",
        report.reads,
        report.complete,
        report.records,
        report.null,
        report.lingers,
        report.bad,
        took.as_secs_f32()
    );
    assert_eq!(report.bad, 0, "{report:?}");
    assert!(report.reads >= reads, "only {} of {reads} reads in {} s", report.reads, took.as_secs());
    assert_eq!(report.complete + report.null, report.reads, "every read ends in one of two ways");
    assert!(report.complete > reads / 2, "few trees were there to be read: {report:?}");
    assert!(report.null > 0, "no read met a deletion: {report:?}");
    // On a busy machine a grace period takes long, and there are few.
    assert!(counts.grace_periods > 2 && counts.deletes > 100, "{counts}");
    drop(root);

    let runs = setting("SLOTMESH_TORN_RUNS", RUNS);
    for n in 1..=runs {
        let root = Root::new("without");
        let Outcome { report, counts, took } = run(&root.0, Barrier::LeftOut, u64::MAX, NOTICED);
        println!(
            "measured: without them, run {n} of {runs}, {} bad after {} reads and {:.3} s: {}; {counts}",
            report.bad,
            report.reads,
            took.as_secs_f32(),
            reader::describe(&report)
        );
        assert!(
            report.bad > 0,
            "run {n}: {} reads without grace periods, and the reader noticed nothing",
            report.reads
        );
    }
}
