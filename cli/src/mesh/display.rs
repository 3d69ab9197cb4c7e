//! The state of the mesh in words and tables.

use std::fmt::Write as _;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use super::survey::{NodeState, ReplicaState, Survey};
use crate::render::{Columns, Paint, or_dash};

/// The most nodes that are listed where all are well and nobody asks for more.
const FEW: usize = 20;

/// All that there is to say.
pub fn text(survey: &Survey, wide: bool) -> String {
    let Survey { healthy, operator, nodes, pending, advice, unknown } = survey;
    let ready = nodes.iter().filter(|node| node.ready).count();
    let refused: u64 = nodes.iter().map(|node| u64::from(node.refused)).sum();
    let mut text = String::new();
    _ = writeln!(
        text,
        "Operator: {}. Nodes: {ready} of {} ready, {refused} resources refused. Objects not in force everywhere: {}.\n",
        match operator.len() {
            1 => "1 replica".to_owned(),
            count => format!("{count} replicas"),
        },
        nodes.len(),
        pending.len()
    );
    if !operator.is_empty() {
        text += &replicas(operator).to_string();
        text.push('\n');
    }
    let all = wide || nodes.len() <= FEW;
    let is_told = |node: &&NodeState| all || !node.ready || node.refused > 0;
    let told: Vec<&NodeState> = nodes.iter().filter(is_told).collect();
    if !told.is_empty() {
        text += &table(&told, wide).to_string();
    }
    if told.len() < nodes.len() {
        _ = writeln!(text, "(and {} nodes where all is well; -o wide lists them)", nodes.len() - told.len());
    }
    if !told.is_empty() {
        text.push('\n');
    }
    for what in unknown {
        _ = writeln!(text, "{}", Paint::Faint.on(&format!("not known: {what}")));
    }
    if *healthy {
        _ = writeln!(text, "{}", Paint::Green.on("All is well."));
    } else {
        _ = writeln!(text, "What to do:");
        advice.iter().for_each(|advice| _ = writeln!(text, "- {}", Paint::Yellow.on(advice)));
    }
    text
}

fn yes_or_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn replicas(operator: &[ReplicaState]) -> Columns {
    let mut table = Columns::new(["REPLICA", "READY", "LEADER", "AGENTS", "ALIKE", "SYNCING", "RESTARTS"])
        .paint("READY", |cell| (cell == "no").then_some(Paint::Red));
    for replica in operator {
        table.row([
            replica.name.clone(),
            or_dash(replica.ready.map(yes_or_no)),
            or_dash(replica.leader.map(yes_or_no)),
            replica.agents.to_string(),
            replica.alike.to_string(),
            replica.syncing.len().to_string(),
            or_dash(replica.restarts),
        ]);
    }
    table
}

fn table(nodes: &[&NodeState], wide: bool) -> Columns {
    let mut header = vec!["NODE", "READY", "SINCE", "REASON", "REFUSED", "SLOTS", "VERSION"];
    if wide {
        header.extend(["RESOURCES", "SLABS-LEFT", "PROFILE", "REPLICA", "ACKNOWLEDGED"]);
    }
    let mut table = Columns::new(header).paint("READY", |cell| (cell == "no").then_some(Paint::Red));
    let now = Timestamp::now();
    for node in nodes {
        let slots =
            node.slots_used.zip(node.slots_idle).map(|(used, idle)| format!("{used}/{}", used + idle));
        let mut row = vec![
            node.name.clone(),
            yes_or_no(node.ready).to_owned(),
            or_dash(node.since.as_ref().map(|Time(since)| age(now.as_second() - since.as_second()))),
            node.reason.clone(),
            node.refused.to_string(),
            or_dash(slots),
            or_dash(node.agent_version.as_ref()),
        ];
        if wide {
            let left = node.slabs_remaining.zip(node.slabs_cap).map(|(left, cap)| format!("{left}/{cap}"));
            row.extend([
                or_dash(node.resources),
                or_dash(left),
                or_dash(node.profile.as_ref()),
                or_dash(node.replica.as_ref()),
                or_dash(node.acknowledged.as_ref()),
            ]);
        }
        table.row(row);
    }
    table
}

/// A number of seconds as kubectl shows ages: `42s`, `5m`, `3h`, `12d`.
fn age(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ ..7_200 => format!("{}m", seconds / 60),
        seconds @ ..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: usize, ready: bool) -> NodeState {
        NodeState { name: format!("n{number}"), ready, reason: "Synced".to_owned(), ..NodeState::default() }
    }

    fn survey(nodes: Vec<NodeState>) -> Survey {
        let advice: Vec<String> =
            nodes.iter().filter(|node| !node.ready).map(|node| format!("look at {}", node.name)).collect();
        Survey {
            healthy: advice.is_empty(),
            operator: Vec::new(),
            nodes,
            pending: Vec::new(),
            advice,
            unknown: Vec::new(),
        }
    }

    #[test]
    fn of_many_nodes_those_are_listed_that_are_not_well() {
        let nodes = (0..100).map(|number| node(number, number != 7)).collect();
        let said = text(&survey(nodes), false);
        assert!(
            said.contains("Nodes: 99 of 100 ready, 0 resources refused. Objects not in force everywhere: 0."),
            "{said}"
        );
        assert!(said.contains("\nn7 ") && !said.contains("\nn8 "), "{said}");
        assert!(said.contains("(and 99 nodes where all is well") && said.contains("- look at n7"), "{said}");
        let few = text(&survey(vec![node(1, true)]), false);
        assert!(few.contains("\nn1 ") && few.contains("All is well."), "{few}");
    }

    #[test]
    fn ages_have_one_unit() {
        assert_eq!([-5, 119, 120, 7_200, 172_800].map(age), ["0s", "119s", "2m", "2h", "2d"]);
    }
}
