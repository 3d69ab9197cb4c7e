//! Kubernetes' own tests of Services, unmodified, from pods that take part: what kube-proxy does for a pod, slotmesh
//! does for it, too.
//!
//! ```text
//!   e2e.test --creates--> namespace --(a policy labels each as it is created)--> its pods take part
//! ```
//!
//! `list.txt` has each test with what is expected of it, and the reason where that isn't that it passes. `cargo test`
//! runs those that are marked `short`; `make k8s-conformance` runs all, with slotmesh and without: what fails without
//! is the fault of the cluster that they run on.

use std::{env, process::ExitCode, time::Duration};

use anyhow::ensure;
use slotmesh_cluster::{
    Cluster,
    kubernetes_tests::{Outcome, State, Suite},
    scenarios::{self, Story},
};

mod connections;
mod list;
mod mesh;

use list::{Entry, Expected, List, When};

/// Chooses what runs: `all`, or parts of the tests' names, separated by `|`. `without` before that: without
/// slotmesh.
const CHOICE: &str = "SLOTMESH_KUBERNETES_TESTS";
/// Tests at once. Most of their time they wait.
const PROCESSES: usize = 3;

fn main() -> ExitCode {
    scenarios::main(
        3,
        prepare,
        &[
            ("the_list_has_every_test_of_services", complete),
            ("services_do_for_pods_of_the_mesh_what_kubernetes_tests", run),
        ],
    )
}

/// The part of the names (none: what is short), and whether slotmesh is left out.
fn choice() -> (String, bool) {
    let said = env::var(CHOICE).unwrap_or_default();
    match said.strip_prefix("without") {
        Some(part) if part.trim().is_empty() => ("all".to_owned(), true),
        Some(part) => (part.trim().to_owned(), true),
        None => (said, false),
    }
}

fn prepare(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        if choice().1 {
            return Ok(());
        }
        mesh::install(cluster, &[]).await
    })
}

fn complete(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let list = List::read()?;
        let names = Suite::new(cluster)?.names(list::FOCUS)?;
        ensure!(!names.is_empty(), "e2e.test names no tests");
        let missing: Vec<_> = names.iter().filter(|name| list.get(name).is_none()).collect();
        let gone: Vec<_> = list.entries.iter().filter(|entry| !names.contains(&entry.name)).collect();
        ensure!(
            missing.is_empty() && gone.is_empty(),
            "not in list.txt: {missing:#?}; no such tests: {gone:#?}"
        );
        Ok(())
    })
}

fn run(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let list = List::read()?;
        let (choice, without) = choice();
        let wanted = |entry: &&Entry| match choice.as_str() {
            "" => entry.when == When::Short,
            "all" => entry.when != When::Never,
            parts => parts.split('|').any(|part| entry.name.contains(part)),
        };
        let chosen: Vec<&Entry> = list.entries.iter().filter(wanted).collect();
        ensure!(!chosen.is_empty(), "no test of list.txt is chosen by {CHOICE}={choice:?}");
        let suite = Suite::new(cluster)?;
        let names: Vec<&str> = chosen.iter().map(|entry| entry.name.as_str()).collect();
        let limit = Duration::from_secs(if choice.is_empty() { 20 * 60 } else { 4 * 3600 });
        let watching = (!without).then(|| connections::Connections::watch(cluster)).transpose()?;
        let outcomes = suite.run(&names, PROCESSES, limit).await?;
        println!("{}", table(&outcomes));
        let unexpected: Vec<String> = chosen
            .iter()
            .filter_map(|entry| {
                let found = outcomes.iter().find(|outcome| outcome.name == entry.name);
                judge(entry, if without { entry.without } else { entry.with }, found)
            })
            .collect();
        let mut logs = String::new();
        if !unexpected.is_empty() {
            // Kept: the cluster's folder goes.
            let kept = env::temp_dir().join(format!("slotmesh-kubernetes-tests-{}", std::process::id()));
            std::fs::create_dir_all(&kept)?;
            for entry in std::fs::read_dir(suite.logs())?.flatten() {
                if entry.path().is_file() {
                    std::fs::copy(entry.path(), kept.join(entry.file_name()))?;
                }
            }
            logs = format!("\ntheir logs are in {}", kept.display());
        }
        ensure!(unexpected.is_empty(), "{}{logs}", unexpected.join("\n"));
        if let Some(watching) = watching {
            let services = watching.stop().await?;
            println!("slotmesh routed connections to {services} Services");
            // Otherwise they would pass by kube-proxy.
            ensure!(
                services >= chosen.len() / 3,
                "slotmesh routed connections to {services} Services only, of {} tests",
                chosen.len()
            );
        }
        Ok(())
    })
}

/// What is wrong with an outcome, if it isn't the one that is expected.
fn judge(entry: &Entry, expected: Expected, found: Option<&Outcome>) -> Option<String> {
    let name = &entry.name;
    let (is, message) = match found.map(|outcome| &outcome.state) {
        None => return Some(format!("didn't run: {name}")),
        Some(State::Passed) => (Expected::Pass, ""),
        Some(State::Failed(message)) => (Expected::Fail, message.as_str()),
        Some(State::Skipped(message)) => (Expected::Skip, message.as_str()),
    };
    (is != expected).then(|| format!("{is}, and not {expected} as list.txt says: {name}\n    {message}"))
}

/// A line a test: how it ended and how long it took.
fn table(outcomes: &[Outcome]) -> String {
    let mut lines: Vec<String> = outcomes
        .iter()
        .map(|outcome| {
            let word = match outcome.state {
                State::Passed => "pass",
                State::Failed(_) => "FAIL",
                State::Skipped(_) => "skip",
            };
            format!("{word} {:>5.0} s  {}", outcome.took.as_secs_f32(), outcome.name)
        })
        .collect();
    lines.sort();
    lines.join("\n")
}
