//! Events of the streams, for one reader that keeps up or doesn't.
//!
//! Invariant: a stream is named at most once however often it changed, so what waits for a slow reader
//! is bounded by the streams; and without a reader nothing is kept. An end is never lost: it comes after
//! whatever else there is to say of its stream.

use std::collections::{BTreeMap, BTreeSet};

use crate::status::{AgentStatus, Ending, StreamEvent, StreamId};

/// Events that wait for the reader.
#[derive(Debug, Default)]
pub(crate) struct PendingEvents {
    /// Somebody reads.
    followed: bool,
    changed: BTreeSet<StreamId>,
    ended: BTreeMap<StreamId, StreamEvent>,
}

impl PendingEvents {
    /// Begins with all these streams.
    pub(crate) fn follow(&mut self, streams: Vec<StreamId>) {
        self.followed = true;
        self.changed.extend(streams);
    }

    pub(crate) fn changed(&mut self, stream: StreamId) {
        if self.followed {
            self.changed.insert(stream);
        }
    }

    /// A stream is gone; one whose agent never said its name is nothing to speak of.
    pub(crate) fn ended(&mut self, stream: StreamId, status: Option<AgentStatus>, ending: Ending) {
        self.changed.remove(&stream);
        if let Some(status) = status.filter(|_| self.followed) {
            self.ended.insert(stream, StreamEvent { status, ended: Some(ending) });
        }
    }

    /// The streams that changed, and the events of those that ended.
    pub(crate) fn take(&mut self) -> (BTreeSet<StreamId>, Vec<StreamEvent>) {
        let ended = std::mem::take(&mut self.ended).into_values().collect();
        (std::mem::take(&mut self.changed), ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeName;

    fn status(stream: u64) -> AgentStatus {
        AgentStatus {
            stream: StreamId(stream),
            node: NodeName::from("n1"),
            up_to_date: true,
            requests: 1,
            report: None,
            types: slotmesh_xds::PerType::default(),
        }
    }

    #[test]
    fn without_a_reader_nothing_is_kept_and_with_one_each_stream_once() {
        let mut events = PendingEvents::default();
        events.changed(StreamId(1));
        events.ended(StreamId(2), Some(status(2)), Ending::Closed);
        assert_eq!(events.take(), (BTreeSet::new(), Vec::new()));

        events.follow(vec![StreamId(3)]);
        for _ in 0..3 {
            events.changed(StreamId(4));
        }
        events.ended(StreamId(3), Some(status(3)), Ending::Lost);
        events.ended(StreamId(5), None, Ending::Closed);
        let ended = StreamEvent { status: status(3), ended: Some(Ending::Lost) };
        assert_eq!(events.take(), (BTreeSet::from([StreamId(4)]), vec![ended]));
        assert_eq!(events.take(), (BTreeSet::new(), Vec::new()));
    }
}
