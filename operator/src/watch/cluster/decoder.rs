//! A watcher's events to ours, for one kind: what can't be read becomes a report.
//!
//! Invariant: a report about an object holds until the object can be read, or is gone.

use std::collections::{BTreeMap, BTreeSet};

use kube_runtime::watcher::Event as Watched;
use slotmesh_compile::{Kind, ObjectKey, ObjectName, ObjectRef, Report, Severity};

use super::{
    raw::{Raw, Unreadable, decode},
    update,
};
use crate::watch::{Event, Reach, Sourced, Update};

/// Decodes the events of one kind, and remembers which of its objects are unreadable.
#[derive(Debug)]
pub(super) struct Decoder {
    kind: Kind,
    unreadable: BTreeMap<ObjectName, Report>,
    /// Those of the list under way.
    listed: BTreeSet<ObjectName>,
}

impl Decoder {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, unreadable: BTreeMap::new(), listed: BTreeSet::new() }
    }

    /// The update for an event, and for what is known of versions with it.
    pub(super) fn take(&mut self, event: Watched<Raw>, reach: Option<Reach>) -> Update {
        Update { reached: reach.map(|reach| (self.kind, reach)), ..self.read(event) }
    }

    /// The update where only that is known.
    pub(super) fn quiet(&self, reach: Reach) -> Update {
        Update { reached: Some((self.kind, reach)), ..update(self.kind, []) }
    }

    fn read(&mut self, event: Watched<Raw>) -> Update {
        match event {
            Watched::Init => {
                self.listed.clear();
                update(self.kind, [Event::Init])
            }
            Watched::InitApply(object) => {
                let (name, mut update) = self.object(object, Event::InitApply);
                if self.unreadable.contains_key(&name) {
                    self.listed.insert(name);
                }
                update.events.shrink_to_fit();
                update
            }
            Watched::InitDone => {
                let mut update = update(self.kind, [Event::InitDone]);
                let listed = std::mem::take(&mut self.listed);
                let unreadable = std::mem::take(&mut self.unreadable);
                let (still, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
                    unreadable.into_iter().partition(|(name, _)| listed.contains(name));
                self.unreadable = still;
                update.disappeared = gone.into_values().collect();
                update
            }
            Watched::Apply(object) => self.object(object, Event::Apply).1,
            Watched::Delete(object) => {
                let name = ObjectName::of(self.kind, &object.meta);
                let disappeared = self.unreadable.remove(&name).into_iter().collect();
                Update { disappeared, ..update(self.kind, [Event::Delete(name)]) }
            }
        }
    }

    /// The update for "there are no objects at all".
    pub(super) fn none(&mut self) -> Update {
        self.listed.clear();
        let disappeared = std::mem::take(&mut self.unreadable).into_values().collect();
        let reached = Some((self.kind, Reach::Unknown));
        Update { disappeared, reached, ..update(self.kind, [Event::Init, Event::InitDone]) }
    }

    fn object(&mut self, raw: Raw, event: fn(Sourced) -> Event) -> (ObjectName, Update) {
        let kind = self.kind;
        let name = ObjectName::of(kind, &raw.meta);
        let update = match decode(kind, &raw) {
            Ok(object) => {
                let disappeared = self.unreadable.remove(&name).into_iter().collect();
                let sourced = Sourced { object, source: None };
                Update { disappeared, ..update(kind, [event(sourced)]) }
            }
            Err(Unreadable { field, reason }) => {
                let object = ObjectRef::new(&ObjectKey { kind, name: name.clone() }, None);
                let message = format!("{reason}; the object is not in force");
                let report = Report::new(object, field, Severity::Refused, message);
                let before = self.unreadable.insert(name.clone(), report.clone());
                let mut update = update(kind, [Event::Delete(name.clone())]);
                if before.as_ref() != Some(&report) {
                    update.disappeared = before.into_iter().collect();
                    update.appeared = vec![report];
                }
                update
            }
        };
        (name, update)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::watch::WatchEvent;

    fn raw(name: &str, good: bool) -> Raw {
        let spec = if good { json!({}) } else { json!({"ports": 7}) };
        Raw::of(&json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec}))
    }

    /// An update in short.
    fn said(update: Update) -> String {
        let event = |WatchEvent { event, .. }: &WatchEvent| match event {
            Event::Init => "init".to_owned(),
            Event::InitApply(o) => format!("init {}", o.object.key().name),
            Event::InitDone => "done".to_owned(),
            Event::Apply(o) => format!("apply {}", o.object.key().name),
            Event::Delete(name) => format!("delete {name}"),
            Event::LeftOut => "left out".to_owned(),
        };
        let mut said: Vec<String> = update.events.iter().map(event).collect();
        said.extend(update.appeared.iter().map(|r| format!("+ {r}")));
        said.extend(update.disappeared.iter().map(|r| format!("- {}", r.object)));
        said.join(", ")
    }

    #[test]
    fn an_object_that_can_not_be_read_is_reported_until_it_can_or_is_gone() {
        let mut decoder = Decoder::new(Kind::Service);
        let mut take = |event| said(decoder.read(event));
        let report = "+ Service shop/a: spec.ports: invalid type: integer `7`, expected a sequence; the object is \
                      not in force";
        assert_eq!(take(Watched::Init), "init");
        assert_eq!(take(Watched::InitApply(raw("a", false))), format!("delete shop/a, {report}"));
        assert_eq!(take(Watched::InitApply(raw("b", true))), "init shop/b");
        assert_eq!(take(Watched::InitDone), "done");
        assert_eq!(take(Watched::Apply(raw("a", false))), "delete shop/a");
        assert_eq!(take(Watched::Apply(raw("a", true))), "apply shop/a, - Service shop/a");
        assert_eq!(take(Watched::Apply(raw("a", false))), format!("delete shop/a, {report}"));
        assert_eq!(take(Watched::Delete(raw("a", false))), "delete shop/a, - Service shop/a");
        // Gone while nobody watched.
        take(Watched::Apply(raw("a", false)));
        take(Watched::Init);
        assert_eq!(take(Watched::InitDone), "done, - Service shop/a");
        take(Watched::Apply(raw("a", false)));
        assert_eq!(said(decoder.none()), "init, done, - Service shop/a");
    }
}
