//! Who may open a stream, and for which node.
//!
//! Whoever checks tokens is told by the caller; this crate only asks, holds the stream to the answer,
//! and counts what it refused. A token is never logged, and never kept longer than the question.

use std::{
    fmt,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::{NodeName, Origin};

/// A bearer token. Its debug form shows nothing of it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token itself, to be checked.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl<S: Into<String>> From<S> for Token {
    fn from(token: S) -> Self {
        Self(token.into())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Who was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// The node that the stream may be for.
    pub node: NodeName,
    /// How long the permission lasts; then the agent has to connect anew with a new token.
    pub lasts: Option<Duration>,
}

/// Why somebody wasn't let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The token isn't good.
    #[error("{0}")]
    Invalid(String),
    /// Nobody can tell at the moment.
    #[error("the token can't be checked now: {0}")]
    Unavailable(String),
}

/// The answer of an [`Authenticator`].
pub type AuthResult<'a> = Pin<Box<dyn Future<Output = Result<Authenticated, AuthError>> + Send + 'a>>;

/// Checks tokens.
pub trait Authenticator: fmt::Debug + Send + Sync + 'static {
    /// Tells whether the bearer of this token is let in. Where several ask, no origin waits for all that another one asks;
    /// `None` where nobody can tell where it comes from.
    fn authenticate(&self, token: Token, from: Option<Origin>) -> AuthResult<'_>;
}

/// Streams that were refused, by reason.
#[derive(Debug, Default)]
pub struct RefusedStreams {
    no_token: AtomicU64,
    bad_token: AtomicU64,
    other_node: AtomicU64,
    protocol: AtomicU64,
}

/// A reason of [`RefusedStreams`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    /// No token came with the stream.
    NoToken,
    /// The token isn't good.
    BadToken,
    /// The token is that of another node's agent.
    OtherNode,
    /// The peer doesn't keep to the protocol.
    Protocol,
}

impl RefusalReason {
    /// All reasons.
    pub const ALL: [Self; 4] = [Self::NoToken, Self::BadToken, Self::OtherNode, Self::Protocol];

    /// The reason as metrics name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::BadToken => "bad_token",
            Self::OtherNode => "other_node",
            Self::Protocol => "protocol",
        }
    }
}

impl RefusedStreams {
    const fn counter(&self, reason: RefusalReason) -> &AtomicU64 {
        match reason {
            RefusalReason::NoToken => &self.no_token,
            RefusalReason::BadToken => &self.bad_token,
            RefusalReason::OtherNode => &self.other_node,
            RefusalReason::Protocol => &self.protocol,
        }
    }

    /// How many streams were refused for this reason.
    pub fn count(&self, reason: RefusalReason) -> u64 {
        self.counter(reason).load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, reason: RefusalReason) {
        self.counter(reason).fetch_add(1, Ordering::Relaxed);
    }
}
