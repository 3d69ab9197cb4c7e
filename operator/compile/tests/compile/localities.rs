//! Localities: where endpoints are, and how callers choose among them.

use std::collections::BTreeMap;

use k8s_openapi::api::discovery::v1::Endpoint;
use slotmesh_builders::{
    RuleBuilder, node, pod, policy, rule, service, service_entry, slice, to, virtual_service, workload,
};
use slotmesh_compile::{Object, Severity};
use slotmesh_crds::{
    Distribute, Failover, LoadBalancer, LocalityLbSetting, OutlierDetection,
    own::{LocalityDistribution, LocalityFailover, LocalityPreference},
};
use slotmesh_xds::{EndpointHints, LocalityPolicy, ResourceType};

use crate::support::{Cluster, cluster};

fn at(ip: &str, node: &str, zone: &str) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_owned()],
        node_name: Some(node.to_owned()),
        zone: Some(zone.to_owned()),
        ..Endpoint::default()
    }
}

fn web() -> Vec<Object> {
    let slice = slice("web", "web").port(8080);
    let slice = slice.full_endpoint(at("10.1.0.1", "n1", "a")).full_endpoint(at("10.1.0.2", "n2", "b"));
    let node = |name: &str, region: &str| node(name).label(LocalityPolicy::REGION, region).build();
    vec![service("web").ip("10.0.0.1").port(80).build(), slice.build(), node("n1", "eu"), node("n2", "us")]
}

fn with(setting: LocalityLbSetting, outliers: bool) -> RuleBuilder {
    let mut built = rule("r", "web");
    built.0.spec.traffic_policy.get_or_insert_default().load_balancer =
        Some(LoadBalancer { locality_lb_setting: Some(setting), ..LoadBalancer::default() });
    built.0.spec.traffic_policy.get_or_insert_default().outlier_detection =
        outliers.then(OutlierDetection::default);
    built
}

fn shares(to: &[(&str, u32)]) -> BTreeMap<String, u32> {
    to.iter().map(|(to, percent)| ((*to).to_owned(), *percent)).collect()
}

fn distribute(from: &str, to: &[(&str, u32)]) -> LocalityLbSetting {
    let distribute = vec![Distribute { from: from.to_owned(), to: shares(to), ..Distribute::default() }];
    LocalityLbSetting { distribute, ..LocalityLbSetting::default() }
}

/// The policy of an assignment, and its endpoints by where they are.
fn located(cluster_: &Cluster, name: &str) -> (Option<LocalityPolicy>, Vec<(String, Vec<String>)>) {
    let groups = cluster_.hinted(name);
    let policy = groups.first().and_then(|(hints, _)| hints.policy.clone());
    assert!(groups.iter().skip(1).all(|(hints, _)| hints.policy.is_none()), "it stands once");
    let at = cluster_.places(name);
    (policy, at.into_iter().zip(groups).map(|(at, (_, endpoints))| (at, endpoints)).collect())
}

fn places(of: &[(&str, &str)]) -> Vec<(String, Vec<String>)> {
    of.iter().map(|(at, endpoint)| ((*at).to_owned(), vec![(*endpoint).to_owned()])).collect()
}

#[test]
fn without_a_policy_nobody_is_told_where_endpoints_are() {
    let cluster_ = Cluster::with(web());
    assert_eq!(cluster_.hinted(&cluster("web", 80, "")).len(), 1);
    assert_eq!(cluster_.places(&cluster("web", 80, "")), [""]);
}

#[test]
fn a_policy_travels_with_where_endpoints_are_and_goes_with_it() {
    let name = cluster("web", 80, "");
    let preference = LocalityPreference {
        failover: vec![LocalityFailover { from: "eu".into(), to: "us".into() }],
        ..LocalityPreference::default()
    };
    let mut cluster_ = Cluster::with(web());
    let before = cluster_.served().clone();
    cluster_.apply([policy("p", "web").locality(preference).build()]);
    let (found, at) = located(&cluster_, &name);
    assert_eq!(found.unwrap().failover[0].to, "us");
    assert_eq!(at, places(&[("eu/a/", "10.1.0.1 8080"), ("us/b/", "10.1.0.2 8080")]));
    // A node that comes to be elsewhere.
    let moved = node("n2").label(LocalityPolicy::REGION, "eu").label(LocalityPolicy::SUB_ZONE, "7");
    cluster_.apply([moved.build()]);
    let (_, at) = located(&cluster_, &name);
    assert_eq!(at, places(&[("eu/a/", "10.1.0.1 8080"), ("eu/b/7", "10.1.0.2 8080")]));
    // An older policy says nothing of it.
    cluster_.apply([policy("o", "web").created(1).max(7).build()]);
    assert_eq!(cluster_.hinted(&name).len(), 1);
    cluster_.delete(&policy("o", "web").build());
    assert_eq!(cluster_.hinted(&name).len(), 2);
    cluster_.delete(&policy("p", "web").build());
    cluster_.apply([node("n2").label(LocalityPolicy::REGION, "us").build()]);
    assert_eq!(*cluster_.served(), before);
    assert_eq!(cluster_.reports(), 0);
}

