//! `slotmesh slots`: the slot table of a running agent, whether it is full, and a map of the slabs of one class.

use std::fmt::Write as _;

use clap::Args;
use slotmesh_admin::{SlabReport, SlotsReport, paths};

use crate::{
    ask::AskedAgent,
    render::{Columns, OutputForm, Paint, print},
};

/// The flags of `slotmesh slots`.
#[derive(Debug, Args)]
pub struct Slots {
    #[command(flatten)]
    asked: AskedAgent,

    /// Draw the slabs of this class instead, by the size of its slots
    #[arg(long, env = "SLOTMESH_SLOT_CLASS", value_name = "BYTES")]
    class: Option<usize>,

    /// Form of the answer
    #[arg(long, short, env = "SLOTMESH_OUTPUT", default_value = "table")]
    output: OutputForm,

    /// The same as --output json
    #[arg(long, hide = true)]
    json: bool,
}

/// Slabs in a line of the map.
const LINE: usize = 64;
/// Of 100 slabs, how many have to be left so that nobody need do anything.
const SCARCE: u32 = 5;

impl Slots {
    /// Asks the agent and prints.
    ///
    /// # Errors
    /// Where no agent answers.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { asked, class, output, json } = self;
        let output = if json { OutputForm::Json } else { output };
        let site = asked.site()?;
        let text = match class {
            Some(bytes) => {
                let slabs: Vec<SlabReport> = site.get(&format!("{}/{bytes}", paths::SLOTS))?;
                output.of_text(&slabs, |_| map(bytes, &slabs))?
            }
            None => {
                let report: SlotsReport = site.get(paths::SLOTS)?;
                output.of_text(&report, |wide| text(&report, wide))?
            }
        };
        print(&text)
    }
}

fn text(report: &SlotsReport, wide: bool) -> String {
    let mut table = Columns::new(["SLOT BYTES", "USED", "IDLE", "RETIRED"]);
    for class in report.classes.iter().filter(|class| wide || class.used + class.idle + class.retired > 0) {
        let counts = [class.bytes as u64, class.used, class.idle, class.retired];
        table.row(counts.map(|count| count.to_string()));
    }
    let mut text = table.to_string();
    _ = writeln!(
        text,
        "slabs: {} created ({} wholly idle), {} remaining; {} handles, {} slots in quarantine",
        report.outer_records,
        report.outer_records_empty,
        report.outer_records_remaining,
        report.handles,
        report.quarantined,
    );
    if let Some(error) = &report.growth_error {
        _ = writeln!(text, "{}", Paint::Red.on(&format!("the last growth failed: {error}")));
    }
    let (paint, verdict) = verdict(report);
    _ = writeln!(text, "{}", paint.on(&verdict));
    text
}

/// The verdict whether the table is full, in words.
fn verdict(report: &SlotsReport) -> (Paint, String) {
    let cap = report.outer_records + report.outer_records_remaining;
    let left = report.outer_records_empty + report.outer_records_remaining;
    let used = cap - left;
    let share = f64::from(used) / f64::from(cap.max(1)) * 100.0;
    let of = format!("{used} of {cap} slabs hold something ({share:.1}%)");
    let more = "raise memoryBudget by a SlotProfile for the node, `agent.memoryBudget` of the chart, or --memory-budget";
    if left == 0 {
        (Paint::Red, format!("full: {of}; what needs another slab is refused; {more}"))
    } else if u64::from(left) * 100 < u64::from(cap) * u64::from(SCARCE) {
        (Paint::Yellow, format!("nearly full: {of}; {more}"))
    } else {
        (Paint::Green, format!("not full: {of}"))
    }
}

/// A slab by how much of it is used: a character, and its colour.
fn cell(slab: &SlabReport) -> (char, Option<Paint>) {
    let SlabReport { slab: _, used, idle, retired } = slab;
    let all = (used + idle + retired).max(1);
    let shade = match used * 100 / all {
        0 if *used == 0 => '·',
        0..=24 => '░',
        25..=49 => '▒',
        50..=89 => '▓',
        _ => '█',
    };
    let paint = if *retired > 0 {
        Some(Paint::Yellow)
    } else if shade == '█' {
        Some(Paint::Red)
    } else {
        None
    };
    (shade, paint)
}

/// The slabs of a class, in the order of their indexes.
fn map(bytes: usize, slabs: &[SlabReport]) -> String {
    let sum = |of: fn(&SlabReport) -> u64| slabs.iter().map(of).sum::<u64>();
    let (used, idle, retired) = (sum(|slab| slab.used), sum(|slab| slab.idle), sum(|slab| slab.retired));
    let mut text = format!(
        "Slots of {bytes} bytes: {} slabs; {used} slots used, {idle} idle, {retired} retired\n",
        slabs.len()
    );
    for line in slabs.chunks(LINE) {
        _ = write!(text, "{:>6}  ", line.first().map_or(0, |slab| slab.slab));
        for slab in line {
            let (shade, paint) = cell(slab);
            text += &paint.map_or(shade.to_string(), |paint| paint.on(&shade.to_string()));
        }
        text.push('\n');
    }
    text += "One character a slab: · nothing used, ░ below 25%, ▒ below 50%, ▓ below 90%, █ from 90% on\n";
    text
}

#[cfg(test)]
mod tests {
    use slotmesh_admin::ClassReport;

    use super::*;

    fn report(created: u32, empty: u32, remaining: u32) -> SlotsReport {
        SlotsReport {
            classes: vec![
                ClassReport { bytes: 64, used: 3, idle: 1_021, retired: 0 },
                ClassReport { bytes: 128, used: 0, idle: 0, retired: 0 },
            ],
            outer_records: created,
            outer_records_empty: empty,
            outer_records_remaining: remaining,
            quarantined: 0,
            handles: 3,
            grace_periods: 0,
            growth_error: None,
        }
    }

    #[test]
    fn a_table_says_whether_it_is_full() {
        let said = |created, empty, remaining| verdict(&report(created, empty, remaining)).1;
        assert_eq!(said(32, 31, 2_016), "not full: 1 of 2048 slabs hold something (0.0%)");
        assert!(said(100, 4, 0).starts_with("nearly full: 96 of 100 slabs"), "{}", said(100, 4, 0));
        assert!(said(8, 0, 0).starts_with("full: 8 of 8"));
    }

    #[test]
    fn classes_without_slabs_are_listed_only_where_all_is_asked_for() {
        assert!(!text(&report(1, 0, 9), false).contains("\n128 "));
        assert!(text(&report(1, 0, 9), true).contains("\n128 "));
    }

    #[test]
    fn a_slab_is_drawn_by_how_much_of_it_is_used() {
        let slab = |used, retired| SlabReport { slab: 0, used, idle: 100 - used - retired, retired };
        let shades: String =
            [0, 1, 24, 25, 50, 89, 90, 100].map(|used| cell(&slab(used, 0)).0).into_iter().collect();
        assert_eq!(shades, "·░░▒▓▓██");
        assert_eq!(cell(&slab(10, 1)).1, Some(Paint::Yellow));
        let many: Vec<SlabReport> = (0..65).map(|_| slab(100, 0)).collect();
        let drawn = map(64, &many);
        assert!(drawn.starts_with("Slots of 64 bytes: 65 slabs; 6500 slots used, 0 idle, 0 retired\n"));
        assert_eq!(drawn.lines().count(), 4);
    }
}
