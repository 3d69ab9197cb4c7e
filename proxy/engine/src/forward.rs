//! A request that is sent on: to an endpoint of its cluster, once more where that may help, within its time.
//!
//! A request is sent a second time without anybody's asking in two cases, of which neither can make it happen twice:
//! nothing of it was written; or it went out on a connection that had been idle, the server said nothing and closed, and
//! its method is idempotent. Everything else is up to the route's retry policy.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{CONNECTION, UPGRADE},
    request::Parts,
};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use slotmesh_routing::{AttemptOutcome, ForwardRule, Forwarding, HeaderChanges, RetryPolicy, RetryState};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    attempt::{Arrived, AttemptFault, Busy, Target, UpstreamHead},
    body::{Progress, Replay, RequestBody, ResponseBody, ResponseEnd, StreamedBody, UpstreamBody},
    connection::ClientContext,
    downstream::HttpConfig,
    exchange::{self, Answered, FOREVER, Failure, Share},
    fields, mirror,
    pool::{Connection, Pool},
    reply::Reply,
    tunnel::{self, Active},
    upstream::RetryLimit,
    worker::ClusterState,
};

/// Times that a request is sent again because nothing of it had been sent.
pub(crate) const UNSENT: u32 = 3;

pub(crate) static ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
static TIMEOUT_RETRY: HeaderName = HeaderName::from_static("x-envoy-is-timeout-retry");

/// A request on its way out.
pub(crate) struct Outbound<'a> {
    pub context: &'a Rc<ClientContext>,
    pub http: &'a Arc<HttpConfig>,
    pub cluster: Rc<ClusterState>,
    pub forwarding: &'a Forwarding<'a>,
    pub parts: Parts,
    pub authority: String,
    pub path: String,
    /// The protocol to which the client asks to change, and its side of that.
    pub upgrade: Option<(String, OnUpgrade)>,
    pub share: Share,
}

/// Body of a request, for one attempt after the other.
enum Source {
    Empty,
    Once(Cell<Option<StreamedBody>>),
    Replay(Replay),
}

impl Source {
    fn new(body: Incoming, keep: Option<usize>, progress: &Rc<Progress>) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        match keep {
            Some(most) => Self::Replay(Replay::new(body, most, progress.clone())),
            None => {
                let body = StreamedBody { incoming: body, progress: progress.clone() };
                Self::Once(Cell::new(Some(body)))
            }
        }
    }

    /// The body for an attempt; `None` where it can't be sent any more.
    fn next(&self) -> Option<RequestBody> {
        match self {
            Self::Empty => Some(RequestBody::Empty),
            Self::Once(body) => body.take().map(RequestBody::Streamed),
            Self::Replay(body) => body.reader().map(RequestBody::Replay),
        }
    }
}

/// Time limit of a response: it ends when the time is over.
pub(crate) type Limit = Pin<Box<dyn Future<Output = ()>>>;

