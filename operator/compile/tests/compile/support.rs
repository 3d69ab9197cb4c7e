//! A cluster under test, and its resources in a form that is easy to compare.

use std::collections::BTreeMap;

use prost::Message as _;
use slotmesh_compile::{CompileOptions, Compiler, Object, ObjectName, Output, Reason, Report, Severity};
use slotmesh_xds::{
    CallerClass, Change, EndpointHints, OneOfClasses, ResourceType, SessionAffinity,
    envoy::envoy::{
        config::{
            cluster::v3::{Cluster as EnvoyCluster, LoadBalancingPolicy},
            core::v3::{
                Address, HealthStatus,
                address::Address::SocketAddress,
                socket_address::{PortSpecifier, Protocol},
            },
            endpoint::v3::{
                ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
            listener::v3::{Listener, filter::ConfigType, listener_filter},
            route::v3::{
                RouteConfiguration,
                route::Action,
                route_action::{
                    self,
                    hash_policy::{ConnectionProperties, PolicySpecifier},
                },
            },
        },
        extensions::{
            filters::network::{
                http_connection_manager::v3::{
                    HttpConnectionManager, http_connection_manager::RouteSpecifier,
                },
                tcp_proxy::v3::{TcpProxy, tcp_proxy},
            },
            filters::udp::udp_proxy::v3::{Route as UdpRoute, UdpProxyConfig, udp_proxy_config},
            load_balancing_policies::maglev::v3::Maglev,
        },
    },
    envoy::xds::r#type::matcher::v3::{
        Matcher,
        matcher::{
            MatcherType, OnMatch,
            matcher_list::{
                FieldMatcher, Predicate,
                predicate::{MatchType, single_predicate},
            },
            on_match,
        },
    },
};

/// The resources that are served, built up from changes only; checks on the way that each change is one.
#[derive(Default)]
pub struct Cluster {
    pub compiler: Compiler,
    served: BTreeMap<(ResourceType, String), Vec<u8>>,
}

impl Cluster {
    pub fn with(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut cluster = Self::default();
        cluster.apply(objects);
        cluster
    }

    /// Without objects, and with these options.
    pub fn new(options: CompileOptions) -> Self {
        Self { compiler: Compiler::new(options), ..Self::default() }
    }

    pub fn apply(&mut self, objects: impl IntoIterator<Item = Object>) -> Output {
        objects.into_iter().for_each(|object| self.compiler.apply(&object, None));
        self.flush()
    }

    pub fn delete(&mut self, object: &Object) -> Output {
        self.compiler.delete(&object.key());
        self.flush()
    }

    pub fn flush(&mut self) -> Output {
        let output = self.compiler.flush();
        for change in output.changes.clone() {
            match change {
                Change::Upsert(r) => {
                    let content = r.content.to_vec();
                    let key = (r.ty, r.name.to_string());
                    let old = self.served.insert(key, content.clone());
                    assert_ne!(old, Some(content), "{} {} was sent without a change", r.ty, r.name);
                }
                Change::Remove(ty, name) => {
                    let old = self.served.remove(&(ty, name.to_string()));
                    assert!(old.is_some(), "{ty} {name} was removed but never there");
                }
            }
        }
        output
    }

    pub fn served(&self) -> &BTreeMap<(ResourceType, String), Vec<u8>> {
        &self.served
    }

    pub fn names(&self, ty: ResourceType) -> Vec<&str> {
        self.served.keys().filter(|(t, _)| *t == ty).map(|(_, name)| name.as_str()).collect()
    }

    fn content(&self, ty: ResourceType, name: &str) -> Option<&[u8]> {
        self.served.get(&(ty, name.to_owned())).map(Vec::as_slice)
    }

    /// The seconds of a cluster's session affinity, where it has one.
    pub fn affinity(&self, cluster: &str) -> Option<u32> {
        let content = self.content(ResourceType::Cluster, cluster).expect("the cluster exists");
        let metadata = EnvoyCluster::decode(content).unwrap().metadata?;
        let any = &metadata.typed_filter_metadata[SessionAffinity::KEY];
        assert_eq!(any.type_url, SessionAffinity::TYPE_URL);
        Some(SessionAffinity::decode(any.value.as_slice()).unwrap().seconds)
    }

