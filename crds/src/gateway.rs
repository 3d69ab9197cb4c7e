//! Gateway API: GRPCRoute, HTTPRoute, TLSRoute, TCPRoute and ReferenceGrant, as far as they are about Services.
//!
//! As with Istio's objects, only the supported fields are typed and the others land in `rest`. The CRDs
//! are Gateway API's own.

use kube::CustomResource;
use serde::{Deserialize, Serialize};

use crate::{Rest, or_default};

/// The API group of Gateway API.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// The spec of an [`HttpRoute`].
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "HTTPRoute",
    root = "HttpRoute",
    namespaced,
    schema = "disabled",
    doc = "Where HTTP connections to its parents go.",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteSpec {
    /// What it is attached to.
    #[serde(default, deserialize_with = "or_default")]
    pub parent_refs: Vec<ParentRef>,
    /// The routes.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<HttpRule>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// The spec of a [`GrpcRoute`].
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "GRPCRoute",
    root = "GrpcRoute",
    namespaced,
    schema = "disabled",
    doc = "Where gRPC connections to its parents go.",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct GrpcRouteSpec {
    /// What it is attached to.
    #[serde(default, deserialize_with = "or_default")]
    pub parent_refs: Vec<ParentRef>,
    /// The routes. A match by method or headers can't be decided when a connection is made.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<HttpRule>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// The spec of a [`TlsRoute`].
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1alpha2",
    kind = "TLSRoute",
    root = "TlsRoute",
    namespaced,
    schema = "disabled",
    doc = "Where TLS connections to its parents go.",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct TlsRouteSpec {
    /// What it is attached to.
    #[serde(default, deserialize_with = "or_default")]
    pub parent_refs: Vec<ParentRef>,
    /// The hosts whose connections it is for; all where there is none.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// The routes.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<TcpRule>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// The spec of a [`TcpRoute`].
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1alpha2",
    kind = "TCPRoute",
    root = "TcpRoute",
    namespaced,
    schema = "disabled",
    doc = "Where TCP connections to its parents go.",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct TcpRouteSpec {
    /// What it is attached to.
    #[serde(default, deserialize_with = "or_default")]
    pub parent_refs: Vec<ParentRef>,
    /// The routes.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<TcpRule>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// What a route is attached to: a Service, or a Gateway, which is no matter of slotmesh's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Its API group; that of Gateway API where it isn't set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its kind; Gateway where it isn't set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its namespace; the route's where it isn't set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// The name of the port; all where neither this nor `port` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// The number of the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// A rule of an HTTPRoute or GRPCRoute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRule {
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When the rule applies: any of these, or always when there is none.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<HttpRouteMatch>,
    /// Where connections go.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// What a request must look like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HttpRouteMatch {
    /// Its path. The prefix `/`, which is the default, is every path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Everything else; it can't be decided when a connection is made.
    #[serde(flatten)]
    pub rest: Rest,
}

/// What a path must look like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PathMatch {
    /// How it is compared; PathPrefix where it isn't set.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// With what; `/` where it isn't set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

impl PathMatch {
    /// Whether every path matches.
    pub fn is_any(&self) -> bool {
        self.kind.as_deref().is_none_or(|kind| kind == "PathPrefix")
            && self.value.as_deref().is_none_or(|value| value == "/")
    }
}

/// A rule of a TCPRoute or TLSRoute.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpRule {
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where connections go.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub backend_refs: Vec<BackendRef>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// Where a share of the connections goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BackendRef {
    /// Its API group; that of Services where it isn't set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its kind; Service where it isn't set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its namespace; the route's where it isn't set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    /// Its share relative to the others'; 1 where it isn't set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// The spec of a [`ReferenceGrant`].
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1beta1",
    kind = "ReferenceGrant",
    namespaced,
    schema = "disabled",
    doc = "Lets objects of other namespaces lead to objects of this one.",
    derive = "PartialEq"
)]
pub struct ReferenceGrantSpec {
    /// Who may.
    #[serde(default, deserialize_with = "or_default")]
    pub from: Vec<GrantFrom>,
    /// To what.
    #[serde(default, deserialize_with = "or_default")]
    pub to: Vec<GrantTo>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// Who may refer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantFrom {
    /// The API group of the objects.
    #[serde(default)]
    pub group: String,
    /// Their kind.
    #[serde(default)]
    pub kind: String,
    /// Their namespace.
    #[serde(default)]
    pub namespace: String,
}

/// To what they may refer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantTo {
    /// The API group of the objects.
    #[serde(default)]
    pub group: String,
    /// Their kind.
    #[serde(default)]
    pub kind: String,
    /// The name of the one object; all where it isn't set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}