pub(crate) async fn forward(outbound: Outbound<'_>, body: Incoming) -> Result<Answered, Failure> {
    let Outbound { context, http, cluster, forwarding, parts, authority, path, upgrade, share } = outbound;
    let (worker, rule) = (&context.worker, forwarding.rule);
    let stats = cluster.stats.clone();
    let fail = |reply: Reply| Failure { reply, stats: Some(stats.clone()) };
    let active = begin(&cluster).map_err(&fail)?;
    let target = target(context, &cluster, forwarding);
    if let Some((name, _)) = &upgrade
        && (target.http2 || rule.upgrades.iter().any(|(of, allowed)| **of == **name && !allowed))
    {
        return Err(fail(Reply::new(StatusCode::FORBIDDEN, "this upgrade isn't passed through")));
    }
    let is_upgrade = upgrade.is_some();
    let client = context.peer.ip().to_canonical();
    let retry = rule.retry.as_ref().filter(|_| !is_upgrade).and_then(|policy| {
        let head = exchange::head(&parts, &authority, &path, client);
        RetryState::new(policy, &head).map(|state| (policy.clone(), state))
    });
    let version = parts.version;
    let head = UpstreamHead::new(forwarding, parts, &authority, &path).map_err(&fail)?;
    let progress = if body.is_end_stream() { Progress::ended_already() } else { Rc::default() };
    let most = rule.body_buffer.map_or(worker.limits.buffered_bytes, |most| {
        usize::try_from(most).unwrap_or(usize::MAX).min(worker.limits.buffered_bytes)
    });
    let keep = (retry.is_some() || !forwarding.mirrors.is_empty()).then_some(most);
    let source = Source::new(body, keep, &progress);
    mirror_all(context, forwarding, &head, &source, &progress);
    let idle = rule.idle_timeout.or(http.stream_idle).filter(|idle| !idle.is_zero());
    // Where all of the request has come, its time for the response is over first.
    let silent = match progress.has_ended() && !is_upgrade {
        true => silence_before(idle, forwarding.timeout),
        false => idle,
    };
    let mut limit = limit(forwarding.timeout, forwarding.stream_limit, &progress);
    let mut attempts = Attempts { target, rule, head, source, progress, is_upgrade, retry, count: 0 };
    let progress = attempts.progress.clone();
    let arrived = tokio::select! {
        biased;
        arrived = attempts.run() => arrived.map_err(&fail)?,
        () = &mut limit, if !is_upgrade => {
            stats.timeouts.one_more();
            return Err(fail(AttemptFault::Timeout.reply()));
        }
        () = request_over(http.request_timeout, &progress) => {
            stats.timeouts.one_more();
            return Err(fail(Reply::new(StatusCode::REQUEST_TIMEOUT, "the request took too long").grpc(4)));
        }
        () = silence(silent, &progress) => {
            stats.timeouts.one_more();
            let status = if progress.has_ended() { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
            return Err(fail(silent_reply(status)));
        }
    };
    let count = attempts.count;
    let Arrived { mut response, connection, pool, busy } = arrived;
    let lease = Lease {
        target: attempts.target,
        pool,
        connection: Some(connection),
        _busy: busy,
        _active: active,
        _share: share,
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some((_, client)) = upgrade else {
            return Err(fail(Reply::new(StatusCode::BAD_GATEWAY, "an upgrade that nobody has asked for")));
        };
        context.state.make_opaque();
        let server = hyper::upgrade::on(&mut response);
        let (open, state) = (worker.hold_open(), context.state.clone());
        spawn_local(async move {
            let _held = (lease, open);
            tokio::select! {
                () = join(client, server, idle) => {}
                () = state.ended() => tracing::debug!("an upgraded connection is cut off"),
            }
        });
        return Ok((switching(response), Some(stats)));
    }
    let (mut parts, body) = response.into_parts();
    prepare_response(&mut parts.headers, rule, count);
    parts.version = version;
    let body = UpstreamBody::wrap(body, limit, idle, Box::new(lease));
    Ok((Response::from_parts(parts, body), Some(stats)))
}

/// Counts a request of a cluster.
///
/// # Errors
/// Where the cluster has as many as it may have.
pub(crate) fn begin(cluster: &Rc<ClusterState>) -> Result<Active, Reply> {
    let requests = cluster.config.counters.requests.load(Relaxed);
    let active = Active::new(cluster);
    if cluster.config.requests.is_some_and(|most| requests >= most) {
        return Err(Reply::new(StatusCode::SERVICE_UNAVAILABLE, "the cluster has too many requests"));
    }
    Ok(active)
}

/// Where a request of a cluster goes.
pub(crate) fn target(
    context: &ClientContext,
    cluster: &Rc<ClusterState>,
    forwarding: &Forwarding<'_>,
) -> Target {
    let worker = &context.worker;
    let hash = match cluster.config.hashes_source {
        true => Some(worker.source_hash(context.origin, context.peer.ip())),
        false => forwarding.hash,
    };
    Target::new(worker, context.origin, cluster.clone(), hash, context.protocol)
}

/// Prepares the fields of an endpoint's response for the client. `count`: attempts that it took.
pub(crate) fn prepare_response(headers: &mut impl HeaderChanges, rule: &ForwardRule, count: u32) {
    fields::remove_hop_by_hop(headers, false);
    if rule.attempt_count_to_caller {
        headers.set(ATTEMPT_COUNT.clone(), HeaderValue::from(count));
    }
}

/// The longest silence before a response's head, of which all the request has come: none where the time for the response
/// is over first. `idle`: of either direction.
pub(crate) fn silence_before(idle: Option<Duration>, timeout: Option<Duration>) -> Option<Duration> {
    idle.filter(|idle| timeout.is_none_or(|timeout| timeout > *idle))
}

/// The answer where nothing has moved for too long.
pub(crate) fn silent_reply(status: StatusCode) -> Reply {
    Reply::new(status, "nothing has moved for too long").grpc(4)
}

/// Sends copies to the mirrors that get one.
fn mirror_all(
    context: &Rc<ClientContext>,
    forwarding: &Forwarding<'_>,
    head: &UpstreamHead,
    source: &Source,
    progress: &Rc<Progress>,
) {
    for mirror in &forwarding.mirrors {
        let Some(cluster) = context.worker.cluster(&mirror.cluster) else { continue };
        let mut head = head.clone();
        let host = mirror.host(head.host()).into_owned();
        if head.set_host(&host).is_err() {
            continue;
        }
        let target = Target::new(&context.worker, context.origin, cluster, None, context.protocol);
        let body = match source {
            Source::Replay(replay) => Some(replay.clone()),
            Source::Empty | Source::Once(_) => None,
        };
        mirror::send(target, head, body, progress.clone());
    }
}

/// A future that ends when the time for the response is over.
fn limit(timeout: Option<Duration>, stream: Option<Duration>, progress: &Rc<Progress>) -> Limit {
    let progress = progress.clone();
    let stream = stream.filter(|limit| !limit.is_zero()).map(|limit| Instant::now() + limit.min(FOREVER));
    Box::pin(async move {
        let timeout = after_request(timeout, &progress);
        match stream {
            None => timeout.await,
            Some(stream) => tokio::select! {
                () = timeout => {}
                () = sleep_until(stream) => {}
            },
        }
    })
}

/// Ends a time after the request has come whole; never where there is none.
async fn after_request(time: Option<Duration>, progress: &Progress) {
    let Some(time) = time else { return std::future::pending().await };
    progress.end_of_request().await;
    sleep(time.min(FOREVER)).await;
}

/// Ends where the request hasn't come whole after a time.
async fn request_over(time: Option<Duration>, progress: &Progress) {
    if let Some(time) = time {
        sleep(time.min(FOREVER)).await;
        if !progress.has_ended() {
            return;
        }
    }
    std::future::pending().await
}

/// Ends when nothing of the request has come for a time, and no response.
async fn silence(idle: Option<Duration>, progress: &Progress) {
    let Some(idle) = idle else { return std::future::pending().await };
    let began = Instant::now();
    loop {
        let until = progress.last().unwrap_or(began).max(began) + idle.min(FOREVER);
        if Instant::now() >= until {
            return;
        }
        sleep_until(until).await;
    }
}

/// The response that tells the client that the protocol changes.
fn switching(response: Response<Incoming>) -> Response<ResponseBody> {
    let (mut parts, _body) = response.into_parts();
    let protocol = parts.headers.get(UPGRADE).cloned();
    fields::remove_hop_by_hop(&mut parts.headers, false);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        parts.headers.insert(UPGRADE, protocol);
    }
    Response::from_parts(parts, ResponseBody::Full(None))
}

