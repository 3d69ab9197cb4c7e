//! A request and its response: from the parsed head to the decision, and to whoever answers.
//!
//! ```text
//!  head -> what can't be trusted is refused -> its turn -> fields and path prepared -> route -> answered here
//!                                                                                           \-> forwarded
//! ```
//!
//! [`decide`] is the same for requests that hyper has parsed and for those of the path of our own (`plain`), whichever way
//! their fields are kept.

use std::{borrow::Cow, net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header::HOST, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use slotmesh_routing::{
    Draws, HeaderChanges, HeaderEdits, NormalizedPath, RequestAction, RequestHead, RouteTable,
};
use tokio::time::sleep;

use crate::{
    admission::Permit,
    body::ResponseBody,
    connection::ClientContext,
    counts::ClusterStats,
    downstream::{HttpConfig, RouteSource},
    fields::{self, X_REQUEST_ID},
    forward::{self, Outbound},
    inbound::ClientState,
    reply::{Reply, is_grpc},
    series::RequestRecord,
    worker::ClusterState,
};

/// Counts a request of a connection until its response is over.
pub(crate) struct InFlight(Arc<ClientState>);

impl InFlight {
    /// Of a request that has begun.
    pub(crate) fn new(state: &Arc<ClientState>) -> Self {
        Self(state.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.end_request();
    }
}

/// A request's share of the bounds, which it holds until its response is over.
pub(crate) struct Share {
    _in_flight: InFlight,
    _permit: Permit,
}

impl Share {
    pub(crate) fn new(in_flight: InFlight, permit: Permit) -> Self {
        Self { _in_flight: in_flight, _permit: permit }
    }
}

/// Answers a request.
pub(crate) async fn handle(context: Rc<ClientContext>, request: Request<Incoming>) -> Response<ResponseBody> {
    let ambiguous = context.state.begin_request();
    let in_flight = InFlight::new(&context.state);
    let is_grpc = is_grpc(request.headers());
    let mut record = RequestRecord::new(context.clone(), is_grpc);
    let answered = match (ambiguous, context.http()) {
        (true, _) => {
            Err(Reply::new(StatusCode::BAD_REQUEST, "the length of the body is said twice").closing().into())
        }
        (false, None) => Err(Reply::new(StatusCode::SERVICE_UNAVAILABLE, "nothing is served here").into()),
        (false, Some(http)) => respond(&context, &http, request, in_flight, &mut record).await,
    };
    let (mut response, stats) = match answered {
        Ok(answered) => answered,
        Err(Failure { reply, stats }) => (reply.into_response(is_grpc), stats),
    };
    let stats = stats.as_ref().unwrap_or(&context.worker.local_stats);
    stats.response(response.status().as_u16());
    record.answered(response.status(), response.headers());
    response.body_mut().record(record);
    response
}

/// A response, and the counts of the cluster that was asked.
pub(crate) type Answered = (Response<ResponseBody>, Option<Arc<ClusterStats>>);

/// A request that nobody has answered.
#[derive(Debug)]
pub(crate) struct Failure {
    pub reply: Reply,
    /// The counts of the cluster that was asked.
    pub stats: Option<Arc<ClusterStats>>,
}

impl From<Reply> for Failure {
    fn from(reply: Reply) -> Self {
        Self { reply, stats: None }
    }
}

/// A request as rules are to see it, whichever way its fields are kept.
pub(crate) struct AskedHead<'r, F> {
    pub method: &'r Method,
    pub authority: &'r str,
    /// Normalised.
    pub path: &'r str,
    pub fields: &'r mut F,
    pub is_upgrade: bool,
}

/// Outcome of a decision about a request.
pub(crate) struct DecidedRequest<'t> {
    /// Name of the rule, if it has one.
    pub route: Option<&'t str>,
    /// Time to wait before the action.
    pub delay: Option<Duration>,
    pub action: RequestAction<'t>,
    /// The cluster that it goes to, if it is known.
    pub cluster: Option<Rc<ClusterState>>,
    pub response: ResponseChanges<'t>,
}

