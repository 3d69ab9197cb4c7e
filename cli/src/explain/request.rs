//! Where a request goes: by the proxy's own decision on the route configuration that the proxy of the node has.
//!
//! The decision is asked [`TRIES`] times with other numbers, as weights and percentages are decided by chance.

use std::{collections::BTreeMap, fmt::Write as _, str::FromStr};

use anyhow::{Context as _, bail};
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Serialize;
use slotmesh_agent::config::Message;
use slotmesh_routing::{
    EscapedSlashes, NormalizedPath, PathNormalization, RequestAction, RequestHead, RouteTable,
};
use slotmesh_xds::{Resource, ResourceType};

/// Number of decisions that are asked for.
const TRIES: u32 = 2_048;
/// Paths of the mesh are matched as the listeners of proxies normalise them.
const NORMALIZATION: PathNormalization =
    PathNormalization { resolve: true, merge_slashes: false, escaped_slashes: EscapedSlashes::Keep };

/// The request that is asked about.
#[derive(Clone, Debug, Args)]
pub struct RequestArgs {
    /// A header of the request: says which HTTP rule takes it; may be repeated. Host, too, else it is that of --to
    #[arg(long, env = "SLOTMESH_HEADER", value_name = "NAME: VALUE", help_heading = "Request")]
    header: Vec<Header>,

    /// The path of the request, and its query [default: /]
    #[arg(long, env = "SLOTMESH_PATH", help_heading = "Request")]
    path: Option<String>,

    /// The method of the request [default: GET]
    #[arg(long, env = "SLOTMESH_METHOD", help_heading = "Request")]
    method: Option<Method>,
}

/// `NAME: VALUE`
#[derive(Clone, Debug)]
struct Header(HeaderName, HeaderValue);

impl FromStr for Header {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').or_else(|| text.split_once('='));
        let header = parts.and_then(|(name, value)| {
            Some(Self(name.trim().parse().ok()?, HeaderValue::from_str(value.trim()).ok()?))
        });
        header.ok_or_else(|| "expected NAME: VALUE, such as x-beta: 1".to_owned())
    }
}

impl RequestArgs {
    /// True where a request is asked about, not only a connection.
    pub fn is_asked(&self) -> bool {
        let Self { header, path, method } = self;
        !header.is_empty() || path.is_some() || method.is_some()
    }
}

/// Where a request goes.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DecidedRequest {
    method: String,
    host: String,
    path: String,
    /// The rule, which is called after its object and field.
    rule: Option<String>,
    /// Shares of the clusters that it is sent to.
    clusters: BTreeMap<String, f64>,
    /// Shares of the answers that nobody else makes: status, and location.
    answers: BTreeMap<String, f64>,
    /// Share of the requests that are copied to each cluster.
    mirrors: BTreeMap<String, f64>,
    /// Seconds that it may take; none is without a limit.
    timeout_seconds: Option<f64>,
}

/// Decides a request by a route configuration, given as bytes.
///
/// # Errors
/// Where it isn't one, or the path can't be.
pub fn decide(config: &[u8], asked: &RequestArgs, authority: &str) -> anyhow::Result<DecidedRequest> {
    let resource = Resource::encoded(ResourceType::Route, "", config.to_vec());
    let Message::Route(config) = Message::decode(&resource)? else { bail!("it is no route configuration") };
    let (table, _) = RouteTable::new(&config);
    let RequestArgs { header, path, method } = asked;
    let method = method.clone().unwrap_or(Method::GET);
    let mut headers = HeaderMap::new();
    let mut authority = authority.to_owned();
    for Header(name, value) in header {
        if name == "host" {
            authority = value.to_str().context("--header Host")?.to_owned();
        } else {
            headers.append(name, value.clone());
        }
    }
    let path = path.as_deref().unwrap_or("/");
    let mut found =
        DecidedRequest { method: method.to_string(), host: authority.clone(), ..DecidedRequest::default() };
    let path = match NORMALIZATION.apply(path) {
        NormalizedPath::Path(path) => path,
        NormalizedPath::Redirect(to) => {
            found.answers.insert(format!("307 to {to}"), 1.0);
            return Ok(found);
        }
        NormalizedPath::BadRequest => {
            found.answers.insert("400".to_owned(), 1.0);
            return Ok(found);
        }
    };
    found.path = path.to_string();
    let (method, scheme) = (&method, "http");
    let head =
        RequestHead { method, scheme, authority: &authority, path: &path, headers: &headers, source: None };
    let mut state = 0_u64;
    // Numbers that are spread as evenly as chance does it, and the same each time.
    let mut draws = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    for _ in 0..TRIES {
        let decision = table.decide(&head, &mut draws);
        found.rule = decision.route.map(str::to_owned);
        match decision.action {
            RequestAction::Forward(forwarding) => {
                *found.clusters.entry(forwarding.cluster.to_owned()).or_default() += 1.0;
                found.timeout_seconds = forwarding.timeout.map(|timeout| timeout.as_secs_f64());
                for mirror in forwarding.mirrors {
                    *found.mirrors.entry(mirror.cluster.to_string()).or_default() += 1.0;
                }
            }
            RequestAction::Redirect { status, location } => {
                *found.answers.entry(format!("{} to {location}", status.as_u16())).or_default() += 1.0;
            }
            RequestAction::Respond(response) => {
                *found.answers.entry(response.status.as_u16().to_string()).or_default() += 1.0;
            }
        }
    }
    for counts in [&mut found.clusters, &mut found.answers, &mut found.mirrors] {
        counts.values_mut().for_each(|count| *count /= f64::from(TRIES));
    }
    Ok(found)
}

/// The decision in words.
pub fn text(decided: &DecidedRequest) -> String {
    let DecidedRequest { method, host, path, rule, clusters, answers, mirrors, timeout_seconds } = decided;
    let mut text = format!("Request   {method} {path} of host {host}\n");
    let rule = rule.as_deref().unwrap_or("none takes it");
    _ = writeln!(text, "Rule      {rule}");
    for (what, shares) in [("Goes to", clusters), ("Answer", answers), ("Copied to", mirrors)] {
        for (to, share) in shares {
            _ = writeln!(text, "{what:<9} {to}: {:.1}%", share * 100.0);
        }
    }
    if let Some(seconds) = timeout_seconds {
        _ = writeln!(text, "Timeout   {seconds} s");
    }
    text
}
