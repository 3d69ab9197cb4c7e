//! Which replica writes what is to be written once: the holder of a Lease.
//!
//! ```text
//!  Following --nobody renewed for a whole term, or it is free--> take --accepted--> Leading(until)
//!      ^                                                                              |
//!      +---------------- another has it, or `until` is over --------------------------+
//! ```
//!
//! Invariants:
//! - Time is measured here, by the monotonic clock, never compared with what another clock wrote: a
//!   follower waits a whole term from when *it* saw the Lease change, and a leader counts from before it
//!   *sent* the renewal. So a clock that jumps, here or elsewhere, makes nobody lead.
//! - Each write carries the resource version that was read: of two that take the Lease, one gets it.
//! - A leader stops by itself well before anybody else may take the Lease. (What it writes besides carries
//!   resource versions too, so a leader that slept through its term writes over nobody.)

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Counters, MANAGER, WriteError, until};

/// How long a Lease lasts that isn't renewed.
const TERM: Duration = Duration::from_secs(15);
/// How long a leader leads after a renewal.
const LEADS: Duration = Duration::from_secs(10);
/// How often it is renewed, and looked at by the others.
const PERIOD: Duration = Duration::from_secs(3);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(5);

/// Until when this replica leads, if it does. To be asked each time before something is written.
#[derive(Clone, Debug)]
pub(super) struct Leadership(watch::Receiver<Option<Instant>>);

impl Leadership {
    pub(super) fn leads(&self) -> bool {
        self.0.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Resolves when [`leads`](Self::leads) is no longer what it was found to be.
    pub(super) async fn turns(&mut self, from: bool) {
        loop {
            let over = *self.0.borrow_and_update();
            if self.leads() != from {
                return;
            }
            tokio::select! {
                changed = self.0.changed() => if changed.is_err() { std::future::pending().await },
                () = until(over.filter(|_| from)) => {}
            }
        }
    }
}

/// The version of the Lease, and since when it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Observed {
    version: Option<String>,
    since: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Following(Option<Observed>),
    Leading { until: Instant },
}

/// An order of the state machine.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Wait,
    /// Write our name into the Lease as it was read.
    Take,
}

/// The state machine of one candidate: no clock, no API server.
#[derive(Debug)]
struct Election {
    identity: String,
    state: State,
}

impl Election {
    fn new(identity: &str) -> Self {
        Self { identity: identity.to_owned(), state: State::Following(None) }
    }

    /// The Lease was read.
    fn read(&mut self, lease: &Lease, now: Instant) -> Step {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder == self.identity {
            // Ours: to be renewed; or that of an earlier process of this name, which has ended.
            return Step::Take;
        }
        if holder.is_empty() {
            self.state = State::Following(None);
            return Step::Take;
        }
        let version = lease.metadata.resource_version.clone();
        let observed = match &self.state {
            State::Following(Some(observed)) if observed.version == version => observed.clone(),
            State::Following(_) | State::Leading { .. } => Observed { version, since: now },
        };
        let expired = now.saturating_duration_since(observed.since) >= TERM;
        self.state = State::Following(Some(observed));
        if expired { Step::Take } else { Step::Wait }
    }

    /// The Lease was taken by a request that was sent at `sent`.
    fn took(&mut self, sent: Instant) {
        self.state = State::Leading { until: sent + LEADS };
    }

    /// Another was faster.
    fn lost(&mut self) {
        self.state = State::Following(None);
    }

    fn until(&self) -> Option<Instant> {
        match self.state {
            State::Leading { until } => Some(until),
            State::Following(_) => None,
        }
    }
}

/// Takes part in the election.
pub(super) struct Candidate {
    leases: Api<Lease>,
    name: String,
    election: Election,
    leads: watch::Sender<Option<Instant>>,
    counters: Counters,
}

impl Candidate {
    pub(super) fn new(
        client: &Client,
        namespace: &str,
        name: &str,
        identity: &str,
        counters: Counters,
    ) -> (Self, Leadership) {
        let (leads, leadership) = watch::channel(None);
        let candidate = Self {
            leases: Api::namespaced(client.clone(), namespace),
            name: name.to_owned(),
            election: Election::new(identity),
            leads,
            counters,
        };
        (candidate, Leadership(leadership))
    }

