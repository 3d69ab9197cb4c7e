//! Proofs of the slot engine and of all that decodes: loom's model, the address sanitizer, the fuzzers.
//!
//! ```text
//! loom   target/loom      agent/slots with --cfg loom: its threads in every interleaving
//! asan   the host build   the tests that need no kernel      ┐ the workspace's crates built once more: with
//! fuzz   the host build   fuzz/fuzz_targets, a process each  ┘ the sanitizer and libFuzzer's counters
//! ```
//!
//! Only the workspace's crates are built with the sanitizer, by a wrapper around rustc ([`as_rustc`]), so
//! the dependencies are those of the ordinary tests: this saves most of the time. What is generic in them
//! (as the decoding of protobuf is) is compiled in ours, and all memory is the sanitizer's.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cmd::{clean_cargo, host_cargo, run, step};
use crate::workspace::Workspace;

/// The sanitizer, and what libFuzzer needs. Its runtime comes with the toolchain.
const SANITIZED: [&str; 6] = [
    "-Zsanitizer=address",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Set where this program is to stand between cargo and rustc.
const WRAPPING: &str = "SLOTMESH_SANITIZE";

/// The library tests that run under the sanitizer, and which of them: those that need no kernel. Beside
/// them the fuzzers' seeds, which go through all that decodes and flattens.
const TESTED: [(&str, &str); 3] =
    [("slotmesh-records", ""), ("slotmesh-kernel", "arena::"), ("slotmesh-slots", "")];

/// The fuzz targets. (A test compares them with the manifest.)
const TARGETS: [&str; 7] = ["config", "http1", "manifests", "recovery", "requests", "responses", "routing"];

/// Fuzzers that run at the same time.
const AT_ONCE: usize = 2;

/// An input for which a target takes longer has found a loop.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How long to fuzz, and what.
#[derive(Args)]
pub struct Fuzz {
    /// The targets to run; all without any.
    targets: Vec<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 300)]
    seconds: u32,
    /// Run one target with this file only.
    #[arg(long)]
    input: Option<PathBuf>,
}

impl Fuzz {
    /// All targets for so long.
    pub fn all(seconds: u32) -> Self {
        Self { targets: Vec::new(), seconds, input: None }
    }
}

/// `cargo xtask loom`
pub fn loom(workspace: &Workspace) -> Result<()> {
    step("trying the interleavings of the slot engine's threads", || {
        run(clean_cargo(&host_cargo())
            .args(["test", "--locked", "--quiet", "-p", "slotmesh-slots", "--lib", "--", "model::"])
            .env("RUSTFLAGS", "--cfg=loom")
            .env("CARGO_TARGET_DIR", workspace.target("loom"))
            .current_dir(workspace.root()))
    })
}

/// `cargo xtask asan`
pub fn asan(workspace: &Workspace) -> Result<()> {
    step("building and running tests with the address sanitizer", || {
        for (name, filter) in TESTED {
            run(sanitized(workspace, "test")?
                .args(["--lib", "-p", name, "--", filter])
                // Under the sanitizer a case takes ten times as long, and it looks at every access.
                .env("PROPTEST_CASES", "16"))?;
        }
        run(sanitized(workspace, "test")?.args(["--workspace", "--test", "seeds"]))
    })
}

/// `cargo xtask fuzz`
pub fn fuzz(workspace: &Workspace, options: &Fuzz) -> Result<()> {
    let chosen: Vec<&str> = if options.targets.is_empty() {
        TARGETS.to_vec()
    } else {
        options.targets.iter().map(String::as_str).collect()
    };
    if let Some(unknown) = chosen.iter().find(|target| !TARGETS.contains(target)) {
        bail!("{unknown} is no fuzz target: there are {}", TARGETS.join(", "));
    }
    let built = step("building the fuzzers", || build(workspace))?;
    if let Some(input) = &options.input {
        let [target] = chosen[..] else { bail!("name the one target that {} is for", input.display()) };
        return run(Command::new(built.join(target)).arg(input).arg(timeout()));
    }
    let folder = workspace.target("fuzz");
    let seeds = folder.join("seeds");
    if seeds.exists() {
        fs::remove_dir_all(&seeds).with_context(|| format!("can't remove {}", seeds.display()))?;
    }
    run(Command::new(built.join("examples/seeds")).arg(&seeds))?;
    eprintln!("fuzzing {} for {} s each …", chosen.join(", "), options.seconds);
    let mut failed = Vec::new();
    for chosen in chosen.chunks(AT_ONCE) {
        let running: Vec<Fuzzer> = chosen
            .iter()
            .map(|target| Fuzzer::start(target, &built, &folder, workspace, options.seconds))
            .collect::<Result<_>>()?;
        for mut fuzzer in running {
            if !fuzzer.end()? {
                failed.push(fuzzer.target);
            }
        }
    }
    if !failed.is_empty() {
        bail!(
            "failed: {}. Run one input again with `cargo xtask fuzz <target> --input <file>`; when it is mended, \
             keep the file in fuzz/found/<target>/",
            failed.join(", ")
        );
    }
    Ok(())
}

