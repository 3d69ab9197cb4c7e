//! One attempt to send a request: an endpoint, a connection to it, the head of its response.

use std::{net::SocketAddr, rc::Rc};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::HOST,
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::body::Incoming;
use slotmesh_routing::{AttemptOutcome, Forwarding, HostRewrite};

use crate::{
    body::RequestBody,
    dial::{DialOrigin, Dialing},
    downstream::ClientProtocol,
    fields,
    pool::{ConnectFault, Connection, Pool},
    reply::Reply,
    upstream::UpstreamProtocol,
    worker::{ClusterState, Worker},
};

/// Where an attempt goes.
#[derive(Clone)]
pub(crate) struct Target {
    pub worker: Rc<Worker>,
    pub origin: DialOrigin,
    pub cluster: Rc<ClusterState>,
    /// By which a cluster that hashes chooses the endpoint.
    pub hash: Option<u64>,
    pub http2: bool,
}

/// The head of a request, ready to be sent to any endpoint of a cluster.
#[derive(Clone)]
pub(crate) struct UpstreamHead {
    pub method: Method,
    pub headers: HeaderMap,
    path: PathAndQuery,
    host: HeaderValue,
    authority: Authority,
}

/// Why no response came.
#[derive(Debug)]
pub(crate) enum AttemptFault {
    NoEndpoint,
    Connect(ConnectFault),
    /// The connection or stream ended. `unsent` is the body, where nothing of the request was sent.
    Ended {
        error: hyper::Error,
        unsent: Option<RequestBody>,
        reused: bool,
    },
    /// The same, of a connection of the path of our own. `unsent`: nothing of the request was sent; `silent`: nothing has
    /// come; `unreadable`: what came is no response.
    Broken {
        unsent: bool,
        silent: bool,
        unreadable: bool,
        reused: bool,
    },
    /// The attempt's time was over.
    Timeout,
}

/// A response and what it holds.
pub(crate) struct Arrived {
    pub response: Response<Incoming>,
    pub connection: Connection,
    pub pool: Rc<Pool>,
    pub busy: Busy,
}

/// Counts a request of an endpoint.
pub(crate) struct Busy(Rc<Pool>);

impl Busy {
    pub(crate) fn new(pool: &Rc<Pool>) -> Self {
        pool.requests.set(pool.requests.get() + 1);
        Self(pool.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get() - 1);
    }
}

impl UpstreamHead {
    pub(crate) fn new(
        forwarding: &Forwarding<'_>,
        parts: Parts,
        authority: &str,
        path: &str,
    ) -> Result<Self, Reply> {
        let bad = |text| Reply::new(StatusCode::BAD_REQUEST, text);
        let Parts { method, mut headers, version, .. } = parts;
        if version == Version::HTTP_2 {
            fields::join_cookies(&mut headers);
        }
        forwarding.request_headers.apply(&mut headers);
        let host = match &forwarding.host {
            Some(HostRewrite::To(host)) => host,
            // Endpoints have addresses and no names here.
            Some(HostRewrite::Endpoint) | None => authority,
        };
        let path = forwarding.path.as_deref().unwrap_or(path);
        let mut head = Self {
            method,
            headers,
            path: path.parse().map_err(|_| bad("the path can't be sent"))?,
            host: HeaderValue::from_static(""),
            authority: Authority::from_static("unknown"),
        };
        head.set_host(host)?;
        Ok(head)
    }

    /// Host and port that it is for.
    pub(crate) fn host(&self) -> &str {
        self.authority.as_str()
    }

    pub(crate) fn set_host(&mut self, host: &str) -> Result<(), Reply> {
        let bad = || Reply::new(StatusCode::BAD_REQUEST, "the host can't be sent");
        self.host = HeaderValue::from_str(host).map_err(|_| bad())?;
        self.authority = host.parse().map_err(|_| bad())?;
        Ok(())
    }

    fn request(&self, http2: bool, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        if http2 {
            let mut uri = http::uri::Parts::default();
            uri.scheme = Some(Scheme::HTTP);
            uri.authority = Some(self.authority.clone());
            uri.path_and_query = Some(self.path.clone());
            *request.uri_mut() = Uri::from_parts(uri).unwrap_or_default();
            *request.version_mut() = Version::HTTP_2;
        } else {
            *request.uri_mut() = Uri::from(self.path.clone());
            request.headers_mut().insert(HOST, self.host.clone());
        }
        request
    }
}

