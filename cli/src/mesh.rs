//! `slotmesh status`: whether changes are in force everywhere, and if not, where, since when, and what to do.
//!
//! All of it is read from the API server, with the rights of whoever asks: MeshNodes and MeshReplicas, which operators
//! write, and the pods and the Lease of the installation. Who may not read the latter is told of the former.

mod display;
mod object;
mod pending;
mod survey;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Args;
use kube::Client;
use tokio::time::{Instant, sleep, timeout};

pub use self::pending::ProgrammedKind;
use crate::{
    cluster::{AGAIN, reach},
    progress::ProgressSign,
    render::{OutputForm, print},
};

/// Exit status where something is not as it should be.
const UNHEALTHY: u8 = 3;

/// How long the API server may take for all that is asked at once.
const ANSWER: Duration = Duration::from_secs(30);

/// The end of `slotmesh status --help`.
const EXAMPLES: &str = "Examples:
  slotmesh status
  slotmesh status --timeout 120       # wait until a rollout is over
  slotmesh status trafficpolicy shop/reviews
  kubectl slotmesh status -o json

Exit status: 0 all is well, 1 failure, 2 wrong usage, 3 something is not as it should be";

/// The flags of `slotmesh status`. Which cluster is asked, KUBECONFIG says.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct MeshStatus {
    /// Tell of this object alone: what is said of it, and whether all nodes have it in force
    #[arg(value_names = ["KIND", "NAMESPACE/NAME"], num_args = 2)]
    object: Vec<String>,

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
        let Self { object, namespace, timeout: seconds, output } = self;
        let deadline = Instant::now() + Duration::from_secs(u64::from(seconds));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (text, healthy) = match object.as_slice() {
            [kind, name] => {
                let asked = object::AskedObject::new(kind, name)?;
                let state = async |client: &Client| asked.state(client).await;
                let state = runtime.block_on(until_well(deadline, state, |state| state.in_force))?;
                (output.of_text(&state, |_| object::text(&state))?, state.in_force)
            }
            _ => {
                let survey = async |client: &Client| survey::survey(client, &namespace).await;
                let survey = runtime.block_on(until_well(deadline, survey, |survey| survey.healthy))?;
                (output.of_text(&survey, |wide| display::text(&survey, wide))?, survey.healthy)
            }
        };
        print(&text)?;
        Ok(ExitCode::from(if healthy { 0 } else { UNHEALTHY }))
    }
}

/// The answer, once it is well or the time is over.
async fn until_well<T>(
    deadline: Instant,
    ask: impl AsyncFn(&Client) -> anyhow::Result<T>,
    is_well: impl Fn(&T) -> bool,
) -> anyhow::Result<T> {
    let client = reach().await?;
    let _progress = ProgressSign::of("asking the cluster");
    loop {
        let found = timeout(ANSWER, ask(&client)).await;
        let found = found.with_context(|| format!("the API server takes more than {ANSWER:?}"))??;
        if is_well(&found) || Instant::now() >= deadline {
            return Ok(found);
        }
        sleep(AGAIN).await;
    }
}
