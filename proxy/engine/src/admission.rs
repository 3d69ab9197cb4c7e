//! Turns of requests: how many are in flight on a worker, and who is next.
//!
//! A client has so many requests in flight at most, and all clients together so many. What is above that waits in a
//! queue of its client, and the clients take turns: one that sends a flood delays its own requests. A queue is bounded;
//! what doesn't fit is shed.
//!
//! Invariant: nobody waits who may go.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    net::IpAddr,
    rc::Rc,
};

use tokio::sync::oneshot;

use crate::{dial::DialOrigin, limits::ProxyLimits};

/// A client: an address of an origin, as the addresses of two origins may be the same.
pub(crate) type ClientKey = (DialOrigin, IpAddr);

/// The requests in flight on a worker.
pub(crate) struct Admission {
    limits: ProxyLimits,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    in_flight: usize,
    clients: HashMap<ClientKey, Client>,
    /// Clients with requests that wait for the common bound, in the order of their turns; each is here once.
    turns: VecDeque<ClientKey>,
}

#[derive(Default)]
struct Client {
    in_flight: usize,
    waiting: VecDeque<oneshot::Sender<()>>,
    /// It is in `turns`.
    queued: bool,
}

/// A request in flight; it ends when this is dropped.
pub(crate) struct Permit {
    admission: Rc<Admission>,
    client: ClientKey,
}

/// There is no room for the request, not even to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shed;

impl Admission {
    pub(crate) fn new(limits: ProxyLimits) -> Rc<Self> {
        Rc::new(Self { limits, state: RefCell::default() })
    }

    #[cfg(test)]
    fn in_flight(&self) -> usize {
        self.state.borrow().in_flight
    }

    /// Takes a place that is free now.
    pub(crate) fn try_enter(self: &Rc<Self>, client: ClientKey) -> Option<Permit> {
        let mut state = self.state.borrow_mut();
        if state.in_flight >= self.limits.requests {
            return None;
        }
        let of = state.clients.entry(client).or_default();
        if of.in_flight >= self.limits.requests_per_client || !of.waiting.is_empty() {
            return None;
        }
        of.in_flight += 1;
        state.in_flight += 1;
        Some(Permit { admission: self.clone(), client })
    }

    /// Waits for the client's turn.
    ///
    /// # Errors
    /// Where too many of its requests wait already.
    pub(crate) async fn enter(self: &Rc<Self>, client: ClientKey) -> Result<Permit, Shed> {
        if let Some(permit) = self.try_enter(client) {
            return Ok(permit);
        }
        let turn = {
            let mut state = self.state.borrow_mut();
            let of = state.clients.entry(client).or_default();
            if of.waiting.len() >= self.limits.waiting_per_client {
                return Err(Shed);
            }
            let (sender, receiver) = oneshot::channel();
            of.waiting.push_back(sender);
            state.queue(client, &self.limits);
            receiver
        };
        // From here on the permit gives back what was taken, also when the request is dropped while it waits.
        let mut waiting = Waiting { admission: self, client, turn: Some(turn) };
        if let Some(turn) = waiting.turn.as_mut() {
            // The sender is dropped with the worker only.
            turn.await.map_err(|_| Shed)?;
        }
        waiting.turn = None;
        Ok(Permit { admission: self.clone(), client })
    }

    /// Gives up what a request had.
    fn leave(&self, client: ClientKey) {
        let mut state = self.state.borrow_mut();
        state.in_flight -= 1;
        if let Some(of) = state.clients.get_mut(&client) {
            of.in_flight -= 1;
            if of.in_flight == 0 && of.waiting.is_empty() {
                state.clients.remove(&client);
            } else {
                state.queue(client, &self.limits);
            }
        }
        state.admit(&self.limits);
    }
}

impl State {
    /// Puts a client with waiting requests in line, if it may have more in flight.
    fn queue(&mut self, client: ClientKey, limits: &ProxyLimits) {
        if let Some(of) = self.clients.get_mut(&client)
            && !of.queued
            && !of.waiting.is_empty()
            && of.in_flight < limits.requests_per_client
        {
            of.queued = true;
            self.turns.push_back(client);
        }
    }

