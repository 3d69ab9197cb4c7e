//! What one agent has of one resource type, and what it may lack.
//!
//! Invariant: a name is remembered only while the agent has it, is being sent it or refused it, or
//! while it exists and has to be compared; so memory is bounded by what is served and held, however
//! many names come and go and however slow the agent is.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use slotmesh_xds::{Resource, ResourceName, ResourceType, Version};

use crate::{
    peers::{Held, Peer, Peers, Refused},
    scope::View,
    status::{Acknowledgement, TypeStatus},
    subscription::{Subscription, TooManyNames},
};

/// Why a name has to be compared with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    /// It changed.
    Changed,
    /// The agent wants to be told its state, even if it has it.
    Asked,
}

/// What was sent, or is about to be sent, about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// This version.
    Upsert(Version),
    /// That it is gone.
    Removal,
    /// That it does not exist, to an agent that has not got it.
    Absent,
}

/// What has to be sent of one type; in the order of the store, which is none.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    /// An answer is owed, even an empty one.
    pub(crate) answer: bool,
    pub(crate) upserts: Vec<Resource>,
    pub(crate) absent: Vec<ResourceName>,
    pub(crate) removals: Vec<ResourceName>,
}

/// The state of one resource type on one stream.
#[derive(Debug)]
pub(crate) struct Tracker {
    ty: ResourceType,
    /// `None` until the first request of this type.
    subscription: Option<Subscription>,
    peers: Peers,
    pending: HashMap<ResourceName, Pending>,
    answer_owed: bool,
    ever_answered: bool,
}