/// Changes of the response's fields, whoever makes the response.
pub(crate) struct ResponseChanges<'t> {
    edits: HeaderEdits<'t>,
    request_id: Option<HeaderValue>,
}

impl ResponseChanges<'_> {
    pub(crate) fn apply(self, fields: &mut impl HeaderChanges) {
        self.edits.apply(fields);
        if let Some(id) = self.request_id {
            fields.set(X_REQUEST_ID.clone(), id);
        }
    }
}

/// Prepares the fields of a request and decides it. `draws`: all chance that there is in it.
pub(crate) fn decide<'t, F: HeaderChanges>(
    context: &ClientContext,
    http: &HttpConfig,
    table: &'t RouteTable,
    asked: AskedHead<'_, F>,
    draws: &mut impl Draws,
) -> DecidedRequest<'t> {
    let AskedHead { method, authority, path, fields, is_upgrade } = asked;
    let client = context.peer.ip().to_canonical();
    fields::prepare(fields, http, client, is_upgrade, draws);
    let fields = &*fields;
    let head = RequestHead { method, scheme: "http", authority, path, headers: fields, source: Some(client) };
    let decision = table.decide(&head, draws);
    let cluster = match &decision.action {
        RequestAction::Forward(forwarding) => context.worker.cluster(forwarding.cluster),
        RequestAction::Respond(_) | RequestAction::Redirect { .. } => None,
    };
    let id = http.request_id_in_response.then(|| fields.values(&X_REQUEST_ID).next()).flatten();
    let request_id = id.and_then(|id| HeaderValue::from_bytes(id).ok());
    DecidedRequest {
        route: decision.route,
        delay: decision.delay,
        action: decision.action,
        cluster,
        response: ResponseChanges { edits: decision.response_headers, request_id },
    }
}

/// The answer to a request that isn't forwarded, and true where a caller of gRPC is to get it as a status of gRPC.
pub(crate) fn local_reply(action: RequestAction<'_>) -> Option<(Reply, bool)> {
    match action {
        RequestAction::Respond(local) => {
            let body = Bytes::copy_from_slice(&local.body);
            Some((Reply { body, grpc_status: local.grpc_status, ..Reply::new(local.status, "") }, true))
        }
        RequestAction::Redirect { status, location } => {
            Some((Reply { location: Some(location), ..Reply::new(status, "") }, false))
        }
        RequestAction::Forward(_) => None,
    }
}

async fn respond(
    context: &Rc<ClientContext>,
    http: &Arc<HttpConfig>,
    mut request: Request<Incoming>,
    in_flight: InFlight,
    record: &mut RequestRecord,
) -> Result<Answered, Failure> {
    let worker = &context.worker;
    refuse(http, &request, http.headers.unwrap_or(worker.limits.headers))?;
    let is_grpc = is_grpc(request.headers());
    let upgrade = fields::upgrade(request.version(), request.headers());
    let on_upgrade: Option<OnUpgrade> = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    let authority = authority(&mut parts)?;
    let client = context.peer.ip().to_canonical();
    let Ok(permit) = worker.admission.enter((context.origin, client)).await else {
        worker.stats.requests_shed.one_more();
        let reply = Reply::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests wait already");
        return Err(reply.into());
    };
    let share = Share::new(in_flight, permit);
    let asked = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let path = path(http, asked)?.into_owned();
    let table = routes(context, http)?;
    let mut random = SmallRng::seed_from_u64(context.seed.take().unwrap_or_else(|| worker.draw()));
    let asked = AskedHead {
        method: &parts.method,
        authority: &authority,
        path: &path,
        fields: &mut parts.headers,
        is_upgrade: upgrade.is_some(),
    };
    let decided = decide(context, http, &table, asked, &mut || random.next_u64());
    let cluster = decided.cluster;
    record.decided(decided.route, cluster.as_ref().map_or(&http.service, |cluster| &cluster.service));
    if let Some(delay) = decided.delay {
        sleep(delay.min(FOREVER)).await;
    }
    let (mut response, stats) = match decided.action {
        RequestAction::Forward(forwarding) => {
            let Some(cluster) = cluster else {
                let status = forwarding.rule.cluster_not_found;
                return Err(Reply::new(status, "the cluster isn't known").into());
            };
            let outbound = Outbound {
                context,
                http,
                cluster,
                forwarding: &forwarding,
                parts,
                authority,
                path,
                upgrade: upgrade.zip(on_upgrade),
                share,
            };
            forward::forward(outbound, body).await?
        }
        local => match local_reply(local) {
            Some((reply, as_grpc)) => (reply.into_response(is_grpc && as_grpc), None),
            None => return Err(Reply::new(StatusCode::INTERNAL_SERVER_ERROR, "").into()),
        },
    };
    decided.response.apply(response.headers_mut());
    Ok((response, stats))
}

