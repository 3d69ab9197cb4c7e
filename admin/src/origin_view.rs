//! Objects because of which connections to an address go where they go.

use serde::{Deserialize, Serialize};

use crate::ReportView;

/// Objects behind a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginsView {
    /// Service, or host of a ServiceEntry, that the listener is of.
    pub service: String,
    /// Objects that take part.
    pub objects: Vec<OriginView>,
    /// Endpoints that EndpointSlices name.
    pub endpoints: Vec<EndpointOriginView>,
}

/// An object and its part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginView {
    /// Kind, namespace and name in one.
    pub object: String,
    /// File that it was read from.
    pub file: Option<String>,
    /// Line on which it begins.
    pub line: Option<usize>,
    /// Resource version of what is compiled of it, in a cluster.
    #[serde(default)]
    pub resource_version: Option<String>,
    /// Resources that are as they are because of it, where others could have made them.
    pub makes: Vec<String>,
    /// Reports about it that concern the Service.
    pub reports: Vec<ReportView>,
}

/// An endpoint that an EndpointSlice names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointOriginView {
    /// Address, without a port.
    pub address: String,
    /// The slice.
    pub slice: String,
    /// Pod behind it.
    pub pod: Option<String>,
    /// `ready`, `terminating` or `not ready`.
    pub readiness: String,
}
