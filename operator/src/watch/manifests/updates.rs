//! Definitions in force, and what became of them, as events of a source.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use slotmesh_compile::{Kind, Report, Source};

use crate::watch::{
    Event, LocalNode, Sourced, Update, WatchEvent,
    parse::{Lost, Parsed},
    store::{Changed, Store},
};

/// A store in which the node that the flags name comes before all manifests.
pub(in crate::watch) fn store_with(node: &LocalNode) -> Store {
    let file: Arc<str> = "--node-name".into();
    let metadata = ObjectMeta {
        name: Some(node.name.clone()),
        labels: Some(node.labels.clone()),
        ..ObjectMeta::default()
    };
    let object = Node { metadata, ..Node::default() }.into();
    let source = Some(Source::file(file.clone()));
    let mut store = Store::default();
    let lost = Lost::These(BTreeSet::new());
    store.set(&file, Parsed { objects: vec![Sourced { object, source }], reports: Vec::new(), lost });
    store
}

/// The update that lists all that is there.
pub(in crate::watch) fn first_update(
    changed: &[Changed],
    mut appeared: Vec<Report>,
    disappeared: Vec<Report>,
) -> Update {
    let mut events = Vec::new();
    for kind in Kind::ALL {
        events.push(WatchEvent { kind, event: Event::Init });
        let of_kind = changed.iter().filter_map(|c| c.new.as_ref()).filter(|s| s.object.kind() == kind);
        events.extend(of_kind.map(|s| WatchEvent { kind, event: Event::InitApply(s.clone()) }));
        events.push(WatchEvent { kind, event: Event::InitDone });
    }
    appeared.sort();
    Update { events, appeared, disappeared, seen: Instant::now(), reached: None }
}

pub(super) fn event(Changed { old, new }: Changed) -> Option<WatchEvent> {
    let (kind, event) = match (new, old) {
        (Some(new), _) => (new.object.kind(), Event::Apply(new)),
        (None, Some(old)) => {
            let key = old.object.key();
            (key.kind, Event::Delete(key.name))
        }
        (None, None) => return None,
    };
    Some(WatchEvent { kind, event })
}
