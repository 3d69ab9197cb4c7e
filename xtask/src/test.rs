//! Runs all tests, and says in the end how long each part took.
//!
//! The parts share the machine's processors and cargo's target folder, so they follow each other. The build comes
//! first, because the others take dependencies from it; the tests of the workspace, which take longest, come last.

use std::io::{BufRead as _, BufReader, Write as _, stdout};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::cmd::{host_cargo, run as run_command};
use crate::workspace::Workspace;
use crate::{control_plane, ebpf, envoy, gateway_conformance, proofs};

/// How long each fuzzer runs.
const FUZZ_SECONDS: u32 = 10;

type Part = (&'static str, fn(&Workspace) -> Result<()>);

const PARTS: [Part; 9] = [
    ("eBPF programs", ebpf::run),
    ("control plane", control_plane::run),
    ("Envoy", envoy::run),
    ("Gateway API tests", gateway_conformance::run),
    ("build of the tests", |workspace| run_command(cargo_test(workspace).arg("--no-run"))),
    ("loom", proofs::loom),
    ("address sanitizer", proofs::asan),
    ("fuzzers", |workspace| proofs::fuzz(workspace, &proofs::Fuzz::all(FUZZ_SECONDS))),
    ("tests", tests),
];

/// Lines that are repeated of each failure: what failed, where, and the first of the reason.
const LINES: usize = 4;

/// Lines that are repeated of all failures.
const LINES_IN_ALL: usize = 120;

/// `cargo xtask test`
pub fn run(workspace: &Workspace) -> Result<()> {
    let (took, outcome) = timed(&PARTS, workspace);
    print!("{}", table(&took, outcome.is_ok()));
    outcome
}

/// Runs the parts until one fails: how long each took that was begun.
fn timed(parts: &[Part], workspace: &Workspace) -> (Vec<(&'static str, Duration)>, Result<()>) {
    let mut took = Vec::new();
    for (name, part) in parts {
        let start = Instant::now();
        let outcome = part(workspace);
        took.push((*name, start.elapsed()));
        if outcome.is_err() {
            return (took, outcome);
        }
    }
    (took, Ok(()))
}

/// A line a part, and the sum. The last one failed, unless all went well.
fn table(took: &[(&str, Duration)], well: bool) -> String {
    let mut text = String::from("\nhow long each part took:\n");
    let sum: Duration = took.iter().map(|(_, duration)| *duration).sum();
    for (i, (name, duration)) in took.iter().enumerate() {
        let failed = if well || i + 1 < took.len() { "" } else { "  FAILED" };
        text += &format!("  {name:<18} {:>7.1} s{failed}\n", duration.as_secs_f32());
    }
    text + &format!("  {:<18} {:>7.1} s\n", "all", sum.as_secs_f32())
}

/// `cargo test` for the whole workspace.
fn cargo_test(workspace: &Workspace) -> Command {
    let mut command = Command::new(host_cargo());
    command
        .args(["test", "--workspace", "--locked"])
        .current_dir(workspace.root())
        // `cargo run` points it at the toolchain's libraries.
        .env_remove("LD_LIBRARY_PATH");
    command
}

/// Runs all tests, whichever of them fail, and repeats in the end why they did: a failure in the middle of
/// thousands of lines is hard to find, and some who run this see the last lines only.
fn tests(workspace: &Workspace) -> Result<()> {
    let mut command = cargo_test(workspace);
    command.arg("--no-fail-fast").stdout(Stdio::piped());
    for backtrace in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        command.env(backtrace, "0");
    }
    let mut tests = command.spawn().context("can't start cargo test")?;
    let mut failures = Failures::default();
    for line in BufReader::new(tests.stdout.take().context("cargo test has no output")?).split(b'\n') {
        let line = line.context("can't read what cargo test prints")?;
        let line = String::from_utf8_lossy(&line);
        writeln!(stdout(), "{line}").context("can't print what cargo test prints")?;
        failures.see(&line);
    }
    let status = tests.wait().context("can't wait for cargo test")?;
    if !status.success() {
        bail!("cargo test failed ({status}):\n{}", failures.lines.join("\n"));
    }
    Ok(())
}

/// Lines about failures, of all that a run of tests prints.
#[derive(Default)]
struct Failures {
    lines: Vec<String>,
    /// How many of the next lines belong to the last failure.
    more: usize,
}

impl Failures {
    fn see(&mut self, line: &str) {
        if line.starts_with("test ") && line.ends_with("FAILED") {
            self.more = 1;
        } else if line.contains("panicked at") || line.starts_with("---- ") {
            self.more = LINES;
        }
        if self.more > 0 && self.lines.len() < LINES_IN_ALL {
            self.more -= 1;
            self.lines.push(line.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn parts_run_until_one_fails_and_each_that_began_is_told() {
        let parts: [Part; 3] =
            [("first", |_| Ok(())), ("second", |_| bail!("no")), ("third", |_| panic!("runs all the same"))];
        let (took, outcome) = timed(&parts, &Workspace::locate().unwrap());
        assert!(outcome.is_err());
        assert_eq!(took.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["first", "second"]);
    }

    #[test]
    fn what_failed_and_why_is_kept() {
        let mut failures = Failures::default();
        for line in [
            "test quick ... ok",
            "test slow ... FAILED",
            "thousands of lines",
            "thread 'slow' (7) panicked at src/net.rs:32:31:",
            "5 of 5 connects failed",
            "the first",
            "the second",
            "the third",
        ] {
            failures.see(line);
        }
        assert_eq!(
            failures.lines,
            [
                "test slow ... FAILED",
                "thread 'slow' (7) panicked at src/net.rs:32:31:",
                "5 of 5 connects failed",
                "the first",
                "the second",
            ]
        );
        (0..2 * LINES_IN_ALL).for_each(|number| failures.see(&format!("test number_{number} ... FAILED")));
        assert_eq!(failures.lines.len(), LINES_IN_ALL);
    }

    #[test]
    fn the_table_says_what_failed() {
        let took = [("loom", Duration::from_millis(1_500)), ("tests", Duration::from_secs(60))];
        let well = table(&took, true);
        assert!(
            well.contains("loom                   1.5 s\n")
                && well.contains("all                   61.5 s\n"),
            "{well}"
        );
        assert!(!well.contains("FAILED"));
        assert!(table(&took, false).contains("tests                 60.0 s  FAILED\n"));
    }
}
