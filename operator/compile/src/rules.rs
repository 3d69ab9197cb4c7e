//! Which DestinationRules are in force for a Service, or for a host of a ServiceEntry, and what they say together.
//!
//! Those of the namespace of the Service or ServiceEntry, or, where there are none, those of the root namespace; never
//! of a third one: nobody tells others how their Services are reached. Of one namespace all are in force, merged: the
//! first definition of a subset counts, and the first traffic policy, the oldest rule first.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    Index, ObjectName,
    model::{DestinationRule, Export, Subset, Traffic},
};

type Rule<'a> = (&'a ObjectName, &'a DestinationRule);

/// The DestinationRules in force for a Service, the oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules<'a>(Vec<Rule<'a>>);

/// Why a rule isn't in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing<'a> {
    InForce,
    /// It is of the root namespace, and the Service's own namespace has this one.
    Behind(&'a ObjectName),
    /// It is of a third namespace, or its exportTo leaves callers of this one out.
    Stranger,
}

impl Index {
    /// The rules in force for a Service.
    pub(crate) fn rules<'a>(&'a self, service: &ObjectName) -> Rules<'a> {
        let owner = self.owner(service);
        let own: Vec<_> = self.rules_of(service, &owner).collect();
        Rules(if own.is_empty() {
            self.rules_of(service, &self.options.root_namespace).collect()
        } else {
            own
        })
    }

    /// How a rule stands among all for a Service.
    pub(crate) fn standing<'a>(&'a self, service: &ObjectName, rule: &ObjectName) -> Standing<'a> {
        let rules = self.rules(service);
        let namespace = &rule.namespace;
        match rules.0.first() {
            _ if rules.0.iter().any(|(name, _)| *name == rule) => Standing::InForce,
            Some((first, _))
                if *namespace == self.options.root_namespace && first.namespace != *namespace =>
            {
                Standing::Behind(first)
            }
            _ => Standing::Stranger,
        }
    }

    /// The namespace whose rules count.
    fn owner(&self, service: &ObjectName) -> Arc<str> {
        self.provider(service).map_or_else(|| service.namespace.clone(), |provider| provider.name.namespace)
    }

    /// The rules of a namespace for a Service that act on callers of every namespace, the oldest first.
    fn rules_of<'a>(&'a self, service: &ObjectName, namespace: &str) -> impl Iterator<Item = Rule<'a>> {
        let owner = self.owner(service);
        let all = self.relations.rules.of(service).map(|(_, rule)| rule);
        all.filter(move |rule| *rule.namespace == *namespace)
            .filter_map(|rule| Some((rule, self.rule_named(rule)?)))
            .filter(move |(name, rule)| match rule.export {
                Export::Everyone => true,
                Export::Own => name.namespace == owner,
                Export::Others => false,
            })
    }
}

impl<'a> Rules<'a> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = Rule<'a>> {
        self.0.iter().copied()
    }

    /// The subsets by name.
    pub(crate) fn subsets(&self) -> BTreeMap<&'a str, &'a Subset> {
        let mut subsets = BTreeMap::new();
        for (name, subset) in self.0.iter().flat_map(|(_, rule)| &rule.subsets) {
            subsets.entry(name.as_str()).or_insert(subset);
        }
        subsets
    }

    /// The subset of this name.
    pub(crate) fn subset(&self, name: &str) -> Option<&'a Subset> {
        self.0.iter().find_map(|(_, rule)| rule.subsets.get(name))
    }

    /// The rule whose traffic policy is for the Service as a whole.
    pub(crate) fn policy(&self) -> Option<Rule<'a>> {
        self.iter().find(|(_, rule)| rule.has_policy)
    }

    /// What that policy says.
    pub(crate) fn traffic(&self) -> Traffic {
        self.policy().map(|(_, rule)| rule.traffic).unwrap_or_default()
    }

    /// The rule that defines a subset.
    pub(crate) fn definer(&self, subset: &str) -> Option<&'a ObjectName> {
        self.iter().find(|(_, rule)| rule.subsets.contains_key(subset)).map(|(name, _)| name)
    }
}
