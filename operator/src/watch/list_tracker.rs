//! Watch events to plain steps.
//!
//! Invariant: after `InitDone` of a kind, exactly the objects listed since its `Init` are held; what
//! was held before and is not listed is deleted, and only then, so a new listing takes nothing out
//! of force in between.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use slotmesh_compile::{Kind, ObjectKey, ObjectName};

use super::{Event, Sourced, WatchEvent};

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    Apply(Sourced),
    Delete(ObjectKey),
}

#[derive(Debug, Default)]
struct Listing {
    held: HashSet<ObjectName>,
    /// Objects that the listing under way has brought so far.
    listed: Option<HashSet<ObjectName>>,
    synced: bool,
    /// It can't be listed, and isn't waited for.
    left_out: bool,
}

/// The state of all watchers.
#[derive(Debug, Default)]
pub(crate) struct ListTracker(HashMap<Kind, Listing>);

impl ListTracker {
    /// The steps that follow from an event.
    pub(crate) fn steps(&mut self, WatchEvent { kind, event }: WatchEvent) -> Vec<Step> {
        let listing = self.0.entry(kind).or_default();
        match event {
            Event::Init => {
                listing.listed = Some(HashSet::new());
                Vec::new()
            }
            Event::InitApply(sourced) | Event::Apply(sourced) => {
                let name = sourced.object.key().name;
                if let Some(listed) = &mut listing.listed {
                    listed.insert(name.clone());
                }
                listing.held.insert(name);
                vec![Step::Apply(sourced)]
            }
            Event::Delete(name) => {
                if let Some(listed) = &mut listing.listed {
                    listed.remove(&name);
                }
                let held = listing.held.remove(&name);
                held.then_some(Step::Delete(ObjectKey { kind, name })).into_iter().collect()
            }
            Event::InitDone => {
                (listing.synced, listing.left_out) = (true, false);
                let Some(listed) = listing.listed.take() else { return Vec::new() };
                let gone: BTreeSet<_> = listing.held.difference(&listed).cloned().collect();
                listing.held = listed;
                gone.into_iter().map(|name| Step::Delete(ObjectKey { kind, name })).collect()
            }
            Event::LeftOut => {
                listing.left_out = true;
                Vec::new()
            }
        }
    }

    /// How many objects of each kind are held.
    pub(crate) fn held(&self) -> BTreeMap<Kind, usize> {
        self.0.iter().map(|(kind, listing)| (*kind, listing.held.len())).collect()
    }

    /// Tells whether every kind has been listed once, or is left out.
    pub(crate) fn synced(&self) -> bool {
        self.outstanding().next().is_none()
    }

    /// The kinds that have not been listed yet.
    pub(crate) fn outstanding(&self) -> impl Iterator<Item = Kind> {
        let listed = |kind: &Kind| self.0.get(kind).is_some_and(|listing| listing.synced || listing.left_out);
        Kind::ALL.into_iter().filter(move |kind| !listed(kind))
    }

    /// The kinds that can't be listed and aren't waited for.
    pub(crate) fn left_out(&self) -> impl Iterator<Item = Kind> {
        let left_out = |kind: &Kind| self.0.get(kind).is_some_and(|listing| listing.left_out);
        Kind::ALL.into_iter().filter(left_out)
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_builders::service;

    use super::*;

    fn sourced(name: &str) -> Sourced {
        Sourced { object: service(name).build(), source: None }
    }

    fn event(event: Event) -> WatchEvent {
        WatchEvent { kind: Kind::Service, event }
    }

    #[test]
    fn a_new_listing_deletes_what_it_lacks_and_only_at_its_end() {
        let mut tracker = ListTracker::default();
        for e in
            [Event::Init, Event::InitApply(sourced("a")), Event::InitApply(sourced("b")), Event::InitDone]
        {
            tracker.steps(event(e));
        }
        assert_eq!(tracker.held(), BTreeMap::from([(Kind::Service, 2)]));
        assert_eq!(tracker.steps(event(Event::Init)), []);
        assert_eq!(tracker.steps(event(Event::InitApply(sourced("b")))), [Step::Apply(sourced("b"))]);
        assert_eq!(tracker.steps(event(Event::InitDone)), [Step::Delete(sourced("a").object.key())]);
        assert_eq!(tracker.steps(event(Event::Delete(sourced("a").object.key().name))), []);
    }

    #[test]
    fn what_can_not_be_read_any_more_goes_at_once_and_what_never_could_is_not_held() {
        let mut tracker = ListTracker::default();
        let name = |name| sourced(name).object.key().name;
        for e in [Event::Init, Event::InitApply(sourced("a")), Event::InitDone, Event::Init] {
            tracker.steps(event(e));
        }
        assert_eq!(
            tracker.steps(event(Event::Delete(name("a")))),
            [Step::Delete(ObjectKey { kind: Kind::Service, name: name("a") })]
        );
        assert_eq!(tracker.steps(event(Event::Delete(name("b")))), []);
        assert_eq!(tracker.steps(event(Event::InitDone)), []);
    }

    #[test]
    fn synced_when_every_kind_is() {
        let mut tracker = ListTracker::default();
        for kind in Kind::ALL {
            assert!(!tracker.synced());
            tracker.steps(WatchEvent { kind, event: Event::Init });
            tracker.steps(WatchEvent { kind, event: Event::InitDone });
        }
        assert!(tracker.synced());
    }

    #[test]
    fn a_kind_that_is_left_out_is_not_waited_for_and_comes_later() {
        let mut tracker = ListTracker::default();
        for kind in Kind::ALL {
            let event = if kind == Kind::Service { Event::LeftOut } else { Event::InitDone };
            tracker.steps(WatchEvent { kind, event });
        }
        assert!(tracker.synced() && tracker.left_out().eq([Kind::Service]));
        tracker.steps(event(Event::Init));
        assert_eq!(tracker.steps(event(Event::InitApply(sourced("a")))), [Step::Apply(sourced("a"))]);
        tracker.steps(event(Event::InitDone));
        assert_eq!(tracker.left_out().count(), 0);
    }
}