#[test]
fn as_in_istio_the_nearest_go_before_others_where_there_is_outlier_detection() {
    let name = cluster("web", 80, "");
    let policy_of = |built: RuleBuilder| {
        let cluster_ = Cluster::with(web().into_iter().chain([built.build()]));
        assert!(cluster_.refused().is_empty(), "{:?}", cluster_.refused());
        located(&cluster_, &name).0
    };
    let nearest = Some(LocalityPolicy::default());
    let mut only = rule("r", "web");
    only.0.spec.traffic_policy.get_or_insert_default().outlier_detection = Some(OutlierDetection::default());
    assert_eq!(policy_of(only), nearest);
    assert_eq!(policy_of(with(LocalityLbSetting::default(), true)), nearest);
    let off = LocalityLbSetting { enabled: Some(false), ..LocalityLbSetting::default() };
    assert_eq!(policy_of(with(off, true)), None);
    let failover = vec![Failover { from: "eu".into(), to: "us".into(), ..Failover::default() }];
    let failover = LocalityLbSetting { failover, ..LocalityLbSetting::default() };
    assert_eq!(policy_of(with(failover.clone(), true)).unwrap().failover.len(), 1);
    assert_eq!(policy_of(with(failover.clone(), false)), None);
    let cluster_ = Cluster::with(web().into_iter().chain([with(failover, false).build()]));
    let said = cluster_.said(Severity::Note);
    assert!(said.iter().any(|said| said.contains("where there is no outlierDetection")), "{said:?}");
    // Shares need none.
    assert!(policy_of(with(distribute("*", &[("eu/a", 100)]), false)).is_some());
}

#[test]
fn a_traffic_policy_goes_before_a_rule() {
    let preference = LocalityPreference {
        distribute: vec![LocalityDistribution {
            from: "eu".into(),
            to: shares(&[("eu", 30), ("us/*", 50), ("eu/a", 20)]),
        }],
        ..LocalityPreference::default()
    };
    let objects = [
        with(distribute("*", &[("*", 100)]), false).build(),
        policy("p", "web").locality(preference).build(),
    ];
    let cluster_ = Cluster::with(web().into_iter().chain(objects));
    let (found, _) = located(&cluster_, &cluster("web", 80, ""));
    let shares = &found.unwrap().distribute[0];
    let to: Vec<_> = shares.to.iter().map(|share| (share.to.as_str(), share.percent)).collect();
    assert_eq!((shares.from.as_str(), to), ("eu", vec![("eu/a", 20), ("eu", 30), ("us/*", 50)]));
}

#[test]
fn callers_of_whom_a_rule_says_something_else_have_endpoints_of_their_own() {
    let mut other = with(distribute("*", &[("eu", 100)]), false);
    other.0.metadata.namespace = Some("other".into());
    other.0.spec.host = "web.default.svc.cluster.local".into();
    let route = virtual_service("v", "web").tcp([to("web", 1)]).build();
    let cluster_ = Cluster::with(web().into_iter().chain([other.build(), route]));
    let names = cluster_.names(ResourceType::Endpoints);
    assert_eq!(names.len(), 2, "{names:?}");
    let policies: Vec<_> = names.iter().map(|name| located(&cluster_, name).0.is_some()).collect();
    assert!(policies.contains(&true) && policies.contains(&false), "{policies:?}");
}

#[test]
fn labels_that_go_before_are_looked_up() {
    let preference = LocalityPreference {
        failover_priority: vec!["tier=gold".into(), LocalityPolicy::NODE.into()],
        ..LocalityPreference::default()
    };
    let mut objects = web();
    objects.push(policy("p", "web").locality(preference).build());
    objects.push(pod("one").ip("10.1.0.1").label("tier", "gold").build());
    let name = cluster("web", 80, "");
    let mut cluster_ = Cluster::with(objects);
    let of = |cluster_: &Cluster| -> Vec<(u32, String, String)> {
        let groups = cluster_.hinted(&name).into_iter();
        groups.map(|(EndpointHints { agreeing, on_node, .. }, of)| (agreeing, on_node, of.concat())).collect()
    };
    let found = |agreeing: u32, node: &str, ip: &str| (agreeing, node.to_owned(), format!("{ip} 8080"));
    assert_eq!(of(&cluster_), [found(1, "n1", "10.1.0.1"), found(0, "n2", "10.1.0.2")]);
    cluster_.apply([pod("one").ip("10.1.0.1").label("tier", "lead").build()]);
    assert_eq!(of(&cluster_), [found(0, "n1", "10.1.0.1"), found(0, "n2", "10.1.0.2")]);
}

