//! Acknowledgements of the agents of one replica, as its MeshReplica tells them.
//!
//! Most agents have acknowledged the same, so the nodes stand in groups: the largest with a sketch of what it has
//! acknowledged, the others with what they differ in from it, or a sketch of their own where that is much.
//!
//! Invariants: equal states are told by equal statuses; and what is told of a node is exactly what its agent has
//! acknowledged, or nothing at all.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use slotmesh_crds::own::{AgentGroup, MeshReplicaStatus};
use slotmesh_serve::NodeName;
use slotmesh_xds::{Fingerprint, Sketch};

/// The most hashes by which a group differs from the first without a sketch of its own.
const LISTED: usize = 16;
/// How many groups have a sketch of their own. Nothing is told of the nodes of further ones, so the object's size
/// is bounded whatever agents refuse.
const SKETCHES: usize = 64;

/// Acknowledgements of one agent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Acknowledged {
    /// The session in which the replica has the node.
    pub(super) session: u64,
    /// Clusters, routes and listeners; `None` where that isn't told. Shared by the nodes of a group.
    pub(super) records: Option<Arc<Sketch>>,
    /// The node's own settings, where it has some.
    pub(super) settings: Option<Fingerprint>,
    /// The agent has just begun, and not caught up yet.
    pub(super) syncing: bool,
}

impl Acknowledged {
    /// All of it in one sketch.
    pub(super) fn sketch(&self) -> Option<Sketch> {
        let mut sketch = self.records.as_deref()?.clone();
        if let Some(settings) = self.settings {
            sketch.add(settings);
        }
        Some(sketch)
    }
}

/// The status that tells this of these nodes.
pub(super) fn render<'n>(nodes: impl Iterator<Item = (&'n NodeName, Acknowledged)>) -> MeshReplicaStatus {
    let (mut settings, mut syncing) = (BTreeMap::new(), Vec::new());
    let mut by_version: HashMap<u64, (Arc<Sketch>, BTreeMap<String, u64>)> = HashMap::new();
    for (node, acknowledged) in nodes {
        let Some(records) = acknowledged.records else { continue };
        if let Some(print) = acknowledged.settings {
            settings.insert(node.to_string(), print.to_string());
        }
        if acknowledged.syncing {
            syncing.push(node.to_string());
        }
        let group = by_version.entry(records.digest().get()).or_insert_with(|| (records, BTreeMap::new()));
        group.1.insert(node.to_string(), acknowledged.session);
    }
    let mut all: Vec<_> = by_version.into_values().collect();
    all.sort_unstable_by_key(|(_, nodes)| {
        (std::cmp::Reverse(nodes.len()), nodes.first_key_value().map(first))
    });
    let count = |nodes: usize| u32::try_from(nodes).unwrap_or(u32::MAX);
    let agents = count(all.iter().map(|(_, nodes)| nodes.len()).sum());
    let alike = count(all.first().map_or(0, |(_, nodes)| nodes.len()));
    let base = all.first().map(|(base, _)| Arc::clone(base)).unwrap_or_default();
    let mut sketches = 0;
    let groups = all.into_iter().enumerate().map(|(at, (sketch, nodes))| {
        let group = AgentGroup { version: sketch.digest().to_string(), nodes, ..AgentGroup::default() };
        match base.difference(&sketch) {
            Ok(difference) if at > 0 && difference.first.len() + difference.second.len() <= LISTED => {
                let (lacks, besides) = (texts(difference.first), texts(difference.second));
                AgentGroup { lacks, besides, ..group }
            }
            _ if sketches < SKETCHES => {
                sketches += 1;
                AgentGroup { acknowledged: Some(sketch.to_string()), ..group }
            }
            _ => group,
        }
    });
    syncing.sort_unstable();
    MeshReplicaStatus { agents, alike, groups: groups.collect(), settings, syncing }
}

fn first((node, _): (&String, &u64)) -> String {
    node.clone()
}

fn texts(mut prints: Vec<Fingerprint>) -> Vec<String> {
    prints.sort_unstable();
    prints.iter().map(Fingerprint::to_string).collect()
}

