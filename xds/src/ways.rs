//! The clusters and routes to which a resource leads, and for which callers, read from its bytes.
//!
//! Only what a control plane of ours compiles has to be understood; what isn't, leads nowhere.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::Cluster,
            listener::v3::{Listener, filter, listener_filter},
            route::v3::{RouteConfiguration, route, route_action},
        },
        extensions::filters::{
            network::{
                http_connection_manager::v3::{HttpConnectionManager, http_connection_manager},
                tcp_proxy::v3::{TcpProxy, tcp_proxy},
            },
            udp::udp_proxy::v3::{UdpProxyConfig, udp_proxy_config},
        },
    },
    google::protobuf::Any,
    xds::r#type::matcher::v3::{
        Matcher,
        matcher::{
            MatcherType, OnMatch,
            matcher_list::{predicate, predicate::single_predicate},
            on_match,
        },
    },
};
use prost::{Message, Name};

use crate::{OneOfClasses, ResourceName, ResourceType};

/// The clusters and routes to which some connections go.
pub type Targets = BTreeSet<(ResourceType, ResourceName)>;

/// The targets of a listener's connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Of all callers that aren't told apart.
    pub everybody: Targets,
    /// Of classes of callers.
    pub apart: BTreeMap<String, Targets>,
}

impl Ways {
    /// Reads a listener.
    pub fn of_listener(content: &[u8]) -> Self {
        let Ok(listener) = Listener::decode(content) else { return Self::default() };
        let mut by_chain: BTreeMap<&str, Targets> = BTreeMap::new();
        let mut ways = Self::default();
        for chain in listener.filter_chains.iter().chain(&listener.default_filter_chain) {
            let targets = by_chain.entry(&chain.name).or_default();
            for filter in &chain.filters {
                if let Some(filter::ConfigType::TypedConfig(any)) = &filter.config_type {
                    targets.extend(of_filter(any));
                }
            }
        }
        match &listener.filter_chain_matcher {
            Some(matcher) => {
                ways.read(matcher, |chain| by_chain.get(chain).cloned().unwrap_or_default());
            }
            None => ways.everybody.extend(by_chain.into_values().flatten()),
        }
        for filter in &listener.listener_filters {
            let Some(listener_filter::ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
            match decode::<UdpProxyConfig>(any).and_then(|proxy| proxy.route_specifier) {
                #[expect(deprecated, reason = "the form for one cluster")]
                Some(udp_proxy_config::RouteSpecifier::Cluster(name)) => {
                    ways.everybody.insert(cluster(name));
                }
                Some(udp_proxy_config::RouteSpecifier::Matcher(matcher)) => {
                    // The actions are called after their clusters.
                    ways.read(&matcher, |name| Targets::from([cluster(name)]));
                }
                None => {}
            }
        }
        ways
    }

    fn read(&mut self, matcher: &Matcher, targets: impl Fn(&str) -> Targets) {
        let of = |on_match: &OnMatch| match &on_match.on_match {
            Some(on_match::OnMatch::Action(action)) => targets(&action.name),
            _ => Targets::new(),
        };
        self.everybody.extend(matcher.on_no_match.iter().flat_map(|on_match| of(on_match)));
        let Some(MatcherType::MatcherList(list)) = &matcher.matcher_type else { return };
        for matched in &list.matchers {
            let targets = matched.on_match.as_ref().map(of).unwrap_or_default();
            let single = match matched.predicate.as_ref().and_then(|one| one.match_type.as_ref()) {
                Some(predicate::MatchType::SinglePredicate(single)) => single,
                _ => continue,
            };
            let Some(single_predicate::Matcher::CustomMatch(custom)) = &single.matcher else { continue };
            let classes = custom.typed_config.as_ref().and_then(decode::<OneOfClasses>);
            for class in classes.into_iter().flat_map(|one| one.classes) {
                self.apart.insert(class, targets.clone());
            }
        }
    }

    /// The targets of callers of a class; the class of those without labels is their namespace.
    pub fn of(&self, class: &str) -> &Targets {
        let of_namespace = || self.apart.get(class.split_once('#')?.0);
        self.apart.get(class).or_else(of_namespace).unwrap_or(&self.everybody)
    }

    /// All targets.
    pub fn all(&self) -> Targets {
        self.everybody.iter().chain(self.apart.values().flatten()).cloned().collect()
    }
}

/// The clusters to which a route configuration leads.
pub fn clusters_of_route(content: &[u8]) -> BTreeSet<ResourceName> {
    let Ok(configuration) = RouteConfiguration::decode(content) else { return BTreeSet::new() };
    let mut clusters = BTreeSet::new();
    let mut add = |name: &str| {
        if !name.is_empty() {
            clusters.insert(ResourceName::from(name));
        }
    };
    configuration.request_mirror_policies.iter().for_each(|mirror| add(&mirror.cluster));
    for host in &configuration.virtual_hosts {
        host.request_mirror_policies.iter().for_each(|mirror| add(&mirror.cluster));
        for route in &host.routes {
            let Some(route::Action::Route(action)) = &route.action else { continue };
            action.request_mirror_policies.iter().for_each(|mirror| add(&mirror.cluster));
            match &action.cluster_specifier {
                Some(route_action::ClusterSpecifier::Cluster(name)) => add(name),
                Some(route_action::ClusterSpecifier::WeightedClusters(weighted)) => {
                    weighted.clusters.iter().for_each(|cluster| add(&cluster.name));
                }
                _ => {}
            }
        }
    }
    clusters
}

/// The name of the load assignment of a cluster, if it has one of its own.
pub fn assignment_of_cluster(content: &[u8]) -> Option<ResourceName> {
    let cluster = Cluster::decode(content).ok()?;
    let eds = cluster.eds_cluster_config?;
    Some(if eds.service_name.is_empty() { cluster.name } else { eds.service_name }.into())
}

fn cluster(name: impl Into<std::sync::Arc<str>>) -> (ResourceType, ResourceName) {
    (ResourceType::Cluster, ResourceName::from(name))
}

fn of_filter(any: &Any) -> Targets {
    if let Some(proxy) = decode::<TcpProxy>(any) {
        return match proxy.cluster_specifier {
            Some(tcp_proxy::ClusterSpecifier::Cluster(name)) => Targets::from([cluster(name)]),
            Some(tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => {
                weighted.clusters.into_iter().map(|one| cluster(one.name)).collect()
            }
            None => Targets::new(),
        };
    }
    match decode::<HttpConnectionManager>(any).and_then(|manager| manager.route_specifier) {
        Some(http_connection_manager::RouteSpecifier::Rds(rds)) => {
            Targets::from([(ResourceType::Route, rds.route_config_name.into())])
        }
        _ => Targets::new(),
    }
}

fn decode<M: Message + Name + Default>(any: &Any) -> Option<M> {
    if any.type_url != M::type_url() {
        return None;
    }
    M::decode(any.value.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::{
        envoy::{
            config::{
                listener::v3::{Filter, FilterChain},
                route::v3::{Route, RouteAction, VirtualHost, route_action::RequestMirrorPolicy},
            },
            extensions::filters::network::http_connection_manager::v3::Rds,
        },
        xds::{
            core::v3::TypedExtensionConfig,
            r#type::matcher::v3::matcher::{
                MatcherList,
                matcher_list::{FieldMatcher, Predicate, predicate::SinglePredicate},
            },
        },
    };

    use super::*;

    fn any<M: Message + Name>(message: &M) -> Any {
        Any { type_url: M::type_url(), value: message.encode_to_vec() }
    }

    fn chain(name: &str, config: Any) -> FilterChain {
        let filter =
            Filter { config_type: Some(filter::ConfigType::TypedConfig(config)), ..Filter::default() };
        FilterChain { name: name.to_owned(), filters: vec![filter], ..FilterChain::default() }
    }

    fn to_cluster(name: &str) -> Any {
        let specifier = tcp_proxy::ClusterSpecifier::Cluster(name.to_owned());
        any(&TcpProxy { cluster_specifier: Some(specifier), ..TcpProxy::default() })
    }

    fn go_to(chain: &str) -> OnMatch {
        let action = TypedExtensionConfig { name: chain.to_owned(), typed_config: None };
        OnMatch { on_match: Some(on_match::OnMatch::Action(action)), ..OnMatch::default() }
    }

    #[test]
    fn a_listener_leads_each_class_where_its_chain_does() {
        let rds = Rds { route_config_name: "route".to_owned(), ..Rds::default() };
        let rds = http_connection_manager::RouteSpecifier::Rds(rds);
        let manager =
            HttpConnectionManager { route_specifier: Some(rds), ..HttpConnectionManager::default() };
        let classes = OneOfClasses { classes: vec!["a".to_owned(), "b#1".to_owned()] };
        let custom = TypedExtensionConfig { name: "x".to_owned(), typed_config: Some(any(&classes)) };
        let single = SinglePredicate {
            matcher: Some(single_predicate::Matcher::CustomMatch(custom)),
            ..SinglePredicate::default()
        };
        let matched = FieldMatcher {
            predicate: Some(Predicate { match_type: Some(predicate::MatchType::SinglePredicate(single)) }),
            on_match: Some(go_to("own")),
        };
        let listener = Listener {
            filter_chains: vec![chain("all", any(&manager)), chain("own", to_cluster("c"))],
            filter_chain_matcher: Some(Matcher {
                matcher_type: Some(MatcherType::MatcherList(MatcherList { matchers: vec![matched] })),
                on_no_match: Some(Box::new(go_to("all"))),
            }),
            ..Listener::default()
        };
        let ways = Ways::of_listener(&listener.encode_to_vec());
        let (own, all) = (
            Targets::from([(ResourceType::Cluster, "c".into())]),
            Targets::from([(ResourceType::Route, "route".into())]),
        );
        for (class, targets) in [("a", &own), ("a#7", &own), ("b#1", &own), ("b", &all), ("c", &all)] {
            assert_eq!(ways.of(class), targets, "{class}");
        }
        assert_eq!(ways.all().len(), 2);
        assert_eq!(Ways::of_listener(b"\xff"), Ways::default());
    }

    #[test]
    fn a_route_leads_to_clusters_also_of_copies() {
        let action = RouteAction {
            cluster_specifier: Some(route_action::ClusterSpecifier::Cluster("a".to_owned())),
            request_mirror_policies: vec![RequestMirrorPolicy {
                cluster: "b".to_owned(),
                ..RequestMirrorPolicy::default()
            }],
            ..RouteAction::default()
        };
        let route = Route { action: Some(route::Action::Route(action)), ..Route::default() };
        let host = VirtualHost { routes: vec![route], ..VirtualHost::default() };
        let configuration = RouteConfiguration { virtual_hosts: vec![host], ..RouteConfiguration::default() };
        let clusters = clusters_of_route(&configuration.encode_to_vec());
        assert_eq!(clusters, BTreeSet::from(["a".into(), "b".into()]));
    }
}
