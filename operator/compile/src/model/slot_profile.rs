//! SlotProfiles: settings of the slots of some nodes.

use std::collections::{BTreeMap, BTreeSet};

use slotmesh_crds::own::{self, GrowthMode, SLAB_COST};
use slotmesh_xds::{SlotGrowth, SlotSettings};

use super::{Age, Node, Read};
use crate::{CompileOptions, ObjectName, quantity, relation::Selection, report::Findings};

/// The most slabs there can be.
const MAX_SLABS: u32 = 16_384;

/// A valid SlotProfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotProfile {
    pub(crate) age: Age,
    labels: BTreeMap<String, String>,
    /// The nodes to which it is limited; empty for all.
    names: BTreeSet<String>,
    pub(crate) settings: SlotSettings,
}

impl SlotProfile {
    /// Tells whether this node is one of the profile's.
    pub(crate) fn selects(&self, name: &ObjectName, node: &Node) -> bool {
        (self.names.is_empty() || self.names.contains(&*name.name))
            && self.labels.iter().all(|(key, value)| node.labels.get(key) == Some(value))
    }

    /// By what its nodes are looked up: each of them has one of these.
    pub(crate) fn selections(&self) -> Vec<Selection> {
        if !self.names.is_empty() {
            return self.names.iter().map(|name| Selection::Name(name.clone())).collect();
        }
        match self.labels.first_key_value() {
            Some((key, value)) => vec![Selection::Label(key.clone(), value.clone())],
            None => vec![Selection::All],
        }
    }
}

impl Read<own::SlotProfile> for SlotProfile {
    /// Reads a profile; `None` when it must be refused. The API server checks the same; a directory of
    /// manifests has none.
    fn read(
        object: &own::SlotProfile,
        key: &ObjectName,
        _: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        let own::SlotProfileSpec {
            node_selector,
            node_names,
            initial,
            cap,
            low_watermark,
            high_watermark,
            growth,
            batch,
            memory_budget,
        } = &object.spec;
        for (field, value) in [("initial", initial), ("cap", cap), ("batch", batch)] {
            if let Some(value) = value.filter(|value| !(1..=MAX_SLABS).contains(value)) {
                found.refuse(format!("spec.{field}"), format!("{value} is not between 1 and {MAX_SLABS}"));
            }
        }
        let budget = memory_budget.as_deref().and_then(|text| read_budget(text, found));
        if let (Some(cap), Some(budget)) = (cap, budget)
            && *cap > budget
        {
            let fault = format!(
                "{cap} outer records take more than memoryBudget, which is for {budget}; set only one"
            );
            found.refuse("spec.cap", fault);
        }
        let cap = cap.or(budget);
        if let (Some(initial), Some(cap)) = (initial, cap)
            && *initial > cap
        {
            let fault = format!("{initial} initial outer records are more than the cap, {cap}");
            found.refuse("spec.initial", fault);
        }
        let least = low_watermark.unwrap_or(0).saturating_add(batch.unwrap_or(1));
        if let Some(high) = high_watermark.filter(|high| *high < least) {
            found.refuse(
                "spec.highWatermark",
                format!("{high} is below lowWatermark and batch together, {least}: what growth creates would be given back at once"),
            );
        }
        let growth = match growth {
            None => SlotGrowth::Unset,
            Some(GrowthMode::Eager) => SlotGrowth::Eager,
            Some(GrowthMode::Background) => SlotGrowth::Background,
            Some(GrowthMode::OnDemand) => SlotGrowth::OnDemand,
        };
        let settings = SlotSettings {
            profile: key.name.to_string(),
            initial: *initial,
            cap,
            low_watermark: *low_watermark,
            high_watermark: *high_watermark,
            batch: *batch,
            growth: growth.into(),
            ..SlotSettings::default()
        };
        (!found.refused()).then(|| Self {
            age: Age::of(&object.metadata),
            labels: node_selector.clone(),
            names: node_names.iter().cloned().collect(),
            settings,
        })
    }
}

impl Node {
    /// By what it can be looked up.
    pub(crate) fn selections(&self, name: &ObjectName) -> impl Iterator<Item = Selection> {
        let labels = self.labels.iter().map(|(key, value)| Selection::Label(key.clone(), value.clone()));
        [Selection::All, Selection::Name(name.name.to_string())].into_iter().chain(labels)
    }
}

/// How many outer records fit a budget.
fn read_budget(text: &str, found: &mut Findings) -> Option<u32> {
    let field = "spec.memoryBudget";
    let Some(bytes) = quantity::bytes(text) else {
        found.refuse(field, format!("{text:?} is not a quantity such as 64Mi"));
        return None;
    };
    let slabs = u32::try_from(bytes / SLAB_COST).unwrap_or(u32::MAX).min(MAX_SLABS);
    if slabs == 0 {
        found.refuse(field, format!("{text} is less than one outer record takes, {} KiB", SLAB_COST / 1024));
        return None;
    }
    Some(slabs)
}
