//! Envoy protobuf -> the small validated model that the data path supports.
//!
//! Decoding is the border: what passes it can be flattened, and what the data path can't decide at
//! connect time is refused here by field, with what to do instead. Nothing is silently ignored that
//! would change where a connection goes, whether it may, or what is on the wire (TLS, PROXY protocol).
//!
//! Each message is therefore destructured whole: a field is read, refused where it is set, or named
//! with `_` because it is harmless. A field that newer protocol types bring doesn't compile until that
//! is decided. Harmless is what only says how a proxy counts, logs, buffers or times out, and what acts
//! on single HTTP requests (retries, rewrites, HTTP filters): there are none at connect time, and the
//! operator reports them on the object. Fields that the protocol types don't know can't be seen.

//!
//! The model borrows its names from the message ([`Message`]), so that nothing is copied between the
//! decoded message and the records.

mod cluster;
mod endpoints;
mod listener;
mod outliers;
mod path;
mod route;
mod settings;
#[cfg(test)]
mod tests;
mod weighted;

use std::{fmt, net::IpAddr, num::NonZeroU16};

pub use cluster::{Balance, Cluster, Limits, Rate, Source};
pub use endpoints::{Endpoint, Endpoints, Locality};
pub use listener::{Action, Chain, Listener};
pub use outliers::Outliers;
use path::At;
pub use route::{HostKey, Route, RouteEntry, VirtualHost};
pub use settings::{NodePlace, Settings};
use slotmesh_xds::{
    Resource, Transport,
    envoy::{
        envoy::config::{
            cluster::v3::Cluster as ClusterProto,
            core::v3::{self as core, config_source::ConfigSourceSpecifier},
            endpoint::v3::ClusterLoadAssignment,
            listener::v3::Listener as ListenerProto,
            route::v3::RouteConfiguration,
        },
        google::protobuf::{Any, BoolValue},
    },
};
pub use weighted::WeightedCluster;

use crate::RecordType;

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

impl From<slotmesh_slots::Contradiction> for Invalid {
    fn from(contradiction: slotmesh_slots::Contradiction) -> Self {
        invalid("settings", contradiction.to_string())
    }
}

fn invalid(field: impl fmt::Display, reason: impl Into<String>) -> Invalid {
    Invalid::Field { field: field.to_string(), reason: reason.into() }
}

fn unsupported(field: impl fmt::Display, what: impl Into<String>) -> Invalid {
    Invalid::Unsupported { field: field.to_string(), what: what.into() }
}

/// A decoded resource: what a [`Model`] borrows from.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "lives on the stack, one at a time, and isn't moved")]
pub enum Message {
    /// A cluster.
    Cluster(ClusterProto),
    /// A load assignment.
    Endpoints(ClusterLoadAssignment),
    /// A route configuration.
    Route(RouteConfiguration),
    /// A listener.
    Listener(ListenerProto),
}

impl Message {
    /// Decodes a resource.
    ///
    /// # Errors
    /// Where its content isn't the message that its type says.
    pub fn decode(resource: &Resource) -> Result<Self, Invalid> {
        let content = resource.content.as_ref();
        let Some(ty) = RecordType::of(resource.ty) else {
            return Err(unsupported("type_url", format!("{} resources have no records", resource.ty)));
        };
        Ok(match ty {
            RecordType::Cluster => Self::Cluster(decode("Cluster", content)?),
            RecordType::Endpoints => Self::Endpoints(decode("ClusterLoadAssignment", content)?),
            RecordType::Route => Self::Route(decode("RouteConfiguration", content)?),
            RecordType::Listener => Self::Listener(decode("Listener", content)?),
        })
    }

    /// Its type.
    pub const fn ty(&self) -> RecordType {
        match self {
            Self::Cluster(_) => RecordType::Cluster,
            Self::Endpoints(_) => RecordType::Endpoints,
            Self::Route(_) => RecordType::Route,
            Self::Listener(_) => RecordType::Listener,
        }
    }
}