    /// Lets those go whose turn it is, while there is room.
    fn admit(&mut self, limits: &ProxyLimits) {
        while self.in_flight < limits.requests {
            let Some(client) = self.turns.pop_front() else { return };
            let Some(of) = self.clients.get_mut(&client) else { continue };
            of.queued = false;
            // Those that have gone while they waited have no turn.
            while let Some(next) = of.waiting.pop_front() {
                if next.send(()).is_ok() {
                    of.in_flight += 1;
                    self.in_flight += 1;
                    break;
                }
            }
            if of.in_flight == 0 && of.waiting.is_empty() {
                self.clients.remove(&client);
            } else {
                self.queue(client, limits);
            }
        }
    }
}

/// A request that waits for its turn.
struct Waiting<'a> {
    admission: &'a Rc<Admission>,
    client: ClientKey,
    turn: Option<oneshot::Receiver<()>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Its turn came, and it has gone before it noticed.
        if let Some(turn) = &mut self.turn
            && turn.try_recv().is_ok()
        {
            self.admission.leave(self.client);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.leave(self.client);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::{Pin, pin},
        task::{Context, Poll, Waker},
    };

    use super::*;

    const A: ClientKey = (DialOrigin(1), IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
    const B: ClientKey = (DialOrigin(2), IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    fn admission(requests: usize, per_client: usize, waiting: usize) -> Rc<Admission> {
        Admission::new(ProxyLimits {
            requests,
            requests_per_client: per_client,
            waiting_per_client: waiting,
            ..ProxyLimits::default()
        })
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn now(admission: &Rc<Admission>, client: ClientKey) -> Permit {
        match poll(pin!(admission.enter(client))) {
            Poll::Ready(Ok(permit)) => permit,
            _ => panic!("{client:?} has to wait"),
        }
    }

    #[test]
    fn clients_take_turns_when_all_places_are_taken() {
        let admission = admission(2, 2, 10);
        let held = [now(&admission, A), now(&admission, A)];
        // A flood of one, then a single request of another.
        let mut flood: Vec<_> = (0..5).map(|_| Box::pin(admission.enter(A))).collect();
        for waits in &mut flood {
            assert!(poll(waits.as_mut()).is_pending());
        }
        let mut other = Box::pin(admission.enter(B));
        assert!(poll(other.as_mut()).is_pending());
        drop(held);
        assert!(
            matches!(poll(other.as_mut()), Poll::Ready(Ok(_))),
            "it waits behind one of the flood at most"
        );
        drop((flood, other));
        assert_eq!(admission.in_flight(), 0);
        assert!(admission.state.borrow().clients.is_empty());
    }

    #[test]
    fn one_client_is_bounded_while_others_go() {
        let admission = admission(10, 1, 1);
        let held = now(&admission, A);
        let mut second = Box::pin(admission.enter(A));
        assert!(poll(second.as_mut()).is_pending());
        assert!(matches!(poll(pin!(admission.enter(A))), Poll::Ready(Err(Shed))));
        let _other = now(&admission, B);
        drop(held);
        assert!(matches!(poll(second.as_mut()), Poll::Ready(Ok(_))));
    }

    #[test]
    fn whoever_goes_while_waiting_takes_no_place() {
        let admission = admission(1, 1, 10);
        let held = now(&admission, A);
        let mut gone = Box::pin(admission.enter(A));
        assert!(poll(gone.as_mut()).is_pending());
        drop(gone);
        let mut told = Box::pin(admission.enter(B));
        assert!(poll(told.as_mut()).is_pending());
        drop(held);
        // Its turn has come; it goes before it has noticed.
        drop(told);
        assert_eq!(admission.in_flight(), 0);
        drop(now(&admission, A));
        assert!(admission.state.borrow().clients.is_empty());
    }
}
