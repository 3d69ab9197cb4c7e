//! The objects that the compiler understands, and how they are named.

use std::{fmt, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR as ServiceCidr,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use slotmesh_crds::{
    DestinationRule, ServiceEntry, Sidecar, VirtualService, WorkloadEntry,
    gateway::{GrpcRoute, HttpRoute, ReferenceGrant, TcpRoute, TlsRoute},
    own::{SlotProfile, TrafficPolicy},
};

/// The kinds of objects that are watched. All but Namespace are compiled; that one says who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice
    EndpointSlice,
    /// `v1` Pod
    Pod,
    /// `v1` Namespace
    Namespace,
    /// `v1` Node
    Node,
    /// `networking.k8s.io/v1` ServiceCIDR
    ServiceCidr,
    /// `networking.istio.io` VirtualService
    VirtualService,
    /// `networking.istio.io` DestinationRule
    DestinationRule,
    /// `networking.istio.io` ServiceEntry
    ServiceEntry,
    /// `networking.istio.io` WorkloadEntry
    WorkloadEntry,
    /// `networking.istio.io` Sidecar
    Sidecar,
    /// `gateway.networking.k8s.io` GRPCRoute
    GrpcRoute,
    /// `gateway.networking.k8s.io` HTTPRoute
    HttpRoute,
    /// `gateway.networking.k8s.io` TLSRoute
    TlsRoute,
    /// `gateway.networking.k8s.io` TCPRoute
    TcpRoute,
    /// `gateway.networking.k8s.io` ReferenceGrant
    ReferenceGrant,
    /// `slotmesh.dev` TrafficPolicy
    TrafficPolicy,
    /// `slotmesh.dev` SlotProfile
    SlotProfile,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 18] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Pod,
        Self::Namespace,
        Self::Node,
        Self::ServiceCidr,
        Self::VirtualService,
        Self::DestinationRule,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::Sidecar,
        Self::GrpcRoute,
        Self::HttpRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::ReferenceGrant,
        Self::TrafficPolicy,
        Self::SlotProfile,
    ];

    /// The kind as it stands in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::Sidecar => "Sidecar",
            Self::GrpcRoute => "GRPCRoute",
            Self::HttpRoute => "HTTPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::SlotProfile => "SlotProfile",
        }
    }

    /// Whether its objects lie in namespaces.
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::ServiceCidr | Self::SlotProfile)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Namespace and name of an object. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The name `name` in `namespace`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The name of the object of this kind with this metadata. An object without namespace is in
    /// `default`; one whose kind has none is in "".
    pub fn of(kind: Kind, meta: &ObjectMeta) -> Self {
        let namespace =
            if kind.is_namespaced() { meta.namespace.as_deref().unwrap_or("default") } else { "" };
        Self::new(namespace, meta.name.as_deref().unwrap_or_default())
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// What identifies an object: its kind, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// Namespace and name.
    pub name: ObjectName,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Where an object was read, when it was a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The path of the file.
    pub file: Arc<str>,
    /// Its document, counted from 1; `None` for the file as a whole.
    pub document: Option<usize>,
    /// The line on which the document begins, where that is known.
    pub line: Option<usize>,
    /// It doesn't say in which namespace the object is.
    pub in_default: bool,
}

impl Source {
    /// A file as a whole.
    pub fn file(file: Arc<str>) -> Self {
        Self { file, document: None, line: None, in_default: false }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.document {
            Some(document) => write!(f, "{}, document {document}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// One object of the cluster. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// A Pod.
    Pod(Arc<Pod>),
    /// A Namespace.
    Namespace(Arc<Namespace>),
    /// A Node.
    Node(Arc<Node>),
    /// A ServiceCIDR.
    ServiceCidr(Arc<ServiceCidr>),
    /// A VirtualService.
    VirtualService(Arc<VirtualService>),
    /// A DestinationRule.
    DestinationRule(Arc<DestinationRule>),
    /// A ServiceEntry.
    ServiceEntry(Arc<ServiceEntry>),
    /// A WorkloadEntry.
    WorkloadEntry(Arc<WorkloadEntry>),
    /// A Sidecar.
    Sidecar(Arc<Sidecar>),
    /// A GRPCRoute.
    GrpcRoute(Arc<GrpcRoute>),
    /// An HTTPRoute.
    HttpRoute(Arc<HttpRoute>),
    /// A TLSRoute.
    TlsRoute(Arc<TlsRoute>),
    /// A TCPRoute.
    TcpRoute(Arc<TcpRoute>),
    /// A ReferenceGrant.
    ReferenceGrant(Arc<ReferenceGrant>),
    /// A TrafficPolicy.
    TrafficPolicy(Arc<TrafficPolicy>),
    /// A SlotProfile.
    SlotProfile(Arc<SlotProfile>),
}

macro_rules! object_from {
    ($($kind:ident),*) => {$(
        impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Arc::new(object))
            }
        }
    )*};
}
object_from!(
    Service,
    EndpointSlice,
    Pod,
    Namespace,
    Node,
    ServiceCidr,
    VirtualService,
    DestinationRule,
    ServiceEntry,
    WorkloadEntry,
    Sidecar,
    GrpcRoute,
    HttpRoute,
    TlsRoute,
    TcpRoute,
    ReferenceGrant,
    TrafficPolicy,
    SlotProfile
);

impl Object {
    /// The object's metadata.
    pub fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Service(o) => &o.metadata,
            Self::EndpointSlice(o) => &o.metadata,
            Self::Pod(o) => &o.metadata,
            Self::Namespace(o) => &o.metadata,
            Self::Node(o) => &o.metadata,
            Self::ServiceCidr(o) => &o.metadata,
            Self::VirtualService(o) => &o.metadata,
            Self::DestinationRule(o) => &o.metadata,
            Self::ServiceEntry(o) => &o.metadata,
            Self::WorkloadEntry(o) => &o.metadata,
            Self::Sidecar(o) => &o.metadata,
            Self::GrpcRoute(o) => &o.metadata,
            Self::HttpRoute(o) => &o.metadata,
            Self::TlsRoute(o) => &o.metadata,
            Self::TcpRoute(o) => &o.metadata,
            Self::ReferenceGrant(o) => &o.metadata,
            Self::TrafficPolicy(o) => &o.metadata,
            Self::SlotProfile(o) => &o.metadata,
        }
    }

    /// The object's kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Pod(_) => Kind::Pod,
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
            Self::VirtualService(_) => Kind::VirtualService,
            Self::DestinationRule(_) => Kind::DestinationRule,
            Self::ServiceEntry(_) => Kind::ServiceEntry,
            Self::WorkloadEntry(_) => Kind::WorkloadEntry,
            Self::Sidecar(_) => Kind::Sidecar,
            Self::GrpcRoute(_) => Kind::GrpcRoute,
            Self::HttpRoute(_) => Kind::HttpRoute,
            Self::TlsRoute(_) => Kind::TlsRoute,
            Self::TcpRoute(_) => Kind::TcpRoute,
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
            Self::TrafficPolicy(_) => Kind::TrafficPolicy,
            Self::SlotProfile(_) => Kind::SlotProfile,
        }
    }

    /// What identifies the object.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind(), name: ObjectName::of(self.kind(), self.meta()) }
    }
}
