//! Route configurations and requests for tests, with as few words as possible.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use slotmesh_routing::{RequestAction, RequestHead, RouteTable};
use slotmesh_xds::envoy::{
    envoy::config::route::v3::{
        Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, route::Action,
        route_action::ClusterSpecifier, route_match::PathSpecifier, weighted_cluster::ClusterWeight,
    },
    google::protobuf::UInt32Value,
};

/// A configuration with one virtual host, for all hosts.
pub fn config(routes: Vec<Route>) -> RouteConfiguration {
    RouteConfiguration { virtual_hosts: vec![host(&["*"], routes)], ..Default::default() }
}

pub fn host(domains: &[&str], routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: domains.concat(),
        domains: domains.iter().map(|&domain| domain.to_owned()).collect(),
        routes,
        ..Default::default()
    }
}

pub fn prefix(path: &str) -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::Prefix(path.to_owned())), ..Default::default() }
}

pub fn route(matcher: RouteMatch, action: Action) -> Route {
    Route { r#match: Some(matcher), action: Some(action), ..Default::default() }
}

pub fn to(cluster: &str) -> Action {
    Action::Route(RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    })
}

pub fn weighted(clusters: &[(&str, u32)]) -> Action {
    let clusters = clusters.iter().map(|&(name, weight)| ClusterWeight {
        name: name.to_owned(),
        weight: Some(UInt32Value { value: weight }),
        ..Default::default()
    });
    Action::Route(RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: clusters.collect(),
            ..Default::default()
        })),
        ..Default::default()
    })
}

/// A table of which nothing is refused.
pub fn table(config: &RouteConfiguration) -> RouteTable {
    let (table, errors) = RouteTable::new(config);
    assert_eq!(errors, []);
    table
}

/// The decision about a GET in a few characters: `=cluster`, `301 location`, or the status.
pub fn get(table: &RouteTable, host: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
        .collect();
    let head = RequestHead {
        method: &Method::GET,
        scheme: "http",
        authority: host,
        path,
        headers: &headers,
        source: None,
    };
    match table.decide(&head, &mut || 0).action {
        RequestAction::Forward(forwarding) => format!("={}", forwarding.cluster),
        RequestAction::Redirect { status, location } => format!("{} {location}", status.as_u16()),
        RequestAction::Respond(response) => response.status.as_u16().to_string(),
    }
}
