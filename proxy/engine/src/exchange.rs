//! A request and its response: from the parsed head to the decision, and to whoever answers.
//!
//! ```text
//!  head -> what can't be trusted is refused -> its turn -> fields and path prepared -> route -> answered here
//!                                                                                           \-> forwarded
//! ```

use std::{net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version, header::HOST, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use slotmesh_routing::{NormalizedPath, RequestAction, RequestHead, RouteTable};
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
};

/// Counts a request of a connection until its response is over.
pub(crate) struct InFlight(Arc<ClientState>);

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

/// Answers a request.
pub(crate) async fn handle(context: Rc<ClientContext>, request: Request<Incoming>) -> Response<ResponseBody> {
    let ambiguous = context.state.begin_request();
    let in_flight = InFlight(context.state.clone());
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
    let share = Share { _in_flight: in_flight, _permit: permit };
    fields::prepare(&mut parts.headers, http, client, upgrade.is_some(), || worker.draw());
    let path = path(http, &parts)?;
    let table = routes(context, http)?;
    let mut draws = || worker.draw();
    let head = head(&parts, &authority, &path, client);
    let decision = table.decide(&head, &mut draws);
    let cluster = match &decision.action {
        RequestAction::Forward(forwarding) => worker.cluster(forwarding.cluster),
        RequestAction::Respond(_) | RequestAction::Redirect { .. } => None,
    };
    record.decided(decision.route, cluster.as_ref().map_or(&http.service, |cluster| &cluster.service));
    let request_id = http.request_id_in_response.then(|| parts.headers.get(&X_REQUEST_ID).cloned()).flatten();
    if let Some(delay) = decision.delay {
        sleep(delay.min(FOREVER)).await;
    }
    let (mut response, stats) = match decision.action {
        RequestAction::Respond(local) => {
            let body = Bytes::copy_from_slice(&local.body);
            let reply = Reply { body, grpc_status: local.grpc_status, ..Reply::new(local.status, "") };
            (reply.into_response(is_grpc), None)
        }
        RequestAction::Redirect { status, location } => {
            let reply = Reply { location: Some(location), ..Reply::new(status, "") };
            (reply.into_response(false), None)
        }
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
    };
    decision.response_headers.apply(response.headers_mut());
    if let Some(id) = request_id {
        response.headers_mut().insert(&X_REQUEST_ID, id);
    }
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
fn path(http: &HttpConfig, parts: &Parts) -> Result<String, Reply> {
    let asked = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    match http.paths.apply(asked) {
        NormalizedPath::Path(path) => Ok(path.into_owned()),
        NormalizedPath::Redirect(path) => {
            let reply = Reply::new(StatusCode::TEMPORARY_REDIRECT, "");
            Err(Reply { location: Some(path), ..reply })
        }
        NormalizedPath::BadRequest => Err(Reply::new(StatusCode::BAD_REQUEST, "the path leads astray")),
    }
}

fn routes(context: &ClientContext, http: &HttpConfig) -> Result<Arc<RouteTable>, Reply> {
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