/// Passes bytes through once both sides have changed the protocol.
async fn join(client: OnUpgrade, server: OnUpgrade, idle: Option<Duration>) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "an upgrade failed"),
    };
    if let Err(error) = tunnel::pass(TokioIo::new(client), TokioIo::new(server), idle).await {
        tracing::debug!(%error, "an upgraded connection has ended");
    }
}

/// All attempts of a request.
struct Attempts<'a> {
    target: Target,
    rule: &'a ForwardRule,
    head: UpstreamHead,
    source: Source,
    progress: Rc<Progress>,
    is_upgrade: bool,
    retry: Option<(Arc<RetryPolicy>, RetryState)>,
    /// Attempts so far.
    count: u32,
}

impl Attempts<'_> {
    /// Sends the request until a response comes that counts.
    async fn run(&mut self) -> Result<Arrived, Reply> {
        let mut tried = Vec::new();
        let mut unsent = 0;
        let mut repeated = false;
        let mut slot = None;
        let mut body = self.source.next();
        loop {
            let Some(sent) = body.take() else {
                return Err(Reply::new(StatusCode::SERVICE_UNAVAILABLE, "the request can't be sent again"));
            };
            self.count += 1;
            self.tell_count();
            let done = self.once(sent, repeated || unsent > 0, &mut tried).await;
            drop(slot.take());
            let pause = match done {
                Ok(arrived) => {
                    let (status, headers) = (arrived.response.status(), arrived.response.headers());
                    match self.pause(AttemptOutcome::Response(status, headers)) {
                        None => return Ok(arrived),
                        Some(pause) => pause,
                    }
                }
                Err(AttemptFault::Ended { unsent: Some(back), .. }) if unsent < UNSENT => {
                    unsent += 1;
                    self.count -= 1;
                    body = Some(back);
                    continue;
                }
                Err(AttemptFault::Ended { reused: true, error, .. })
                    if !repeated && !error.is_parse() && self.is_repeatable() =>
                {
                    repeated = true;
                    self.count -= 1;
                    body = self.source.next();
                    continue;
                }
                Err(fault) => match self.pause(fault.outcome()) {
                    None => {
                        let cluster = &self.target.cluster.config.name;
                        tracing::debug!(%cluster, ?fault, "a request was not answered");
                        return Err(fault.reply());
                    }
                    Some(pause) => {
                        if matches!(fault, AttemptFault::Timeout) && self.rule.timeout_retry_to_upstream {
                            self.head.headers.insert(&TIMEOUT_RETRY, HeaderValue::from_static("true"));
                        }
                        pause
                    }
                },
            };
            slot = Some(RetrySlot::new(&self.target));
            self.target.cluster.stats.retries.one_more();
            sleep(pause).await;
            body = self.source.next();
        }
    }

    async fn once(
        &self,
        body: RequestBody,
        fresh: bool,
        tried: &mut Vec<std::net::SocketAddr>,
    ) -> Result<Arrived, AttemptFault> {
        let policy = self.retry.as_ref().map(|(policy, _)| policy);
        let avoid = policy.is_some_and(|policy| policy.avoid_previous_endpoints.is_some());
        let time = policy.and_then(|policy| policy.per_try_timeout);
        let idle = policy.and_then(|policy| policy.per_try_idle_timeout);
        let attempt = self.target.attempt(&self.head, body, fresh, avoid, tried);
        if time.is_none() && idle.is_none() {
            return attempt.await;
        }
        tokio::select! {
            biased;
            done = attempt => done,
            () = after_request(time, &self.progress) => Err(AttemptFault::Timeout),
            () = silence(idle, &self.progress) => Err(AttemptFault::Timeout),
        }
    }

    fn tell_count(&mut self) {
        if self.rule.attempt_count_to_upstream {
            self.head.headers.insert(&ATTEMPT_COUNT, HeaderValue::from(self.count));
        }
    }

    /// The pause after which the request is sent again, if it is to be and can be.
    fn pause(&mut self, outcome: AttemptOutcome<'_>) -> Option<Duration> {
        let (policy, state) = self.retry.as_mut()?;
        if matches!(&self.source, Source::Replay(replay) if !replay.is_kept()) {
            return None;
        }
        let worker = &self.target.worker;
        let pause = state.next(policy, outcome, &mut || worker.draw())?;
        if RetrySlot::is_free(&self.target) {
            return Some(pause);
        }
        self.target.cluster.stats.retries_denied.one_more();
        None
    }

    /// True for a request that may be sent twice, if nobody has answered the first.
    fn is_repeatable(&self) -> bool {
        !self.is_upgrade && self.head.method.is_idempotent()
    }
}

