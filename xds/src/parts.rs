//! How a client knows that a response is one of several parts, and how new it is.
//!
//! A large answer is split so that each message stays below the decode limit of gRPC. Delta xDS has
//! no field that says so, and a client that takes the first part for the whole answer believes
//! itself in sync too early. `system_version_info`, which is only for people, carries the mark:
//! other clients don't read it, other servers don't write it. It also says how far the source was known that
//! the resources come from.

const MORE_FOLLOWS: &str = "; more follows";
const SOURCE: &str = "; source ";

/// The `system_version_info` of a response: the store's generation, how far the source was known (empty where it
/// has no versions), and whether this response is followed by another part of the same answer.
pub fn system_version_info(generation: u64, source: &str, more_follows: bool) -> String {
    let before = if source.is_empty() { "" } else { SOURCE };
    format!("generation {generation}{before}{source}{}", if more_follows { MORE_FOLLOWS } else { "" })
}

/// How far the source was known, as the response with this `system_version_info` says. Only slotmesh's operator says
/// so.
pub fn source_of(system_version_info: &str) -> Option<&str> {
    let (_, source) = system_version_info.split_once(SOURCE)?;
    Some(source.strip_suffix(MORE_FOLLOWS).unwrap_or(source))
}

/// Whether the response with this `system_version_info` is followed by another part of the same
/// answer. `false` for whatever a foreign control plane writes there.
pub fn more_follows(system_version_info: &str) -> bool {
    system_version_info.ends_with(MORE_FOLLOWS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_part_that_is_not_the_last_says_that_more_follows() {
        assert!(more_follows(&system_version_info(7, "", true)));
        assert!(!more_follows(&system_version_info(7, "Pod=1", false)));
        assert!(!more_follows("2026-01-01T00:00:00Z/7"));
    }

    #[test]
    fn the_source_is_read_back_where_there_is_one() {
        for more in [true, false] {
            assert_eq!(source_of(&system_version_info(7, "Pod=1,Service=2", more)), Some("Pod=1,Service=2"));
            assert_eq!(source_of(&system_version_info(7, "", more)), None);
        }
    }
}
