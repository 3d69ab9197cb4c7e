//! Acknowledgements that all replicas tell of, and the MeshReplica of this one.
//!
//! Invariants:
//! - Each process writes an object of its own and no other, so what a process that is gone told last stays as it
//!   is, until somebody else has each of its nodes.
//! - Where several tell of a node, the highest session counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use slotmesh_crds::own::{GROUP, MeshReplica, MeshReplicaStatus, VERSION};
use slotmesh_serve::NodeName;

use super::{MANAGER, PATIENCE, WriteError, groups, groups::Acknowledged};

#[derive(Debug, Default)]
struct Known {
    version: Option<String>,
    nodes: HashMap<NodeName, Acknowledged>,
}

/// Acknowledgements that all MeshReplicas tell of.
#[derive(Debug, Default)]
pub(super) struct Replicas(BTreeMap<String, Known>);

impl Replicas {
    /// Takes in what a MeshReplica tells, `None` when it is gone, and returns the nodes of which it tells something
    /// else than before.
    pub(super) fn observe(&mut self, name: &str, object: Option<&MeshReplica>) -> BTreeSet<NodeName> {
        let now = object.map(|object| Known {
            version: object.metadata.resource_version.clone(),
            nodes: object.status.as_ref().map(groups::read).unwrap_or_default(),
        });
        let before = match now {
            Some(now) => self.0.insert(name.to_owned(), now),
            None => self.0.remove(name),
        };
        let empty = HashMap::new();
        let before = before.unwrap_or_default().nodes;
        let now = self.0.get(name).map_or(&empty, |known| &known.nodes);
        let changed = before.keys().chain(now.keys()).filter(|node| before.get(*node) != now.get(*node));
        changed.cloned().collect()
    }

    /// The resource version in which a MeshReplica was seen last; the outer `None` where there is none.
    pub(super) fn version(&self, name: &str) -> Option<Option<&str>> {
        self.0.get(name).map(|known| known.version.as_deref())
    }

    /// True where a MeshReplica tells just this; one that isn't there tells nothing.
    pub(super) fn tells(&self, name: &str, nodes: &HashMap<NodeName, Acknowledged>) -> bool {
        self.0.get(name).map_or(nodes.is_empty(), |known| known.nodes == *nodes)
    }

    /// Its version isn't known any more.
    pub(super) fn forget(&mut self, name: &str) {
        if let Some(known) = self.0.get_mut(name) {
            known.version = None;
        }
    }

    /// The names of all MeshReplicas.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// Acknowledgements of a node, as its latest replica tells them.
    pub(super) fn of(&self, node: &NodeName) -> Option<&Acknowledged> {
        self.0.values().filter_map(|known| known.nodes.get(node)).max_by_key(|one| one.session)
    }

    /// The highest session in which a replica has, or had, a node.
    pub(super) fn session(&self, node: &NodeName) -> u64 {
        self.of(node).map_or(0, |one| one.session)
    }

    /// The MeshReplicas, but this one, that tell nothing that still counts; `counts` is whether a node is in this
    /// session still.
    pub(super) fn superseded(
        &self,
        but: &str,
        counts: impl Fn(&NodeName, u64) -> bool,
    ) -> Vec<(String, Option<String>)> {
        let over = |known: &Known| !known.nodes.iter().any(|(node, one)| counts(node, one.session));
        let others = self.0.iter().filter(|(name, known)| *name != but && over(known));
        others.map(|(name, known)| (name.clone(), known.version.clone())).collect()
    }
}

/// The MeshReplica of this process.
#[derive(Debug)]
pub(super) struct ReplicaObject {
    pub(super) api: Api<MeshReplica>,
    name: String,
}

