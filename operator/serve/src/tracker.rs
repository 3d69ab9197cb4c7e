//! Versions that one agent has of one resource type, and those that it may lack.
//!
//! Invariant: a name is remembered only while the agent has it in another version than is served, is being sent it
//! or refused it, or is to be told that it is gone; for all others there are bits. So memory is bounded by what is
//! served and held, however many names come and go and however slow the agent is, and an agent in sync costs nearly
//! nothing.

use std::collections::{HashMap, hash_map::Entry};

use slotmesh_xds::{ResourceName, ResourceType, Version};

use crate::{
    acked::{AckedResources, Held, RefusedVersion, ResourceState, Sent},
    bits::Bits,
    resources::{Changed, Resources, View},
    scope::Visibility,
    status::TypeStatus,
    subscription::{Subscription, TooManyNames},
    table::{Before, Place, Places},
};

/// Why a name has to be compared with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    /// It changed.
    Changed,
    /// The agent wants to be told its state, even if it has it.
    Asked,
}

/// Resources and removals to be sent of one type; in the order of the store, which is none.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    /// An answer is owed, even an empty one.
    pub(crate) answer: bool,
    /// The served table, at the moment when this was found out.
    pub(crate) places: Places,
    /// The places of what has to be sent.
    pub(crate) upserts: Vec<Place>,
    pub(crate) absent: Vec<ResourceName>,
    pub(crate) removals: Vec<ResourceName>,
}

/// The state of one resource type on one stream.
#[derive(Debug)]
pub(crate) struct Tracker {
    ty: ResourceType,
    /// `None` until the first request of this type.
    subscription: Option<Subscription>,
    acked: AckedResources,
    /// Names that have to be compared: those that aren't served, and those that the agent asked for.
    pending: HashMap<ResourceName, Pending>,
    /// The places of those that are served and have changed.
    changed: Bits,
    answer_owed: bool,
    ever_answered: bool,
}

impl Tracker {
    pub(crate) fn new(ty: ResourceType) -> Self {
        Self {
            ty,
            subscription: None,
            acked: AckedResources::new(ty),
            pending: HashMap::new(),
            changed: Bits::default(),
            answer_owed: false,
            ever_answered: false,
        }
    }

    /// Takes in the subscription part of a request.
    pub(crate) fn subscribe(
        &mut self,
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
        initial: HashMap<String, String>,
        resources: View<'_>,
    ) -> Result<(), TooManyNames> {
        let first = self.subscription.is_none();
        let mut subscription = self.subscription.take().unwrap_or_default();
        let asked = subscription.update(first, subscribe, unsubscribe)?;
        self.answer_owed |= asked.answer;
        if asked.narrowed {
            let table = resources.table(self.ty);
            self.acked.retain(table, |name| subscription.covers(name));
            self.pending.retain(|name, _| subscription.covers(name));
            let covered = |place: &Place| table.at(*place).is_some_and(|one| subscription.covers(&one.name));
            let out: Vec<_> = self.changed.iter().filter(|place| !covered(place)).collect();
            out.into_iter().for_each(|place| _ = self.changed.remove(place));
        }
        for name in asked.names {
            self.pending.insert(name, Pending::Asked);
        }
        if first {
            for (name, version) in initial {
                let name = ResourceName::from(name);
                if !subscription.covers(&name) {
                    continue;
                }
                let held = version.parse().map_or(Held::Foreign, Held::Version);
                // It says what it has: comparing is enough, even for a name it subscribes to.
                self.pending.remove(&name);
                match resources.find(self.ty, &name) {
                    Some((place, resource)) if held == Held::Version(resource.version) => {
                        self.acked.insert_current(place, resource);
                        self.changed.insert(place);
                    }
                    Some((place, _)) => {
                        self.changed.insert(place);
                        self.acked.insert(name, ResourceState::holding(held));
                    }
                    None => {
                        self.pending.insert(name.clone(), Pending::Changed);
                        self.acked.insert(name, ResourceState::holding(held));
                    }
                }
            }
        }
        if asked.wildcard {
            for (name, place) in resources.table(self.ty).iter() {
                match resources.visibility(self.ty, name) {
                    Visibility::Seen => _ = self.changed.insert(place),
                    // What the agent has of it is found out by comparing.
                    Visibility::Spared if self.acked.is_known(name, place) => _ = self.changed.insert(place),
                    Visibility::Spared => self.acked.spare_at(place, resources.table(self.ty)),
                    Visibility::Foreign => {}
                }
            }
        }
        self.subscription = Some(subscription);
        Ok(())
    }

