//! Runs all tests, and says in the end how long each part took.
//!
//! The parts share the machine's processors and cargo's target folder, so they follow each other. The build comes
//! first, because the others take dependencies from it; the tests of the workspace, which take longest, come last.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cmd::{host_cargo, run as run_command};
use crate::workspace::Workspace;
use crate::{control_plane, ebpf, proofs};

/// How long each fuzzer runs.
const FUZZ_SECONDS: u32 = 10;

type Part = (&'static str, fn(&Workspace) -> Result<()>);

const PARTS: [Part; 7] = [
    ("eBPF programs", ebpf::run),
    ("control plane", control_plane::run),
    ("build of the tests", |workspace| cargo_test(workspace, &["--no-run"])),
    ("loom", proofs::loom),
    ("address sanitizer", proofs::asan),
    ("fuzzers", |workspace| proofs::fuzz(workspace, &proofs::Fuzz::all(FUZZ_SECONDS))),
    ("tests", |workspace| cargo_test(workspace, &[])),
];

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

/// The tests of the workspace, as `cargo test` builds and runs them.
fn cargo_test(workspace: &Workspace, more: &[&str]) -> Result<()> {
    run_command(
        Command::new(host_cargo())
            .args(["test", "--workspace", "--locked"])
            .args(more)
            .current_dir(workspace.root())
            // `cargo run` points it at the toolchain's libraries.
            .env_remove("LD_LIBRARY_PATH"),
    )
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