impl Tracker {
    pub(crate) fn new(ty: ResourceType) -> Self {
        Self {
            ty,
            subscription: None,
            peers: Peers::new(ty),
            pending: HashMap::new(),
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
            self.peers.retain(|name| subscription.covers(name));
            self.pending.retain(|name, _| subscription.covers(name));
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
                self.pending.insert(name.clone(), Pending::Changed);
                self.peers.insert(name, Peer::holding(held));
            }
        }
        if asked.wildcard {
            for name in resources.names(self.ty) {
                self.pending.entry(name.clone()).or_insert(Pending::Changed);
            }
        }
        self.subscription = Some(subscription);
        Ok(())
    }

    /// Takes in names that changed in the store.
    pub(crate) fn absorb(&mut self, dirty: HashSet<ResourceName>, resources: View<'_>) {
        let Some(subscription) = &self.subscription else { return };
        for name in dirty {
            if !subscription.covers(&name) {
                continue;
            }
            let relevant = self.peers.contains(&name) || resources.get(self.ty, &name).is_some();
            match self.pending.entry(name) {
                Entry::Vacant(vacant) if relevant => _ = vacant.insert(Pending::Changed),
                Entry::Occupied(pending) if !relevant && *pending.get() == Pending::Changed => {
                    pending.remove();
                }
                _ => {}
            }
        }
    }

    /// Whether a round has to look at this type.
    pub(crate) fn wants_round(&self) -> bool {
        self.answer_owed || !self.pending.is_empty()
    }

    /// The agent asked for this type after the current round began.
    pub(crate) fn never_answered(&self) -> bool {
        self.subscription.is_some() && !self.ever_answered
    }

    /// Compares the pending names with the store and returns what the agent lacks.
    pub(crate) fn take_needs(&mut self, resources: View<'_>) -> Needs {
        let mut needs = Needs { answer: std::mem::take(&mut self.answer_owed), ..Needs::default() };
        self.ever_answered |= self.subscription.is_some();
        for (name, why) in std::mem::take(&mut self.pending) {
            if !self.covers(&name) {
                continue;
            }
            match resources.get(self.ty, &name) {
                Some(resource) => {
                    let version = resource.version;
                    let wanted = self.peers.update_or_new(&name, |peer| {
                        let wanted = peer.lacks(version) || why == Pending::Asked;
                        if wanted {
                            peer.sent = Some(Sent::Upsert(version));
                        }
                        wanted
                    });
                    if wanted {
                        needs.upserts.push(resource.clone());
                    }
                }
                None => match self.peers.get(&name) {
                    Some(Peer { held: Some(_), refused: Some(refused), .. })
                        if refused.version.is_none() && why == Pending::Changed => {}
                    Some(Peer { held: Some(_), .. }) => {
                        self.peers.update(&name, |peer| peer.sent = Some(Sent::Removal));
                        needs.removals.push(name);
                    }
                    _ => {
                        self.peers.remove(&name);
                        if why == Pending::Asked {
                            needs.absent.push(name);
                        }
                    }
                },
            }
        }
        needs
    }

    /// Puts a removal that was not sent back to the names to be compared.
    pub(crate) fn postpone_removal(&mut self, name: ResourceName) {
        if self.peers.update(&name, |peer| peer.sent = None).is_some() {
            self.pending.entry(name).or_insert(Pending::Changed);
        }
    }

    /// Whether the agent is subscribed to this name.
    pub(crate) fn covers(&self, name: &ResourceName) -> bool {
        self.subscription.as_ref().is_some_and(|subscription| subscription.covers(name))
    }

    /// Records that the agent has put in force what it was sent.
    pub(crate) fn accepted(&mut self, name: &ResourceName, sent: Sent) {
        if self.peers.get(name).is_none_or(|peer| peer.sent != Some(sent)) {
            return;
        }
        match sent {
            Sent::Upsert(version) => {
                self.peers.insert(name.clone(), Peer::holding(Held::Version(version)));
            }
            Sent::Removal => _ = self.peers.remove(name),
            Sent::Absent => {}
        }
    }

    /// Records that the agent has refused what it was sent, and that what it had stays in force.
    pub(crate) fn refused(&mut self, name: &ResourceName, sent: Sent, reason: String) {
        if self.peers.get(name).is_none_or(|peer| peer.sent != Some(sent)) {
            return;
        }
        let version = match sent {
            Sent::Upsert(version) => Some(version),
            Sent::Removal | Sent::Absent => None,
        };
        self.peers.update(name, |peer| {
            peer.sent = None;
            if version.is_some() && peer.held == version.map(Held::Version) {
                peer.held = None;
            }
            peer.refused = Some(Box::new(Refused { version, reason }));
        });
    }

    /// The state for people; the number of unacknowledged responses is the stream's to fill in.
    pub(crate) fn status(&self) -> TypeStatus {
        TypeStatus {
            subscribed: self.subscription.is_some(),
            held: self.peers.held(),
            sketch: self.peers.sketch().clone(),
            unacknowledged: 0,
            pending: self.pending.len(),
            rejected: self.peers.rejected(),
        }
    }

    /// What the agent thinks of one resource.
    pub(crate) fn acknowledgement(&self, name: &ResourceName) -> Acknowledgement {
        if !self.covers(name) {
            return Acknowledgement::NotSubscribed;
        }
        let Some(peer) = self.peers.get(name) else { return Acknowledgement::Waiting };
        match (peer.rejected(name), peer.held) {
            (Some(rejected), _) => Acknowledgement::Rejected(rejected),
            (None, Some(Held::Version(version))) => Acknowledgement::Held(version),
            (None, Some(Held::Foreign) | None) => Acknowledgement::Waiting,
        }
    }

    /// The versions that the agent has in force.
    pub(crate) fn held(&self) -> Vec<(ResourceName, Version)> {
        let version = |(name, peer): (&ResourceName, &Peer)| match peer.held {
            Some(Held::Version(version)) => Some((name.clone(), version)),
            Some(Held::Foreign) | None => None,
        };
        self.peers.iter().filter_map(version).collect()
    }

    /// How many names are remembered.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        self.peers.len() + self.pending.len()
    }
}
