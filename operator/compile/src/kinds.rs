//! The table of kinds: a row for each kind of object that is read.
//!
//! From a row follow the kind's variants of [`Kind`] and [`Object`](crate::Object), how its objects are decoded and
//! encoded, where they are watched and listed, where their models are kept (`index/objects.rs`), and which status they
//! have. What the compiler makes of an object is its model's: `impl Read` and `impl Model`.
//!
//! Invariants: nothing else lists the kinds; and routes of a kind that stands before another go before the other's.

use std::fmt;

use slotmesh_crds::{ISTIO_GROUP, ISTIO_VERSIONS, gateway::GATEWAY_GROUP, own};

/// Hands the rows to the macro `$make`. A row:
///
/// ```text
/// Variant "Name" "plural": type of the objects => model, field that keeps the models; the rest of its KindSpec
/// ```
macro_rules! kinds {
    ($make:ident) => {
        $make! {
            Service "Service" "services": v1::Service
                => model::Service, services; KindSpec::core().with_parts();
            EndpointSlice "EndpointSlice" "endpointslices": discovery::EndpointSlice
                => model::EndpointSlice, slices; KindSpec::of("discovery.k8s.io", &["v1"]);
            Pod "Pod" "pods": v1::Pod
                => model::Pod, pods; KindSpec::core();
            Namespace "Namespace" "namespaces": v1::Namespace
                => model::Namespace, namespaces; KindSpec::core().cluster_wide();
            Node "Node" "nodes": v1::Node
                => model::Node, nodes; KindSpec::core().cluster_wide();
            ServiceCidr "ServiceCIDR" "servicecidrs": networking::ServiceCIDR
                => model::ServiceRanges, service_ranges;
                KindSpec::of("networking.k8s.io", &["v1", "v1beta1"]).cluster_wide();
            VirtualService "VirtualService" "virtualservices": crds::VirtualService
                => model::Routes, virtual_services; KindSpec::istio().with_routes(StatusForm::Conditions);
            DestinationRule "DestinationRule" "destinationrules": crds::DestinationRule
                => model::DestinationRule, rules; KindSpec::istio().with_parts().with_status(StatusForm::Conditions);
            ServiceEntry "ServiceEntry" "serviceentries": crds::ServiceEntry
                => model::ServiceEntry, service_entries;
                KindSpec::istio().with_parts().with_status(StatusForm::Conditions);
            WorkloadEntry "WorkloadEntry" "workloadentries": crds::WorkloadEntry
                => model::Workload, workloads; KindSpec::istio().with_status(StatusForm::Conditions);
            Sidecar "Sidecar" "sidecars": crds::Sidecar
                => model::Sidecar, sidecars; KindSpec::istio().with_parts();
            GrpcRoute "GRPCRoute" "grpcroutes": gateway::GrpcRoute
                => model::Routes, grpc_routes; KindSpec::gateway_route(&["v1", "v1alpha2"]);
            HttpRoute "HTTPRoute" "httproutes": gateway::HttpRoute
                => model::Routes, http_routes; KindSpec::gateway_route(&["v1", "v1beta1"]);
            TlsRoute "TLSRoute" "tlsroutes": gateway::TlsRoute
                => model::Routes, tls_routes; KindSpec::gateway_route(&["v1", "v1alpha3", "v1alpha2"]);
            TcpRoute "TCPRoute" "tcproutes": gateway::TcpRoute
                => model::Routes, tcp_routes; KindSpec::gateway_route(&["v1", "v1alpha2"]);
            ReferenceGrant "ReferenceGrant" "referencegrants": gateway::ReferenceGrant
                => model::ReferenceGrant, grants; KindSpec::of(GATEWAY_GROUP, &["v1", "v1beta1"]);
            TrafficPolicy "TrafficPolicy" "trafficpolicies": own::TrafficPolicy
                => model::TrafficPolicy, policies; KindSpec::own().with_parts().with_status(StatusForm::Ancestors);
            SlotProfile "SlotProfile" "slotprofiles": own::SlotProfile
                => model::SlotProfile, profiles;
                KindSpec::own().cluster_wide().with_status(StatusForm::NodeCounts);
        }
    };
}
pub(crate) use kinds;