    /// Runs until `stop`, and gives the Lease back then if it is ours.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            match tokio::time::timeout(REQUEST, self.round()).await.unwrap_or(Err(WriteError::Timeout)) {
                Ok(()) => {}
                Err(WriteError::Conflict) => self.election.lost(),
                Err(error) => warn!(lease = self.name, %error, "the Lease can't be kept; trying again"),
            }
            self.tell();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
        if self.election.until().is_some() {
            self.election.lost();
            self.tell();
            match tokio::time::timeout(REQUEST, self.release()).await.unwrap_or(Err(WriteError::Timeout)) {
                Ok(()) => info!(lease = self.name, "gave the Lease back"),
                Err(error) => warn!(lease = self.name, %error, "the Lease can't be given back; it expires"),
            }
        }
    }

    fn tell(&mut self) {
        let until = self.election.until().filter(|until| *until > Instant::now());
        let before = self.leads.send_replace(until);
        self.counters.leads(until.is_some());
        match (before.is_some(), until.is_some()) {
            (false, true) => info!(lease = self.name, "this replica leads: it writes conditions"),
            (true, false) => info!(lease = self.name, "this replica no longer leads"),
            _ => {}
        }
    }

    async fn round(&mut self) -> Result<(), WriteError> {
        let lease = match self.leases.get_opt(&self.name).await? {
            Some(lease) => lease,
            None => self.leases.create(&params(), &self.empty()).await?,
        };
        if self.election.read(&lease, Instant::now()) == Step::Take {
            let sent = Instant::now();
            let taken = self.taken(lease);
            self.leases.replace(&self.name, &params(), &taken).await?;
            self.election.took(sent);
        }
        Ok(())
    }

    fn empty(&self) -> Lease {
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        Lease { metadata, spec: None }
    }

    /// The Lease with our name in it. Its times are for people.
    fn taken(&self, mut lease: Lease) -> Lease {
        let spec = lease.spec.take().unwrap_or_default();
        let identity = &self.election.identity;
        let ours = spec.holder_identity.as_ref() == Some(identity);
        let now = MicroTime(Timestamp::now());
        lease.metadata.managed_fields = None;
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(identity.clone()),
            lease_duration_seconds: i32::try_from(TERM.as_secs()).ok(),
            acquire_time: if ours { spec.acquire_time.clone() } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(spec.lease_transitions.unwrap_or_default() + i32::from(!ours)),
            ..spec
        });
        lease
    }

    async fn release(&self) -> Result<(), WriteError> {
        let mut lease = self.leases.get(&self.name).await?;
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_ref() == Some(&self.election.identity) {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            lease.metadata.managed_fields = None;
            self.leases.replace(&self.name, &params(), &lease).await?;
        }
        Ok(())
    }
}

fn params() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: u32) -> Lease {
        let holder_identity = (!holder.is_empty()).then(|| holder.to_owned());
        // What the other's clock says is of no interest, however far it is off.
        let renew_time = Timestamp::from_second(0).ok().map(MicroTime);
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.to_string()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec { holder_identity, renew_time, ..LeaseSpec::default() }),
        }
    }

    #[test]
    fn a_lease_that_is_free_is_taken_and_renewed() {
        let (mut election, now) = (Election::new("a"), Instant::now());
        assert_eq!(election.read(&lease("", 1), now), Step::Take);
        assert_eq!(election.until(), None);
        election.took(now);
        assert_eq!(election.until(), Some(now + LEADS));
        assert_eq!(election.read(&lease("a", 2), now + PERIOD), Step::Take);
    }

    #[test]
    fn a_lease_is_taken_over_a_whole_term_after_its_last_change_was_seen() {
        let (mut election, now) = (Election::new("b"), Instant::now());
        assert_eq!(election.read(&lease("a", 1), now), Step::Wait);
        assert_eq!(election.read(&lease("a", 1), now + TERM - PERIOD), Step::Wait);
        // It was renewed.
        let renewed = now + TERM;
        assert_eq!(election.read(&lease("a", 2), renewed), Step::Wait);
        assert_eq!(election.read(&lease("a", 2), renewed + TERM - Duration::from_millis(1)), Step::Wait);
        assert_eq!(election.read(&lease("a", 2), renewed + TERM), Step::Take);
        assert!(LEADS + REQUEST <= TERM, "the old leader has stopped by then");
        // Another was faster.
        election.lost();
        assert_eq!(election.read(&lease("c", 3), renewed + TERM), Step::Wait);
    }

    #[test]
    fn a_leader_whose_lease_another_has_leads_no_more() {
        let (mut election, now) = (Election::new("a"), Instant::now());
        election.took(now);
        assert_eq!(election.read(&lease("b", 7), now), Step::Wait);
        assert_eq!(election.until(), None);
    }
}
