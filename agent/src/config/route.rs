//! `envoy.config.route.v3.RouteConfiguration`: what of it can be decided at connect time.
//!
//! A connection has no host name, but an address: a virtual host is chosen when one of its domains is
//! that address, with the port before without, else the one with `*`. Virtual hosts that have only
//! other domains are kept, and never chosen.
//!
//! A configuration whose metadata says that it is for requests (`RoutedByRequest`) is a proxy's. Of each virtual host the
//! first route for every request says where connections go that no proxy takes; without one they are refused.

use std::{
    borrow::Cow,
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    ops::Range,
};

use slotmesh_records::{ClusterSet, Route as Sets};
use slotmesh_xds::{
    RoutedByRequest,
    envoy::envoy::config::route::v3::{self as proto, route::Action, route_match::PathSpecifier},
};

use super::{
    At, Invalid, REFUSING_CLUSTER, WeightedCluster, invalid, refuse_set, unsupported,
    weighted::route_clusters,
};
use crate::hosts;

/// A route configuration. Routes and clusters of all virtual hosts stand behind each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route<'m> {
    /// At least one.
    pub hosts: Vec<VirtualHost<'m>>,
    /// At least one for each host; the first is in force, as it matches everything.
    pub routes: Vec<RouteEntry<'m>>,
    /// At least one for each route that is in force.
    pub clusters: Vec<WeightedCluster<'m>>,
    /// Which host an address leads to, by its place in `hosts`.
    pub addresses: Vec<(HostKey, u32)>,
    /// The host with the domain `*`.
    pub any: Option<u32>,
    /// How many hosts no connection can choose, having only host names.
    pub unreachable: u32,
    /// Whether it is for requests: connections that follow it go to the proxy, where there is one.
    pub by_request: bool,
    /// The handle by which the proxy knows it, which whoever keeps it in force gives it; 0 where it has none.
    pub proxy: u32,
}

/// A virtual host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualHost<'m> {
    /// Its name.
    pub name: Cow<'m, str>,
    /// Its domains as configured.
    pub domains: Cow<'m, [String]>,
    /// Its routes among those of the configuration.
    pub routes: Range<u32>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry<'m> {
    /// Its name.
    pub name: Cow<'m, str>,
    /// Its clusters among those of the configuration.
    pub clusters: Range<u32>,
}

/// An address as a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostKey {
    /// The address.
    pub ip: IpAddr,
    /// The port; 0 for all.
    pub port: u16,
}

impl HostKey {
    /// The address that a domain is, if it is one: `10.96.0.10`, `10.96.0.10:9080`, `[fd00::1]`,
    /// `[fd00::1]:9080`, `fd00::1`.
    fn parse(domain: &str) -> Option<Self> {
        // Most domains are names, and no name ends with a number (RFC 1123) but for its port.
        if !domain.starts_with(|c: char| c.is_ascii_hexdigit() || c == '[' || c == ':') {
            return None;
        }
        if !domain.contains(':') {
            return Some(Self { ip: domain.parse::<Ipv4Addr>().ok()?.into(), port: 0 });
        }
        if let Ok(address) = domain.parse::<SocketAddr>() {
            return (address.port() != 0)
                .then(|| Self { ip: address.ip().to_canonical(), port: address.port() });
        }
        let bare = domain.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(domain);
        let ip = bare.parse::<IpAddr>().ok()?;
        Some(Self { ip: ip.to_canonical(), port: 0 })
    }
}

/// The most clusters of all routes: two sets behind each other are more than half full.
const MOST_CLUSTERS: usize = Sets::SETS * (ClusterSet::CAPACITY / 2);

impl<'m> Route<'m> {
    pub(super) fn from_proto(at: &At<'_>, config: &'m proto::RouteConfiguration) -> Result<Self, Invalid> {
        let proto::RouteConfiguration {
            virtual_hosts,
            vhds,
            route_specifiers,
            request_mirror_policies,
            ignore_port_in_host_matching,
            metadata,
            // Whoever asks for it by its name has checked the name.
            name: _,
            // Only definitions; a route that uses one is refused.
            cluster_specifier_plugins: _,
            // There is no header, no path, and no wait for a cluster.
            vhost_header: _,
            ignore_path_parameters_in_path_matching: _,
            validate_clusters: _,
            // Requests.
            internal_only_headers: _,
            response_headers_to_add: _,
            response_headers_to_remove: _,
            request_headers_to_add: _,
            request_headers_to_remove: _,
            most_specific_header_mutations_wins: _,
            max_direct_response_body_size_bytes: _,
            typed_per_filter_config: _,
        } = config;
        refuse_set!(at,
            "only virtual_hosts": vhds, route_specifiers;
            "a connection has one destination": request_mirror_policies;
        );
        if virtual_hosts.is_empty() {
            return Err(invalid(at.field("virtual_hosts"), "there is none"));
        }
        let hosts = virtual_hosts.len();
        let marks = metadata.as_ref().map(|metadata| &metadata.typed_filter_metadata);
        let by_request = marks.is_some_and(|marks| marks.contains_key(RoutedByRequest::KEY));
        let mut route = Self { hosts: Vec::with_capacity(hosts), by_request, ..Self::default() };
        route.addresses.reserve(hosts);
        route.routes.reserve(2 * hosts);
        route.clusters.reserve(4 * hosts);
        let mut domains = Domains::new(*ignore_port_in_host_matching, virtual_hosts);
        for (i, host) in virtual_hosts.iter().enumerate() {
            route.add(&at.element("virtual_hosts", i), host, &mut domains)?;
        }
        if route.addresses.len() > hosts::MOST {
            let what = format!("{} addresses as domains; at most {}", route.addresses.len(), hosts::MOST);
            return Err(unsupported(at.field("virtual_hosts"), what));
        }
        if route.clusters.len() > MOST_CLUSTERS {
            let what = format!("{} clusters in routes; at most {MOST_CLUSTERS}", route.clusters.len());
            return Err(unsupported(at.field("virtual_hosts"), what));
        }
        Ok(route)
    }