/// Reads the acknowledgements that a status tells, by node.
pub(super) fn read(status: &MeshReplicaStatus) -> HashMap<NodeName, Acknowledged> {
    let base = status.groups.first().and_then(|group| group.acknowledged.as_deref()?.parse().ok());
    let syncing: HashSet<&str> = status.syncing.iter().map(String::as_str).collect();
    let mut all = HashMap::new();
    for (at, group) in status.groups.iter().enumerate() {
        let records = sketch(group, base.as_ref().filter(|_| at > 0)).map(Arc::new);
        for (node, session) in &group.nodes {
            let settings = status.settings.get(node).and_then(|text| text.parse().ok());
            let (session, records, syncing) = (*session, records.clone(), syncing.contains(node.as_str()));
            all.insert(node.as_str().into(), Acknowledged { session, records, settings, syncing });
        }
    }
    all
}

/// Acknowledgements of a group; `base` is what the first one has, of another than that.
fn sketch(group: &AgentGroup, base: Option<&Sketch>) -> Option<Sketch> {
    if let Some(text) = &group.acknowledged {
        return text.parse().ok();
    }
    if group.lacks.is_empty() && group.besides.is_empty() {
        return None;
    }
    let mut sketch = base?.clone();
    for text in &group.lacks {
        sketch.remove(text.parse().ok()?);
    }
    for text in &group.besides {
        sketch.add(text.parse().ok()?);
    }
    Some(sketch)
}

#[cfg(test)]
mod tests {
    use slotmesh_xds::{ResourceType, Version};

    use super::*;

    fn print(n: usize) -> Fingerprint {
        Fingerprint::of(ResourceType::Cluster, &n.to_string().into(), Version::of(b"1"))
    }

    fn has(session: u64, records: impl IntoIterator<Item = usize>) -> Acknowledged {
        let mut sketch = Sketch::default();
        records.into_iter().for_each(|n| sketch.add(print(n)));
        Acknowledged { session, records: Some(Arc::new(sketch)), settings: None, syncing: false }
    }

    #[test]
    fn what_is_told_is_read_back_whoever_differs_by_how_much() {
        let mut nodes: BTreeMap<NodeName, Acknowledged> =
            (0..1_000).map(|n| (format!("n{n}").into(), has(1, 0..300))).collect();
        nodes.insert("n1".into(), has(7, 1..300));
        nodes.insert("n2".into(), has(2, (0..299).chain([900])));
        nodes.insert("n3".into(), has(3, []));
        nodes.insert("n4".into(), Acknowledged { settings: Some(print(5_000)), ..has(1, 0..300) });
        nodes.insert("n5".into(), Acknowledged { syncing: true, ..has(1, 0..300) });
        let status = render(nodes.iter().map(|(node, has)| (node, has.clone())));
        assert_eq!((status.agents, status.alike, status.groups.len()), (1_000, 997, 4));
        let text = serde_json::to_string(&status).unwrap();
        assert!(text.len() < 20_000, "a thousand that are alike cost their names: {}", text.len());
        let lists = status.groups.iter().filter(|group| group.acknowledged.is_none());
        assert_eq!(
            lists.map(|group| (group.lacks.len(), group.besides.len())).collect::<Vec<_>>(),
            [(1, 0), (1, 1)]
        );
        assert_eq!(read(&serde_json::from_str(&text).unwrap()), nodes.clone().into_iter().collect());
        let mut sketch = Sketch::default();
        (0..300).chain([5_000]).for_each(|n| sketch.add(print(n)));
        assert_eq!(nodes[&NodeName::from("n4")].sketch(), Some(sketch));
    }

    #[test]
    fn the_size_is_bounded_however_many_differ_and_of_the_rest_nothing_is_told() {
        let nodes: BTreeMap<NodeName, Acknowledged> =
            (0..300).map(|n| (format!("n{n}").into(), has(1, n * 100..n * 100 + 50))).collect();
        let status = render(nodes.iter().map(|(node, has)| (node, has.clone())));
        assert!(serde_json::to_string(&status).unwrap().len() < 200_000);
        let told = read(&status);
        assert_eq!(told.values().filter(|one| one.records.is_some()).count(), SKETCHES);
        for (node, one) in told.iter().filter(|(_, one)| one.records.is_some()) {
            assert_eq!(*one, nodes[node]);
        }
        assert_eq!(told.len(), 300, "each is still known to be this replica's");
    }
}
