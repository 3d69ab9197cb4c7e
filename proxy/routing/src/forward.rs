//! Route actions that forward: where a request goes, and what is done to it on the way.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode};
use slotmesh_xds::envoy::envoy::config::{
    core::v3::RoutingPriority,
    route::v3::{
        RouteAction, WeightedCluster,
        route_action::{
            ClusterNotFoundResponseCode, ClusterSpecifier, InternalRedirectAction, MaxStreamDuration,
        },
        weighted_cluster::{ClusterWeight, RandomValueSpecifier, cluster_weight::HostRewriteSpecifier},
    },
};

use crate::{
    affinity::{self, HashRule},
    draws::Draws,
    edits::{HeaderEdit, HeaderEdits},
    field::{FieldPath, InvalidField, duration, refuse_set},
    head::{HeaderLookup, RequestHead},
    mirror::MirrorTarget,
    retry::RetryPolicy,
    rewrite::{HostRewrite, HostRewriteRule, PathRewrite, path_rewrite, visible},
};

/// Time in which an upstream has to have answered, where nothing else is said.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// A rule that forwards: all of it that is the same for each request. Whoever needs it longer than the table clones the
/// `Arc`.
#[derive(Debug)]
pub struct ForwardRule {
    backends: Box<[WeightedBackend]>,
    total_weight: u64,
    /// Header with the number by which a backend is chosen.
    random_value: Option<HeaderName>,
    pub(crate) path: Option<PathRewrite>,
    host: Option<HostRewriteRule>,
    append_forwarded_host: bool,
    /// Status that is answered where the cluster isn't known.
    pub cluster_not_found: StatusCode,
    timeout: Option<Duration>,
    /// Time without a byte in either direction. Nothing: the listener's. Zero: no limit.
    pub idle_timeout: Option<Duration>,
    stream: Option<StreamLimit>,
    /// Of gRPC the deadline of the caller counts instead of the timeout, up to this; zero: whatever it is.
    grpc_most: Option<Duration>,
    /// When the request is sent again, if ever.
    pub retry: Option<Arc<RetryPolicy>>,
    mirrors: Arc<[MirrorTarget]>,
    hash: Box<[HashRule]>,
    /// The upstream is told by `x-envoy-attempt-count` which attempt it is.
    pub attempt_count_to_upstream: bool,
    /// The caller is told by `x-envoy-attempt-count` how many attempts it took.
    pub attempt_count_to_caller: bool,
    /// The upstream is told by `x-envoy-is-timeout-retry` that the attempt before ran out of time.
    pub timeout_retry_to_upstream: bool,
    /// The most bytes of a request's body that are kept to send them again. Nothing: the listener's limit.
    pub body_buffer: Option<u64>,
    /// Upgrades that are allowed (true) or not, whatever the listener says: `websocket`, in small letters.
    pub upgrades: Box<[(Box<str>, bool)]>,
}

/// Settings of a virtual host for those of its routes that don't say otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct ForwardDefaults {
    pub(crate) retry: Option<Arc<RetryPolicy>>,
    pub(crate) mirrors: Arc<[MirrorTarget]>,
    pub(crate) attempt_count_to_upstream: bool,
    pub(crate) attempt_count_to_caller: bool,
    pub(crate) timeout_retry_to_upstream: bool,
    pub(crate) body_buffer: Option<u64>,
}

/// One of the clusters that a rule forwards to.
#[derive(Debug)]
pub struct WeightedBackend {
    /// Name of the cluster.
    pub cluster: Box<str>,
    weight: u32,
    host: Option<Box<str>>,
    request: Option<HeaderEdit>,
    response: Option<HeaderEdit>,
}

/// Limit of a stream's life.
#[derive(Debug)]
struct StreamLimit {
    /// Nothing: the listener's. Zero: no limit.
    most: Option<Duration>,
    /// Where the request says `grpc-timeout`, that counts, up to this; zero: whatever it is.
    grpc_most: Option<Duration>,
    /// So much earlier than the caller gives up.
    grpc_earlier: Duration,
}

