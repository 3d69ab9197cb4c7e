use prost::Message as _;
use slotmesh_xds::envoy::envoy::config::{
    cluster::v3::{
        Cluster,
        cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
    },
    route::v3::{
        Route, RouteAction, RouteConfiguration, VirtualHost, WeightedCluster,
        route::Action,
        route_action::{ClusterSpecifier, RequestMirrorPolicy},
        weighted_cluster::ClusterWeight,
    },
};

use super::*;
use ResourceType::{Cluster as Clusters, Endpoints, Listener, Route as Routes};

const HERE: Ipv4Addr = Ipv4Addr::new(127, 1, 2, 3);
const THERE: Ipv4Addr = Ipv4Addr::new(127, 1, 2, 4);

fn name(name: &str) -> ResourceName {
    name.into()
}

/// A route configuration that names these clusters, the last one as a mirror.
fn route(of: &str, clusters: &[&str]) -> Resource {
    let (mirror, weighted) = clusters.split_last().expect("there is one");
    let weighted = weighted.iter().map(|name| ClusterWeight { name: (*name).into(), ..Default::default() });
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: weighted.collect(),
            ..Default::default()
        })),
        request_mirror_policies: vec![RequestMirrorPolicy {
            cluster: (*mirror).into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let host = VirtualHost {
        routes: vec![Route { action: Some(Action::Route(action)), ..Default::default() }],
        ..Default::default()
    };
    let config = RouteConfiguration { name: of.into(), virtual_hosts: vec![host], ..Default::default() };
    Resource::encoded(Routes, of, config.encode_to_vec())
}

fn cluster(of: &str, assignment: &str) -> Resource {
    let config = EdsClusterConfig { service_name: assignment.into(), ..Default::default() };
    let cluster = Cluster {
        name: of.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(config),
        ..Default::default()
    };
    Resource::encoded(Clusters, of, cluster.encode_to_vec())
}

fn endpoints(of: &str) -> Resource {
    Resource::encoded(Endpoints, of, of.as_bytes().to_vec())
}

/// The changes as text, in any order, sorted: `+` for what is published, `-` for what isn't any more.
fn shown(changes: &mut Vec<Change>) -> Vec<String> {
    let mut shown: Vec<String> = changes
        .drain(..)
        .map(|change| match change {
            Change::Upsert(resource) => format!("+{} {}", resource.ty, resource.name),
            Change::Remove(ty, name) => format!("-{ty} {name}"),
        })
        .collect();
    shown.sort();
    shown
}

fn lacking(served: &mut Served) -> Vec<String> {
    served.take_lacking().iter().map(|(ty, name)| format!("{ty} {name}")).collect()
}

#[test]
fn what_a_route_names_is_published_with_it_and_nothing_else() {
    let (mut served, mut changes) = (Served::new(1 << 20), Vec::new());
    for other in ["a", "b", "unused"] {
        served.came(cluster(other, other), &mut changes);
        served.came(endpoints(other), &mut changes);
    }
    assert!(changes.is_empty());
    served.set_route(route("web", &["a", "b"]), HERE, &mut changes);
    served.publish_ready(&mut changes);
    let all =
        ["+cluster a", "+cluster b", "+endpoints a", "+endpoints b", "+listener 127.1.2.3", "+route web"];
    assert_eq!(shown(&mut changes), all);
    assert!(served.is_complete() && lacking(&mut served).is_empty());
    // Changes of what is named, and of nothing else.
    served.came(endpoints("a"), &mut changes);
    served.came(endpoints("unused"), &mut changes);
    assert_eq!(shown(&mut changes), ["+endpoints a"]);
    // A second one that names the same.
    served.set_route(route("other", &["a"]), THERE, &mut changes);
    served.publish_ready(&mut changes);
    assert_eq!(shown(&mut changes), ["+listener 127.1.2.4", "+route other"]);
    served.remove_route(&name("web"), &mut changes);
    let gone = ["-cluster b", "-endpoints b", "-listener 127.1.2.3", "-route web"];
    assert_eq!(shown(&mut changes), gone);
    served.remove_route(&name("other"), &mut changes);
    assert_eq!(shown(&mut changes), ["-cluster a", "-endpoints a", "-listener 127.1.2.4", "-route other"]);
    assert!(served.named.is_empty() && served.routes.is_empty());
    // It is remembered, as it is still in force.
    served.set_route(route("web", &["b", "a"]), HERE, &mut changes);
    served.publish_ready(&mut changes);
    assert_eq!(shown(&mut changes), all);
}

#[test]
fn a_route_waits_for_what_it_names_and_the_one_before_stays() {
    let (mut served, mut changes) = (Served::new(1 << 20), Vec::new());
    served.set_route(route("web", &["a"]), HERE, &mut changes);
    served.publish_ready(&mut changes);
    assert!(changes.is_empty() && !served.is_complete());
    assert_eq!(lacking(&mut served), ["cluster a"]);
    served.came(cluster("a", "of-a"), &mut changes);
    served.publish_ready(&mut changes);
    assert_eq!(shown(&mut changes), ["+cluster a"]);
    assert_eq!(lacking(&mut served), ["endpoints of-a"]);
    assert!(served.lacks(Endpoints, &name("of-a")));
    served.came(endpoints("of-a"), &mut changes);
    served.publish_ready(&mut changes);
    assert_eq!(shown(&mut changes), ["+endpoints of-a", "+listener 127.1.2.3", "+route web"]);
    // The next one names what isn't known: the first stays, with what it names.
    served.set_route(route("web", &["b"]), HERE, &mut changes);
    served.publish_ready(&mut changes);
    assert!(changes.is_empty());
    assert_eq!(lacking(&mut served), ["cluster b"]);
    // A stream later it is asked for again.
    served.lack_anew();
    assert_eq!(lacking(&mut served), ["cluster b"]);
    // There is none: requests are answered by the route's own word for that.
    served.gone(Clusters, &name("b"), &mut changes);
    served.publish_ready(&mut changes);
    assert_eq!(shown(&mut changes), ["+route web", "-cluster a", "-endpoints of-a"]);
    // It comes, at another address.
    served.came(cluster("b", "b"), &mut changes);
    served.came(endpoints("b"), &mut changes);
    served.set_route(route("web", &["b", "InvalidBackend"]), THERE, &mut changes);
    served.publish_ready(&mut changes);
    let moved = ["+cluster b", "+endpoints b", "+listener 127.1.2.4", "+route web", "-listener 127.1.2.3"];
    assert_eq!(shown(&mut changes), moved);
    assert!(lacking(&mut served).is_empty() && served.is_complete());
    // A cluster that changes its load assignment.
    served.came(endpoints("other"), &mut changes);
    served.came(cluster("b", "other"), &mut changes);
    assert_eq!(shown(&mut changes), ["+cluster b", "+endpoints other", "-endpoints b"]);
    assert!(!served.lacks(Listener, &name("x")));
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut remembered = Remembered::new(3 * size(&endpoints("a")));
    for of in ["a", "b", "c", "b", "d"] {
        remembered.put(endpoints(of));
    }
    let is_there = |remembered: &mut Remembered, of: &str| remembered.take(&(Endpoints, name(of))).is_some();
    assert!(!is_there(&mut remembered, "a"), "the oldest");
    for of in ["b", "c", "d"] {
        assert!(is_there(&mut remembered, of), "{of}");
    }
    assert_eq!((remembered.bytes, remembered.turns.len()), (0, 0));
}
