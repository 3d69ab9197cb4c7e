//! How a client knows that a response is one of several parts.
//!
//! A large answer is split so that each message stays below the decode limit of gRPC. Delta xDS has
//! no field that says so, and a client that takes the first part for the whole answer believes
//! itself in sync too early. `system_version_info`, which is only for people, carries the mark:
//! other clients don't read it, other servers don't write it.

const MORE_FOLLOWS: &str = "; more follows";

/// The `system_version_info` of a response: the store's generation, and whether this response is
/// followed by another part of the same answer.
pub fn system_version_info(generation: u64, more_follows: bool) -> String {
    format!("generation {generation}{}", if more_follows { MORE_FOLLOWS } else { "" })
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
        assert!(more_follows(&system_version_info(7, true)));
        assert!(!more_follows(&system_version_info(7, false)));
        assert!(!more_follows("2026-01-01T00:00:00Z/7"));
    }
}
