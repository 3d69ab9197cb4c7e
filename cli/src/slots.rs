//! `slotmesh slots`: the slot table of a running agent.

use std::fmt::Write as _;

use clap::Args;
use slotmesh_admin::{SlotsReport, paths};

use crate::{ask::AskedAgent, render::print};

/// The flags of `slotmesh slots`.
#[derive(Debug, Args)]
pub struct Slots {
    #[command(flatten)]
    asked: AskedAgent,

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
        let Self { asked, json } = self;
        let report: SlotsReport = asked.site()?.get(paths::SLOTS)?;
        print(&if json { serde_json::to_string_pretty(&report)? + "\n" } else { table(&report) })
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