impl ReplicaObject {
    /// A name that no process had before: a container that starts anew in its pod knows nothing of what the one
    /// before has told.
    pub(super) fn new(client: &Client, replica: &str) -> Self {
        let name = format!("{replica}-{:x}", Timestamp::now().as_microsecond());
        Self { api: Api::all(client.clone()), name }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Writes the status; `version` is that of the object, where there is one.
    pub(super) async fn write(
        &self,
        status: &MeshReplicaStatus,
        version: Option<Option<&str>>,
    ) -> Result<MeshReplica, WriteError> {
        let params = PatchParams::apply(MANAGER).force();
        let object = |version: Option<&str>| {
            json!({
                "apiVersion": format!("{GROUP}/{VERSION}"),
                "kind": "MeshReplica",
                "metadata": {"name": self.name, "resourceVersion": version},
            })
        };
        let version = match version {
            Some(version) => version.map(str::to_owned),
            None => {
                let create = object(None);
                let create = Patch::Apply(&create);
                let created = self.api.patch(&self.name, &params, &create);
                tokio::time::timeout(PATIENCE, created).await??.resource_version()
            }
        };
        let mut object = object(version.as_deref());
        object["status"] = serde_json::to_value(status).unwrap_or_default();
        let patch = Patch::Apply(&object);
        let write = self.api.patch_status(&self.name, &params, &patch);
        Ok(tokio::time::timeout(PATIENCE, write).await??)
    }

    /// The object as it is now, if there is one.
    pub(super) async fn read(&self) -> Result<Option<MeshReplica>, WriteError> {
        Ok(tokio::time::timeout(PATIENCE, self.api.get_opt(&self.name)).await??)
    }

    /// Deletes the object of another process, as it was seen last.
    pub(super) async fn delete(&self, name: &str, version: Option<String>) -> Result<(), WriteError> {
        let preconditions = Some(Preconditions { resource_version: version, uid: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        match tokio::time::timeout(PATIENCE, self.api.delete(name, &params)).await? {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use slotmesh_xds::{Fingerprint, ResourceType, Sketch, Version};

    use super::*;

    fn print(n: usize) -> Fingerprint {
        Fingerprint::of(ResourceType::Cluster, &n.to_string().into(), Version::of(b"1"))
    }

    fn sketch(n: usize) -> Sketch {
        let mut sketch = Sketch::default();
        sketch.add(print(n));
        sketch
    }

    /// A replica that has these nodes, each in a session and with one resource.
    fn replica(nodes: &[(&str, u64, usize)]) -> MeshReplica {
        let nodes: Vec<(NodeName, Acknowledged)> = nodes
            .iter()
            .map(|(node, session, n)| {
                let records = Some(Arc::new(sketch(*n)));
                (
                    NodeName::from(*node),
                    Acknowledged { session: *session, records, settings: None, syncing: false },
                )
            })
            .collect();
        let mut object = MeshReplica::new("", slotmesh_crds::own::MeshReplicaSpec {});
        object.status = Some(groups::render(nodes.iter().map(|(node, one)| (node, one.clone()))));
        object
    }

    fn has(replicas: &Replicas, node: &NodeName) -> Option<Sketch> {
        replicas.of(node)?.sketch()
    }

    fn names(nodes: &BTreeSet<NodeName>) -> Vec<&str> {
        nodes.iter().map(NodeName::as_str).collect()
    }

    #[test]
    fn whoever_took_a_node_over_tells_of_it_and_the_others_stay_as_they_were_told() {
        let mut replicas = Replicas::default();
        let all = replica(&[("n1", 1, 1), ("n2", 1, 1)]);
        assert_eq!(names(&replicas.observe("a", Some(&all))), ["n1", "n2"]);
        assert!(replicas.observe("a", Some(&all)).is_empty());
        assert_eq!(names(&replicas.observe("b", Some(&replica(&[("n1", 2, 2)])))), ["n1"]);
        let (n1, n2) = (NodeName::from("n1"), NodeName::from("n2"));
        assert_eq!(has(&replicas, &n1), Some(sketch(2)));
        assert_eq!(has(&replicas, &n2), Some(sketch(1)));
        assert_eq!((replicas.session(&n1), replicas.session(&n2)), (2, 1));
        // The first tells something else of what it has no more.
        replicas.observe("a", Some(&replica(&[("n1", 1, 3), ("n2", 1, 1)])));
        assert_eq!(has(&replicas, &n1), Some(sketch(2)));
        // It goes only when nobody refers to it.
        let n2_is_in = |session: u64| move |node: &NodeName, of: u64| node.as_str() == "n2" && of >= session;
        assert!(replicas.superseded("b", n2_is_in(1)).is_empty());
        assert_eq!(replicas.superseded("b", n2_is_in(2)), [("a".to_owned(), None)]);
        assert_eq!(names(&replicas.observe("a", None)), ["n1", "n2"]);
        assert_eq!((has(&replicas, &n1), has(&replicas, &n2)), (Some(sketch(2)), None));
    }
}
