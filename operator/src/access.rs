//! Who an agent is, by its service account token.
//!
//! The API server says whether a token is good (TokenReview, with an audience of our own, so that a
//! token for anything else is none here), whose it is and on which node its pod runs. Good answers are
//! remembered until the token expires, bad ones for a minute; of a token only its SHA-256 is kept.
//! Who is asked about next, and how fast, is [`Line`]'s to say.
//!
//! Invariant: nobody gets a stream for a node without a token of the agent's service account that
//! Kubernetes bound to a pod on that node.

mod line;
mod memory;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::{Api, Client, api::PostParams};
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use slotmesh_serve::{AuthError, AuthResult, Authenticated, Authenticator, NodeName, Origin, Token};
use tokio::sync::oneshot;

use self::{
    line::{Line, Next},
    memory::{Digest, Known, Memory},
};

/// Where Kubernetes tells the node of the pod to which a token is bound (1.30 and later; always on since
/// 1.32).
const NODE: &str = "authentication.kubernetes.io/node-name";
/// A good answer is asked for anew after this long at the latest: the pod may have been deleted.
const LONGEST: Duration = Duration::from_secs(600);
/// When a good answer is asked for anew about a token that is over by this machine's clock.
const SOON: Duration = Duration::from_secs(30);
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a token may wait for its turn.
const TURN: Duration = Duration::from_secs(10);

type Waiting = Arc<Mutex<Line<Option<Origin>, oneshot::Sender<()>>>>;

/// Checks the tokens of agents.
pub struct Tokens {
    reviews: Api<TokenReview>,
    audience: String,
    /// `system:serviceaccount:<namespace>:<name>`
    user: String,
    memory: Mutex<Memory>,
    line: Waiting,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens")
            .field("audience", &self.audience)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Tokens {
    /// Lets in the agents that run as this service account, with tokens for `audience`.
    pub fn new(client: Client, audience: &str, namespace: &str, service_account: &str) -> Self {
        Self {
            reviews: Api::all(client),
            audience: audience.to_owned(),
            user: format!("system:serviceaccount:{namespace}:{service_account}"),
            memory: Mutex::default(),
            line: Arc::new(Mutex::new(Line::new())),
        }
    }

    async fn review(&self, token: &Token, from: Option<Origin>) -> Result<Authenticated, AuthError> {
        let key = key(token);
        if let Some(known) = self.recall(&key) {
            return known;
        }
        let turn = Turn::wait(&self.line, from).await?;
        // It may have been asked about meanwhile.
        if let Some(known) = self.recall(&key) {
            turn.ends_unused();
            return known;
        }
        let answer = self.ask(token).await;
        let now = Instant::now();
        match &answer {
            Ok(authenticated) => {
                let ask_again = now + authenticated.lasts.unwrap_or(LONGEST).min(LONGEST);
                lock(&self.memory).good(key, authenticated, now, ask_again);
            }
            Err(AuthError::Invalid(why)) => {
                turn.ends_bad(from, now);
                lock(&self.memory).bad(key, why.clone(), now);
            }
            Err(AuthError::Unavailable(_)) => {}
        }
        answer
    }

    fn recall(&self, key: &Digest) -> Option<Result<Authenticated, AuthError>> {
        Some(match lock(&self.memory).recall(key, Instant::now())? {
            Known::Good(authenticated) => Ok(authenticated),
            Known::Bad(why) => Err(AuthError::Invalid(why)),
        })
    }

    async fn ask(&self, token: &Token) -> Result<Authenticated, AuthError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.audience.clone()]),
                token: Some(token.reveal().to_owned()),
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let status = tokio::time::timeout(PATIENCE, self.reviews.create(&params, &review))
            .await
            .map_err(|_elapsed| AuthError::Unavailable(format!("no answer within {PATIENCE:?}")))?
            .map_err(|error| AuthError::Unavailable(error.to_string()))?
            .status
            .ok_or_else(|| AuthError::Unavailable("the answer says nothing".to_owned()))?;
        if status.authenticated != Some(true) {
            let reason = status.error.unwrap_or_else(|| "it isn't authentic".to_owned());
            return Err(AuthError::Invalid(format!("the token is refused: {reason}")));
        }
        if !status.audiences.unwrap_or_default().contains(&self.audience) {
            return Err(AuthError::Invalid(format!("the token isn't for the audience {:?}", self.audience)));
        }
        let node = node_of(&status.user.unwrap_or_default(), &self.user).map_err(AuthError::Invalid)?;
        Ok(Authenticated { node, lasts: lasts(token.reveal(), SystemTime::now()) })
    }
}

/// A question whose turn it is. When this is dropped, its share of the rate of bad ones comes back, unless it was one.
struct Turn {
    line: Waiting,
    outcome: Outcome,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Asked,
    /// And the token is bad.
    Bad,
    Unused,
}

