//! Settings of each node: those of its slots, as the oldest SlotProfile that selects it says, and its region and zone.

use slotmesh_xds::{Resource, ResourceType, SlotSettings};

use crate::{Index, Kind, ObjectName, Reason, report::Findings, unit::Compiled};

/// How many nodes a report names.
const NAMED: usize = 5;

/// Compiles the settings of a node.
pub(crate) fn compile(index: &Index, node: &ObjectName) -> Compiled {
    let mut compiled = Compiled::default();
    let profile = index.profile_of(node).and_then(|name| index.profile(name));
    let slots = profile.map(|profile| profile.settings.clone()).unwrap_or_default();
    let place = index.place_of(&node.name);
    let settings = SlotSettings {
        zone: place.zone.to_owned(),
        region: place.region.to_owned(),
        sub_zone: place.sub_zone.to_owned(),
        ..slots
    };
    if settings != SlotSettings::default() {
        compiled.resources.push(Resource::encode(ResourceType::Settings, &*node.name, &settings));
    }
    compiled
}

/// The nodes that a profile selects, and on which of them another is in force.
pub(crate) fn report(index: &Index, name: &ObjectName) -> Compiled {
    let mut compiled = Compiled::default();
    if index.profile(name).is_none() {
        return compiled;
    }
    let mut found = Findings::new(index.object_ref(Kind::SlotProfile, name));
    let nodes = index.nodes_of(name);
    let mut lost: Vec<(&ObjectName, &ObjectName)> = nodes
        .iter()
        .filter_map(|node| Some((*node, index.profile_of(node)?)))
        .filter(|(_, winner)| *winner != name)
        .collect();
    lost.sort();
    if nodes.is_empty() {
        found.note("spec.nodeSelector", "no node is selected, so the profile has no effect");
    } else if let Some((_, winner)) = lost.first() {
        let winner = index.object_ref(Kind::SlotProfile, winner);
        let mut names = lost.iter().take(NAMED).map(|(node, _)| &*node.name).collect::<Vec<_>>().join(", ");
        if lost.len() > NAMED {
            names += ", …";
        }
        found.refuse_as(
            Reason::Conflicted,
            "spec.nodeSelector",
            format!(
                "on {} of {} nodes ({names}) another profile is in force, such as {winner}, which is older or first \
                 by name; let each node be selected by one profile",
                lost.len(),
                nodes.len()
            ),
        );
    }
    compiled.reports = found.reports;
    compiled
}
