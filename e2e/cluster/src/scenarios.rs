//! Scenarios that share one cluster: the `main` of a test program without the usual harness.
//!
//! The cluster is started by the first scenario that runs, so that listing and filtering cost nothing, and
//! ended after the last, which the usual harness has no place for.

use std::{
    pin::Pin,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use libtest_mimic::{Arguments, Trial};
use tokio::runtime::Runtime;

use crate::{Cluster, fabric};

/// The future that a scenario returns: `Box::pin(async move { … })`.
pub type Story<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;
/// A scenario.
pub type Scenario = fn(&mut Cluster) -> Story<'_>;

struct Stage {
    runtime: Runtime,
    cluster: Cluster,
}

impl Stage {
    fn set(nodes: u8, prepare: Scenario) -> Result<Self> {
        let runtime = Runtime::new().context("start a runtime")?;
        let mut cluster = runtime.block_on(Cluster::start(nodes))?;
        runtime.block_on(prepare(&mut cluster)).context("prepare the cluster")?;
        Ok(Self { runtime, cluster })
    }
}

/// Runs one scenario, on a stage that is set if need be.
fn play(stage: &mut Option<Stage>, nodes: u8, prepare: Scenario, scenario: Scenario) -> Result<()> {
    if stage.is_none() {
        *stage = Some(Stage::set(nodes, prepare)?);
    }
    let Stage { runtime, cluster } = stage.as_mut().context("there is no cluster")?;
    runtime.block_on(scenario(cluster))
}

/// Runs scenarios, one after the other, in a cluster of so many nodes. `prepare` runs once, before the
/// first. Arguments are those of any test program.
pub fn main(nodes: u8, prepare: Scenario, scenarios: &[(&str, Scenario)]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share the cluster.
    arguments.test_threads = Some(1);
    if !arguments.list
        && let Err(error) = fabric::enter()
    {
        eprintln!("error: {error:?}");
        return ExitCode::FAILURE;
    }
    let stage: Arc<Mutex<Option<Stage>>> = Arc::default();
    let trials = scenarios.iter().map(|(name, scenario)| {
        let (stage, scenario) = (stage.clone(), *scenario);
        Trial::test(*name, move || {
            let mut stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
            play(&mut stage, nodes, prepare, scenario).map_err(|error| {
                let logs = stage.as_ref().map(|stage| stage.cluster.logs()).unwrap_or_default();
                format!("{error:?}\n{logs}").into()
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(stage);
    conclusion.exit_code()
}
