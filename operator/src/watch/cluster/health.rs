//! Conclusions from a kind's failures: about the API server, for all kinds, and about the kind, for itself.
//!
//! Invariants: when the API server answers after it was away, every kind that waits tries at once. A kind is left
//! out only while the API server answers, and says no; while it is away, nobody can tell.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// How long a kind may hold up all others at the start.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells all kinds that the API server answers.
#[derive(Debug)]
pub(super) struct Answers(watch::Sender<u64>);

impl Default for Answers {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Answers {
    pub(super) fn listen(&self) -> Heard {
        Heard { answers: self.0.subscribe(), away: false }
    }

    /// Notes that `heard` got an answer of the API server; wakes the others where that was away.
    pub(super) fn answered(&self, heard: &mut Heard) {
        if std::mem::take(&mut heard.away) {
            self.0.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

/// One kind's view of that.
#[derive(Debug)]
pub(super) struct Heard {
    answers: watch::Receiver<u64>,
    /// The last request wasn't answered.
    away: bool,
}

impl Heard {
    /// A request wasn't answered; what was heard before says nothing.
    pub(super) fn unanswered(&mut self) {
        self.away = true;
        self.answers.mark_unchanged();
    }

    /// Sleeps; less where the API server has answered somebody else meanwhile, and hadn't answered this one.
    pub(super) async fn sleep(&mut self, wait: Duration) {
        let others = async {
            if !self.away || self.answers.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = others => {}
        }
    }
}

/// Decides whether a kind that was never listed is left out.
#[derive(Debug)]
pub(super) struct Refusals {
    since: Option<Instant>,
    left_out: bool,
}

impl Refusals {
    /// The first request is about to be made: what isn't answered in time counts from here.
    pub(super) const fn new(now: Instant) -> Self {
        Self { since: Some(now), left_out: false }
    }

    /// The API server refused to list the kind; says whether it is left out from now on.
    pub(super) fn refused(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        !self.left_out && now.duration_since(since) >= PATIENCE && {
            self.left_out = true;
            true
        }
    }

    /// Nobody can tell.
    pub(super) fn unanswered(&mut self) {
        self.since = None;
    }

    /// The kind is listed; says whether it was left out.
    pub(super) fn listed(&mut self) -> bool {
        std::mem::take(&mut self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);

    #[tokio::test(start_paused = true)]
    async fn one_answer_wakes_all_that_had_none() {
        let answers = Answers::default();
        let (mut one, mut other, mut refused) = (answers.listen(), answers.listen(), answers.listen());
        one.unanswered();
        other.unanswered();
        let start = tokio::time::Instant::now();
        tokio::join!(other.sleep(LONG), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            answers.answered(&mut one);
        });
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        // Those that are refused wait for themselves; and what was heard is heard once.
        answers.answered(&mut other);
        refused.sleep(Duration::from_secs(5)).await;
        one.unanswered();
        one.sleep(Duration::from_secs(5)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(11));
    }

    #[test]
    fn a_kind_is_left_out_once_and_only_while_the_api_server_answers() {
        let start = Instant::now();
        let mut refusals = Refusals::new(start);
        let later = start + PATIENCE;
        assert!(!refusals.refused(start));
        refusals.unanswered();
        assert!(!refusals.refused(later), "nobody could tell in between");
        assert!(refusals.refused(later + PATIENCE));
        assert!(!refusals.refused(later + 2 * PATIENCE), "once");
        assert!(refusals.listed() && !refusals.listed());
    }
}