impl ForwardRule {
    /// Of a route: its action, and the setting for its body. `general`: what its virtual host says of all routes.
    pub(crate) fn new(
        at: &FieldPath<'_>,
        action: &RouteAction,
        body_buffer: Option<u64>,
        general: &ForwardDefaults,
    ) -> Result<Self, InvalidField> {
        #[expect(deprecated, reason = "a field that is set is refused, deprecated or not")]
        let RouteAction {
            cluster_not_found_response_code,
            metadata_match,
            prefix_rewrite,
            regex_rewrite,
            path_rewrite_policy,
            path_rewrite: whole,
            append_x_forwarded_host,
            timeout,
            idle_timeout,
            flush_timeout,
            early_data_policy,
            retry_policy,
            retry_policy_typed_config,
            request_mirror_policies,
            priority,
            rate_limits,
            include_vh_rate_limits,
            hash_policy,
            cors,
            max_grpc_timeout,
            grpc_timeout_offset,
            upgrade_configs,
            internal_redirect_policy,
            internal_redirect_action,
            max_internal_redirects,
            hedge_policy,
            max_stream_duration,
            cluster_specifier,
            host_rewrite_specifier,
        } = action;
        refuse_set!(at,
            "endpoints have no subsets": metadata_match;
            "no extensions": path_rewrite_policy, retry_policy_typed_config;
            "use idle_timeout": flush_timeout;
            "there is no TLS": early_data_policy;
            "there are no rate limits": rate_limits, include_vh_rate_limits;
            "use typed_per_filter_config": cors;
            "the deadline is the caller's": grpc_timeout_offset;
            "a redirect is passed on": internal_redirect_policy, max_internal_redirects;
            "a request is sent once at a time": hedge_policy;
        );
        if *internal_redirect_action != i32::from(InternalRedirectAction::PassThroughInternalRedirect) {
            return Err(at.field("internal_redirect_action").wrong("a redirect is passed on"));
        }
        if *priority != i32::from(RoutingPriority::Default) {
            return Err(at.field("priority").wrong("there is only the default one"));
        }
        let cluster_not_found = match ClusterNotFoundResponseCode::try_from(*cluster_not_found_response_code)
        {
            Ok(ClusterNotFoundResponseCode::ServiceUnavailable) => StatusCode::SERVICE_UNAVAILABLE,
            Ok(ClusterNotFoundResponseCode::NotFound) => StatusCode::NOT_FOUND,
            Ok(ClusterNotFoundResponseCode::InternalServerError) => StatusCode::INTERNAL_SERVER_ERROR,
            Err(_) => return Err(at.field("cluster_not_found_response_code").wrong("there is no such code")),
        };
        let (backends, random_value) = match cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => {
                (Box::from([WeightedBackend::only(&at.field("cluster"), name)?]), None)
            }
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                weighted_backends(&at.field("weighted_clusters"), weighted)?
            }
            Some(ClusterSpecifier::ClusterHeader(_)) => {
                return Err(at.field("cluster_header").wrong("no caller chooses a cluster"));
            }
            Some(
                ClusterSpecifier::ClusterSpecifierPlugin(_)
                | ClusterSpecifier::InlineClusterSpecifierPlugin(_),
            ) => return Err(at.field("cluster_specifier_plugin").wrong("no extensions")),
            None => return Err(at.field("cluster").wrong("there is none")),
        };
        let mut upgrades = Vec::with_capacity(upgrade_configs.len());
        for (i, upgrade) in upgrade_configs.iter().enumerate() {
            let at = at.element("upgrade_configs", i);
            let connect_config = &upgrade.connect_config;
            refuse_set!(at, "nothing is tunnelled": connect_config;);
            let name = upgrade.upgrade_type.to_ascii_lowercase();
            if name == "connect" || name.is_empty() {
                return Err(at.field("upgrade_type").wrong(format!("{name:?} is not supported")));
            }
            let enabled = upgrade.enabled.as_ref().is_none_or(|enabled| enabled.value);
            upgrades.push((name.into_boxed_str(), enabled));
        }
        let timeout = duration(&at.field("timeout"), timeout.as_ref())?.unwrap_or(DEFAULT_TIMEOUT);
        Ok(Self {
            total_weight: backends.iter().map(|backend| u64::from(backend.weight)).sum(),
            backends,
            random_value,
            path: path_rewrite(at, prefix_rewrite, regex_rewrite.as_ref(), whole)?,
            host: HostRewriteRule::new(at, host_rewrite_specifier.as_ref())?,
            append_forwarded_host: *append_x_forwarded_host,
            cluster_not_found,
            timeout: Some(timeout).filter(|timeout| !timeout.is_zero()),
            idle_timeout: duration(&at.field("idle_timeout"), idle_timeout.as_ref())?,
            stream: match max_stream_duration {
                Some(limit) => Some(StreamLimit::new(&at.field("max_stream_duration"), limit)?),
                None => None,
            },
            grpc_most: duration(&at.field("max_grpc_timeout"), max_grpc_timeout.as_ref())?,
            upgrades: upgrades.into(),
            retry: match retry_policy {
                Some(policy) => Some(Arc::new(RetryPolicy::new(&at.field("retry_policy"), policy)?)),
                None => general.retry.clone(),
            },
            mirrors: match &**request_mirror_policies {
                [] => general.mirrors.clone(),
                policies => MirrorTarget::list(at, policies)?.into(),
            },
            hash: HashRule::list(at, hash_policy)?,
            attempt_count_to_upstream: general.attempt_count_to_upstream,
            attempt_count_to_caller: general.attempt_count_to_caller,
            timeout_retry_to_upstream: general.timeout_retry_to_upstream,
            body_buffer: body_buffer.or(general.body_buffer),
        })
    }

    /// One of the backends, by their weights.
    pub(crate) fn choose<H: HeaderLookup>(
        &self,
        head: &RequestHead<'_, H>,
        draws: &mut impl Draws,
    ) -> &WeightedBackend {
        if let [only] = &*self.backends {
            return only;
        }
        let given = self.random_value.as_ref().and_then(|name| {
            let mut values = head.headers.values(name);
            let (first, None) = (values.next()?, values.next()) else { return None };
            std::str::from_utf8(first).ok()?.parse::<u64>().ok()
        });
        let mut number = match given {
            Some(number) => number % self.total_weight,
            None => draws.below(self.total_weight),
        };
        self.backends
            .iter()
            .find(|backend| match number.checked_sub(backend.weight.into()) {
                Some(rest) => {
                    number = rest;
                    false
                }
                None => true,
            })
            .expect("the number is below the sum of all weights")
    }

    /// Mirrors that get a copy of a request.
    pub(crate) fn mirrors(&self, draws: &mut impl Draws) -> Vec<&MirrorTarget> {
        self.mirrors.iter().filter(|mirror| mirror.share.hit(draws)).collect()
    }

    /// Hash of a request, and the cookies for whoever has none.
    pub(crate) fn hash<H: HeaderLookup>(
        &self,
        head: &RequestHead<'_, H>,
        draws: &mut impl Draws,
    ) -> (Option<u64>, Vec<HeaderValue>) {
        affinity::hash(&self.hash, head, draws)
    }

    /// Host to send, where it isn't the request's own, and the header that tells the upstream the one that it replaces.
    pub(crate) fn host<'t, H: HeaderLookup>(
        &'t self,
        backend: &'t WeightedBackend,
        head: &RequestHead<'_, H>,
        edits: &HeaderEdits<'_>,
    ) -> (Option<HostRewrite<'t>>, Option<(HeaderName, HeaderValue)>) {
        // As in Envoy: a backend's host is set first, and told to nobody.
        let Some(host) = self.host.as_ref().and_then(|host| host.apply(head, edits)) else {
            return (backend.host.as_deref().map(|host| HostRewrite::To(host.into())), None);
        };
        let replaced = backend.host.as_deref().unwrap_or(head.authority);
        (Some(host), self.append_forwarded_host.then(|| forwarded_host(head, replaced)).flatten())
    }

    /// Time from this request's end to the end of its response. Nothing: no limit.
    pub(crate) fn timeout<H: HeaderLookup>(&self, head: &RequestHead<'_, H>) -> Option<Duration> {
        let Some(most) = self.grpc_most.filter(|_| head.is_grpc()) else { return self.timeout };
        // Zero is no limit to Envoy; to a caller it is the shortest.
        let asked = asked_by_grpc(head).map(|asked| asked.max(Duration::from_millis(1)));
        match most.is_zero() {
            true => asked,
            false => Some(asked.map_or(most, |asked| asked.min(most))),
        }
    }

    /// Limit of this request's stream. Nothing: the listener's. Zero: no limit.
    pub(crate) fn stream_limit<H: HeaderLookup>(&self, head: &RequestHead<'_, H>) -> Option<Duration> {
        let limit = self.stream.as_ref()?;
        let asked = limit.grpc_most.and_then(|most| {
            let asked = asked_by_grpc(head)?;
            // Envoy keeps what is given up at once at one moment, as zero is no limit.
            let asked = if most.is_zero() { asked } else { asked.min(most) };
            Some(asked.saturating_sub(limit.grpc_earlier).max(Duration::from_millis(1)))
        });
        asked.or(limit.most)
    }
}

