//! One named, typed, versioned xDS resource.

use std::{fmt, str::FromStr, sync::Arc};

use bytes::Bytes;
use prost::Message;

use crate::SlotSettings;

/// The resource types that slotmesh exchanges.
///
/// The order is make-before-break order: what others refer to comes before what refers to it. Adds
/// and updates are applied in this order, removals in reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// [`SlotSettings`]: first, because what follows may need the room that they give.
    Settings,
    /// `envoy.config.cluster.v3.Cluster`
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`
    Endpoints,
    /// `envoy.config.route.v3.RouteConfiguration`
    Route,
    /// `envoy.config.listener.v3.Listener`
    Listener,
    /// [`Workload`](crate::Workload): a pod whose connections are routed. It comes last, so that a
    /// workload is routed only when what it can reach is known.
    Workload,
}

/// A type URL that slotmesh does not exchange.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("resource type {0:?} is not one that slotmesh exchanges")]
pub struct UnknownTypeUrl(pub String);

impl ResourceType {
    /// All types in make-before-break order.
    pub const ALL: [Self; 6] =
        [Self::Settings, Self::Cluster, Self::Endpoints, Self::Route, Self::Listener, Self::Workload];

    /// The type URL in discovery requests and in `google.protobuf.Any`.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Settings => SlotSettings::TYPE_URL,
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Workload => "type.googleapis.com/slotmesh.v1.Workload",
        }
    }

    /// Whether an agent is in sync only once the control plane has answered for this type. Settings are
    /// slotmesh's own: another control plane never answers for them.
    pub const fn is_awaited(self) -> bool {
        !matches!(self, Self::Settings)
    }

    /// The short name used in logs, metrics and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints",
            Self::Route => "route",
            Self::Listener => "listener",
            Self::Workload => "workload",
        }
    }
}

impl FromStr for ResourceType {
    type Err = UnknownTypeUrl;

    /// Parses a type URL.
    fn from_str(url: &str) -> Result<Self, UnknownTypeUrl> {
        Self::ALL.into_iter().find(|ty| ty.type_url() == url).ok_or_else(|| UnknownTypeUrl(url.to_owned()))
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of a resource, unique within its type. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceName(Arc<str>);

impl ResourceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<S: Into<Arc<str>>> From<S> for ResourceName {
    fn from(name: S) -> Self {
        Self(name.into())
    }
}

impl std::borrow::Borrow<str> for ResourceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The content hash of a resource: equal bytes have equal versions, on every replica.
///
/// On the wire it is 16 lower-case hex digits. It is never zero, so zero can mean "unknown" in a
/// record (a foreign control plane's version string is not a content hash).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version(std::num::NonZeroU64);

impl Version {
    /// The version of a resource with this encoded content.
    pub fn of(content: &[u8]) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64(content);
        Self(std::num::NonZeroU64::new(hash).unwrap_or(std::num::NonZeroU64::MIN))
    }

    /// The hash itself.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The version that a record holds; `None` for zero, which means unknown.
    pub fn from_u64(hash: u64) -> Option<Self> {
        std::num::NonZeroU64::new(hash).map(Self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Version {
    type Err = ();

    /// Parses the wire form; anything else (a foreign control plane's version) is an error.
    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() != 16 || text.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(());
        }
        u64::from_str_radix(text, 16).ok().and_then(Self::from_u64).ok_or(())
    }
}

/// One encoded resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its type.
    pub ty: ResourceType,
    /// Its name.
    pub name: ResourceName,
    /// Its content hash.
    pub version: Version,
    /// The protobuf encoding of the resource itself (what goes into `Any.value`).
    pub content: Bytes,
}

impl Resource {
    /// Encodes `message` as a resource; its version is the hash of the encoding.
    pub fn encode(ty: ResourceType, name: impl Into<ResourceName>, message: &impl Message) -> Self {
        Self::encoded(ty, name, message.encode_to_vec())
    }

    /// The resource with this encoding; its version is the hash of it.
    pub fn encoded(ty: ResourceType, name: impl Into<ResourceName>, content: impl Into<Bytes>) -> Self {
        let content = content.into();
        Self { ty, name: name.into(), version: Version::of(&content), content }
    }
}

/// A change of what is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The resource is new or its content changed.
    Upsert(Resource),
    /// The resource no longer exists.
    Remove(ResourceType, ResourceName),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_survives_the_wire_and_refuses_foreign_text() {
        let version = Version::of(b"content");
        assert_eq!(version.to_string().parse(), Ok(version));
        for foreign in ["", "2026-01-01T00:00:00Z/7", "0000000000000000", "ABCDEF0123456789"] {
            assert_eq!(foreign.parse::<Version>(), Err(()), "{foreign:?}");
        }
    }

    #[test]
    fn type_urls_are_distinct_and_parse_back() {
        for ty in ResourceType::ALL {
            assert_eq!(ty.type_url().parse(), Ok(ty));
        }
        assert!("type.googleapis.com/envoy.api.v2.Cluster".parse::<ResourceType>().is_err());
    }
}
