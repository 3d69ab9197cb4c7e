//! A pod whose connections are routed on the node where it runs.
//!
//! The operator decides who takes part and says so to the pod's own node only; so an agent needs no
//! access to the Kubernetes API.

use prost::Message;

use crate::{Resource, ResourceName};

/// `slotmesh.v1.Workload`: one enrolled pod. Field numbers are never used again for something else.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Workload {
    /// The pod's uid, by which the kubelet names its cgroup.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// The pod's namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// The pod's name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// The service account that it runs as.
    #[prost(string, tag = "4")]
    pub service_account: String,
    /// The node that it runs on.
    #[prost(string, tag = "5")]
    pub node: String,
    /// Its class as a caller, by which listeners tell callers apart (see [`OneOfClasses`](crate::OneOfClasses)); empty
    /// where that is its namespace's.
    #[prost(string, tag = "6")]
    pub class: String,
    /// The port at which the proxy of the node listens in its network namespace, where agents tell proxies of it; 0 where
    /// operators tell agents.
    #[prost(uint32, tag = "7")]
    pub proxy_port: u32,
}

impl Workload {
    /// The name of its resource: the node, a slash (which a node's name can't contain), and the uid.
    pub fn resource_name(&self) -> ResourceName {
        ResourceName::from(format!("{}/{}", self.node, self.uid))
    }

    /// The workload that a resource is of; `None` where it is of none.
    pub fn of(resource: &Resource) -> Option<Self> {
        Self::decode(&*resource.content).ok()
    }

    /// The class of the workload that a resource is of; `None` where it is of none.
    pub fn class_of(resource: &Resource) -> Option<String> {
        let Self { class, namespace, .. } = Self::of(resource)?;
        Some(if class.is_empty() { namespace } else { class })
    }

    /// The node for which the resource of this name is.
    pub fn node_of(name: &ResourceName) -> Option<&str> {
        name.as_str().split_once('/').map(|(node, _)| node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_tells_the_node() {
        let workload = Workload { uid: "u-1".into(), node: "node.a".into(), ..Workload::default() };
        let name = workload.resource_name();
        assert_eq!(name.as_str(), "node.a/u-1");
        assert_eq!(Workload::node_of(&name), Some("node.a"));
        assert_eq!(Workload::node_of(&"10.0.0.1_80".into()), None);
    }
}
