//! Which resources a node is sent: those of which callers on it can make use.
//!
//! ```text
//!  node -- classes of its workloads --> listeners that one of them needs --> routes --> clusters --> endpoints
//! ```
//!
//! A listener that some callers don't need (they don't see what it is for) has an [`Audience`]; what it leads to is sent
//! where a listener that is sent leads there for a class on the node. All other listeners are for all nodes that have workloads.
//!
//! Invariant: whatever a change of listeners or workloads may have changed is in [`Rescoped`], and costs no more than
//! what the listeners lead to that it touches.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_map::Entry},
    sync::Arc,
};

use slotmesh_compile::Audience;
use slotmesh_serve::{NodeName, Rescoped, Visibility};
use slotmesh_xds::{
    Change, Resource, ResourceName, ResourceType, Targets, Ways, Workload, assignment_of_cluster,
    clusters_of_route,
};

/// A resource that leads to another one.
type Referrer = (ResourceType, ResourceName);

/// The classes of the workloads of a node, and how many have each.
type Classes = BTreeMap<Arc<str>, usize>;

/// See the module's comment.
#[derive(Debug, Default)]
pub(super) struct VisibilityIndex {
    nodes: HashMap<NodeName, Classes>,
    workloads: HashMap<ResourceName, Arc<str>>,
    audiences: HashMap<ResourceName, Audience>,
    /// Of listeners.
    ways: HashMap<ResourceName, Ways>,
    /// Of routes and clusters: what they lead to.
    leads: HashMap<Referrer, BTreeSet<Referrer>>,
    referrers: HashMap<Referrer, HashSet<Referrer>>,
    /// A class or namespace, and the listeners that tell it apart.
    mentions: HashMap<Arc<str>, HashSet<ResourceName>>,
}

impl VisibilityIndex {
    /// Tells whether the node has workloads.
    pub(super) fn has_workloads(&self, node: &NodeName) -> bool {
        self.nodes.contains_key(node)
    }

    /// The relation of a node to a listener, a route, a cluster or a load assignment.
    pub(super) fn visibility(&self, node: &NodeName, ty: ResourceType, name: &ResourceName) -> Visibility {
        let Some(classes) = self.nodes.get(node) else { return Visibility::Foreign };
        match self.is_seen(classes, ty, name) {
            true => Visibility::Seen,
            false => Visibility::Spared,
        }
    }

    fn is_seen(&self, classes: &Classes, ty: ResourceType, name: &ResourceName) -> bool {
        if ty == ResourceType::Listener {
            let audience = self.audiences.get(name);
            return audience.is_none_or(|audience| classes.keys().any(|class| audience.needs(class)));
        }
        let target = (ty, name.clone());
        // What nothing leads to is of no use yet.
        let Some(referrers) = self.referrers.get(&target) else { return false };
        referrers.iter().any(|(by, referrer)| {
            let ways = self.ways.get(referrer).filter(|_| *by == ResourceType::Listener);
            let is_way = |ways: &Ways| {
                ways.apart.is_empty() || classes.keys().any(|class| ways.of(class).contains(&target))
            };
            ways.is_none_or(is_way) && self.is_seen(classes, *by, referrer)
        })
    }

    /// Takes notice of changes that are about to be published, and of listeners that other callers need from now on.
    pub(super) fn apply(
        &mut self,
        changes: &[Change],
        audiences: BTreeMap<ResourceName, Option<Audience>>,
    ) -> Rescoped {
        let mut rescoped = Rescoped::default();
        for (name, audience) in audiences {
            self.mention(&name, false);
            match audience {
                Some(audience) => self.audiences.insert(name.clone(), audience),
                None => self.audiences.remove(&name),
            };
            self.mention(&name, true);
            self.touch(&name, &mut rescoped.resources);
        }
        let mut before: BTreeMap<NodeName, Classes> = BTreeMap::new();
        for change in changes {
            let (ty, name, resource) = match change {
                Change::Upsert(resource) => (resource.ty, &resource.name, Some(resource)),
                Change::Remove(ty, name) => (*ty, name, None),
            };
            match ty {
                ResourceType::Workload => self.workload(name, resource, &mut before),
                ResourceType::Listener => self.listener(name, resource, &mut rescoped.resources),
                ResourceType::Route => {
                    let clusters = resource.map(|one| clusters_of_route(&one.content)).unwrap_or_default();
                    let clusters = clusters.into_iter().map(|name| (ResourceType::Cluster, name));
                    self.lead((ty, name.clone()), clusters.collect(), &mut rescoped.resources);
                }
                ResourceType::Cluster => {
                    let assignment = resource.and_then(|one| assignment_of_cluster(&one.content));
                    let assignment = assignment.map(|name| (ResourceType::Endpoints, name));
                    self.lead((ty, name.clone()), assignment.into_iter().collect(), &mut rescoped.resources);
                }
                ResourceType::Endpoints | ResourceType::Settings => {}
            }
        }
        for (node, before) in before {
            self.moved(&node, &before, &mut rescoped);
        }
        rescoped
    }