/// Builds the fuzzers; the folder in which they are.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    // The whole workspace, so that the dependencies have the features that they have for its tests.
    let mut cargo = sanitized(workspace, "build")?;
    cargo.args(["--workspace", "--features", "slotmesh-fuzz/libfuzzer", "--example", "seeds"]);
    run(cargo.args(TARGETS.iter().flat_map(|target| ["--bin", target])))?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.target(""), PathBuf::from);
    Ok(workspace.root().join(target).join("debug"))
}

/// A cargo that builds the workspace's crates with the sanitizer, by this program between it and rustc.
fn sanitized(workspace: &Workspace, command: &str) -> Result<Command> {
    let mut cargo = Command::new(host_cargo());
    cargo
        .args([command, "--locked", "--quiet"])
        .env("RUSTC_WORKSPACE_WRAPPER", env::current_exe().context("can't find this program")?)
        .env(WRAPPING, "1")
        .current_dir(workspace.root())
        // `cargo run` points it at the toolchain's libraries.
        .env_remove("LD_LIBRARY_PATH");
    Ok(cargo)
}

/// Where cargo starts this program in rustc's place, runs rustc; with the sanitizer for what runs in a
/// test or a fuzzer.
pub fn as_rustc() -> Option<ExitCode> {
    env::var_os(WRAPPING)?;
    let mut args = env::args_os().skip(1);
    let mut rustc = Command::new(args.next()?);
    let args: Vec<OsString> = args.collect();
    if is_for_the_target(&args) {
        // The flags are unstable, and the compiler may be a stable one.
        rustc.env("RUSTC_BOOTSTRAP", "1").args(SANITIZED);
    }
    let status = rustc.args(args).status();
    Some(match status.map(|status| status.code()) {
        Ok(Some(code)) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Ok(None) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("can't start rustc: {error}");
            ExitCode::FAILURE
        }
    })
}

/// True where rustc is to compile something that isn't for the compiler's own use, as macros and build
/// scripts are. Where cargo only asks what the compiler would do (for a crate of this name), the answer has to be that
/// without a sanitizer: build scripts are told of it, by `CARGO_CFG_SANITIZE`, and those that compile C would compile it
/// with the sanitizer, for the ordinary tests, too.
fn is_for_the_target(args: &[OsString]) -> bool {
    let after =
        |flag: &str| args.iter().skip_while(move |arg| *arg != flag).nth(1).and_then(|arg| arg.to_str());
    after("--crate-name").is_some_and(|name| !name.starts_with("build_script_") && name != "___")
        && after("--crate-type") != Some("proc-macro")
}

fn timeout() -> String {
    format!("-timeout={}", TIMEOUT.as_secs())
}

/// A fuzzer that runs.
struct Fuzzer {
    target: String,
    process: Child,
    log: PathBuf,
}

impl Fuzzer {
    fn start(target: &str, built: &Path, folder: &Path, workspace: &Workspace, seconds: u32) -> Result<Self> {
        // What libFuzzer finds worth keeping stays, so a later run goes on from there.
        let corpus = folder.join("corpus").join(target);
        let failed = folder.join("failed").join(target);
        for folder in [&corpus, &failed] {
            fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
        }
        let log = folder.join(format!("{target}.log"));
        let output = File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
        let found = workspace.root().join("fuzz/found").join(target);
        let process = Command::new(built.join(target))
            .args([&corpus, &folder.join("seeds").join(target)])
            .args(found.is_dir().then_some(found))
            .arg(format!("-max_total_time={seconds}"))
            .arg(timeout())
            .arg(format!("-artifact_prefix={}/", failed.display()))
            .args(["-max_len=16384", "-rss_limit_mb=3072", "-print_final_stats=1"])
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("can't start the fuzzer {target}"))?;
        Ok(Self { target: target.to_owned(), process, log })
    }

    /// Waits for its end; whether it found nothing.
    fn end(&mut self) -> Result<bool> {
        let status = self.process.wait()?;
        let log = fs::read(&self.log)?;
        let log = String::from_utf8_lossy(&log);
        let executed = executed(&log);
        if status.success() && executed > 0 {
            eprintln!("  {:<10} {executed} inputs, nothing found", self.target);
            return Ok(true);
        }
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        eprintln!("  {:<10} FAILED ({status}); all it said is in {}", self.target, self.log.display());
        Ok(false)
    }
}

/// How many inputs libFuzzer says that it ran.
fn executed(log: &str) -> u64 {
    log.lines()
        .filter_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .find_map(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fuzz_target_is_run() {
        let folder = Workspace::locate().unwrap().root().join("fuzz/fuzz_targets");
        let mut found: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        found.sort();
        assert_eq!(found, TARGETS);
    }

    #[test]
    fn only_what_runs_in_tests_and_fuzzers_is_sanitized() {
        let args = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (line, expected) in [
            ("--crate-name slotmesh_slots --test", true),
            ("--crate-name config --crate-type bin", true),
            ("--crate-name derive --edition=2024 --crate-type proc-macro", false),
            ("--crate-name build_script_build --crate-type bin", false),
            ("-vV", false),
            ("- --crate-name ___ --print=file-names --crate-type bin --crate-type proc-macro", false),
        ] {
            assert_eq!(is_for_the_target(&args(line)), expected, "{line}");
        }
    }

    #[test]
    fn a_fuzzer_that_ran_nothing_has_not_passed() {
        assert_eq!(executed("INFO: seed\nstat::number_of_executed_units: 1234\n"), 1234);
        assert_eq!(executed("INFO: seed\n"), 0);
    }
}
