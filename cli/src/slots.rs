//! `slotmesh slots`: the slot table of a running agent.

use std::{fmt::Write as _, net::SocketAddr};

use anyhow::Context as _;
use clap::Args;
use slotmesh_agent::admin::SlotsReport;

use crate::flags::address;

/// The flags of `slotmesh slots`.
#[derive(Debug, Args)]
pub struct Slots {
    /// Address of the agent's admin interface
    #[arg(long, env = "SLOTMESH_ADMIN", default_value = "127.0.0.1:15020", value_name = "ADDRESS",
        value_parser = address)]
    admin: SocketAddr,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Slots {
    /// Asks the agent and prints.
    ///
    /// # Errors
    /// Where no agent answers.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { admin, json } = self;
        let url = format!("http://{admin}/slots");
        let report: SlotsReport = ureq::get(&url)
            .call()
            .with_context(|| {
                format!(
                    "no agent answers at {admin}; name its address with --admin. That of a pod is reached by \
                     `kubectl port-forward --namespace slotmesh-system POD 15020`"
                )
            })?
            .body_mut()
            .read_json()
            .with_context(|| format!("{url} is not an agent's slot table"))?;
        if json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{}", table(&report));
        }
        Ok(())
    }
}

fn table(report: &SlotsReport) -> String {
    let mut text = String::new();
    let mut line = |args: std::fmt::Arguments<'_>| {
        text.write_fmt(args).and_then(|()| text.write_char('\n')).expect("writing to a string doesn't fail");
    };
    line(format_args!("{:>10} {:>10} {:>10} {:>10}", "SLOT BYTES", "USED", "IDLE", "RETIRED"));
    for class in report.classes.iter().filter(|class| class.used + class.idle + class.retired > 0) {
        line(format_args!("{:>10} {:>10} {:>10} {:>10}", class.bytes, class.used, class.idle, class.retired));
    }
    line(format_args!(
        "slabs: {} created ({} wholly idle), {} remaining; {} handles, {} slots in quarantine",
        report.outer_records,
        report.outer_records_empty,
        report.outer_records_remaining,
        report.handles,
        report.quarantined,
    ));
    if let Some(error) = &report.growth_error {
        line(format_args!("the last growth failed: {error}"));
    }
    text
}