    fn workload(
        &mut self,
        name: &ResourceName,
        resource: Option<&Resource>,
        before: &mut BTreeMap<NodeName, Classes>,
    ) {
        let Some(node) = Workload::node_of(name).map(NodeName::from) else { return };
        let class = resource.and_then(Workload::class_of).map(Arc::from);
        let old = match &class {
            Some(class) => self.workloads.insert(name.clone(), Arc::clone(class)),
            None => self.workloads.remove(name),
        };
        if old == class {
            return;
        }
        let classes = self.nodes.entry(node.clone()).or_default();
        before.entry(node.clone()).or_insert_with(|| classes.clone());
        if let Some(class) = class {
            *classes.entry(class).or_default() += 1;
        }
        if let Some(Entry::Occupied(mut count)) = old.map(|old| classes.entry(old)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        if classes.is_empty() {
            self.nodes.remove(&node);
        }
    }

    /// The classes of a node's workloads were other ones before.
    fn moved(&self, node: &NodeName, before: &Classes, rescoped: &mut Rescoped) {
        static NONE: Classes = Classes::new();
        let now = self.nodes.get(node).unwrap_or(&NONE);
        if before.is_empty() != now.is_empty() {
            rescoped.nodes.insert(node.clone());
            return;
        }
        let mentioned = |class: &str| {
            let of_namespace = class.split_once('#').and_then(|(namespace, _)| self.mentions.get(namespace));
            self.mentions.get(class).into_iter().chain(of_namespace)
        };
        let differing = |one: &Classes, other: &Classes| {
            one.keys().filter(|class| !other.contains_key(*class)).cloned().collect::<Vec<_>>()
        };
        let mut listeners = HashSet::new();
        for (more, fewer) in [(now, before), (before, now)] {
            let came = differing(more, fewer);
            if came.is_empty() {
                continue;
            }
            came.iter()
                .flat_map(|class| mentioned(class))
                .flatten()
                .for_each(|name| _ = listeners.insert(name));
            // What doesn't tell these apart is new only where it tells apart each of the others.
            let size = |class: &&Arc<str>| mentioned(class).map(HashSet::len).sum::<usize>();
            let least = fewer.keys().min_by_key(size);
            least.into_iter().flat_map(|class| mentioned(class)).flatten().for_each(|name| {
                listeners.insert(name);
            });
        }
        let mut touched = HashSet::new();
        listeners.into_iter().for_each(|name| self.touch(name, &mut touched));
        if !touched.is_empty() {
            rescoped.of_node.insert(node.clone(), touched);
        }
    }

    fn listener(
        &mut self,
        name: &ResourceName,
        resource: Option<&Resource>,
        touched: &mut HashSet<Referrer>,
    ) {
        let ways = resource.map(|one| Ways::of_listener(&one.content));
        if self.ways.get(name) == ways.as_ref() {
            return;
        }
        self.touch(name, touched);
        self.mention(name, false);
        let old = match &ways {
            Some(ways) => self.ways.insert(name.clone(), ways.clone()),
            None => self.ways.remove(name),
        };
        self.mention(name, true);
        let (old, new) = (old.map(|ways| ways.all()), ways.map(|ways| ways.all()));
        let from = (ResourceType::Listener, name.clone());
        self.refer(&from, &old.unwrap_or_default(), &new.unwrap_or_default());
        self.touch(name, touched);
    }

    /// A route or cluster leads there from now on.
    fn lead(&mut self, from: Referrer, to: BTreeSet<Referrer>, touched: &mut HashSet<Referrer>) {
        let old = match to.is_empty() {
            true => self.leads.remove(&from),
            false => self.leads.insert(from.clone(), to.clone()),
        };
        let old = old.unwrap_or_default();
        if old == to {
            return;
        }
        self.refer(&from, &old, &to);
        for target in old.union(&to) {
            self.touch_all(target, touched);
        }
    }

    fn refer(&mut self, from: &Referrer, old: &Targets, new: &Targets) {
        for gone in old.difference(new) {
            if let Some(referrers) = self.referrers.get_mut(gone) {
                referrers.remove(from);
                if referrers.is_empty() {
                    self.referrers.remove(gone);
                }
            }
        }
        for come in new.difference(old) {
            self.referrers.entry(come.clone()).or_default().insert(from.clone());
        }
    }

    /// Notes a listener with the classes and namespaces that it tells apart, or takes it from there.
    fn mention(&mut self, name: &ResourceName, does: bool) {
        let of_audience =
            self.audiences.get(name).into_iter().flat_map(|audience| audience.apart.keys().cloned());
        let of_ways = self.ways.get(name).into_iter().flat_map(|ways| ways.apart.keys());
        let classes: BTreeSet<Arc<str>> =
            of_audience.chain(of_ways.map(|class| class.as_str().into())).collect();
        for class in classes {
            if does {
                self.mentions.entry(class).or_default().insert(name.clone());
            } else if let Some(listeners) = self.mentions.get_mut(&class) {
                listeners.remove(name);
                if listeners.is_empty() {
                    self.mentions.remove(&class);
                }
            }
        }
    }

    /// Adds a listener, and all that it leads to.
    fn touch(&self, listener: &ResourceName, touched: &mut HashSet<Referrer>) {
        touched.insert((ResourceType::Listener, listener.clone()));
        for target in self.ways.get(listener).map(Ways::all).unwrap_or_default() {
            self.touch_all(&target, touched);
        }
    }

    fn touch_all(&self, target: &Referrer, touched: &mut HashSet<Referrer>) {
        if touched.insert(target.clone()) {
            for next in self.leads.get(target).into_iter().flatten() {
                self.touch_all(next, touched);
            }
        }
    }
}

#[cfg(test)]
mod tests;
