//! Filter chains by class of the caller: who gets which, however many classes there are.

use std::net::SocketAddr;

use serde_json::json;
use slotmesh_agent::{ConnectAttempt, ConnectOutcome};
use slotmesh_records::name_hash;
use slotmesh_slots::Config;
use slotmesh_xds::{
    CallerClass, OneOfClasses, Resource,
    ResourceType::{Cluster, Endpoints, Listener},
    envoy::{
        envoy::{
            config::{
                cluster::v3::{self as cluster, cluster::ClusterDiscoveryType},
                listener::v3 as listener,
            },
            extensions::filters::udp::udp_proxy::v3::{Route as UdpRoute, udp_proxy_config},
        },
        google::protobuf::Any,
        xds::{
            core::v3::TypedExtensionConfig,
            r#type::matcher::v3::{
                Matcher,
                matcher::{
                    MatcherList, MatcherType, OnMatch,
                    matcher_list::{
                        FieldMatcher, Predicate,
                        predicate::{MatchType, SinglePredicate, single_predicate},
                    },
                    on_match,
                },
            },
        },
    },
};

use crate::{
    Bench,
    config::{address, chain, cluster as eds, endpoints, tcp_filter, udp_proxy},
};

fn vip() -> SocketAddr {
    "10.96.0.10:80".parse().expect("an address")
}

fn extension(url: &str, message: &impl prost::Message) -> Option<TypedExtensionConfig> {
    let typed_config = Some(Any { type_url: url.to_owned(), value: message.encode_to_vec() });
    Some(TypedExtensionConfig { name: "x".to_owned(), typed_config })
}

fn go_to(chain: &str) -> OnMatch {
    let action = TypedExtensionConfig { name: chain.to_owned(), typed_config: None };
    OnMatch { on_match: Some(on_match::OnMatch::Action(action)), ..OnMatch::default() }
}

fn matching(classes: &[String], chain: &str) -> FieldMatcher {
    let classes = OneOfClasses { classes: classes.to_vec() };
    let single = SinglePredicate {
        input: extension(CallerClass::TYPE_URL, &CallerClass {}),
        matcher: extension(OneOfClasses::TYPE_URL, &classes).map(single_predicate::Matcher::CustomMatch),
    };
    FieldMatcher {
        predicate: Some(Predicate { match_type: Some(MatchType::SinglePredicate(single)) }),
        on_match: Some(go_to(chain)),
    }
}

/// Classes of callers, and the clusters of their chain by weight.
type Callers = (Vec<String>, Vec<(String, u32)>);

/// A listener that leads callers of these classes to these clusters, and everybody else to `all`.
fn by_caller(all: &str, callers: &[Callers]) -> listener::Listener {
    let mut filter_chains = vec![chain("all", None, tcp_filter(&[(all.to_owned(), 1)]))];
    let mut matchers = Vec::new();
    for (i, (classes, clusters)) in callers.iter().enumerate() {
        let name = format!("callers {i}");
        matchers.push(matching(classes, &name));
        filter_chains.push(chain(&name, None, tcp_filter(clusters)));
    }
    let matcher = Matcher {
        matcher_type: Some(MatcherType::MatcherList(MatcherList { matchers })),
        on_no_match: Some(Box::new(go_to("all"))),
    };
    listener::Listener {
        name: "l".to_owned(),
        address: Some(address(vip())),
        filter_chains,
        filter_chain_matcher: Some(matcher),
        ..Default::default()
    }
}

