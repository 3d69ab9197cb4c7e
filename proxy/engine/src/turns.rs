//! Turns of clients on a worker's thread: a flood of one client doesn't delay another one's requests by more than a few of
//! its own.
//!
//! ```text
//!  sockets are looked at -> tasks that are woken -> up to 16 polls of each client's connections -> sockets are looked at -> …
//!                                                    \-> the others of this client wait in line
//! ```
//!
//! Without this all connections of a flood are served once before anybody else is seen. Waiting costs nothing but
//! itself: who is in line isn't polled.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    future::Future,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
};

use tokio::task::{spawn_local, yield_now};

use crate::admission::ClientKey;

/// Polls of a client's connections between two looks at the sockets.
const MOST: usize = 16;

/// The clients of a worker.
#[derive(Default)]
pub(crate) struct Turns {
    clients: RefCell<HashMap<ClientKey, Weak<ClientTurns>>>,
    /// Clients with connections in line, each once.
    line: RefCell<Vec<Rc<ClientTurns>>>,
    round: Cell<u64>,
    /// Somebody begins the next round.
    kept: Cell<bool>,
}

/// The connections of a client.
pub(crate) struct ClientTurns {
    all: Rc<Turns>,
    client: ClientKey,
    /// The round of which `taken` tells.
    round: Cell<u64>,
    taken: Cell<usize>,
    waiting: RefCell<VecDeque<(Waker, Rc<Cell<Turn>>)>>,
}

impl Drop for ClientTurns {
    fn drop(&mut self) {
        self.all.clients.borrow_mut().remove(&self.client);
    }
}

/// Place of a connection in its client's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Out,
    Waiting,
    /// Its turn has come.
    Come,
}

impl Turns {
    /// The turns of a client.
    pub(crate) fn of(self: &Rc<Self>, client: ClientKey) -> Rc<ClientTurns> {
        let mut clients = self.clients.borrow_mut();
        if let Some(found) = clients.get(&client).and_then(Weak::upgrade) {
            return found;
        }
        let new = Rc::new(ClientTurns {
            all: self.clone(),
            client,
            round: Cell::default(),
            taken: Cell::default(),
            waiting: RefCell::default(),
        });
        clients.insert(client, Rc::downgrade(&new));
        new
    }

    fn keep(self: &Rc<Self>) {
        if self.kept.replace(true) {
            return;
        }
        let all = self.clone();
        spawn_local(async move {
            while !all.line.borrow().is_empty() {
                // The sockets are looked at.
                yield_now().await;
                all.next_round();
            }
            all.kept.set(false);
        });
    }

    fn next_round(&self) {
        self.round.set(self.round.get() + 1);
        self.line.borrow_mut().retain(|client| {
            client.round.set(self.round.get());
            let mut waiting = client.waiting.borrow_mut();
            let come = waiting.len().min(MOST);
            client.taken.set(come);
            for (waker, turn) in waiting.drain(..come) {
                turn.set(Turn::Come);
                waker.wake();
            }
            !waiting.is_empty()
        });
    }
}

impl ClientTurns {
    /// Takes a turn of this round, or gets in line.
    fn take(self: &Rc<Self>, turn: &Rc<Cell<Turn>>, context: &Context<'_>) -> bool {
        match turn.get() {
            Turn::Waiting => return false,
            Turn::Come => {
                turn.set(Turn::Out);
                return true;
            }
            Turn::Out => {}
        }
        if self.round.replace(self.all.round.get()) != self.all.round.get() {
            self.taken.set(0);
        }
        if self.taken.get() < MOST {
            self.taken.set(self.taken.get() + 1);
            return true;
        }
        turn.set(Turn::Waiting);
        let mut waiting = self.waiting.borrow_mut();
        waiting.push_back((context.waker().clone(), turn.clone()));
        if waiting.len() == 1 {
            self.all.line.borrow_mut().push(self.clone());
        }
        self.all.keep();
        false
    }
}

/// A connection's future, which is polled when its client has a turn.
pub(crate) struct InTurn<F> {
    future: F,
    client: Rc<ClientTurns>,
    turn: Rc<Cell<Turn>>,
}

impl<F: Future + Unpin> InTurn<F> {
    pub(crate) fn new(future: F, client: Rc<ClientTurns>) -> Self {
        Self { future, client, turn: Rc::new(Cell::new(Turn::Out)) }
    }
}

impl<F: Future + Unpin> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        if !this.client.take(&this.turn, context) {
            return Poll::Pending;
        }
        Pin::new(&mut this.future).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::Ipv4Addr};

    use tokio::task::LocalSet;

    use super::*;
    use crate::dial::DialOrigin;

    fn of(turns: &Rc<Turns>, last: u8) -> Rc<ClientTurns> {
        turns.of((DialOrigin::default(), Ipv4Addr::new(10, 0, 0, last).into()))
    }

    #[tokio::test]
    async fn a_flood_delays_others_by_a_few_of_its_own() {
        let turns: Rc<Turns> = Rc::default();
        let polls = Rc::new(Cell::new(0));
        let tasks = LocalSet::new();
        for _ in 0..300 {
            let polls = polls.clone();
            let always = poll_fn(move |context| {
                polls.set(polls.get() + 1);
                context.waker().wake_by_ref();
                Poll::<()>::Pending
            });
            tasks.spawn_local(InTurn::new(always, of(&turns, 1)));
        }
        let (mut left, mut before, mut most) = (100, None, 0);
        let other = poll_fn(|context| {
            if let Some(before) = before.replace(polls.get()) {
                most = most.max(polls.get() - before);
            }
            left -= 1;
            context.waker().wake_by_ref();
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        let of_other = of(&turns, 2);
        tasks.run_until(InTurn::new(Box::pin(other), of_other)).await;
        assert!(most <= 4 * MOST, "{most} polls of the flood between two of the other");
        assert!(polls.get() > 300, "the flood goes on, too: {}", polls.get());
    }

    #[tokio::test]
    async fn nobody_is_forgotten_in_line_and_clients_that_are_gone_are() {
        let turns: Rc<Turns> = Rc::default();
        let tasks = LocalSet::new();
        let all: Vec<_> = (0..10 * MOST)
            .map(|_| {
                let mut left = 5;
                let some = poll_fn(move |context| {
                    left -= 1;
                    context.waker().wake_by_ref();
                    if left == 0 { Poll::Ready(()) } else { Poll::Pending }
                });
                tasks.spawn_local(InTurn::new(some, of(&turns, 1)))
            })
            .collect();
        tasks
            .run_until(async {
                for task in all {
                    task.await.unwrap();
                }
            })
            .await;
        drop(tasks);
        assert!(turns.clients.borrow().is_empty() && turns.line.borrow().is_empty());
    }
}