    /// The addresses of an assignment, by whom they are for.
    pub fn hinted(&self, cluster: &str) -> Vec<(EndpointHints, Vec<String>)> {
        let content = self.content(ResourceType::Endpoints, cluster).expect("the assignment exists");
        let assignment = ClusterLoadAssignment::decode(content).unwrap();
        let group = |group: &LocalityLbEndpoints| {
            let any = group.metadata.as_ref().map(|metadata| {
                assert_eq!(metadata.typed_filter_metadata.len(), 1);
                &metadata.typed_filter_metadata[EndpointHints::KEY]
            });
            let hints = any.map(|any| EndpointHints::decode(any.value.as_slice()).unwrap());
            let endpoint = |e: &LbEndpoint| match e.host_identifier.as_ref().unwrap() {
                HostIdentifier::Endpoint(host) => {
                    let degraded = if e.health_status() == HealthStatus::Degraded { " degraded" } else { "" };
                    format!("{}{degraded}", address(host.address.as_ref().unwrap()))
                }
                HostIdentifier::EndpointName(name) => panic!("an endpoint by name: {name}"),
            };
            (hints.unwrap_or_default(), group.lb_endpoints.iter().map(endpoint).collect())
        };
        assignment.endpoints.iter().map(group).collect()
    }

    /// The localities of an assignment, as `REGION/ZONE/SUBZONE`.
    pub fn places(&self, cluster: &str) -> Vec<String> {
        let content = self.content(ResourceType::Endpoints, cluster).expect("the assignment exists");
        let assignment = ClusterLoadAssignment::decode(content).unwrap();
        let place = |group: &LocalityLbEndpoints| {
            let place = group.locality.as_ref();
            place.map(|at| format!("{}/{}/{}", at.region, at.zone, at.sub_zone)).unwrap_or_default()
        };
        assignment.endpoints.iter().map(place).collect()
    }

    /// The addresses of an assignment, with their weights where they have some.
    pub fn endpoints(&self, cluster: &str) -> Vec<String> {
        let content = self.content(ResourceType::Endpoints, cluster).expect("the assignment exists");
        let assignment = ClusterLoadAssignment::decode(content).unwrap();
        assert_eq!(assignment.cluster_name, cluster);
        let endpoints = assignment.endpoints.iter().flat_map(|l| &l.lb_endpoints);
        endpoints
            .map(|e| match e.host_identifier.as_ref().unwrap() {
                HostIdentifier::Endpoint(host) => {
                    let weight =
                        e.load_balancing_weight.map(|w| format!(" x{}", w.value)).unwrap_or_default();
                    format!("{}{weight}", address(host.address.as_ref().unwrap()))
                }
                HostIdentifier::EndpointName(name) => panic!("an endpoint by name: {name}"),
            })
            .collect()
    }

    /// A cluster as it is sent.
    pub fn message(&self, cluster: &str) -> EnvoyCluster {
        let content = self.content(ResourceType::Cluster, cluster).expect("the cluster exists");
        EnvoyCluster::decode(content).unwrap()
    }

    /// How a cluster's connections are spread, and how many there may be: `ROUND_ROBIN 7`.
    pub fn traffic(&self, cluster: &str) -> String {
        let content = self.content(ResourceType::Cluster, cluster).expect("the cluster exists");
        let message = EnvoyCluster::decode(content).unwrap();
        let limit = message.circuit_breakers.clone().map(|breakers| {
            let [threshold] = &breakers.thresholds[..] else { panic!("one threshold") };
            assert_eq!(threshold.priority, 0, "of the default priority");
            format!(" {}", threshold.max_connections.unwrap().value)
        });
        let balance = match &message.load_balancing_policy {
            None => message.lb_policy().as_str_name(),
            Some(policy) => {
                assert!(hashes_the_source(policy), "{policy:?}");
                "hash of the source"
            }
        };
        format!("{balance}{}", limit.unwrap_or_default())
    }

    /// Where a listener sends connections of those for whom it has no chain of their own: `cluster`, or
    /// `cluster=weight …`, with `http:` in front when by a route configuration, or `udp:`.
    pub fn goes(&self, listener: &str) -> String {
        let listener = self.listener(listener);
        if listener.udp_listener_config.is_some() {
            return udp(&listener, "", "");
        }
        let name = listener
            .filter_chain_matcher
            .as_ref()
            .map_or("", |matcher| go_to(matcher.on_no_match.as_deref().expect("it says where others go")));
        self.chain(&listener, name)
    }

    /// Where it sends connections of callers of this class, or namespace.
    pub fn goes_for(&self, listener: &str, class: &str) -> String {
        let message = self.listener(listener);
        let namespace = class.split_once('#').map_or(class, |(namespace, _)| namespace);
        if message.udp_listener_config.is_some() {
            return udp(&message, class, namespace);
        }
        let chains = chains_by_class(message.filter_chain_matcher.as_ref());
        match chains.get(class).or_else(|| chains.get(namespace)) {
            Some(chain) => self.chain(&message, chain),
            None => self.goes(listener),
        }
    }