/// Where objects of a kind say in their status what became of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusForm {
    /// Nowhere.
    None,
    /// `status.conditions[]`, which others write to.
    Conditions,
    /// `status.conditions[]` and numbers of nodes, all ours.
    NodeCounts,
    /// `status.parents[]`, as routes of Gateway API have it.
    Parents,
    /// `status.ancestors[]`, as policies of Gateway API have it.
    Ancestors,
}

/// All that a row of the table says of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindSpec {
    /// The kind as it stands in a manifest, such as `HTTPRoute`.
    pub name: &'static str,
    /// The resource in the API's paths, such as `httproutes`.
    pub plural: &'static str,
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The versions of the API that are read, the best first; their content is the same.
    pub versions: &'static [&'static str],
    /// Tells whether its objects lie in namespaces.
    pub is_namespaced: bool,
    /// The form of the status that slotmesh writes.
    pub status: StatusForm,
    /// Tells whether its objects lead connections to Services other than those that they are attached to.
    pub has_routes: bool,
    /// Tells whether its objects make parts on nodes, of which there may only be so many. Of a slice its Service is
    /// asked, of a workload who selects it; the others make none, or are written by whoever runs the cluster.
    pub has_parts: bool,
}

impl KindSpec {
    /// A kind whose objects lie in namespaces, and which has nothing else.
    const fn of(group: &'static str, versions: &'static [&'static str]) -> Self {
        Self {
            name: "",
            plural: "",
            group,
            versions,
            is_namespaced: true,
            status: StatusForm::None,
            has_routes: false,
            has_parts: false,
        }
    }

    const fn core() -> Self {
        Self::of("", &["v1"])
    }

    const fn istio() -> Self {
        Self::of(ISTIO_GROUP, &ISTIO_VERSIONS)
    }

    const fn own() -> Self {
        Self::of(own::GROUP, &[own::VERSION])
    }

    const fn gateway_route(versions: &'static [&'static str]) -> Self {
        Self::of(GATEWAY_GROUP, versions).with_routes(StatusForm::Parents)
    }

    const fn cluster_wide(self) -> Self {
        Self { is_namespaced: false, ..self }
    }

    const fn with_status(self, status: StatusForm) -> Self {
        Self { status, ..self }
    }

    const fn with_parts(self) -> Self {
        Self { has_parts: true, ..self }
    }

    const fn with_routes(self, status: StatusForm) -> Self {
        Self { has_routes: true, ..self.with_status(status).with_parts() }
    }
}

macro_rules! make_kind {
    ($($kind:ident $name:literal $plural:literal: $object:ty => $model:ty, $field:ident; $spec:expr;)*) => {
        /// A kind of objects that are watched and compiled.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(#[doc = $name] $kind,)*
        }

        impl Kind {
            /// All kinds.
            pub const ALL: [Self; [$(Self::$kind),*].len()] = [$(Self::$kind),*];

            /// The row of the kind.
            pub const fn spec(self) -> &'static KindSpec {
                match self {
                    $(Self::$kind => {
                        const SPEC: KindSpec = KindSpec { name: $name, plural: $plural, ..$spec };
                        &SPEC
                    })*
                }
            }
        }
    };
}

kinds!(make_kind);

impl Kind {
    /// The kind as it stands in a manifest.
    pub const fn as_str(self) -> &'static str {
        self.spec().name
    }

    /// The kind of this name, as it stands in a manifest.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Tells whether its objects lie in namespaces.
    pub const fn is_namespaced(self) -> bool {
        self.spec().is_namespaced
    }

    /// Tells whether its objects have a status that slotmesh writes.
    pub const fn has_conditions(self) -> bool {
        !matches!(self.spec().status, StatusForm::None)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