/// Counts a retry of a cluster.
struct RetrySlot(Target);

impl RetrySlot {
    fn is_free(target: &Target) -> bool {
        let config = &target.cluster.config;
        let retries = config.counters.retries.load(Relaxed);
        match config.retries {
            RetryLimit::Count(most) => retries < most,
            RetryLimit::Share { percent, at_least } => {
                let share = f64::from(config.counters.requests.load(Relaxed)) * percent / 100.0;
                // Whole retries: of three requests 20 % is none. As in Envoy.
                f64::from(retries) < share.floor().max(f64::from(at_least))
            }
        }
    }

    fn new(target: &Target) -> Self {
        target.cluster.config.counters.retries.fetch_add(1, Relaxed);
        Self(target.clone())
    }
}

impl Drop for RetrySlot {
    fn drop(&mut self) {
        self.0.cluster.config.counters.retries.fetch_sub(1, Relaxed);
    }
}

/// All that a response holds until it is over.
struct Lease {
    target: Target,
    pool: Rc<Pool>,
    connection: Option<Connection>,
    _busy: Busy,
    _active: Active,
    _share: Share,
}

impl ResponseEnd for Lease {
    fn complete(&mut self) {
        if let Some(connection) = self.connection.take() {
            let most = self.target.cluster.config.requests_per_connection;
            self.pool.give_back(connection, &self.target.worker.limits, most);
        }
    }

    fn failed(&mut self) {
        self.target.cluster.stats.resets.one_more();
    }
}
