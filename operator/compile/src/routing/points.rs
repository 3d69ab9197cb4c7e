//! Who connects to a Service, or a host of a ServiceEntry, as far as any rule that bears on it tells callers apart.
//!
//! Invariant: for two callers that stand for none of these points every rule says the same.

use std::{collections::BTreeSet, sync::Arc};

use super::Candidate;
use crate::{
    Index, ServiceId,
    model::{Caller, Class, Routes},
};

/// The callers of whom some rule speaks.
#[derive(Debug, Default)]
pub(super) struct Points {
    /// Namespaces that see some object which others don't see.
    seeing: BTreeSet<Arc<str>>,
    /// Namespaces by which rules say something else.
    apart: BTreeSet<Arc<str>>,
    /// Classes of callers with labels that a rule asks for.
    classes: BTreeSet<Arc<Class>>,
}

impl Points {
    /// The callers of a Service that these objects route.
    pub(super) fn of(index: &Index, name: &ServiceId, candidates: &[Candidate<'_>]) -> Self {
        let mut points = Self::default();
        let mut destinations = BTreeSet::from([name]);
        for candidate in candidates {
            let Candidate { key, routes, .. } = *candidate;
            if routes.is_consumers(key, name) {
                points.seeing.insert(Arc::clone(&key.name.namespace));
            }
            points.seeing.extend(routes.export.named().cloned());
            points.routes(index, routes, &mut destinations);
            for delegate in routes.delegates().filter_map(|delegate| index.delegate(delegate)) {
                points.routes(index, delegate, &mut destinations);
            }
        }
        for destination in destinations {
            let apart = index.apart(destination);
            points.apart.extend(apart.namespaces);
            points.classes.extend(apart.classes);
        }
        let (namespaces, classes) = index.with_sidecars(name);
        points.seeing.extend(namespaces);
        points.classes.extend(classes);
        for export in index.exports(name) {
            points.seeing.extend(export.named().cloned());
        }
        points
    }

    fn routes<'a>(&mut self, index: &Index, routes: &'a Routes, destinations: &mut BTreeSet<&'a ServiceId>) {
        destinations.extend(routes.destinations().map(|destination| &destination.service));
        for from in routes.all().flat_map(|route| &route.matches).map(|m| &m.from) {
            if !from.labels.is_empty() {
                let classes = index.classes.with(&from.labels);
                let wanted = classes
                    .filter(|class| from.namespace.as_ref().is_none_or(|wanted| *wanted == class.namespace));
                self.classes.extend(wanted.cloned());
            } else if let Some(namespace) = &from.namespace {
                self.apart.insert(Arc::clone(namespace));
            }
        }
    }

    /// All callers but those of whom nothing is said: namespaces, then classes.
    pub(super) fn callers(&self) -> impl Iterator<Item = Caller<'_>> {
        let namespaces = self.seeing.union(&self.apart).map(Caller::Of);
        namespaces.chain(self.classes.iter().map(|class| Caller::In(class)))
    }

    /// The part of a caller by which rules say something else, where what it sees is known.
    pub(super) fn differs<'a>(&self, caller: Caller<'a>) -> Option<Caller<'a>> {
        match caller {
            Caller::Anyone => None,
            Caller::Of(namespace) => self.apart.contains(namespace).then_some(caller),
            Caller::In(_) => Some(caller),
        }
    }
}