    fn add(
        &mut self,
        at: &At<'_>,
        host: &'m proto::VirtualHost,
        seen: &mut Domains<'m>,
    ) -> Result<(), Invalid> {
        let number = self.hosts.len() as u32;
        let (name, domains, routes) = host_parts(at, host)?;
        let mut reachable = false;
        for (i, domain) in domains.iter().enumerate() {
            match seen.insert(&at.element("domains", i), domain)? {
                Domain::All => {
                    self.any = Some(number);
                    reachable = true;
                }
                Domain::Address(key) => {
                    self.addresses.push((key, number));
                    reachable = true;
                }
                Domain::Name => {}
            }
        }
        self.unreachable += u32::from(!reachable);
        let first = self.routes.len() as u32;
        let mut routes = routes.iter().enumerate();
        if self.by_request {
            self.without_a_proxy(at, routes.by_ref())?;
        }
        for (i, route) in routes {
            let at = at.element("routes", i);
            let from = self.clusters.len() as u32;
            if i == 0 {
                self.in_force(&at, route)?;
            } else {
                // The first matches everything, so that this one can't be chosen, in Envoy either.
                self.dead(&at, route);
            }
            let clusters = from..self.clusters.len() as u32;
            self.routes.push(RouteEntry { name: route.name.as_str().into(), clusters });
        }
        let routes = first..self.routes.len() as u32;
        self.hosts.push(VirtualHost { name: name.into(), domains: domains.into(), routes });
        Ok(())
    }

    /// The one route of a host for connections that no proxy takes.
    fn without_a_proxy(
        &mut self,
        at: &At<'_>,
        mut routes: impl Iterator<Item = (usize, &'m proto::Route)>,
    ) -> Result<(), Invalid> {
        let from = self.clusters.len() as u32;
        let of_all = |route: &proto::Route| matches_all(at, route.r#match.as_ref()).is_ok();
        let mut name = "";
        if let Some((i, route)) = routes.find(|(_, route)| of_all(route)) {
            name = &route.name;
            if let Some(Action::Route(action)) = &route.action {
                let at = at.element("routes", i);
                route_clusters(&at.field("route"), action, true, &mut self.clusters)?;
            }
        }
        // What would answer by itself can't.
        if self.clusters.len() as u32 == from {
            let (cluster, weight) = (REFUSING_CLUSTER.into(), NonZeroU32::MIN);
            self.clusters.push(WeightedCluster { cluster, weight, by_source: false });
        }
        let clusters = from..self.clusters.len() as u32;
        self.routes.push(RouteEntry { name: name.into(), clusters });
        routes.for_each(drop);
        Ok(())
    }

    #[expect(deprecated, reason = "every field is decided on, whatever its age")]
    fn in_force(&mut self, at: &At<'_>, route: &'m proto::Route) -> Result<(), Invalid> {
        let proto::Route {
            r#match,
            action,
            route_specifiers,
            name: _,
            metadata: _,
            stat_prefix: _,
            // Requests.
            decorator: _,
            typed_per_filter_config: _,
            request_headers_to_add: _,
            request_headers_to_remove: _,
            response_headers_to_add: _,
            response_headers_to_remove: _,
            tracing: _,
            per_request_buffer_limit_bytes: _,
            request_body_buffer_limit: _,
        } = route;
        refuse_set!(at, "only match and route": route_specifiers;);
        matches_all(&at.field("match"), r#match.as_ref())?;
        match action {
            Some(Action::Route(action)) => {
                route_clusters(&at.field("route"), action, false, &mut self.clusters)
            }
            _ => Err(unsupported(at.field("action"), "only route")),
        }
    }

    /// Of a route that is never chosen, the clusters are kept where it has some.
    fn dead(&mut self, at: &At<'_>, route: &'m proto::Route) {
        let before = self.clusters.len();
        if let Some(Action::Route(action)) = &route.action
            && route_clusters(at, action, false, &mut self.clusters).is_err()
        {
            self.clusters.truncate(before);
        }
    }

    /// The same, borrowing nothing.
    pub(super) fn into_owned(self) -> Route<'static> {
        let Self { hosts, routes, clusters, addresses, any, unreachable, by_request, proxy } = self;
        Route {
            hosts: hosts
                .into_iter()
                .map(|VirtualHost { name, domains, routes }| VirtualHost {
                    name: name.into_owned().into(),
                    domains: domains.into_owned().into(),
                    routes,
                })
                .collect(),
            routes: routes
                .into_iter()
                .map(|RouteEntry { name, clusters }| RouteEntry { name: name.into_owned().into(), clusters })
                .collect(),
            clusters: clusters.into_iter().map(WeightedCluster::into_owned).collect(),
            addresses,
            any,
            unreachable,
            by_request,
            proxy,
        }
    }
}

/// What a domain is to a connection.
enum Domain {
    All,
    Address(HostKey),
    Name,
}

/// The domains of a configuration, each of which may occur once.
struct Domains<'m> {
    ignore_port: bool,
    names: HashSet<Cow<'m, str>, foldhash::fast::RandomState>,
    addresses: HashSet<HostKey, foldhash::fast::RandomState>,
}

impl<'m> Domains<'m> {
    fn new(ignore_port: bool, hosts: &[proto::VirtualHost]) -> Self {
        let count = hosts.iter().map(|host| host.domains.len()).sum();
        Self {
            ignore_port,
            names: HashSet::with_capacity_and_hasher(count, <_>::default()),
            addresses: HashSet::with_capacity_and_hasher(hosts.len(), <_>::default()),
        }
    }