    /// Takes in names that changed in the store.
    pub(crate) fn absorb(&mut self, dirty: Changed, resources: View<'_>) {
        let Some(subscription) = &self.subscription else { return };
        // All places that were given up or changed, before any that are taken.
        for (name, before) in &dirty {
            if let Some(before) = before {
                self.changed.remove(before.place);
                self.acked.outdate(name, *before);
                self.acked.unspare(name, *before);
            }
        }
        for name in dirty.into_keys() {
            if !subscription.covers(&name) {
                continue;
            }
            let is_known = self.acked.get(&name).is_some();
            if let Some((place, resource)) = resources.find(self.ty, &name) {
                let visibility = resources.visibility(self.ty, &name);
                if visibility == Visibility::Spared && !is_known {
                    self.acked.spare(place, resource);
                }
                // Also what is spared: the round under way may be about to send it, as it was seen when that began.
                if visibility != Visibility::Foreign || is_known {
                    self.changed.insert(place);
                }
                continue;
            }
            match self.pending.entry(name) {
                Entry::Vacant(vacant) if is_known => _ = vacant.insert(Pending::Changed),
                Entry::Occupied(pending) if !is_known && *pending.get() == Pending::Changed => {
                    pending.remove();
                }
                _ => {}
            }
        }
    }

    /// Compares all that is served: what the agent may see has changed.
    pub(crate) fn compare_all(&mut self, resources: View<'_>) {
        if let Some(subscription) = &self.subscription {
            for (name, place) in resources.table(self.ty).iter() {
                if subscription.covers(name) {
                    self.changed.insert(place);
                }
            }
        }
    }

    /// Tells whether a round has to look at this type.
    pub(crate) fn wants_round(&self) -> bool {
        self.answer_owed || !self.pending.is_empty() || !self.changed.is_empty()
    }

    /// The agent asked for this type after the current round began.
    pub(crate) fn never_answered(&self) -> bool {
        self.subscription.is_some() && !self.ever_answered
    }

    /// Compares the pending names with the store and returns what the agent lacks.
    pub(crate) fn take_needs(&mut self, resources: View<'_>) -> Needs {
        let mut needs = Needs { answer: std::mem::take(&mut self.answer_owed), ..Needs::default() };
        self.ever_answered |= self.subscription.is_some();
        let mut changed = std::mem::take(&mut self.changed);
        for (name, why) in std::mem::take(&mut self.pending) {
            if let Some((place, _)) = resources.find(self.ty, &name) {
                changed.remove(place);
            }
            self.compare(name, why, resources, &mut needs);
        }
        let table = resources.table(self.ty);
        for name in changed.iter().filter_map(|place| Some(table.at(place)?.name.clone())) {
            self.compare(name, Pending::Changed, resources, &mut needs);
        }
        if !needs.upserts.is_empty() {
            needs.places = table.places().clone();
        }
        needs
    }

    fn compare(&mut self, name: ResourceName, why: Pending, resources: View<'_>, needs: &mut Needs) {
        if !self.covers(&name) {
            return;
        }
        let found = resources.find(self.ty, &name);
        let visibility = resources.visibility(self.ty, &name);
        let is_seen = visibility == Visibility::Seen;
        if let Some((place, resource)) = found {
            self.acked.unspare(&name, Before { place, version: resource.version });
        }
        if let Some((place, resource)) = found
            && self.acked.is_current(place)
        {
            if is_seen && why == Pending::Changed {
                return;
            }
            self.acked.write_out(place, resource);
        }
        if let Some((place, resource)) = found.filter(|_| is_seen) {
            let lacks = self.acked.update(&name, |state| state.lacks(resource.version)).unwrap_or(true);
            let wanted = lacks || why == Pending::Asked;
            if wanted {
                needs.upserts.push(place);
            } else {
                self.acked.settle(&name, resources.table(self.ty));
            }
            return;
        }
        match self.acked.get(&name) {
            Some(ResourceState { held: Some(_), refused: Some(refused), .. })
                if refused.version.is_none() && why == Pending::Changed => {}
            Some(ResourceState { held: Some(_), .. }) => {
                self.acked.update(&name, |state| state.sent = Some(Sent::Removal));
                needs.removals.push(name);
            }
            _ => {
                self.acked.remove(&name);
                self.spare(&name, resources);
                if why == Pending::Asked {
                    needs.absent.push(name);
                }
            }
        }
    }

