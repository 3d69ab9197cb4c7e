//! Envoy protobuf -> the small validated model that the data path supports.
//!
//! Decoding is the border: what passes it can be flattened, and what the data path can't decide at
//! connect time is refused here by field, with what to do instead. Nothing is silently ignored that
//! would change where a connection goes; HTTP-only fields of a route are the operator's to report.

mod cluster;
mod endpoints;
mod listener;
mod route;

use std::{net::IpAddr, num::NonZeroU16};

pub use cluster::Cluster;
pub use endpoints::{Endpoint, Endpoints};
pub use listener::{Action, Listener};
use prost::Message;
pub use route::{Route, WeightedCluster};
use slotmesh_xds::{
    Resource, ResourceType,
    envoy::{envoy::config::core::v3 as core, google::protobuf::Any},
};

/// What is wrong with a resource.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Invalid {
    /// Not the protobuf message that its type says.
    #[error("not a valid {ty} message: {reason}")]
    Decode {
        /// The type.
        ty: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// A value that can't be.
    #[error("{field}: {reason}")]
    Field {
        /// The field's path.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// A value that the data path can't act on.
    #[error("{field}: not supported: {what}")]
    Unsupported {
        /// The field's path.
        field: String,
        /// What it asks for, and what works instead.
        what: String,
    },
}

fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Invalid {
    Invalid::Field { field: field.into(), reason: reason.into() }
}

fn unsupported(field: impl Into<String>, what: impl Into<String>) -> Invalid {
    Invalid::Unsupported { field: field.into(), what: what.into() }
}

/// A validated resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// A cluster.
    Cluster(Cluster),
    /// A load assignment.
    Endpoints(Endpoints),
    /// A route configuration.
    Route(Route),
    /// A listener.
    Listener(Listener),
}

impl Model {
    /// Decodes and validates a resource.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn decode(resource: &Resource) -> Result<Self, Invalid> {
        let content = resource.content.as_ref();
        Ok(match resource.ty {
            ResourceType::Cluster => Self::Cluster(Cluster::from_proto(decode("Cluster", content)?)?),
            ResourceType::Endpoints => {
                Self::Endpoints(Endpoints::from_proto(decode("ClusterLoadAssignment", content)?)?)
            }
            ResourceType::Route => Self::Route(Route::from_proto(&decode("RouteConfiguration", content)?)?),
            ResourceType::Listener => Self::Listener(Listener::from_proto(&decode("Listener", content)?)?),
        })
    }
}

fn decode<M: Message + Default>(ty: &'static str, content: &[u8]) -> Result<M, Invalid> {
    M::decode(content).map_err(|error| Invalid::Decode { ty, reason: error.to_string() })
}

fn decode_any<M: Message + Default>(field: &str, ty: &'static str, any: &Any) -> Result<M, Invalid> {
    M::decode(any.value.as_slice())
        .map_err(|error| invalid(field, format!("not a valid {ty} message: {error}")))
}

/// A TCP socket address with a numeric port.
fn socket_address(field: &str, address: Option<&core::Address>) -> Result<(IpAddr, NonZeroU16), Invalid> {
    use core::{address::Address, socket_address::PortSpecifier};
    let socket = match address.and_then(|address| address.address.as_ref()) {
        Some(Address::SocketAddress(socket)) => socket,
        Some(_) => return Err(unsupported(field, "only socket_address is supported")),
        None => return Err(invalid(field, "there is no address")),
    };
    if socket.protocol != core::socket_address::Protocol::Tcp as i32 {
        return Err(unsupported(format!("{field}.protocol"), "only TCP is supported"));
    }
    let ip = socket.address.parse().map_err(|_| {
        invalid(format!("{field}.address"), format!("{:?} is not an IP address", socket.address))
    })?;
    let port = match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => {
            u16::try_from(port).ok().and_then(NonZeroU16::new).ok_or_else(|| {
                invalid(format!("{field}.port_value"), format!("{port} is not a port from 1 to 65535"))
            })?
        }
        Some(PortSpecifier::NamedPort(_)) => {
            return Err(unsupported(format!("{field}.named_port"), "use port_value"));
        }
        None => return Err(invalid(format!("{field}.port_value"), "there is no port")),
    };
    Ok((ip, port))
}