impl Target {
    /// Makes a connection.
    pub(crate) fn dial(&self, endpoint: SocketAddr) -> Dialing<'_> {
        self.cluster.stats.connects.one_more();
        self.worker.dial.dial(self.origin, endpoint)
    }

    pub(crate) fn new(
        worker: &Rc<Worker>,
        origin: DialOrigin,
        cluster: Rc<ClusterState>,
        hash: Option<u64>,
        downstream: ClientProtocol,
    ) -> Self {
        let http2 = match cluster.config.protocol {
            UpstreamProtocol::Http1 => false,
            UpstreamProtocol::Http2 => true,
            UpstreamProtocol::AsDownstream => downstream == ClientProtocol::Http2,
        };
        Self { worker: worker.clone(), origin, cluster, hash, http2 }
    }

    /// Counts a connection that couldn't be made.
    pub(crate) fn no_connection(&self, endpoint: SocketAddr, fault: ConnectFault) -> AttemptFault {
        self.cluster.stats.connect_failures.one_more();
        tracing::debug!(%fault, %endpoint, "no connection");
        AttemptFault::Connect(fault)
    }

    /// Sends a request to an endpoint, another one than those in `avoid` if there is one, on a connection that is new
    /// where `fresh` says so. The endpoint is appended to `tried`.
    pub(crate) async fn attempt(
        &self,
        head: &UpstreamHead,
        body: RequestBody,
        fresh: bool,
        avoid: bool,
        tried: &mut Vec<SocketAddr>,
    ) -> Result<Arrived, AttemptFault> {
        let Self { worker, origin, cluster, hash, http2 } = self;
        let avoided: &[SocketAddr] = if avoid { tried } else { &[] };
        let endpoint = cluster.pick(worker, *origin, *hash, avoided).ok_or(AttemptFault::NoEndpoint)?;
        tried.push(endpoint);
        let pool = cluster.pool(*origin, endpoint);
        let busy = Busy::new(&pool);
        let dial = || self.dial(endpoint);
        let config = &cluster.config;
        let found = match http2 {
            true => pool.open_stream(&worker.limits, config.requests_per_connection),
            false if fresh => None,
            false => pool.idle(config.idle_timeout),
        };
        let plain = match found {
            None if !*http2 && !fresh => pool.idle_plain(config.idle_timeout),
            _ => None,
        };
        // In boxes: most requests make no connection, and carry no room for it.
        let connected = match (found, plain) {
            (Some(connection), _) => Ok(connection),
            (None, Some(plain)) => Box::pin(plain.into_hyper(&worker.limits)).await,
            (None, None) if *http2 => Box::pin(pool.stream(dial, config, &worker.limits)).await,
            (None, None) => Box::pin(pool.connect(dial(), config, &worker.limits)).await,
        };
        let mut connection = connected.map_err(|fault| self.no_connection(endpoint, fault))?;
        let reused = connection.is_reused();
        match connection.send(head.request(*http2, body)).await {
            Ok(response) => Ok(Arrived { response, connection, pool, busy }),
            Err(mut fault) => {
                let unsent = fault.take_message().map(Request::into_body);
                if unsent.is_some() {
                    pool.leave(&connection);
                }
                cluster.stats.resets.one_more();
                Err(AttemptFault::Ended { error: fault.into_error(), unsent, reused })
            }
        }
    }
}

impl AttemptFault {
    /// The outcome, as retry policies know it.
    pub(crate) fn outcome(&self) -> AttemptOutcome<'static> {
        match self {
            Self::NoEndpoint | Self::Connect(ConnectFault::TooMany) => AttemptOutcome::Overflow,
            Self::Connect(_) => AttemptOutcome::ConnectFailure,
            Self::Ended { error, .. } if is_refused(error) => AttemptOutcome::RefusedStream,
            Self::Ended { unsent, .. } => AttemptOutcome::Reset(unsent.is_some()),
            Self::Broken { unsent, .. } => AttemptOutcome::Reset(*unsent),
            Self::Timeout => AttemptOutcome::PerTryTimeout,
        }
    }

    /// The answer for the client.
    pub(crate) fn reply(&self) -> Reply {
        let (status, text) = match self {
            Self::NoEndpoint => (StatusCode::SERVICE_UNAVAILABLE, "there is no endpoint"),
            Self::Connect(ConnectFault::TooMany) => {
                (StatusCode::SERVICE_UNAVAILABLE, "the cluster has too many connections")
            }
            Self::Connect(_) => (StatusCode::SERVICE_UNAVAILABLE, "no connection to the endpoint"),
            Self::Ended { error, .. } if error.is_parse() => {
                (StatusCode::BAD_GATEWAY, "the endpoint's response can't be read")
            }
            Self::Broken { unreadable: true, .. } => {
                (StatusCode::BAD_GATEWAY, "the endpoint's response can't be read")
            }
            Self::Ended { .. } | Self::Broken { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "the endpoint has ended the connection")
            }
            Self::Timeout => {
                return Reply::new(StatusCode::GATEWAY_TIMEOUT, "the endpoint took too long").grpc(4);
            }
        };
        Reply::new(status, text)
    }
}

/// True where an HTTP/2 endpoint says that it has not begun with the request.
fn is_refused(error: &hyper::Error) -> bool {
    use std::error::Error as _;
    let mut source = error.source();
    while let Some(fault) = source {
        if let Some(fault) = fault.downcast_ref::<h2::Error>() {
            return fault.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        source = fault.source();
    }
    false
}
