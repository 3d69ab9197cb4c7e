//! `slotmesh drain`: before an uninstall, every node is cleaned. The chart's hook runs it.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use slotmesh_operator::uninstall::Agents;
use tokio::time::{Instant, sleep};

use crate::{
    cluster::{AGAIN, reach},
    flags::LogFlag,
};

/// The flags of `slotmesh drain`.
#[derive(Debug, Args)]
pub struct Drain {
    /// The namespace in which slotmesh is installed
    #[arg(long, env = "SLOTMESH_NAMESPACE", default_value = "slotmesh-system")]
    namespace: String,

    /// The DaemonSet of the agents
    #[arg(long, env = "SLOTMESH_DAEMON_SET", default_value = "slotmesh-agent", value_name = "NAME")]
    daemon_set: String,

    /// Seconds after which it gives up, and says which nodes aren't clean
    #[arg(long, env = "SLOTMESH_DRAIN_TIMEOUT", default_value_t = 240, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: u32,

    #[command(flatten)]
    log: LogFlag,
}

impl Drain {
    /// Returns when all nodes are clean.
    ///
    /// # Errors
    /// Says which aren't and what to do.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { namespace, daemon_set, timeout, log } = self;
        log.init()?;
        let timeout = Duration::from_secs(u64::from(timeout));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = reach().await?;
            drain(&Agents::new(client, &namespace, &daemon_set), timeout).await
        })
    }
}

async fn drain(agents: &Agents, timeout: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    if !agents.drain().await? {
        tracing::info!("there are no agents");
        return Ok(());
    }
    tracing::info!("the agents are told to take the data path away");
    loop {
        match agents.are_drained().await {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "asking again"),
        }
        if Instant::now() >= deadline {
            bail!(
                "not clean after {timeout:?}: {}. Mend or remove these nodes and uninstall again; `helm uninstall \
                 --no-hooks` leaves their data path where it is, which `slotmesh agent --cleanup` there removes",
                agents.laggards().await?.join(", ")
            );
        }
        sleep(AGAIN).await;
    }
    tracing::info!("nothing of slotmesh is left on any node but its agents' pods");
    Ok(())
}