    /// The classes of callers for whom a listener has chains of their own.
    pub fn classes(&self, listener: &str) -> Vec<String> {
        let listener = self.listener(listener);
        let of_udp = listener.udp_listener_config.is_some().then(|| udp_matcher(&listener)).flatten();
        chains_by_class(listener.filter_chain_matcher.as_ref().or(of_udp.as_ref())).into_keys().collect()
    }

    fn listener(&self, name: &str) -> Listener {
        let content = self.content(ResourceType::Listener, name).expect("the listener exists");
        Listener::decode(content).unwrap()
    }

    fn chain(&self, listener: &Listener, name: &str) -> String {
        let chains: Vec<_> = listener.filter_chains.iter().filter(|chain| chain.name == name).collect();
        let [chain] = &chains[..] else { panic!("one chain {name:?}") };
        let [filter] = &chain.filters[..] else { panic!("one filter") };
        let Some(ConfigType::TypedConfig(config)) = &filter.config_type else { panic!("a config") };
        if filter.name == "envoy.filters.network.tcp_proxy" {
            let proxy: TcpProxy = config.to_msg();
            return match proxy.cluster_specifier.unwrap() {
                tcp_proxy::ClusterSpecifier::Cluster(name) => name,
                tcp_proxy::ClusterSpecifier::WeightedClusters(w) => {
                    split(w.clusters.into_iter().map(|c| (c.name, c.weight)))
                }
            };
        }
        let manager: HttpConnectionManager = config.to_msg();
        let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier else { panic!("by rds") };
        let content = self.content(ResourceType::Route, &rds.route_config_name).expect("the route exists");
        let routes = RouteConfiguration::decode(content).unwrap();
        let [host] = &routes.virtual_hosts[..] else { panic!("one virtual host") };
        let [route] = &host.routes[..] else { panic!("one route") };
        let Some(Action::Route(action)) = &route.action else { panic!("a route action") };
        let to = match action.cluster_specifier.clone().unwrap() {
            route_action::ClusterSpecifier::Cluster(name) => name,
            route_action::ClusterSpecifier::WeightedClusters(w) => {
                split(w.clusters.into_iter().map(|c| (c.name, c.weight.unwrap().value)))
            }
            other => panic!("{other:?}"),
        };
        format!("http:{to}")
    }

    /// The name of a cluster's assignment.
    pub fn assignment(&self, cluster: &str) -> String {
        let content = self.content(ResourceType::Cluster, cluster).expect("the cluster exists");
        EnvoyCluster::decode(content).unwrap().eds_cluster_config.expect("it has one").service_name
    }

    /// The class of a Pod of namespace `default`.
    pub fn class(&self, pod: &str) -> String {
        self.compiler.caller_class(&ObjectName::new("default", pod))
    }

    /// All reports of this severity as text, but for those of [`without_endpoints`](Self::without_endpoints): most
    /// tests are about Services with nothing behind them.
    pub fn said(&self, severity: Severity) -> Vec<String> {
        let said = |r: &&Report| r.severity == severity && r.reason != Reason::NoEndpoints;
        self.compiler.reports().filter(said).map(Report::to_string).collect()
    }

    /// How many reports there are, but for these.
    pub fn reports(&self) -> usize {
        self.compiler.reports().filter(|r| r.reason != Reason::NoEndpoints).count()
    }

    /// Notes about Services and subsets that have no endpoint.
    pub fn without_endpoints(&self) -> Vec<String> {
        let said = |r: &&Report| r.reason == Reason::NoEndpoints;
        self.compiler.reports().filter(said).map(Report::to_string).collect()
    }

    pub fn refused(&self) -> Vec<String> {
        self.said(Severity::Refused)
    }
}

/// The action for each class, by its name.
fn chains_by_class(matcher: Option<&Matcher>) -> BTreeMap<String, String> {
    let Some(MatcherType::MatcherList(list)) = matcher.and_then(|matcher| matcher.matcher_type.as_ref())
    else {
        return BTreeMap::new();
    };
    let mut chains = BTreeMap::new();
    for FieldMatcher { predicate, on_match } in &list.matchers {
        let Some(Predicate { match_type: Some(MatchType::SinglePredicate(single)) }) = predicate else {
            panic!("one predicate")
        };
        let input = single.input.as_ref().unwrap().typed_config.as_ref().unwrap();
        assert_eq!(input.type_url, CallerClass::TYPE_URL);
        let Some(single_predicate::Matcher::CustomMatch(custom)) = &single.matcher else {
            panic!("our match")
        };
        let classes: OneOfClasses = custom.typed_config.as_ref().unwrap().to_msg();
        assert!(classes.classes.is_sorted() && !classes.classes.is_empty());
        for class in classes.classes {
            let before = chains.insert(class, go_to(on_match.as_ref().unwrap()).to_owned());
            assert_eq!(before, None, "a class has one chain");
        }
    }
    chains
}

