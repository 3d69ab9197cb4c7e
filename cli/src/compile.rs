//! The flags that say what the installation decides about objects, in a cluster as in a directory.

use clap::Args;
use slotmesh_operator::{Cidr, CompileOptions};

/// The heading of these flags.
const OBJECTS: &str = "Objects";

/// What the installation decides, beside the objects.
#[derive(Debug, Args)]
pub struct CompileFlags {
    /// The namespace whose DestinationRules are for Services of all namespaces that have none of their own
    #[arg(long, env = "SLOTMESH_ROOT_NAMESPACE", default_value = "istio-system", value_name = "NAMESPACE",
        help_heading = OBJECTS)]
    root_namespace: String,

    /// Routes of Gateway API lead to Services of other namespaces only where a ReferenceGrant there lets them
    #[arg(long, env = "SLOTMESH_REQUIRE_GRANTS", help_heading = OBJECTS)]
    require_grants: bool,

    /// Rules that take a request (paths, headers, filters, timeouts) act: the proxy on each node looks at requests.
    /// Connections that no proxy takes go where the rule for every request says
    #[arg(long, env = "SLOTMESH_PROXY", help_heading = OBJECTS)]
    proxy: bool,

    /// Ranges that no ServiceEntry can have an address of, such as the cluster's ranges of Services and Pods.
    /// Addresses of Services, Pods and Nodes, ranges that ServiceCIDRs and Nodes tell, loopback and link-local ones are
    /// kept anyway
    #[arg(long, env = "SLOTMESH_RESERVED_ADDRESSES", value_delimiter = ',', value_name = "CIDR",
        help_heading = OBJECTS)]
    reserved_addresses: Vec<Cidr>,

    /// Ranges that ServiceEntries can have addresses of, whoever else's they are
    #[arg(long, env = "SLOTMESH_ALLOWED_ADDRESSES", value_delimiter = ',', value_name = "CIDR",
        help_heading = OBJECTS)]
    allowed_addresses: Vec<Cidr>,

    /// The most endpoints that one ServiceEntry may have, counted once for each of its hosts and ports
    #[arg(long, env = "SLOTMESH_MAX_ENTRY_ENDPOINTS", default_value_t = 10_000, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(1..=10_000_000), help_heading = OBJECTS)]
    max_entry_endpoints: u32,

    /// The most endpoints that the ServiceEntries of a namespace may have together; the oldest go before
    #[arg(long, env = "SLOTMESH_MAX_NAMESPACE_ENDPOINTS", default_value_t = 100_000, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(1..=100_000_000), help_heading = OBJECTS)]
    max_namespace_endpoints: u32,

    /// The most parts that an object of another kind may make on a node: listeners, clusters, endpoints, shares of routes.
    /// What makes more is not in force. The root namespace's objects aren't bounded
    #[arg(long, env = "SLOTMESH_MAX_OBJECT_PARTS", default_value_t = 100_000, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(1..=100_000_000), help_heading = OBJECTS)]
    max_object_parts: u32,

    /// The most parts that all objects of one kind and namespace may make together; the oldest go before
    #[arg(long, env = "SLOTMESH_MAX_NAMESPACE_PARTS", default_value_t = 400_000, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000_000), help_heading = OBJECTS)]
    max_namespace_parts: u32,

    /// The most sets of callers' labels that an object may ask for (`sourceLabels`, `workloadSelector`). What asks for more
    /// is not in force. The root namespace's objects aren't bounded
    #[arg(long, env = "SLOTMESH_MAX_OBJECT_LABEL_SETS", default_value_t = 100, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = OBJECTS)]
    max_object_label_sets: u32,

    /// The most that all objects of one kind and namespace may ask for together; the oldest go before
    #[arg(long, env = "SLOTMESH_MAX_NAMESPACE_LABEL_SETS", default_value_t = 500, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(1..=10_000_000), help_heading = OBJECTS)]
    max_namespace_label_sets: u32,
}

impl CompileFlags {
    /// The options that these flags stand for.
    pub fn options(self) -> CompileOptions {
        let Self {
            root_namespace,
            require_grants,
            proxy,
            reserved_addresses,
            allowed_addresses,
            max_entry_endpoints,
            max_namespace_endpoints,
            max_object_parts,
            max_namespace_parts,
            max_object_label_sets,
            max_namespace_label_sets,
        } = self;
        let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        CompileOptions {
            root_namespace: root_namespace.into(),
            require_grants,
            proxy,
            reserved_addresses,
            allowed_addresses,
            max_entry_endpoints: count(max_entry_endpoints),
            max_namespace_endpoints: count(max_namespace_endpoints),
            max_object_parts: count(max_object_parts),
            max_namespace_parts: count(max_namespace_parts),
            max_object_label_sets: count(max_object_label_sets),
            max_namespace_label_sets: count(max_namespace_label_sets),
            ..CompileOptions::default()
        }
    }
}
