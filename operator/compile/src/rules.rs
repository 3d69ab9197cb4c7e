//! Which DestinationRules are in force for a Service, or for a host of a ServiceEntry, for whom, and what they say
//! together.
//!
//! Those of the caller's namespace; where there are none, those of the namespace of the Service or ServiceEntry; else
//! those of the root namespace; never of a fourth: nobody tells others how their Services are reached. In each only
//! those count that the caller sees, and of these those whose host is the narrowest. Of the caller's own namespace
//! those that choose callers go before those for all. What is left is merged: the first definition of a subset counts,
//! and the first traffic policy, the oldest rule first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    Index, ObjectName, ServiceId,
    model::{Caller, Class, DestinationRule, Export, Subset, TrafficSettings},
    patterns::{HostPattern, Suffix},
};

type Rule<'a> = (&'a ObjectName, &'a DestinationRule);

/// The DestinationRules in force for a Service, the oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules<'a>(Vec<Rule<'a>>);

/// Callers for whom other rules count than for the rest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Apart {
    pub(crate) namespaces: BTreeSet<Arc<str>>,
    pub(crate) classes: BTreeSet<Arc<Class>>,
}

/// Why a rule isn't in force for anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing<'a> {
    InForce,
    /// Of those for the same callers this one goes before.
    Behind(&'a ObjectName),
    /// None of its callers takes part.
    Unused,
}

impl Index {
    /// The rules in force for a Service's callers of its own namespace: what its resources are called after.
    pub(crate) fn own_rules<'a>(&'a self, service: &ServiceId) -> Rules<'a> {
        self.rules(service, Caller::Of(&self.owner(service)))
    }

    /// The rules in force for a caller of a Service.
    pub(crate) fn rules<'a>(&'a self, service: &ServiceId, caller: Caller<'_>) -> Rules<'a> {
        let patterns = self.patterns(service);
        if patterns.is_empty() {
            return Rules::default();
        }
        let (owner, root) = (self.owner(service), &self.options.root_namespace);
        let own = caller.namespace().filter(|own| *own != &*owner && *own != &**root);
        let mut places = own.into_iter().chain([&*owner, &**root]);
        let rules = places.find_map(|namespace| {
            patterns.iter().find_map(|pattern| self.rules_of(pattern, namespace, caller))
        });
        Rules(rules.unwrap_or_default())
    }

    /// Tells whether any rule for a Service defines a subset.
    pub(crate) fn has_subsets(&self, service: &ServiceId) -> bool {
        let patterns = self.patterns(service);
        let mut rules = patterns.iter().flat_map(|pattern| self.relations.rules.of(pattern));
        rules.any(|(.., name)| self.rule_named(name).is_some_and(|rule| !rule.subsets.is_empty()))
    }

    /// The callers for whom other rules may count than for the rest.
    pub(crate) fn apart(&self, service: &ServiceId) -> Apart {
        let mut apart = Apart::default();
        let owner = self.owner(service);
        for pattern in self.patterns(service) {
            for (namespace, _, name) in self.relations.rules.of(&pattern) {
                let Some(rule) = self.rule_named(name) else { continue };
                if *namespace != owner && *namespace != self.options.root_namespace {
                    apart.namespaces.insert(Arc::clone(namespace));
                }
                if let Export::Only(_) = rule.export {
                    apart.namespaces.extend(rule.export.named().cloned());
                    apart.namespaces.insert(owner.clone());
                }
                if let Some(labels) = &rule.callers {
                    let classes = self.classes.with(labels).filter(|class| class.namespace == *namespace);
                    apart.classes.extend(classes.cloned());
                }
            }
        }
        apart
    }

    /// How a rule stands among all for a Service.
    pub(crate) fn standing<'a>(&'a self, service: &ServiceId, rule: &ObjectName) -> Standing<'a> {
        let apart = self.apart(service);
        let owner = self.owner(service);
        let callers = [Caller::Anyone, Caller::Of(&owner)].into_iter();
        let callers = callers.chain(apart.namespaces.iter().map(Caller::Of));
        let callers = callers.chain(apart.classes.iter().map(|class| Caller::In(class)));
        let mut first = None;
        for caller in callers {
            let rules = self.rules(service, caller);
            if rules.0.iter().any(|(name, _)| *name == rule) {
                return Standing::InForce;
            }
            first = first.or(rules.0.first().map(|(name, _)| *name));
        }
        first.map_or(Standing::Unused, Standing::Behind)
    }

    /// The hosts that rules for a Service may name, the narrowest first; only those of which there are any.
    fn patterns(&self, service: &ServiceId) -> Vec<HostPattern> {
        let mut patterns = vec![HostPattern::One(service.clone())];
        if self.relations.wild_rules > 0 {
            patterns.extend(Suffix::of(&self.host(service)).map(HostPattern::Under));
        }
        patterns.retain(|pattern| self.relations.rules.first(pattern).is_some());
        patterns
    }

    /// The namespace whose rules count for callers that have none of their own.
    fn owner(&self, service: &ServiceId) -> Arc<str> {
        self.provider(service).map_or_else(|| service.namespace().clone(), |provider| provider.name.namespace)
    }

    /// The rules of a namespace that a caller sees, the oldest first; `None` where there are none.
    fn rules_of<'a>(
        &'a self,
        pattern: &HostPattern,
        namespace: &str,
        caller: Caller<'_>,
    ) -> Option<Vec<Rule<'a>>> {
        let all = self.relations.rules_in(pattern, namespace);
        let (mut some, mut general) = (Vec::new(), Vec::new());
        for name in all {
            let Some(rule) = self.rule_named(name).filter(|rule| rule.export.sees(caller)) else { continue };
            match &rule.callers {
                None => general.push((name, rule)),
                Some(labels) if caller.namespace() == Some(namespace) && caller.has(labels) => {
                    some.push((name, rule));
                }
                Some(_) => {}
            }
        }
        let rules = if some.is_empty() { general } else { some };
        (!rules.is_empty()).then_some(rules)
    }
}

impl<'a> Rules<'a> {
    fn iter(&self) -> impl Iterator<Item = Rule<'a>> {
        self.0.iter().copied()
    }

    /// Which rules these are.
    pub(crate) fn names(&self) -> Vec<&'a ObjectName> {
        self.iter().map(|(name, _)| name).collect()
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

    /// The treatment of connections to a port: of the subset, then of the Service.
    pub(crate) fn traffic(&self, port: u16, subset: &str) -> TrafficSettings {
        let of_all = self.policy().map(|(_, rule)| rule.policy.of(port, TrafficSettings::default()));
        let of_all = of_all.unwrap_or_default();
        match self.subset(subset) {
            Some(subset) => subset.policy.of(port, of_all),
            None => of_all,
        }
    }

    /// The rule that defines a subset.
    pub(crate) fn definer(&self, subset: &str) -> Option<&'a ObjectName> {
        self.iter().find(|(_, rule)| rule.subsets.contains_key(subset)).map(|(name, _)| name)
    }
}