fn go_to(on_match: &OnMatch) -> &str {
    let Some(on_match::OnMatch::Action(action)) = &on_match.on_match else { panic!("an action") };
    if let Some(route) =
        action.typed_config.as_ref().filter(|any| any.type_url == <UdpRoute as prost::Name>::type_url())
    {
        assert_eq!(route.to_msg::<UdpRoute>().cluster, action.name);
    }
    &action.name
}

/// Tells whether this is the one policy that is an extension: the source is hashed, and nothing else.
fn hashes_the_source(policy: &LoadBalancingPolicy) -> bool {
    let [policy] = &policy.policies[..] else { return false };
    let config = policy.typed_extension_config.as_ref().and_then(|extension| extension.typed_config.as_ref());
    let maglev: Maglev = config.expect("it has a config").to_msg();
    let hashed = maglev.consistent_hashing_lb_config.expect("it says what is hashed").hash_policy;
    let source = ConnectionProperties { source_ip: true };
    matches!(&hashed[..], [only] if only.policy_specifier == Some(PolicySpecifier::ConnectionProperties(source)))
}

/// The cluster to which a listener of UDP sends datagrams of callers of this class, or namespace.
#[expect(deprecated, reason = "what is compiled")]
fn udp(listener: &Listener, class: &str, namespace: &str) -> String {
    let name = match udp_proxy(listener).route_specifier {
        Some(udp_proxy_config::RouteSpecifier::Cluster(name)) => name,
        Some(udp_proxy_config::RouteSpecifier::Matcher(matcher)) => {
            let chains = chains_by_class(Some(&matcher));
            let of_others = || go_to(matcher.on_no_match.as_deref().expect("it says where others go"));
            let chain = chains.get(class).or_else(|| chains.get(namespace));
            chain.map_or_else(|| of_others().to_owned(), String::clone)
        }
        other => panic!("{other:?}"),
    };
    format!("udp:{name}")
}

/// The matcher of the UDP proxy of a listener, if it has one.
fn udp_matcher(listener: &Listener) -> Option<Matcher> {
    match udp_proxy(listener).route_specifier {
        Some(udp_proxy_config::RouteSpecifier::Matcher(matcher)) => Some(matcher),
        _ => None,
    }
}

fn udp_proxy(listener: &Listener) -> UdpProxyConfig {
    assert!(listener.filter_chains.is_empty());
    let Some(SocketAddress(socket)) = listener.address.as_ref().and_then(|at| at.address.as_ref()) else {
        panic!("a socket address")
    };
    assert_eq!(socket.protocol(), Protocol::Udp);
    let [filter] = &listener.listener_filters[..] else { panic!("one filter") };
    assert_eq!(filter.name, "envoy.filters.udp_listener.udp_proxy");
    let Some(listener_filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
        panic!("a config")
    };
    config.to_msg()
}

trait ToMsg {
    fn to_msg<M: prost::Message + prost::Name + Default>(&self) -> M;
}

impl ToMsg for slotmesh_xds::envoy::google::protobuf::Any {
    fn to_msg<M: prost::Message + prost::Name + Default>(&self) -> M {
        assert_eq!(self.type_url, M::type_url());
        M::decode(self.value.as_slice()).unwrap()
    }
}

fn split(clusters: impl Iterator<Item = (String, u32)>) -> String {
    clusters.map(|(name, weight)| format!("{name}={weight}")).collect::<Vec<_>>().join(" ")
}

pub fn address(address: &Address) -> String {
    let Some(SocketAddress(socket)) = &address.address else { panic!("a socket address") };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { panic!("a port") };
    format!("{} {port}", socket.address)
}

/// The cluster that leaves connections as they are.
pub const ONWARD: &str = "PassthroughCluster";

/// The cluster that refuses connections.
pub const NOWHERE: &str = "BlackHoleCluster";

/// How many of these there are, but for those of Services and subsets that have no endpoint.
pub fn count(reports: &[Report]) -> usize {
    reports.iter().filter(|r| r.reason != Reason::NoEndpoints).count()
}

/// The name of the cluster of a UDP port of a Service in namespace `default`.
pub fn udp_cluster(service: &str, port: u16) -> String {
    format!("outbound|{port}/UDP||{service}.default.svc.cluster.local")
}

/// The name of a cluster of a Service in namespace `default`.
pub fn cluster(service: &str, port: u16, subset: &str) -> String {
    format!("outbound|{port}|{subset}|{service}.default.svc.cluster.local")
}
