//! The answer that follows from a decision.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use slotmesh_routing::{HostRewrite, NormalizedPath, RequestAction, RequestHead, RouteTable};

use crate::{
    envoy::Options,
    exchange::{Answer, Outcome, Sent},
};

/// The name of a cluster's endpoint.
pub fn endpoint(cluster: &str) -> String {
    format!("{cluster}.endpoint.test")
}

pub fn predict(table: &RouteTable, request: &Sent, options: &Options) -> Answer {
    let path = match options.normalization().apply(&request.path) {
        NormalizedPath::Path(path) => path,
        NormalizedPath::Redirect(location) => return local(307, vec![("location".into(), location)], ""),
        NormalizedPath::BadRequest => return local(400, Vec::new(), ""),
    };
    let method: Method = request.method.parse().expect("a method");
    let mut headers = map(request.headers.iter().map(|(name, value)| (*name, value.as_str())));
    let head = RequestHead {
        method: &method,
        scheme: "http",
        authority: &request.host,
        path: &path,
        headers: &headers,
        source: None,
    };
    let decision = table.decide(&head, &mut || panic!("nothing here is left to chance"));
    let mut response = HeaderMap::new();
    let (status, outcome) = match decision.action {
        RequestAction::Respond(local) => {
            let mut status = local.status.as_u16();
            let mut body = String::from_utf8(local.body.into_owned()).expect("text");
            if let Some(grpc) = local.grpc_status {
                status = 200;
                response.insert("content-type", HeaderValue::from_static("application/grpc"));
                response.insert("grpc-status", HeaderValue::from(grpc));
                if !body.is_empty() {
                    response.insert("grpc-message", body.parse().expect("a value"));
                }
                body.clear();
            } else if !body.is_empty() {
                response.insert("content-type", HeaderValue::from_static("text/plain"));
            }
            (status, Outcome::Local { body })
        }
        RequestAction::Redirect { status, location } => {
            response.insert("location", location.parse().expect("a value"));
            (status.as_u16(), Outcome::Local { body: String::new() })
        }
        RequestAction::Forward(forwarding) => {
            response = map([("x-resp", "1"), ("x-other", "2"), ("x-other", "3")]);
            forwarding.request_headers.apply(&mut headers);
            let host = match forwarding.host {
                None => request.host.clone(),
                Some(HostRewrite::To(host)) => host.into_owned(),
                Some(HostRewrite::Endpoint) => endpoint(forwarding.cluster),
            };
            headers.insert("host", host.parse().expect("a value"));
            let outcome = Outcome::Upstream {
                cluster: forwarding.cluster.trim_start_matches('c').parse().expect("a number"),
                method: request.method.to_owned(),
                path: forwarding.path.unwrap_or_else(|| path.into_owned()),
                headers: list(&headers),
            };
            (200, outcome)
        }
    };
    decision.response_headers.apply(&mut response);
    Answer { status, headers: list(&response), outcome }
}

fn local(status: u16, headers: Vec<(String, String)>, body: &str) -> Answer {
    Answer { status, headers, outcome: Outcome::Local { body: body.to_owned() } }
}

fn map<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> HeaderMap {
    headers
        .into_iter()
        .map(|(name, value)| {
            (name.parse::<HeaderName>().expect("a name"), HeaderValue::from_str(value).expect("a value"))
        })
        .collect()
}

fn list(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut list: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()))
        .collect();
    list.sort();
    list
}
