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

/// Shows each node the resource of its name.
#[derive(Debug)]
struct OwnName;

impl Scope for OwnName {
    fn visibility(&self, node: &NodeName, _: ResourceType, name: &ResourceName) -> Visibility {
        if node.as_str() == name.as_str() { Visibility::Seen } else { Visibility::Spared }
    }
}

#[test]
fn what_is_served_to_a_node_is_what_it_sees() {
    let store = Store::with_scope(Arc::new(OwnName));
    store.apply(["a", "b"].map(|name| Change::Upsert(resource(name, "1"))).into());
    let names = |node: Option<&str>| {
        let node = node.map(NodeName::from);
        let mut names: Vec<_> = store.served(ResourceType::Cluster, node.as_ref()).into_iter().collect();
        names.sort_by(|one, other| one.0.cmp(&other.0));
        names.into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(None), ["a", "b"]);
    assert_eq!(names(Some("b")), ["b"]);
    assert!(names(Some("c")).is_empty());
}