/// A validated resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model<'m> {
    /// A cluster.
    Cluster(Cluster<'m>),
    /// A load assignment.
    Endpoints(Endpoints<'m>),
    /// A route configuration.
    Route(Route<'m>),
    /// A listener.
    Listener(Listener<'m>),
}

impl<'m> Model<'m> {
    /// Validates the message of the resource with this name.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn new(resource: &str, message: &'m Message) -> Result<Self, Invalid> {
        Ok(match message {
            Message::Cluster(cluster) => Self::Cluster(Cluster::from_proto(resource, cluster)?),
            Message::Endpoints(assignment) => {
                named("cluster_name", resource, &assignment.cluster_name)?;
                Self::Endpoints(Endpoints::from_proto(&At::ROOT, assignment)?)
            }
            Message::Route(config) => {
                named("name", resource, &config.name)?;
                Self::Route(Route::from_proto(&At::ROOT, config)?)
            }
            Message::Listener(listener) => Self::Listener(Listener::from_proto(resource, listener)?),
        })
    }
}

/// What refers to a resource uses the name in its message; the handle has the resource's.
fn named(field: &str, resource: &str, name: &str) -> Result<(), Invalid> {
    reference(&At::ROOT.field(field), name)?;
    if name != resource {
        return Err(invalid(field, format!("{name:?} is not the resource's name, {resource:?}")));
    }
    Ok(())
}

/// The longest name of a resource: its handle has one slot.
const LONGEST_NAME: usize = 4_000;

/// The cluster without endpoints, by its name in Istio, which control planes use for the share of a route that leads
/// nowhere. What names it refuses, by itself: whether or not the node has had room for the cluster, or has accepted it.
pub const REFUSING_CLUSTER: &str = "BlackHoleCluster";

/// The name of a cluster that there never is: requests that would go there are answered with 500, connections are
/// refused.
pub(crate) const INVALID_BACKEND: &str = "InvalidBackend";

/// Tells whether connections to the cluster of this name are refused, without any record of it.
pub(crate) fn is_refusing(cluster: &str) -> bool {
    cluster == REFUSING_CLUSTER || cluster == INVALID_BACKEND
}

/// The name of a resource, this one's or another's.
fn reference(field: &At<'_>, name: &str) -> Result<(), Invalid> {
    match name.len() {
        0 => Err(invalid(field, "the name is empty")),
        1..=LONGEST_NAME => Ok(()),
        len => Err(unsupported(field, format!("a name of {len} bytes; at most {LONGEST_NAME}"))),
    }
}

/// Refuses the fields of the message at `$within` that are set.
macro_rules! refuse_set {
    ($within:expr, $($what:literal: $($field:ident),+;)+) => {
        $($(if $crate::config::is_set($field) {
            let name = stringify!($field).trim_start_matches("r#");
            return Err($crate::config::unsupported($within.field(name), $what));
        })+)+
    };
}
use refuse_set;

fn is_set<T: Default + PartialEq>(field: &T) -> bool {
    *field != T::default()
}

/// Whether a wrapped flag that is off by default is on.
fn is_on(flag: Option<&BoolValue>) -> bool {
    flag.is_some_and(|flag| flag.value)
}

/// TLS that is asked for is not quietly left out; a socket that adds nothing is what there is anyway.
fn plain_socket(field: &At<'_>, socket: Option<&core::TransportSocket>) -> Result<(), Invalid> {
    use core::transport_socket::ConfigType;
    const RAW: &str = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
    let Some(core::TransportSocket { name, config_type }) = socket else { return Ok(()) };
    match config_type {
        Some(ConfigType::TypedConfig(config)) if config.type_url == RAW => Ok(()),
        _ => Err(unsupported(field, format!("{name:?}; connections are made as the application makes them"))),
    }
}

/// Everything comes from the stream that the referring resource came from.
fn same_stream(field: &At<'_>, source: Option<&core::ConfigSource>) -> Result<(), Invalid> {
    match source.and_then(|source| source.config_source_specifier.as_ref()) {
        None | Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => Ok(()),
        Some(_) => Err(unsupported(field, "only ads and self")),
    }
}

fn decode<M: prost::Message + Default>(ty: &'static str, content: &[u8]) -> Result<M, Invalid> {
    M::decode(content).map_err(|error| Invalid::Decode { ty, reason: error.to_string() })
}

fn decode_any<M: prost::Message + Default>(
    field: &At<'_>,
    ty: &'static str,
    any: &Any,
) -> Result<M, Invalid> {
    M::decode(any.value.as_slice())
        .map_err(|error| invalid(field, format!("not a valid {ty} message: {error}")))
}

/// A socket address with a numeric port.
fn socket_address(
    field: &At<'_>,
    address: Option<&core::Address>,
) -> Result<(Transport, IpAddr, NonZeroU16), Invalid> {
    let (protocol, ip, port) = any_socket_address(field, address)?;
    let port = NonZeroU16::new(port)
        .ok_or_else(|| invalid(field.field("port_value"), "0 is not a port from 1 to 65535"))?;
    Ok((protocol, ip, port))
}

/// The same, also with port 0.
fn any_socket_address(
    field: &At<'_>,
    address: Option<&core::Address>,
) -> Result<(Transport, IpAddr, u16), Invalid> {
    use core::{address::Address, socket_address::PortSpecifier};
    let socket = match address.and_then(|address| address.address.as_ref()) {
        Some(Address::SocketAddress(socket)) => socket,
        Some(_) => return Err(unsupported(field, "only socket_address is supported")),
        None => return Err(invalid(field, "there is no address")),
    };
    let core::SocketAddress {
        protocol,
        address,
        resolver_name,
        network_namespace_filepath,
        port_specifier,
        // About a socket bound to `::`; such a listener is refused.
        ipv4_compat: _,
    } = socket;
    refuse_set!(field,
        "only IP addresses": resolver_name;
        "connections stay in the workload's network namespace": network_namespace_filepath;
    );
    let Some(protocol) = Transport::from_proto(*protocol) else {
        return Err(unsupported(field.field("protocol"), "only TCP and UDP"));
    };
    let ip = address
        .parse()
        .map_err(|_| invalid(field.field("address"), format!("{address:?} is not an IP address")))?;
    let port = match *port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port).map_err(|_| {
            invalid(field.field("port_value"), format!("{port} is not a port from 1 to 65535"))
        })?,
        Some(PortSpecifier::NamedPort(_)) => {
            return Err(unsupported(field.field("named_port"), "use port_value"));
        }
        None => return Err(invalid(field.field("port_value"), "there is no port")),
    };
    Ok((protocol, ip, port))
}
