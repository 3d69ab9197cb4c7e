//! How far the source was that an agent's resources come from, as it gives back when it connects.
//!
//! It stands in `Node.metadata` beside the [report](crate::AgentReport), under a key of its own. An agent has it only
//! from slotmesh's operator, and doesn't read it.

use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

const KEY: &str = "slotmesh.dev/source";
/// Longer than all kinds with their versions.
const LONGEST: usize = 4_096;

/// Adds it to the metadata of a node.
pub fn give_source_back(metadata: &mut Struct, source: &str) {
    let value = Value { kind: Some(Kind::StringValue(source.to_owned())) };
    metadata.fields.insert(KEY.to_owned(), value);
}

/// What the metadata of a node gives back.
pub fn source_given_back(metadata: &Struct) -> Option<&str> {
    match metadata.fields.get(KEY)?.kind.as_ref()? {
        Kind::StringValue(source) if source.len() <= LONGEST => Some(source),
        _ => None,
    }
}
