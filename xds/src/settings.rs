//! Facts about a node that the operator knows and its agent doesn't: the settings of its slots, and where it is.
//!
//! An own resource type, named after the node that it is for. A server that doesn't know it never
//! answers, and no agent waits for that (see [`ResourceType::is_awaited`](crate::ResourceType::is_awaited)).
//! The agent tells what it doesn't take in a NACK, as with any resource.

use prost::Message;

/// Settings of one node. What isn't set is as the agent's own flags say.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct SlotSettings {
    /// The SlotProfile that says so, for messages; empty where none does.
    #[prost(string, tag = "1")]
    pub profile: String,
    /// Outer records from the start.
    #[prost(uint32, optional, tag = "2")]
    pub initial: Option<u32>,
    /// The most outer records.
    #[prost(uint32, optional, tag = "3")]
    pub cap: Option<u32>,
    /// Growth begins when fewer outer records than this are wholly idle.
    #[prost(uint32, optional, tag = "4")]
    pub low_watermark: Option<u32>,
    /// Outer records are given back when more than this are wholly idle.
    #[prost(uint32, optional, tag = "5")]
    pub high_watermark: Option<u32>,
    /// Outer records created at a time.
    #[prost(uint32, optional, tag = "6")]
    pub batch: Option<u32>,
    /// When outer records are created.
    #[prost(enumeration = "SlotGrowth", tag = "7")]
    pub growth: i32,
    /// The zone of the node, by its label `topology.kubernetes.io/zone`; empty where it has none.
    #[prost(string, tag = "8")]
    pub zone: String,
    /// Its region, by its label `topology.kubernetes.io/region`; empty where it has none.
    #[prost(string, tag = "9")]
    pub region: String,
    /// The part of the zone, by its label `topology.istio.io/subzone`; empty where it has none.
    #[prost(string, tag = "10")]
    pub sub_zone: String,
}

/// When outer records are created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum SlotGrowth {
    /// As the agent's own flags say.
    Unset = 0,
    /// All up to the cap at once.
    Eager = 1,
    /// Ahead of demand, in the background.
    Background = 2,
    /// When a flush finds no slot.
    OnDemand = 3,
}

impl SlotSettings {
    /// The type URL.
    pub const TYPE_URL: &str = "type.googleapis.com/slotmesh.agent.v1alpha1.SlotSettings";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_and_zero_are_told_apart_on_the_wire() {
        let settings =
            SlotSettings { low_watermark: Some(0), growth: SlotGrowth::Eager.into(), ..Default::default() };
        let back = SlotSettings::decode(settings.encode_to_vec().as_slice()).unwrap();
        assert_eq!((back.low_watermark, back.cap, back.growth()), (Some(0), None, SlotGrowth::Eager));
    }
}
