//! Mistakes in the protocol, made on purpose: a model that doesn't find them proves nothing.

use std::cell::Cell;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A grace period ends at once.
    NoBarrier,
    /// A barrier frees what is retired while it is under way.
    EarlyBarrier,
    /// The store that publishes doesn't order what was written before it.
    UnorderedPublication,
}

thread_local! {
    /// All threads of a model run on the thread of its test.
    static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Tells whether this mistake is to be made.
pub(crate) fn is_faulty(fault: Fault) -> bool {
    FAULT.get() == Some(fault)
}

/// From now on this mistake is made.
#[cfg(test)]
pub(crate) fn make(fault: Option<Fault>) {
    FAULT.set(fault);
}