/// Refuses what isn't served, or can't be trusted.
fn refuse(http: &HttpConfig, request: &Request<Incoming>, most_headers: usize) -> Result<(), Reply> {
    if request.version() < Version::HTTP_11 && !http.accept_http_10 {
        return Err(Reply::new(StatusCode::UPGRADE_REQUIRED, "").closing());
    }
    if request.headers().len() > most_headers {
        return Err(Reply::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, ""));
    }
    if request.method() == Method::CONNECT {
        return Err(Reply::new(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not served").closing());
    }
    Ok(())
}

/// Host and port that a request is for. The `Host` field is taken out of the head.
fn authority(parts: &mut Parts) -> Result<String, Reply> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Reply::new(StatusCode::BAD_REQUEST, "there are two hosts").closing());
    }
    let host = match (parts.uri.authority(), first) {
        // An absolute URI, or `:authority`, counts more than a `Host` field.
        (Some(authority), _) => authority.as_str().to_owned(),
        (None, Some(host)) => match host.to_str() {
            Ok(host) => host.to_owned(),
            Err(_) => return Err(Reply::new(StatusCode::BAD_REQUEST, "the host can't be read").closing()),
        },
        (None, None) => return Err(Reply::new(StatusCode::BAD_REQUEST, "there is no host").closing()),
    };
    if host.is_empty() {
        return Err(Reply::new(StatusCode::BAD_REQUEST, "the host is empty").closing());
    }
    parts.headers.remove(HOST);
    Ok(host)
}

/// Path and query, normalised as the listener says.
pub(crate) fn path<'p>(http: &HttpConfig, asked: &'p str) -> Result<Cow<'p, str>, Reply> {
    match http.paths.apply(asked) {
        NormalizedPath::Path(path) => Ok(path),
        NormalizedPath::Redirect(path) => {
            let reply = Reply::new(StatusCode::TEMPORARY_REDIRECT, "");
            Err(Reply { location: Some(path), ..reply })
        }
        NormalizedPath::BadRequest => Err(Reply::new(StatusCode::BAD_REQUEST, "the path leads astray")),
    }
}

pub(crate) fn routes(context: &ClientContext, http: &HttpConfig) -> Result<Arc<RouteTable>, Reply> {
    let found = match &http.routes {
        RouteSource::Inline(table) => Some(table.clone()),
        RouteSource::Named(name) => context.worker.routes(name),
    };
    // As Envoy, which knows no virtual host then.
    found.ok_or_else(|| Reply::new(StatusCode::NOT_FOUND, ""))
}

/// The head as rules see it.
pub(crate) fn head<'r>(
    parts: &'r Parts,
    authority: &'r str,
    path: &'r str,
    client: IpAddr,
) -> RequestHead<'r, http::HeaderMap> {
    RequestHead {
        method: &parts.method,
        scheme: "http",
        authority,
        path,
        headers: &parts.headers,
        source: Some(client),
    }
}

/// The longest time that a timer is set to: beyond it there is no limit.
pub(crate) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3_600);
