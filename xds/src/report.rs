//! What an agent tells the operator of itself, in the requests of its stream.
//!
//! It stands in `Node.metadata`, a free structure of xDS, under a key of our own. Other control planes
//! are never sent it: the agent tells only one that calls itself [`CONTROL_PLANE`] in its responses.
//!
//! Invariant: what can't be read is left out, and the rest is read; a report is for people.

use std::time::Duration;

use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

/// What slotmesh's operator calls itself in its responses (`control_plane.identifier`).
pub const CONTROL_PLANE: &str = "slotmesh";

/// The key in `Node.metadata`.
const KEY: &str = "slotmesh.dev/agent";
/// A text is for people; more of it than this isn't read.
const LONGEST: usize = 256;

/// What an agent tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentReport {
    /// The version of slotmesh that it is.
    pub version: String,
    /// Its slots.
    pub slots: SlotCounts,
    /// How long 99 of 100 flushes took at most; `None` before the first.
    pub flush_p99: Option<Duration>,
    /// The SlotProfile in force; `None` where the agent's own flags are.
    pub profile: Option<String>,
    /// Which pods aren't attached that should be by now, and why; `None` where there are none.
    pub unattached: Option<String>,
}

/// How many slots there are, and the outer records that they are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounts {
    /// Slots that hold a record.
    pub used: u64,
    /// Slots that can take a record at once.
    pub idle: u64,
    /// Slots that programs under way may still read.
    pub retired: u64,
    /// Outer records that exist.
    pub outer_records: u32,
    /// Outer records that are not created yet, up to the cap.
    pub remaining: u32,
    /// The most outer records there are to be.
    pub cap: u32,
}

impl AgentReport {
    /// The report as `Node.metadata`.
    pub fn metadata(&self) -> Struct {
        let Self { version, slots, flush_p99, profile, unattached } = self;
        let SlotCounts { used, idle, retired, outer_records, remaining, cap } = *slots;
        let mut fields: Vec<(&str, Kind)> = vec![
            ("version", Kind::StringValue(version.clone())),
            ("used", number(used)),
            ("idle", number(idle)),
            ("retired", number(retired)),
            ("outerRecords", number(u64::from(outer_records))),
            ("remaining", number(u64::from(remaining))),
            ("cap", number(u64::from(cap))),
        ];
        if let Some(p99) = flush_p99 {
            fields.push(("flushP99Nanos", number(u64::try_from(p99.as_nanos()).unwrap_or(u64::MAX))));
        }
        if let Some(profile) = profile {
            fields.push(("profile", Kind::StringValue(profile.clone())));
        }
        if let Some(unattached) = unattached {
            fields.push(("unattached", Kind::StringValue(unattached.clone())));
        }
        structure([(KEY, Kind::StructValue(structure(fields)))])
    }

    /// The report in `Node.metadata`, if there is one.
    pub fn from_metadata(metadata: &Struct) -> Option<Self> {
        let Some(Kind::StructValue(fields)) = metadata.fields.get(KEY)?.kind.as_ref() else { return None };
        let text = |name: &str| match fields.fields.get(name)?.kind.as_ref()? {
            Kind::StringValue(text) => Some(text.chars().take(LONGEST).collect::<String>()),
            _ => None,
        };
        // `as` saturates; what is no number becomes 0.
        let count = |name: &str| match fields.fields.get(name)?.kind.as_ref()? {
            Kind::NumberValue(number) => Some(*number as u64),
            _ => None,
        };
        let small = |name: &str| u32::try_from(count(name).unwrap_or_default()).unwrap_or(u32::MAX);
        let slots = SlotCounts {
            used: count("used").unwrap_or_default(),
            idle: count("idle").unwrap_or_default(),
            retired: count("retired").unwrap_or_default(),
            outer_records: small("outerRecords"),
            remaining: small("remaining"),
            cap: small("cap"),
        };
        Some(Self {
            version: text("version").unwrap_or_default(),
            slots,
            flush_p99: count("flushP99Nanos").map(Duration::from_nanos),
            profile: text("profile").filter(|profile| !profile.is_empty()),
            unattached: text("unattached").filter(|unattached| !unattached.is_empty()),
        })
    }
}

/// Counts are far below 2^53, above which a number of a structure isn't exact.
fn number(count: u64) -> Kind {
    Kind::NumberValue(count as f64)
}

fn structure<'a>(fields: impl IntoIterator<Item = (&'a str, Kind)>) -> Struct {
    let field = |(name, kind): (&str, Kind)| (name.to_owned(), Value { kind: Some(kind) });
    Struct { fields: fields.into_iter().map(field).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_back() {
        let slots = SlotCounts { used: 5, idle: 3, retired: 1, outer_records: 2, remaining: 30, cap: 32 };
        let full = AgentReport {
            version: "0.1.0".into(),
            slots,
            flush_p99: Some(Duration::from_micros(41)),
            profile: Some("edge".into()),
            unattached: Some("1 pod, such as a/b: its cgroup isn't found".into()),
        };
        assert_eq!(AgentReport::from_metadata(&full.metadata()), Some(full));
        let least = AgentReport::default();
        assert_eq!(AgentReport::from_metadata(&least.metadata()), Some(least));
    }

    #[test]
    fn nonsense_is_left_out() {
        let odd = structure([
            ("used", Kind::NumberValue(-1.0)),
            ("idle", Kind::NumberValue(f64::NAN)),
            ("cap", Kind::NumberValue(1e300)),
            ("version", Kind::StringValue("x".repeat(1_000))),
            ("profile", Kind::BoolValue(true)),
        ]);
        let report = AgentReport::from_metadata(&structure([(KEY, Kind::StructValue(odd))])).unwrap();
        assert_eq!((report.slots.used, report.slots.idle, report.slots.cap), (0, 0, u32::MAX));
        assert_eq!((report.version.len(), report.profile), (LONGEST, None));
        assert_eq!(AgentReport::from_metadata(&Struct::default()), None);
    }
}