#[test]
fn workloads_say_where_they_are() {
    let mut endpoint = workload("10.9.0.1", "v1");
    endpoint.locality = Some("eu/a/1".into());
    let entry =
        service_entry("db", "db.example").ip("240.0.0.1").port("tcp", 80, 80).endpoint(endpoint.clone());
    let mut built = with(distribute("*", &[("eu", 100)]), false);
    built.0.spec.host = "db.example".into();
    let cluster_ = Cluster::with([entry.build(), built.build()]);
    let [name] = cluster_.names(ResourceType::Endpoints)[..] else { panic!("one assignment") };
    assert_eq!(located(&cluster_, name).1, places(&[("eu/a/1", "10.9.0.1 80")]));
    endpoint.locality = Some("eu/a/1/2".into());
    let entry = service_entry("db", "db.example").ip("240.0.0.1").port("tcp", 80, 80).endpoint(endpoint);
    let refused = Cluster::with([entry.build()]).refused();
    assert!(refused[0].contains("spec.endpoints[0].locality: \"eu/a/1/2\" is no locality"), "{refused:?}");
}

#[test]
fn what_can_not_be_is_refused_by_field() {
    let at = "spec.trafficPolicy.loadBalancer.localityLbSetting";
    let failover = |from: &str, to: &str| LocalityLbSetting {
        failover: vec![Failover { from: from.into(), to: to.into(), ..Failover::default() }],
        ..LocalityLbSetting::default()
    };
    let priority = |of: &[&str]| LocalityLbSetting {
        failover_priority: of.iter().map(|of| (*of).to_owned()).collect(),
        ..LocalityLbSetting::default()
    };
    let both =
        LocalityLbSetting { distribute: distribute("*", &[("*", 100)]).distribute, ..failover("a", "b") };
    let mut twice = distribute("eu", &[("*", 100)]);
    twice.distribute.push(twice.distribute[0].clone());
    for (setting, fault) in [
        (both, ".failover: it excludes distribute"),
        (
            distribute("eu", &[("eu", 40), ("us", 50)]),
            ".distribute[0].to: the shares are 90 percent together, not 100",
        ),
        (distribute("eu", &[]), ".distribute[0].to: the shares are 0 percent together"),
        (distribute("eu", &[("eu", 0), ("us", 100)]), ".distribute[0].to.eu: 0 is no share"),
        (distribute("eu", &[("*/a", 100)]), ".distribute[0].to.*/a: \"*/a\" is no locality"),
        (distribute("", &[("eu", 100)]), ".distribute[0].from: \"\" is no locality"),
        (twice, ".distribute[1].from: eu stands there twice"),
        (failover("eu/a", "us"), ".failover[0].from: \"eu/a\" is no region"),
        (failover("eu", "eu"), ".failover[0].to: eu is the region that it is from"),
        (priority(&["version"]), ".failoverPriority[0]: \"version\" asks for a label of each caller"),
        (priority(&["topology.istio.io/network"]), ".failoverPriority[0]: it has no effect here"),
        (priority(&["a=b"; 33]), ".failoverPriority: 33 entries; at most 32"),
    ] {
        let cluster_ = Cluster::with(web().into_iter().chain([with(setting, true).build()]));
        let refused = cluster_.refused();
        assert!(refused.iter().any(|r| r.contains(&format!("{at}{fault}"))), "{fault}: {refused:?}");
        assert_eq!(cluster_.hinted(&cluster("web", 80, "")).len(), 1, "{fault}");
    }
}

#[test]
fn a_share_of_nobody_is_told() {
    let setting = distribute("*", &[("eu/a", 60), ("eu/c", 40)]);
    let cluster_ = Cluster::with(web().into_iter().chain([with(setting, false).build()]));
    let said = cluster_.said(Severity::Note);
    assert!(
        said.len() == 1 && said[0].contains("DestinationRule default/r") && said[0].contains("is in eu/c;"),
        "{said:?}"
    );
}
