//! The flag that says which DNS domain the cluster has.

use clap::Args;
use slotmesh_compile::ClusterDomain;

/// Where a pod's resolver is told about.
const RESOLVER: &str = "/etc/resolv.conf";

/// Which DNS domain the cluster has.
#[derive(Debug, Args)]
pub struct DomainFlag {
    /// The DNS domain of the cluster, with which the host names of Services end [default: in a cluster what this pod's
    /// resolv.conf says, else cluster.local]
    #[arg(long, env = "SLOTMESH_CLUSTER_DOMAIN", value_name = "DOMAIN")]
    cluster_domain: Option<ClusterDomain>,
}

impl DomainFlag {
    /// The domain of a cluster's Services, for a process in one of its pods.
    pub fn in_a_pod(self) -> ClusterDomain {
        let Self { cluster_domain } = self;
        let told = || ClusterDomain::of_resolv_conf(&std::fs::read_to_string(RESOLVER).unwrap_or_default());
        cluster_domain.or_else(told).unwrap_or_default()
    }

    /// The domain of the Services of a directory: what the machine's resolver says is no matter of theirs.
    pub fn on_a_machine(self) -> ClusterDomain {
        let Self { cluster_domain } = self;
        cluster_domain.unwrap_or_default()
    }
}
