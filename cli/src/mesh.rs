//! `slotmesh status`: whether changes are in force everywhere, and if not, where, since when, and what to do.
//!
//! All of it is read from the API server, with the rights of whoever asks: MeshNodes and MeshReplicas, which operators
//! write, and the pods and the Lease of the installation. Who may not read the latter is told of the former.

mod display;
mod pending;
mod survey;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Args;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    cluster::{AGAIN, reach},
    render::{Columns, OutputForm, print},
};

/// Exit status where something is not as it should be.
const UNHEALTHY: u8 = 3;

/// How long the API server may take for all that is asked at once.
const ANSWER: Duration = Duration::from_secs(30);

/// What `slotmesh status --help` ends with.
const EXAMPLES: &str = "Examples:
  slotmesh status
  slotmesh status --timeout 120       # wait until a rollout is over
  kubectl slotmesh status -o json

Exit status: 0 all is well, 1 failure, 2 wrong usage, 3 something is not as it should be";

/// The flags of `slotmesh status`. Which cluster is asked, KUBECONFIG says.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct MeshStatus {
    /// The namespace in which slotmesh is installed
    #[arg(long, env = "SLOTMESH_NAMESPACE", default_value = "slotmesh-system")]
    namespace: String,

    /// Seconds to wait until all is well
    #[arg(long, env = "SLOTMESH_STATUS_TIMEOUT", default_value_t = 0, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(0..=86_400))]
    timeout: u32,

    /// Form of the answer
    #[arg(long, short, env = "SLOTMESH_OUTPUT", default_value = "table")]
    output: OutputForm,
}

impl MeshStatus {
    /// Prints how the mesh is.
    ///
    /// # Errors
    /// When the API server can't be asked.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self { namespace, timeout: seconds, output } = self;
        let deadline = Instant::now() + Duration::from_secs(u64::from(seconds));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let survey = runtime.block_on(async {
            let client = reach().await?;
            loop {
                let survey = timeout(ANSWER, survey::survey(&client, &namespace)).await;
                let survey =
                    survey.with_context(|| format!("the API server takes more than {ANSWER:?}"))??;
                if survey.healthy || Instant::now() >= deadline {
                    return anyhow::Ok(survey);
                }
                sleep(AGAIN).await;
            }
        })?;
        let text = match output {
            OutputForm::Table | OutputForm::Wide => display::text(&survey, output == OutputForm::Wide),
            form => form.of(&survey, |_| Columns::new([]))?,
        };
        print(&text)?;
        Ok(ExitCode::from(if survey.healthy { 0 } else { UNHEALTHY }))
    }
}
