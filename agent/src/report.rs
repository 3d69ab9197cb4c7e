//! What the agent tells the operator of itself: gathered when something changed, and at most every few
//! seconds.
//!
//! Invariant: an agent on which nothing happens asks nobody for anything and tells nothing.

use std::time::Duration;

use slotmesh_slots::Stats;
use slotmesh_xds::{AgentReport, SlotCounts};
use tokio::{sync::watch, time::sleep};

use crate::{Enrolled, Handle};

/// How often is looked whether pods are attached; it asks nobody.
const LOOK_AT_PODS: Duration = Duration::from_secs(10);

/// Gathers reports into `reports` until the agent ends, or nobody wants them any more. `enrolled` says which pods are
/// attached.
pub async fn follow(
    agent: Handle,
    enrolled: impl Fn() -> Enrolled,
    reports: watch::Sender<Option<AgentReport>>,
    at_most_every: Duration,
) {
    let mut changes = agent.changes();
    loop {
        let Some((stats, profile)) = agent.slots().await else { return };
        let unattached = unattached(&enrolled());
        let report = AgentReport {
            unattached: unattached.clone(),
            ..report(&stats, profile, agent.metrics().flush_p99())
        };
        reports.send_if_modified(|last| {
            let news = last.as_ref() != Some(&report);
            *last = Some(report);
            news
        });
        tokio::select! {
            biased;
            () = reports.closed() => return,
            () = sleep(at_most_every) => {}
        }
        loop {
            tokio::select! {
                biased;
                () = reports.closed() => return,
                changed = changes.changed() => if changed.is_err() { return } else { break },
                () = sleep(LOOK_AT_PODS) => if self::unattached(&enrolled()) != unattached { break },
            }
        }
    }
}

/// What is to be said of pods that aren't attached.
fn unattached(enrolled: &Enrolled) -> Option<String> {
    let example = enrolled.example.as_ref()?;
    let (overdue, named) = (enrolled.overdue, enrolled.named);
    Some(format!("{overdue} of {named} pods, such as {example}"))
}

fn report(stats: &Stats, profile: Option<String>, flush_p99: Option<Duration>) -> AgentReport {
    let sum =
        |of: fn(&slotmesh_slots::ClassStats) -> u64| stats.classes.iter().map(|(_, counts)| of(counts)).sum();
    AgentReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        slots: SlotCounts {
            used: sum(|counts| counts.used),
            idle: sum(|counts| counts.idle),
            retired: sum(|counts| counts.retired),
            outer_records: stats.slabs,
            remaining: stats.remaining(),
            cap: stats.cap,
        },
        flush_p99,
        profile,
        unattached: None,
    }
}