/// Header that tells a host that is replaced, unless one tells it already.
fn forwarded_host<H: HeaderLookup>(
    head: &RequestHead<'_, H>,
    replaced: &str,
) -> Option<(HeaderName, HeaderValue)> {
    static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
    let last = head.headers.values(&FORWARDED_HOST).last();
    let told = last.and_then(|value| value.rsplit(|byte| *byte == b',').next());
    if told.map(<[u8]>::trim_ascii) == Some(replaced.as_bytes()) {
        return None;
    }
    Some((FORWARDED_HOST.clone(), HeaderValue::from_str(replaced).ok()?))
}

/// Time that a caller of gRPC gives its request.
fn asked_by_grpc<H: HeaderLookup>(head: &RequestHead<'_, H>) -> Option<Duration> {
    static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
    grpc_timeout(head.headers.values(&GRPC_TIMEOUT).next()?)
}

/// Value of a `grpc-timeout` header: up to eight digits and a unit.
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = std::str::from_utf8(digits).ok()?.parse::<u64>().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

impl StreamLimit {
    fn new(at: &FieldPath<'_>, limit: &MaxStreamDuration) -> Result<Self, InvalidField> {
        let MaxStreamDuration { max_stream_duration, grpc_timeout_header_max, grpc_timeout_header_offset } =
            limit;
        Ok(Self {
            most: duration(&at.field("max_stream_duration"), max_stream_duration.as_ref())?,
            grpc_most: duration(&at.field("grpc_timeout_header_max"), grpc_timeout_header_max.as_ref())?,
            grpc_earlier: duration(
                &at.field("grpc_timeout_header_offset"),
                grpc_timeout_header_offset.as_ref(),
            )?
            .unwrap_or_default(),
        })
    }
}

