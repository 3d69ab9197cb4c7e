//! A store and its streams, without sockets.

use super::*;

fn resource(name: &str, content: &'static str) -> Resource {
    let content = content.as_bytes();
    Resource {
        ty: ResourceType::Cluster,
        name: name.into(),
        version: Version::of(content),
        content: content.into(),
    }
}

#[test]
fn only_changed_content_is_dirty() {
    let mut resources = Resources::default();
    let dirty = resources.apply(vec![Change::Upsert(resource("a", "1")), Change::Upsert(resource("b", "1"))]);
    assert_eq!(dirty[ResourceType::Cluster].len(), 2);
    let dirty = resources.apply(vec![
        Change::Upsert(resource("a", "1")),
        Change::Upsert(resource("b", "2")),
        Change::Remove(ResourceType::Cluster, "unknown".into()),
    ]);
    assert!(dirty[ResourceType::Cluster].keys().eq([&ResourceName::from("b")]));
}

#[test]
fn repeated_changes_of_one_name_are_one_entry_in_an_inbox() {
    let store = Store::new();
    let stream = store.register(1 << 20);
    for content in ["1", "2", "3"].into_iter().cycle().take(1_000) {
        store.apply(vec![Change::Upsert(resource("a", content))]);
    }
    assert_eq!(lock(&stream.connected.inbox.waiting).names[ResourceType::Cluster].len(), 1);
}

#[test]
fn a_stream_leaves_nothing_behind() {
    let store = Store::new();
    drop(store.register(1 << 20));
    assert!(store.streams().is_empty());
    assert!(store.0.state.read().unwrap().inboxes.is_empty());
}
