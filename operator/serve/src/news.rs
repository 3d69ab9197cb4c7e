//! Events of the streams, for one reader that keeps up or doesn't.
//!
//! Invariant: a stream is named at most once however often it changed, so what waits for a slow reader
//! is bounded by the streams; and without a reader nothing is kept. An end is never lost: it comes after
//! whatever else there is to say of its stream.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::watch;

use crate::{
    Store,
    status::{AgentStatus, Ending, StreamId, StreamNews},
};

/// Events that wait for the reader.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Somebody reads.
    followed: bool,
    changed: BTreeSet<StreamId>,
    ended: BTreeMap<StreamId, StreamNews>,
}

impl News {
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
            self.ended.insert(stream, StreamNews { status, ended: Some(ending) });
        }
    }

    /// The streams that changed, and the news of those that ended.
    pub(crate) fn take(&mut self) -> (BTreeSet<StreamId>, Vec<StreamNews>) {
        let ended = std::mem::take(&mut self.ended).into_values().collect();
        (std::mem::take(&mut self.changed), ended)
    }
}

/// Reads what happens on the streams of a store.
#[derive(Debug)]
pub struct Feed {
    store: Store,
    changes: watch::Receiver<u64>,
}

impl Feed {
    pub(crate) fn new(store: Store, mut changes: watch::Receiver<u64>) -> Self {
        changes.mark_changed();
        Self { store, changes }
    }

    /// Waits until something happened; ends of streams come first. May be dropped at any time without
    /// losing anything.
    pub async fn next(&mut self) -> Vec<StreamNews> {
        loop {
            // The store, which has the sender, is ours too: this can't fail.
            if self.changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let news = self.store.take_news();
            if !news.is_empty() {
                return news;
            }
        }
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
        let mut news = News::default();
        news.changed(StreamId(1));
        news.ended(StreamId(2), Some(status(2)), Ending::Closed);
        assert_eq!(news.take(), (BTreeSet::new(), Vec::new()));

        news.follow(vec![StreamId(3)]);
        for _ in 0..3 {
            news.changed(StreamId(4));
        }
        news.ended(StreamId(3), Some(status(3)), Ending::Lost);
        news.ended(StreamId(5), None, Ending::Closed);
        let ended = StreamNews { status: status(3), ended: Some(Ending::Lost) };
        assert_eq!(news.take(), (BTreeSet::from([StreamId(4)]), vec![ended]));
        assert_eq!(news.take(), (BTreeSet::new(), Vec::new()));
    }
}
