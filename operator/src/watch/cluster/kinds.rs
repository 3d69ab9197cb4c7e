//! Which kinds are watched, and where: one line each.

use std::sync::Arc;

use k8s_openapi::api::{core::v1, discovery::v1 as discovery, networking::v1 as networking};
use slotmesh_compile::Kind;
use slotmesh_crds::{
    self as crds, ISTIO_GROUP, ISTIO_VERSIONS,
    gateway::{self, GATEWAY_GROUP},
    own,
};
use tokio::task::JoinSet;

use super::{Context, Place, decode::decode, follow};

/// Starts the watcher of each kind on a task of its own.
pub(super) fn follow_all(context: &Arc<Context>, tasks: &mut JoinSet<()>) {
    for kind in Kind::ALL {
        tasks.spawn(follow(Arc::clone(context), place(kind)));
    }
}

/// Where the objects of a kind are found.
pub(super) fn place(kind: Kind) -> Place {
    macro_rules! place {
        ($($kind:ident: $type:ty = $group:expr, $versions:expr, $plural:literal;)*) => {
            match kind {
                $(Kind::$kind => Place {
                    kind,
                    group: $group,
                    versions: &$versions,
                    plural: $plural,
                    decode: decode::<$type>,
                },)*
            }
        };
    }
    place! {
        Service: v1::Service = "", ["v1"], "services";
        EndpointSlice: discovery::EndpointSlice = "discovery.k8s.io", ["v1"], "endpointslices";
        Pod: v1::Pod = "", ["v1"], "pods";
        Namespace: v1::Namespace = "", ["v1"], "namespaces";
        Node: v1::Node = "", ["v1"], "nodes";
        ServiceCidr: networking::ServiceCIDR = "networking.k8s.io", ["v1", "v1beta1"], "servicecidrs";
        VirtualService: crds::VirtualService = ISTIO_GROUP, ISTIO_VERSIONS, "virtualservices";
        DestinationRule: crds::DestinationRule = ISTIO_GROUP, ISTIO_VERSIONS, "destinationrules";
        ServiceEntry: crds::ServiceEntry = ISTIO_GROUP, ISTIO_VERSIONS, "serviceentries";
        WorkloadEntry: crds::WorkloadEntry = ISTIO_GROUP, ISTIO_VERSIONS, "workloadentries";
        Sidecar: crds::Sidecar = ISTIO_GROUP, ISTIO_VERSIONS, "sidecars";
        GrpcRoute: gateway::GrpcRoute = GATEWAY_GROUP, ["v1", "v1alpha2"], "grpcroutes";
        HttpRoute: gateway::HttpRoute = GATEWAY_GROUP, ["v1", "v1beta1"], "httproutes";
        TlsRoute: gateway::TlsRoute = GATEWAY_GROUP, ["v1", "v1alpha3", "v1alpha2"], "tlsroutes";
        TcpRoute: gateway::TcpRoute = GATEWAY_GROUP, ["v1", "v1alpha2"], "tcproutes";
        ReferenceGrant: gateway::ReferenceGrant = GATEWAY_GROUP, ["v1", "v1beta1"], "referencegrants";
        TrafficPolicy: own::TrafficPolicy = own::GROUP, [own::VERSION], "trafficpolicies";
        SlotProfile: own::SlotProfile = own::GROUP, [own::VERSION], "slotprofiles";
    }
}
