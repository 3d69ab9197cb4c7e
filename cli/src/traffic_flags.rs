//! The flags that say what is told of traffic: metrics, and the access log.

use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use slotmesh_agent::{
    Handle, MapSizes,
    traffic::access_log::{self, AccessLog, Filter, LogForm},
};
use tokio_util::sync::CancellationToken;

use crate::{
    flags::{ADMIN, LOG},
    process::Parts,
};

/// How many pairs of a workload and a Service are shown where nobody says.
const SHOWN: u32 = 100;
/// Room for ends of connections while there is an access log.
const ENDS: u32 = 1 << 20;

/// What is told of connections.
#[derive(Clone, Debug, Args)]
pub struct TrafficFlags {
    /// Of how many pairs of a workload and a Service port, the busiest, /metrics shows connections, bytes and times: twelve
    /// series each. The others are summed. 0 counts nothing
    #[arg(long, env = "SLOTMESH_TRAFFIC_METRICS", default_value_t = SHOWN, value_name = "PAIRS",
        help_heading = ADMIN, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    traffic_metrics: u32,

    /// How many pairs of a pod and a Service port are counted in the kernel, on each of up to 8 groups of processors; each
    /// costs 250 bytes. Connections of further ones are summed
    #[arg(long, env = "SLOTMESH_MAX_TRAFFIC", default_value_t = MapSizes::default().traffic, value_name = "PAIRS",
        help_heading = ADMIN, value_parser = clap::value_parser!(u32).range(1_024..=1 << 20))]
    max_traffic: u32,

    /// Log the end of each connection on standard output
    #[arg(long, env = "SLOTMESH_ACCESS_LOG", default_value = "off", value_name = "FORMAT", help_heading = LOG)]
    access_log: AccessLogArg,

    /// The share of connections that the access log has, by chance: 0.01 is one of a hundred
    #[arg(long, env = "SLOTMESH_ACCESS_LOG_SHARE", default_value_t = 1.0, value_name = "SHARE", help_heading = LOG,
        value_parser = share)]
    access_log_share: f64,

    /// Those connections only that this holds for: KEY=VALUE and KEY!=VALUE, separated by commas, with the keys
    /// source_namespace, source_workload, source_pod, destination_namespace, destination_service and ending
    #[arg(long, env = "SLOTMESH_ACCESS_LOG_FILTER", default_value = "", value_name = "EXPRESSION", help_heading = LOG,
        hide_default_value = true)]
    access_log_filter: Filter,
}

/// The form of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AccessLogArg {
    /// None
    Off,
    /// Lines for people
    Text,
    /// A JSON object a line
    Json,
}

impl AccessLogArg {
    fn form(self) -> Option<LogForm> {
        match self {
            Self::Off => None,
            Self::Text => Some(LogForm::Text),
            Self::Json => Some(LogForm::Json),
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| format!("{text:?} is no share, such as 0.01; it is above 0 and at most 1"))
}

impl TrafficFlags {
    /// The sizes of the maps, with those of traffic.
    pub fn sizes(&self, sizes: MapSizes) -> MapSizes {
        let ends = if self.access_log.form().is_some() { ENDS } else { sizes.ends };
        MapSizes { traffic: self.max_traffic, ends, ..sizes }
    }

    /// Counts and logs from now on, until `stop`.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn start(self, agent: &Handle, parts: &mut Parts, stop: &CancellationToken) -> anyhow::Result<()> {
        let Self { traffic_metrics, max_traffic: _, access_log, access_log_share, access_log_filter } = self;
        agent.show_traffic(traffic_metrics as usize).context("traffic can't be counted")?;
        let Some(form) = access_log.form() else { return Ok(()) };
        let log = AccessLog { form, share: access_log_share, filter: access_log_filter };
        let thread = access_log::start(agent, log, std::io::stdout(), stop.clone())
            .context("there can be no access log")?;
        let stop = stop.clone();
        parts.add("the access log", async move {
            // Who reads it may have gone: that ends nothing else.
            stop.cancelled().await;
            // One that can't write is left: nobody waits for who doesn't read.
            while !thread.is_finished() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_more_than_nothing_and_at_most_all() {
        assert_eq!(share("0.01"), Ok(0.01));
        assert_eq!(share("1"), Ok(1.0));
        for text in ["0", "1.1", "-1", "NaN", "all"] {
            assert!(share(text).unwrap_err().contains("is no share"), "{text}");
        }
    }
}