impl Turn {
    async fn wait(line: &Waiting, from: Option<Origin>) -> Result<Self, AuthError> {
        let busy = || AuthError::Unavailable("too many tokens wait to be checked; try again".to_owned());
        let (ticket, mut turn) = oneshot::channel();
        let mut until = {
            let (mut line, now) = (lock(line), Instant::now());
            line.join(from, ticket, now).map_err(|_ticket| busy())?;
            call(&mut line, now)
        };
        let given_up = tokio::time::sleep(TURN);
        tokio::pin!(given_up);
        loop {
            let more = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                called = &mut turn => match called {
                    Ok(()) => return Ok(Self { line: Arc::clone(line), outcome: Outcome::Asked }),
                    Err(_dropped) => return Err(busy()),
                },
                () = more => until = call(&mut lock(line), Instant::now()),
                () = &mut given_up => return Err(busy()),
            }
        }
    }

    /// Nothing was asked.
    fn ends_unused(mut self) {
        self.outcome = Outcome::Unused;
    }

    fn ends_bad(mut self, from: Option<Origin>, now: Instant) {
        self.outcome = Outcome::Bad;
        lock(&self.line).mark(from, now);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut line = lock(&self.line);
        match self.outcome {
            Outcome::Asked => line.give_back(),
            Outcome::Bad => {}
            Outcome::Unused => line.unasked(),
        }
        call(&mut line, Instant::now());
    }
}

/// Calls all whose turn it is; says when it is that of others.
fn call(line: &mut Line<Option<Origin>, oneshot::Sender<()>>, now: Instant) -> Option<Instant> {
    loop {
        match line.next(now) {
            // Who waits no longer takes nothing.
            Next::Ask(ticket) => {
                if ticket.send(()).is_err() {
                    line.unasked();
                }
            }
            Next::At(when) => return Some(when),
            Next::Nothing => return None,
        }
    }
}

/// A panic elsewhere leaves what is whole, so a poisoned lock is used on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Authenticator for Tokens {
    fn authenticate(&self, token: Token, from: Option<Origin>) -> AuthResult<'_> {
        Box::pin(async move { self.review(&token, from).await })
    }
}

fn key(token: &Token) -> Digest {
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, token.reveal().as_bytes()).as_ref());
    key
}

/// The node of the agent, from what the API server says of the token.
fn node_of(user: &UserInfo, expected: &str) -> Result<NodeName, String> {
    let name = user.username.as_deref().unwrap_or_default();
    if name != expected {
        return Err(format!("the token is that of {name:?}; agents run as {expected:?}"));
    }
    let claims = user.extra.as_ref().and_then(|extra| extra.get(NODE));
    match claims.map(Vec::as_slice) {
        Some([node]) if !node.is_empty() => Ok(NodeName::from(node.as_str())),
        _ => Err(format!(
            "the token is bound to no pod on a node ({NODE}); project it into the agent's pod, on Kubernetes 1.32 or \
             later"
        )),
    }
}

/// How long a token lasts, as it says itself; `None` where it says nothing. To be asked only about a token that the API
/// server has just found authentic: where it is over by this machine's clock the clocks differ, and it is asked about again
/// [soon](SOON); and it never lasts longer than it was issued for.
fn lasts(token: &str, now: SystemTime) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
        #[serde(default)]
        iat: u64,
    }
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let Claims { exp, iat } = serde_json::from_slice(&claims).ok()?;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let left = Duration::from_secs(exp).saturating_sub(now);
    let whole = Duration::from_secs(exp.saturating_sub(iat));
    Some(if left.is_zero() { SOON } else { left.min(whole) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const AGENT: &str = "system:serviceaccount:slotmesh-system:slotmesh-agent";

    fn user(name: &str, node: Option<&str>) -> UserInfo {
        let extra = node.map(|node| BTreeMap::from([(NODE.to_owned(), vec![node.to_owned()])]));
        UserInfo { username: Some(name.to_owned()), extra, ..UserInfo::default() }
    }

    #[test]
    fn only_the_agents_account_on_a_node_is_let_in() {
        assert_eq!(node_of(&user(AGENT, Some("n1")), AGENT), Ok("n1".into()));
        let other = node_of(&user("system:serviceaccount:shop:default", Some("n1")), AGENT).unwrap_err();
        assert!(other.contains("shop:default") && other.contains(AGENT), "{other}");
        for nowhere in [None, Some("")] {
            let error = node_of(&user(AGENT, nowhere), AGENT).unwrap_err();
            assert!(error.contains("1.32"), "{error}");
        }
    }

    #[test]
    fn a_token_tells_how_long_it_lasts() {
        let token = |claims: &str| format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims));
        let issued = 1_700_000_000;
        let hour = token(&format!(r#"{{"aud":["x"],"iat":{issued},"exp":{}}}"#, issued + 3_600));
        let at = |moment: u64| lasts(&hour, UNIX_EPOCH + Duration::from_secs(moment));
        assert_eq!(at(issued + 600), Some(Duration::from_secs(3_000)));
        // This machine's clock is wrong: the API server has just taken the token.
        assert_eq!(at(issued + 7_200), Some(SOON));
        assert_eq!(at(issued - 7_200), Some(Duration::from_secs(3_600)));
        let endless = token(&format!(r#"{{"exp":{}}}"#, issued + 60));
        assert_eq!(lasts(&endless, UNIX_EPOCH + Duration::from_secs(issued)), Some(Duration::from_secs(60)));
        for odd in ["", "opaque", "a.b.c", "a.!.c"] {
            assert_eq!(lasts(odd, UNIX_EPOCH), None, "{odd:?}");
        }
    }
}