/// The same of UDP: the matcher of the UDP proxy tells callers of these classes apart.
pub(crate) fn udp_by_caller(vip: SocketAddr, all: &str, callers: &[(&str, &str)]) -> listener::Listener {
    let to = |cluster: &str| {
        let route = UdpRoute { cluster: cluster.to_owned() };
        let url = "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route";
        OnMatch { on_match: extension(url, &route).map(on_match::OnMatch::Action), ..OnMatch::default() }
    };
    let matchers = callers.iter().map(|(class, cluster)| FieldMatcher {
        on_match: Some(to(cluster)),
        ..matching(&[(*class).to_owned()], "")
    });
    let matcher = Matcher {
        matcher_type: Some(MatcherType::MatcherList(MatcherList { matchers: matchers.collect() })),
        on_no_match: Some(Box::new(to(all))),
    };
    udp_proxy("l", vip, udp_proxy_config::RouteSpecifier::Matcher(matcher))
}

fn put(bench: &Bench, listener: &listener::Listener) {
    assert_eq!(bench.upsert(Listener, vec![Resource::encode(Listener, "l", listener)]), []);
}

fn bench(clusters: &[&str]) -> Bench {
    let bench = Bench::new(Config { initial: 4, ..Config::default() });
    let to = [("10.0.0.1:80".parse().expect("an address"), 1)];
    assert_eq!(bench.upsert(Cluster, clusters.iter().map(|name| eds(name)).collect()), []);
    assert_eq!(bench.upsert(Endpoints, clusters.iter().map(|name| endpoints(name, &to)).collect()), []);
    bench
}

fn used_slots(bench: &Bench) -> usize {
    bench.stats().classes.iter().map(|(_, class)| class.used as usize).sum()
}

fn outcome(bench: &Bench, namespace: &str, class: &str) -> ConnectOutcome {
    bench
        .agent()
        .datapath()
        .explain(ConnectAttempt::to(vip()).of_caller(namespace, class))
        .expect("the kernel answers")
}

/// The hash of the cluster that a caller gets; `None` where it is refused.
fn goes(bench: &Bench, namespace: &str, class: &str) -> Option<u64> {
    match outcome(bench, namespace, class) {
        ConnectOutcome::Redirect { cluster, .. } => Some(cluster),
        ConnectOutcome::Refuse => None,
        ConnectOutcome::Pass => panic!("the address isn't known"),
    }
}

#[test]
fn each_class_has_its_chain_and_others_that_of_their_namespace() {
    let mut bench = bench(&["all", "shop", "client", "even", "odd"]);
    let one = |name: &str| vec![(name.to_owned(), 1)];
    let listener =
        by_caller("all", &[(vec!["shop".into()], one("shop")), (vec!["shop#1".into()], one("client"))]);
    put(&bench, &listener);
    let expected = [
        ("shop", "shop", "shop"),
        ("shop", "shop#1", "client"),
        ("shop", "shop#2", "shop"),
        ("b", "b", "all"),
        ("b", "b#1", "all"),
    ];
    for (namespace, class, cluster) in expected {
        assert_eq!(goes(&bench, namespace, class), Some(name_hash(cluster)), "{class}");
    }
    // A chunk of classes has 255.
    for count in [1, 254, 255, 256, 1_000, 4_096] {
        let name = |i: usize| format!("namespace-{i}");
        let of = |rest: usize| (0..count).filter(|i| i % 2 == rest).map(name).collect::<Vec<_>>();
        let mut callers = vec![(of(0), one("even"))];
        if count > 1 {
            callers.push((of(1), vec![("odd".to_owned(), 1), ("even".to_owned(), 1)]));
        }
        put(&bench, &by_caller("all", &callers));
        for i in (0..count).step_by((count / 200).max(1)) {
            let cluster = if i % 2 == 0 { "even" } else { "odd" };
            assert_eq!(goes(&bench, &name(i), &name(i)), Some(name_hash(cluster)), "{i} of {count}");
        }
        for other in ["", "namespace", "namespace-4096"] {
            assert_eq!(goes(&bench, other, other), Some(name_hash("all")), "{other:?} of {count}");
        }
    }
    // A new agent finds it as it was.
    let shown = bench.show(Listener, "l").expect("it is in force");
    let callers = shown["chains"][0]["callers"].as_array().expect("classes").len();
    assert_eq!(callers, 2_048);
    bench.stop();
    bench.start();
    assert_eq!(bench.show(Listener, "l").as_ref(), Some(&shown));
    assert_eq!(goes(&bench, "namespace-7", "namespace-7"), Some(name_hash("odd")));
    // Without classes there is nothing left of them.
    let used = used_slots(&bench);
    put(&bench, &by_caller("all", &[(vec!["shop".into()], one("shop"))]));
    assert!(used_slots(&bench) < used);
    let shown = bench.show(Listener, "l").expect("it is in force");
    assert_eq!(
        shown["chains"],
        json!([
            { "name": "callers 0", "callers": ["shop"], "to": { "cluster": "shop" } },
            { "name": "all", "port": null, "to": { "cluster": "all" } },
        ])
    );
}

