//! Settings of the installation, beside the objects.

use std::sync::Arc;

use crate::Cidr;

/// The workloads of which agents are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EnrolmentMode {
    /// None.
    #[default]
    Nobody,
    /// Pods that take part by their own labels and those of their namespaces, for the agents of their nodes.
    ByLabel,
    /// Pods as callers, for the agent of this node, where flags name its workloads: one is told only where its
    /// class isn't its namespace's.
    Callers {
        /// The node.
        node: Arc<str>,
    },
}

/// Settings of the installation. With the same options the same objects give the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileOptions {
    /// The workloads of which agents are told.
    pub enrolment: EnrolmentMode,
    /// The namespace whose DestinationRules are for Services of all namespaces that have none of their own.
    pub root_namespace: Arc<str>,
    /// Tells whether routes of Gateway API need a ReferenceGrant to lead to Services of other namespaces.
    pub require_grants: bool,
    /// Tells whether a proxy on each node looks at requests: rules that need one act.
    pub proxy: bool,
    /// Ranges that ServiceEntries can't have addresses of, beside what is known to be the cluster's.
    pub reserved_addresses: Vec<Cidr>,
    /// Ranges that ServiceEntries can have addresses of, whoever else's they are.
    pub allowed_addresses: Vec<Cidr>,
    /// The most endpoints that a ServiceEntry may have, counted once for each of its hosts and ports.
    pub max_entry_endpoints: usize,
    /// The most that those of a namespace may have together, counted likewise; the oldest go before.
    pub max_namespace_endpoints: usize,
    /// The most parts (listeners, clusters, endpoints, shares of routes) that an object of another kind may make on a
    /// node. The root namespace's objects aren't bounded, whatever their kind.
    pub max_object_parts: usize,
    /// The most that those of one kind and namespace may make together; the oldest go before.
    pub max_namespace_parts: usize,
    /// The most sets of callers' labels that an object may ask for: by each of them classes of callers are told apart.
    pub max_object_label_sets: usize,
    /// The most that those of one kind and namespace may ask for together; the oldest go before.
    pub max_namespace_label_sets: usize,
}

impl Default for CompileOptions {
    fn default() -> Self {
        Self {
            enrolment: EnrolmentMode::default(),
            root_namespace: "istio-system".into(),
            require_grants: false,
            proxy: false,
            reserved_addresses: Vec::new(),
            allowed_addresses: Vec::new(),
            max_entry_endpoints: 10_000,
            max_namespace_endpoints: 100_000,
            max_object_parts: 100_000,
            max_namespace_parts: 400_000,
            max_object_label_sets: 100,
            max_namespace_label_sets: 500,
        }
    }
}

impl CompileOptions {
    /// Tells whether Pods take part by their labels and those of their namespaces.
    pub(crate) fn enrols(&self) -> bool {
        self.enrolment == EnrolmentMode::ByLabel
    }
}