fn cluster_name(at: &FieldPath<'_>, name: &str) -> Result<Box<str>, InvalidField> {
    if name.is_empty() { Err(at.wrong("it has no name")) } else { Ok(name.into()) }
}

impl WeightedBackend {
    fn only(at: &FieldPath<'_>, name: &str) -> Result<Self, InvalidField> {
        Ok(Self { cluster: cluster_name(at, name)?, weight: 1, host: None, request: None, response: None })
    }

    fn new(at: &FieldPath<'_>, cluster: &ClusterWeight) -> Result<Self, InvalidField> {
        let ClusterWeight {
            name,
            cluster_header,
            weight,
            metadata_match,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            typed_per_filter_config,
            host_rewrite_specifier,
        } = cluster;
        refuse_set!(at,
            "no caller chooses a cluster": cluster_header;
            "endpoints have no subsets": metadata_match;
            "use the route's": typed_per_filter_config;
        );
        let weight = weight.as_ref().ok_or_else(|| at.field("weight").wrong("there is none"))?.value;
        let host = match host_rewrite_specifier {
            Some(HostRewriteSpecifier::HostRewriteLiteral(host)) if !host.is_empty() => {
                Some(visible(&at.field("host_rewrite_literal"), host)?.into())
            }
            _ => None,
        };
        let request = HeaderEdit::new(
            at,
            ("request_headers_to_add", request_headers_to_add),
            ("request_headers_to_remove", request_headers_to_remove),
        )?;
        let response = HeaderEdit::new(
            at,
            ("response_headers_to_add", response_headers_to_add),
            ("response_headers_to_remove", response_headers_to_remove),
        )?;
        Ok(Self {
            cluster: cluster_name(&at.field("name"), name)?,
            weight,
            host,
            request: Some(request),
            response: Some(response),
        })
    }