#[test]
fn a_class_may_be_refused_or_left_alone() {
    let bench = bench(&["all", "nobody"]);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("nobody", &[])]), []);
    let onward = cluster::Cluster {
        name: "onward".to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::OriginalDst.into(),
        )),
        lb_policy: cluster::cluster::LbPolicy::ClusterProvided.into(),
        ..Default::default()
    };
    assert_eq!(bench.upsert(Cluster, vec![Resource::encode(Cluster, "onward", &onward)]), []);
    let of = |class: &str, cluster: &str| (vec![class.to_owned()], vec![(cluster.to_owned(), 1)]);
    put(&bench, &by_caller("all", &[of("a", "nobody"), of("b", "onward")]));
    assert_eq!(outcome(&bench, "a", "a"), ConnectOutcome::Refuse);
    assert_eq!(outcome(&bench, "b", "b"), ConnectOutcome::Pass);
    assert_eq!(goes(&bench, "c", "c"), Some(name_hash("all")));
    let shown = bench.show(Cluster, "onward").expect("it is in force");
    assert!(shown["balance"].as_str().expect("text").starts_with("none"));
}

#[test]
fn what_a_matcher_says_wrong_is_refused_and_the_old_version_stays() {
    let bench = bench(&["all", "shop"]);
    let of = |class: &str| (vec![class.to_owned()], vec![("shop".to_owned(), 1)]);
    let good = by_caller("all", &[of("shop")]);
    put(&bench, &good);
    type Wrong = fn(&mut listener::Listener);
    let wrong: [(&str, Wrong); 6] = [
        ("matchers[0].on_match: there is no chain", |l| l.filter_chains.truncate(1)),
        ("on_no_match or a default_filter_chain", |l| {
            l.filter_chain_matcher.as_mut().unwrap().on_no_match = None
        }),
        ("only a matcher_list", |l| l.filter_chain_matcher.as_mut().unwrap().matcher_type = None),
        ("class \"shop\" has a chain already", |l| {
            let again = l.filter_chains[1].clone();
            l.filter_chains.push(listener::FilterChain { name: "again".to_owned(), ..again });
            if let Some(MatcherType::MatcherList(list)) =
                &mut l.filter_chain_matcher.as_mut().unwrap().matcher_type
            {
                list.matchers.push(matching(&["shop".to_owned()], "again"));
            }
        }),
        ("an earlier chain has the same name", |l| l.filter_chains.push(l.filter_chains[0].clone())),
        ("only the class of the caller", |l| {
            if let Some(MatcherType::MatcherList(list)) =
                &mut l.filter_chain_matcher.as_mut().unwrap().matcher_type
            {
                list.matchers[0].predicate = None;
            }
        }),
    ];
    for (expected, change) in wrong {
        let mut bad = good.clone();
        change(&mut bad);
        let refused = bench.upsert(Listener, vec![Resource::encode(Listener, "l", &bad)]);
        assert!(refused.len() == 1 && refused[0].reason.contains(expected), "{expected}: {refused:?}");
        assert_eq!(goes(&bench, "shop", "shop"), Some(name_hash("shop")));
    }
}