    fn insert(&mut self, at: &At<'_>, domain: &'m str) -> Result<Domain, Invalid> {
        let twice = || Err(invalid(at, format!("{domain:?} is a domain twice")));
        // Without an early end, so that many bytes are looked at at once.
        let name = if domain.bytes().fold(false, |found, byte| found | byte.is_ascii_uppercase()) {
            Cow::Owned(domain.to_ascii_lowercase())
        } else {
            Cow::Borrowed(domain)
        };
        if !self.names.insert(name) {
            return twice();
        }
        if domain == "*" {
            return Ok(Domain::All);
        }
        Ok(match HostKey::parse(domain) {
            // The port is cut off before domains are compared.
            Some(key) if key.port != 0 && self.ignore_port => Domain::Name,
            // Addresses may be written in several ways.
            Some(key) if !self.addresses.insert(key) => return twice(),
            Some(key) => Domain::Address(key),
            None => Domain::Name,
        })
    }
}

/// Name, domains and routes of a virtual host; at least one of each list.
#[expect(deprecated, reason = "every field is decided on, whatever its age")]
fn host_parts<'m>(
    at: &At<'_>,
    host: &'m proto::VirtualHost,
) -> Result<(&'m str, &'m [String], &'m [proto::Route]), Invalid> {
    let proto::VirtualHost {
        name,
        domains,
        routes,
        matcher,
        require_tls,
        request_mirror_policies,
        route_specifiers,
        metadata: _,
        // Requests.
        virtual_clusters: _,
        rate_limits: _,
        request_headers_to_add: _,
        request_headers_to_remove: _,
        response_headers_to_add: _,
        response_headers_to_remove: _,
        cors: _,
        typed_per_filter_config: _,
        include_request_attempt_count: _,
        include_attempt_count_in_response: _,
        retry_policy: _,
        retry_policy_typed_config: _,
        hedge_policy: _,
        include_is_timeout_retry_header: _,
        per_request_buffer_limit_bytes: _,
        request_body_buffer_limit: _,
    } = host;
    refuse_set!(at,
        "only routes": matcher, route_specifiers;
        "connections are made as the application makes them": require_tls;
        "a connection has one destination": request_mirror_policies;
    );
    if domains.is_empty() {
        return Err(invalid(at.field("domains"), "there is none"));
    }
    if routes.is_empty() {
        return Err(unsupported(at.field("routes"), "no routes; a default route is needed"));
    }
    Ok((name, domains, routes))
}

/// Fails for a condition: a route with one isn't the default.
fn matches_all(at: &At<'_>, condition: Option<&proto::RouteMatch>) -> Result<(), Invalid> {
    let Some(condition) = condition else { return Err(invalid(at, "there is none")) };
    let proto::RouteMatch {
        path_specifier,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        // "/" has no case.
        case_sensitive: _,
    } = condition;
    if !matches!(path_specifier, Some(PathSpecifier::Prefix(prefix)) if prefix == "/") {
        return Err(unsupported(at, "a connection has no path: only prefix \"/\""));
    }
    refuse_set!(at,
        "a connection has no path or headers: only prefix \"/\"": headers, query_parameters, cookies, grpc;
        "only prefix \"/\"": runtime_fraction, tls_context, dynamic_metadata, filter_state;
    );
    Ok(())
}