    /// Spares the agent what it hasn't got, where nobody on its node can make use of that.
    fn spare(&mut self, name: &ResourceName, resources: View<'_>) {
        if let Some((place, resource)) = resources.find(self.ty, name)
            && resources.visibility(self.ty, name) == Visibility::Spared
            && self.covers(name)
        {
            self.acked.spare(place, resource);
        }
    }

    /// The agent is sent this.
    pub(crate) fn sends(&mut self, name: &ResourceName, sent: Sent) {
        self.acked.update_or_new(name, |state| state.sent = Some(sent));
    }

    /// Gives memory back that the round needed.
    pub(crate) fn shrink(&mut self) {
        self.acked.shrink();
        self.pending.shrink_to(0);
    }

    /// Puts a removal that was not sent back to the names to be compared.
    pub(crate) fn postpone_removal(&mut self, name: ResourceName) {
        if self.acked.update(&name, |state| state.sent = None).is_some() {
            // It may be served again meanwhile: the name finds out.
            self.pending.entry(name).or_insert(Pending::Changed);
        }
    }

    /// Tells whether the agent is subscribed to this name.
    pub(crate) fn covers(&self, name: &ResourceName) -> bool {
        self.subscription.as_ref().is_some_and(|subscription| subscription.covers(name))
    }

    /// Records that the agent has put in force what it was sent.
    pub(crate) fn accepted(&mut self, name: &ResourceName, sent: Sent, resources: View<'_>) {
        if self.acked.get(name).is_none_or(|state| state.sent != Some(sent)) {
            return;
        }
        match sent {
            Sent::Upsert(version) => {
                self.acked.insert(name.clone(), ResourceState::holding(Held::Version(version)));
                self.acked.settle(name, resources.table(self.ty));
            }
            Sent::Removal => {
                self.acked.remove(name);
                self.spare(name, resources);
            }
            Sent::Absent => {}
        }
    }

    /// Records that the agent has refused what it was sent, and that what it had stays in force.
    pub(crate) fn refused(&mut self, name: &ResourceName, sent: Sent, reason: String) {
        if self.acked.get(name).is_none_or(|state| state.sent != Some(sent)) {
            return;
        }
        let version = match sent {
            Sent::Upsert(version) => Some(version),
            Sent::Removal | Sent::Absent => None,
        };
        self.acked.update(name, |state| {
            state.sent = None;
            if version.is_some() && state.held == version.map(Held::Version) {
                state.held = None;
            }
            state.refused = Some(Box::new(RefusedVersion { version, reason }));
        });
    }

    /// The state for people; the number of unacknowledged responses is the stream's to fill in.
    pub(crate) fn status(&self) -> TypeStatus {
        TypeStatus {
            subscribed: self.subscription.is_some(),
            held: self.acked.held(),
            sketch: self.acked.sketch().clone(),
            unacknowledged: 0,
            pending: self.pending.len() + self.changed.len(),
            rejected: self.acked.rejected(),
        }
    }

    /// The versions that the agent has in force.
    pub(crate) fn held(&self, resources: &Resources) -> Vec<(ResourceName, Version)> {
        self.acked.versions(resources.table(self.ty)).collect()
    }

    /// The versions that the agent is spared.
    #[cfg(test)]
    pub(crate) fn spared(&self, resources: &Resources) -> Vec<(ResourceName, Version)> {
        self.acked.spared(resources.table(self.ty)).collect()
    }

    /// How many names are remembered.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        self.acked.len() + self.pending.len() + self.changed.len()
    }
}
