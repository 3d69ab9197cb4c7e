//! Acknowledgements of agents, as the command line and status objects read it.
//!
//! Plain values, copied out of the streams on request: a reader never holds up a stream for longer
//! than the copy takes.

use std::{fmt, sync::Arc};

use slotmesh_xds::{AgentReport, PerType, ResourceName, Sketch, Version};

/// The name of a node, as its agent gives it in the first request (`node.id`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<S: Into<Arc<str>>> From<S> for NodeName {
    fn from(name: S) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One stream of one agent, unique within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub(crate) u64);

impl From<u64> for StreamId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl StreamId {
    /// A number from 0 to 1; those of consecutive streams lie far from each other, and any number of
    /// them evenly.
    pub(crate) fn spread(self) -> f64 {
        // Multiples of the golden ratio, without their whole part.
        (f64::from((self.0 & 0xffff_ffff) as u32) * 0.618_033_988_749_895).fract()
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Acknowledgements of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentStatus {
    /// The stream.
    pub stream: StreamId,
    /// The node, once its first request has arrived.
    pub node: NodeName,
    /// The agent has answered to all that is served now: it has it in force, or refused it.
    pub up_to_date: bool,
    /// How many requests the agent has sent; it rises only while the agent lives.
    pub requests: u64,
    /// The agent's last word on itself, if it gives one.
    pub report: Option<AgentReport>,
    /// Details by resource type.
    pub types: PerType<TypeStatus>,
}

/// Something happened on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEvent {
    /// Its agent's acknowledgements now; when the stream has ended, the last that it had.
    pub status: AgentStatus,
    /// How it ended, if it did.
    pub ended: Option<Ending>,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The agent closed it.
    Closed,
    /// The connection was lost.
    #[default]
    Lost,
    /// The agent didn't keep to the protocol.
    Refused,
    /// The agent's token expired; it comes back with a new one.
    Expired,
    /// This server is shutting down; the agent goes to another.
    Shutdown,
}

/// Acknowledgements of one resource type on one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeStatus {
    /// The agent has asked for this type.
    pub subscribed: bool,
    /// How many resources the agent has in force.
    pub held: usize,
    /// The versions of these, and of what the node is spared, as a sketch.
    pub sketch: Sketch,
    /// How many responses are sent and not acknowledged yet.
    pub unacknowledged: usize,
    /// How many resources wait to be compared and sent.
    pub pending: usize,
    /// Resources that the agent refused and has not got a newer version of.
    pub rejected: Vec<Rejected>,
}

/// A resource that an agent refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The resource.
    pub name: ResourceName,
    /// The refused version; `None` when the agent refused to remove the resource.
    pub version: Option<Version>,
    /// The agent's reason.
    pub reason: String,
}
