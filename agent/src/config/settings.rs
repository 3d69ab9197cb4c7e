//! Settings of the node: its zone; and of its slots, what a SlotProfile says over what the agent's own flags say.

use slotmesh_slots::{Config, Growth};
use slotmesh_xds::{Resource, SlotGrowth, SlotSettings};

use super::{Invalid, decode, invalid};

/// Settings that can be put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The SlotProfile that they come from.
    pub profile: String,
    /// All settings, those of the agent's flags included.
    pub slots: Config,
    /// Where the node is.
    pub place: NodePlace,
}

/// Where a node is; what isn't known is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePlace {
    /// Its region.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// The part of the zone.
    pub sub_zone: String,
}

impl Settings {
    /// Decodes and validates; what isn't set is as in `flags`.
    ///
    /// # Errors
    /// Where they contradict each other or the flags.
    pub fn decode(resource: &Resource, flags: Config) -> Result<Self, Invalid> {
        let message: SlotSettings = decode("SlotSettings", resource.content.as_ref())?;
        let growth = match SlotGrowth::try_from(message.growth) {
            Ok(SlotGrowth::Unset) => flags.growth,
            Ok(SlotGrowth::Eager) => Growth::Eager,
            Ok(SlotGrowth::Background) => Growth::Background,
            Ok(SlotGrowth::OnDemand) => Growth::OnDemand,
            Err(_) => return Err(invalid("growth", format!("{} is no mode of growth", message.growth))),
        };
        let SlotSettings {
            profile,
            initial,
            cap,
            low_watermark,
            high_watermark,
            batch,
            growth: _,
            zone,
            region,
            sub_zone,
        } = message;
        let place = NodePlace { region, zone, sub_zone };
        let slots = Config {
            growth,
            initial: initial.unwrap_or(flags.initial),
            cap: cap.unwrap_or(flags.cap),
            low_watermark: low_watermark.unwrap_or(flags.low_watermark),
            high_watermark: high_watermark.unwrap_or(flags.high_watermark),
            batch: batch.unwrap_or(flags.batch),
            threads: flags.threads,
        };
        match slots.contradiction() {
            None => Ok(Self { profile, slots, place }),
            Some(contradiction) => Err(invalid(
                format!("SlotProfile {profile}"),
                format!(
                    "{contradiction}; what the profile doesn't set is as the agent's own flags say: initial {}, cap \
                     {}, watermarks {} and {}, batch {}",
                    flags.initial, flags.cap, flags.low_watermark, flags.high_watermark, flags.batch
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_xds::ResourceType;

    use super::*;

    fn decoded(settings: &SlotSettings) -> Result<Settings, Invalid> {
        Settings::decode(&Resource::encode(ResourceType::Settings, "node", settings), Config::default())
    }

    #[test]
    fn what_is_not_set_is_as_the_flags_say() {
        let settings = SlotSettings {
            profile: "large".into(),
            cap: Some(4096),
            low_watermark: Some(0),
            growth: SlotGrowth::OnDemand.into(),
            zone: "a".into(),
            region: "eu".into(),
            ..Default::default()
        };
        let expected = Config { cap: 4096, low_watermark: 0, growth: Growth::OnDemand, ..Config::default() };
        let place = NodePlace { region: "eu".into(), zone: "a".into(), sub_zone: String::new() };
        let expected = Settings { profile: "large".into(), slots: expected, place };
        assert_eq!(decoded(&settings).unwrap(), expected);
    }

    #[test]
    fn a_contradiction_to_the_flags_is_named_with_them() {
        let error = decoded(&SlotSettings { profile: "small".into(), cap: Some(8), ..Default::default() });
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("SlotProfile small: 32 initial slabs are more than the cap, 8; "),
            "{error}"
        );
        assert!(error.contains("own flags say: initial 32"), "{error}");
        let error = decoded(&SlotSettings { growth: 9, ..Default::default() }).unwrap_err().to_string();
        assert_eq!(error, "growth: 9 is no mode of growth");
    }
}