    pub(crate) fn request(&self) -> Option<&HeaderEdit> {
        self.request.as_ref()
    }

    pub(crate) fn response(&self) -> Option<&HeaderEdit> {
        self.response.as_ref()
    }
}

type Backends = (Box<[WeightedBackend]>, Option<HeaderName>);

fn weighted_backends(at: &FieldPath<'_>, weighted: &WeightedCluster) -> Result<Backends, InvalidField> {
    #[expect(deprecated, reason = "Envoy takes it where it is the sum")]
    let WeightedCluster { clusters, total_weight, runtime_key_prefix, random_value_specifier } = weighted;
    refuse_set!(at, "there are no runtime settings": runtime_key_prefix;);
    let backends: Box<[WeightedBackend]> = (0..)
        .zip(clusters)
        .map(|(i, cluster)| WeightedBackend::new(&at.element("clusters", i), cluster))
        .collect::<Result<_, _>>()?;
    let sum: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if sum == 0 || sum > u32::MAX.into() {
        return Err(at.wrong(format!("the weights' sum is {sum}; from 1 to {}", u32::MAX)));
    }
    if let Some(total) = total_weight
        && u64::from(total.value) != sum
    {
        let reason = format!("{} isn't the weights' sum, which is {sum}", total.value);
        return Err(at.field("total_weight").wrong(reason));
    }
    let random_value = match random_value_specifier {
        None => None,
        Some(RandomValueSpecifier::HeaderName(name)) => {
            let at = at.field("header_name");
            Some(
                HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| at.wrong(format!("{name:?} is not the name of a header")))?,
            )
        }
        Some(RandomValueSpecifier::UseHashPolicy(hash)) if !hash.value => None,
        Some(RandomValueSpecifier::UseHashPolicy(_)) => {
            return Err(at.field("use_hash_policy").wrong("each request is drawn by itself"));
        }
    };
    Ok((backends, random_value))
}

/// A request that is forwarded.
#[derive(Clone, Debug)]
pub struct Forwarding<'t> {
    /// The rule, with its timeouts.
    pub rule: &'t Arc<ForwardRule>,
    /// Cluster that the request goes to.
    pub cluster: &'t str,
    /// Path and query to send, where they aren't the request's own.
    pub path: Option<String>,
    /// Host to send, where it isn't the request's own.
    pub host: Option<HostRewrite<'t>>,
    /// Changes of the request's headers.
    pub request_headers: HeaderEdits<'t>,
    /// Time from the request's end to the end of its response. Nothing: no limit.
    pub timeout: Option<Duration>,
    /// Limit of the stream's life, from its first byte. Nothing: the listener's. Zero: no limit.
    pub stream_limit: Option<Duration>,
    /// Mirrors that get a copy.
    pub mirrors: Vec<&'t MirrorTarget>,
    /// Number by which a cluster that hashes chooses the endpoint. Nothing: by chance.
    pub hash: Option<u64>,
}
