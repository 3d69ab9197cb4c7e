//! Where in a message something is wrong, and the checks that every part of a configuration shares.
//!
//! Invariant: a path is spelt out only when something there is refused.

use std::{fmt, time::Duration};

use prost::{Message, Name};
use slotmesh_xds::envoy::google::protobuf::{self, Any};

/// A field of a route configuration that isn't in force, and why. The requests of the rule that it belongs to are
/// answered 500.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct InvalidField {
    /// Path of the field from the resource, as the message is written: `virtual_hosts[0].routes[2].match.headers[0]`.
    pub field: String,
    /// Reason.
    pub reason: String,
}

/// A field of a message, as a list from the field up to the resource.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FieldPath<'a> {
    parent: Option<&'a FieldPath<'a>>,
    name: &'a str,
    place: Place<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Place<'a> {
    Only,
    Index(usize),
    Key(&'a str),
}

impl<'a> FieldPath<'a> {
    /// The resource itself.
    pub(crate) const ROOT: FieldPath<'static> = FieldPath { parent: None, name: "", place: Place::Only };

    /// A field of the message here.
    pub(crate) const fn field(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), name, place: Place::Only }
    }

    /// An element of a repeated field of the message here.
    pub(crate) const fn element(&'a self, name: &'a str, index: usize) -> Self {
        Self { parent: Some(self), name, place: Place::Index(index) }
    }

    /// An entry of a map field of the message here.
    pub(crate) const fn entry(&'a self, name: &'a str, key: &'a str) -> Self {
        Self { parent: Some(self), name, place: Place::Key(key) }
    }

    /// The finding that something is wrong here.
    pub(crate) fn wrong(&self, reason: impl Into<String>) -> InvalidField {
        InvalidField { field: self.to_string(), reason: reason.into() }
    }
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            if !parent.name.is_empty() {
                f.write_str(".")?;
            }
        }
        f.write_str(self.name)?;
        match self.place {
            Place::Only => Ok(()),
            Place::Index(index) => write!(f, "[{index}]"),
            Place::Key(key) => write!(f, "[{key}]"),
        }
    }
}

/// Refuses the fields of the message at `$within` that are set.
macro_rules! refuse_set {
    ($within:expr, $($what:literal: $($field:ident),+;)+) => {
        $($(if $crate::field::is_set($field) {
            let name = stringify!($field).trim_start_matches("r#");
            return Err($within.field(name).wrong($what));
        })+)+
    };
}
pub(crate) use refuse_set;

pub(crate) fn is_set<T: Default + PartialEq>(field: &T) -> bool {
    *field != T::default()
}

/// A duration that isn't negative.
pub(crate) fn duration(
    at: &FieldPath<'_>,
    duration: Option<&protobuf::Duration>,
) -> Result<Option<Duration>, InvalidField> {
    let Some(duration) = duration else { return Ok(None) };
    let seconds = u64::try_from(duration.seconds);
    let nanos = u32::try_from(duration.nanos);
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 && seconds <= MOST_SECONDS => {
            Ok(Some(Duration::new(seconds, nanos)))
        }
        _ => Err(at.wrong("not a duration from 0 to 10,000 years")),
    }
}

/// The longest duration that protobuf allows.
const MOST_SECONDS: u64 = 315_576_000_000;

/// The message in an `Any`.
pub(crate) fn unpack<M: Message + Name + Default>(at: &FieldPath<'_>, any: &Any) -> Result<M, InvalidField> {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if name != M::full_name() {
        return Err(at.wrong(format!("it is a {name:?}; only {:?} is supported", M::full_name())));
    }
    M::decode(any.value.as_slice()).map_err(|error| at.wrong(format!("not a valid {name}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_the_message_is_written() {
        let host = FieldPath::ROOT.element("virtual_hosts", 2);
        let filter = host.entry("typed_per_filter_config", "envoy.filters.http.fault");
        assert_eq!(FieldPath::ROOT.to_string(), "");
        assert_eq!(
            filter.field("delay").to_string(),
            "virtual_hosts[2].typed_per_filter_config[envoy.filters.http.fault].delay"
        );
    }

    #[test]
    fn durations_have_limits() {
        let parse = |seconds, nanos| duration(&FieldPath::ROOT, Some(&protobuf::Duration { seconds, nanos }));
        assert_eq!(parse(1, 500_000_000), Ok(Some(Duration::from_millis(1500))));
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0)] {
            assert!(parse(seconds, nanos).is_err(), "{seconds} {nanos}");
        }
    }
}
