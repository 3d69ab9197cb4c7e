//! Clusters of a Service: one for each port, and one for each port and subset.

use crate::{
    Index, Kind, ObjectName, Report, compiler::Compiled, envoy, names::cluster_name, report::Findings,
};

/// All (port, subset) of a Service for which there is a cluster, the empty subset first.
///
/// This alone decides which clusters exist: assignments are made for the same pairs and routes
/// lead to them.
pub(crate) fn backends<'a>(
    index: &'a Index,
    name: &'a ObjectName,
) -> impl Iterator<Item = (u16, &'a str)> + use<'a> {
    let ports = index.service(name).into_iter().flat_map(|service| &service.ports);
    ports.flat_map(move |port| {
        let subsets = index.rule(name).into_iter().flat_map(|rule| rule.subsets.keys());
        std::iter::once("").chain(subsets.map(String::as_str)).map(|subset| (port.number, subset))
    })
}

/// Compiles the clusters of a Service, and says which DestinationRules for it have no effect.
pub(crate) fn compile(index: &Index, name: &ObjectName) -> Compiled {
    let resources =
        backends(index, name).map(|(port, subset)| envoy::cluster(&cluster_name(name, port, subset)));
    Compiled { resources: resources.collect(), reports: rule_reports(index, name) }
}

fn rule_reports(index: &Index, name: &ObjectName) -> Vec<Report> {
    let mut reports = Vec::new();
    let mut rules = index.relations.rules.of(name).map(|(_, rule)| rule);
    let Some(first) = rules.next() else { return reports };
    if index.service(name).is_none() {
        let mut found = Findings::new(index.object_ref(Kind::DestinationRule, first));
        found.refuse(
            "spec.host",
            format!("there is no Service {name}; the rule takes effect when it appears"),
        );
        reports.append(&mut found.reports);
    }
    for loser in rules {
        let mut found = Findings::new(index.object_ref(Kind::DestinationRule, loser));
        let winner = index.object_ref(Kind::DestinationRule, first);
        found.refuse(
            "spec.host",
            format!(
                "Service {name} already has {winner}, which is older or first by name; this rule has no effect \
                 for as long; put the subsets of both into one"
            ),
        );
        reports.append(&mut found.reports);
    }
    reports
}
