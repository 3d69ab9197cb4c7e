//! TrafficPolicies and the traffic policies of DestinationRules: how clusters spread connections.

use slotmesh_builders::{RuleBuilder, policy, rule, service, slice, to, virtual_service};
use slotmesh_compile::Severity;
use slotmesh_crds::{
    ConnectionPool, ConsistentHash as Hash, LoadBalancer, PortSelector, PortTrafficPolicy, TcpPool,
    own::Balancing::{ConsistentHash, LeastConnections, Random, RoundRobin},
};

use crate::support::{Cluster, cluster};

fn web() -> slotmesh_compile::Object {
    service("web").ip("10.0.0.1").named_port("http", 80).named_port("tcp", 81).build()
}

#[test]
fn a_policy_acts_on_all_ports_and_goes_with_it() {
    let mut cluster_ = Cluster::with([web(), policy("p", "web").balance(RoundRobin).max(7).build()]);
    for port in [80, 81] {
        assert_eq!(cluster_.traffic(&cluster("web", port, "")), "ROUND_ROBIN 7");
    }
    cluster_.apply([policy("p", "web").balance(Random).build()]);
    assert_eq!(cluster_.traffic(&cluster("web", 80, "")), "RANDOM");
    let output = cluster_.delete(&policy("p", "web").build());
    assert!(output.changes.is_empty(), "Random is what there is without a policy");
    assert_eq!(cluster_.reports(), 0);
}

#[test]
fn a_policy_for_a_port_goes_before_one_for_the_service_field_by_field() {
    let mut cluster_ = Cluster::with([
        web(),
        policy("all", "web").created(1).max(1).build(),
        policy("port", "web/tcp").created(2).balance(RoundRobin).build(),
    ]);
    assert_eq!(cluster_.traffic(&cluster("web", 80, "")), "RANDOM 1");
    assert_eq!(cluster_.traffic(&cluster("web", 81, "")), "ROUND_ROBIN 1");
    cluster_.apply([policy("all", "web").balance(LeastConnections).max(2).build()]);
    assert_eq!(cluster_.traffic(&cluster("web", 80, "")), "LEAST_REQUEST 2");
    assert_eq!(cluster_.traffic(&cluster("web", 81, "")), "ROUND_ROBIN 2");
    cluster_.apply([policy("port", "web/tcp").max(9).build()]);
    assert_eq!(cluster_.traffic(&cluster("web", 81, "")), "LEAST_REQUEST 9");
    assert_eq!(cluster_.reports(), 0);
}

#[test]
fn what_a_rule_says_of_a_port_stands_by_itself() {
    let settings = |port: u32, balance: &str, most: Option<i32>| {
        let tcp = most.map(|most| TcpPool { max_connections: Some(most), ..Default::default() });
        PortTrafficPolicy {
            port: Some(PortSelector { number: Some(port), ..Default::default() }),
            load_balancer: Some(LoadBalancer { simple: Some(balance.to_owned()), ..Default::default() }),
            connection_pool: Some(ConnectionPool { tcp, ..Default::default() }),
            ..Default::default()
        }
    };
    let mut built = rule("r", "web").version("v1").version("v2").balance("ROUND_ROBIN");
    let of_all = built.0.spec.traffic_policy.as_mut().unwrap();
    let tcp = Some(TcpPool { max_connections: Some(5), ..Default::default() });
    of_all.connection_pool = Some(ConnectionPool { tcp, ..Default::default() });
    of_all.port_level_settings = vec![settings(81, "LEAST_REQUEST", None), settings(81, "RANDOM", Some(1))];
    let of_v2 = built.0.spec.subsets[1].traffic_policy.get_or_insert_default();
    of_v2.port_level_settings = vec![settings(81, "RANDOM", Some(3))];
    let both = |kind: &str| {
        let split = [to("web/v1", 1), to("web/v2", 1)];
        let built = virtual_service(kind, "web");
        if kind == "h" { built.http(split.clone()).tcp(split) } else { built.tcp(split) }.build()
    };
    let mut cluster_ =
        Cluster::with([web(), slice("web", "web").port(1).build(), both("h"), built.clone().build()]);
    for (port, subset, traffic) in [
        (80, "", "ROUND_ROBIN 5"),
        (81, "", "LEAST_REQUEST"),
        (80, "v1", "ROUND_ROBIN 5"),
        (81, "v1", "LEAST_REQUEST"),
        (80, "v2", "ROUND_ROBIN 5"),
        (81, "v2", "RANDOM 3"),
    ] {
        assert_eq!(cluster_.traffic(&cluster("web", port, subset)), traffic, "{port} {subset}");
    }
    let said = cluster_.said(Severity::Note);
    assert!(said[0].contains("portLevelSettings[1].port: port 81 stands there twice"), "{said:?}");

    // What is no port refuses the rule, by field.
    let of_all = built.0.spec.traffic_policy.as_mut().unwrap();
    of_all.port_level_settings = vec![settings(0, "RANDOM", None), PortTrafficPolicy::default()];
    cluster_.apply([built.build()]);
    let refused = cluster_.refused();
    for field in
        ["portLevelSettings[0].port.number: 0 is not a port", "portLevelSettings[1].port: it is missing"]
    {
        assert!(refused.iter().any(|r| r.contains(field)), "{refused:?}");
    }
}

#[test]
fn the_oldest_policy_is_in_force_and_the_others_are_told() {
    let mut cluster_ = Cluster::with([
        web(),
        policy("young", "web").created(2).max(2).build(),
        policy("old", "web").created(1).max(1).build(),
        policy("ageless", "web").max(3).build(),
    ]);
    assert_eq!(cluster_.traffic(&cluster("web", 80, "")), "RANDOM 1");
    let refused = cluster_.refused();
    assert_eq!(refused.len(), 2);
    assert_eq!(
        refused[1],
        "TrafficPolicy default/young: spec.targetRefs[0]: Service default/web already has TrafficPolicy default/old, \
         which is older or first by name; this policy has no effect on it for as long; put both into one"
    );
    cluster_.delete(&policy("old", "web").build());
    assert_eq!(cluster_.traffic(&cluster("web", 80, "")), "RANDOM 2");
}

#[test]
fn a_policy_goes_before_a_destination_rule_field_by_field() {
    let pool = |most| {
        let tcp = Some(TcpPool { max_connections: Some(most), ..Default::default() });
        Some(ConnectionPool { tcp, ..Default::default() })
    };
    let mut balanced = rule("r", "web").version("v1").version("v2").balance("ROUND_ROBIN");
    balanced.0.spec.traffic_policy.as_mut().unwrap().connection_pool = pool(5);
    let of_v2 = balanced.0.spec.subsets[1].traffic_policy.get_or_insert_default();
    of_v2.connection_pool = pool(6);
    let mut cluster_ = Cluster::with([
        web(),
        balanced.build(),
        slice("web", "web").port(1).build(),
        virtual_service("w", "web").http([to("web/v1", 1), to("web/v2", 1)]).build(),
    ]);
    assert_eq!(cluster_.traffic(&cluster("web", 80, "")), "ROUND_ROBIN 5");
    assert_eq!(cluster_.traffic(&cluster("web", 80, "v1")), "ROUND_ROBIN 5");
    assert_eq!(cluster_.traffic(&cluster("web", 80, "v2")), "ROUND_ROBIN 6");
    cluster_.apply([policy("p", "web").max(9).build()]);
    assert_eq!(cluster_.traffic(&cluster("web", 80, "v2")), "ROUND_ROBIN 9");
    cluster_.apply([policy("p", "web").balance(Random).build()]);
    assert_eq!(cluster_.traffic(&cluster("web", 80, "v2")), "RANDOM 6");
}

#[test]
fn a_policy_may_choose_the_less_busy_or_by_the_source() {
    let mut cluster_ = Cluster::with([web(), policy("p", "web").balance(LeastConnections).build()]);
    assert_eq!(cluster_.traffic(&cluster("web", 80, "")), "LEAST_REQUEST");
    cluster_.apply([policy("p", "web").balance(ConsistentHash).max(3).build()]);
    assert_eq!(cluster_.traffic(&cluster("web", 80, "")), "hash of the source 3");
    assert_eq!(cluster_.reports(), 0);
}

#[test]
fn a_destination_rule_may_choose_the_less_busy_or_by_the_source() {
    let traffic = |rule: RuleBuilder| {
        let cluster_ = Cluster::with([web(), rule.build()]);
        (cluster_.traffic(&cluster("web", 80, "")), cluster_.said(Severity::NotSupported), cluster_.refused())
    };
    let hash = |simple: &str, source: Option<bool>, rest: &[&str]| {
        let mut rule = rule("r", "web").balance(simple);
        let balancer = rule.0.spec.traffic_policy.as_mut().unwrap().load_balancer.as_mut().unwrap();
        let rest = rest.iter().map(|name| ((*name).to_owned(), serde_json::Value::Null)).collect();
        balancer.consistent_hash = Some(Hash { use_source_ip: source, rest });
        traffic(rule)
    };
    let none = || (Vec::new(), Vec::new());
    for simple in ["LEAST_REQUEST", "LEAST_CONN"] {
        let (found, said, refused) = traffic(rule("r", "web").balance(simple));
        assert_eq!((found.as_str(), (said, refused)), ("LEAST_REQUEST", none()));
    }
    let (found, said, refused) = hash("", Some(true), &[]);
    assert_eq!((found.as_str(), (said, refused)), ("hash of the source", none()));

    // The size of the table is not the rule's; it acts all the same.
    let (found, said, _) = hash("", Some(true), &["maglev"]);
    assert_eq!(found, "hash of the source");
    assert_eq!(
        said,
        [
            "DestinationRule default/r: not supported: field spec.trafficPolicy.loadBalancer.consistentHash.maglev; the \
             size of the table follows from the endpoints"
        ]
    );
    // What needs a request can't be.
    for source in [None, Some(false)] {
        let (found, said, _) = hash("", source, &["httpHeaderName"]);
        assert_eq!(found, "RANDOM");
        assert!(said[0].contains("consistentHash.httpHeaderName; a connection has no request"), "{said:?}");
    }
    for rest in [&[][..], &["ringHash"]] {
        let (_, _, refused) = hash("", Some(false), rest);
        assert!(
            refused[0].contains("consistentHash: it names nothing to hash; set useSourceIp"),
            "{refused:?}"
        );
    }
    let (found, _, refused) = hash("ROUND_ROBIN", Some(true), &[]);
    assert_eq!(found, "RANDOM");
    assert!(refused[0].contains("consistentHash: it excludes simple; remove one of them"), "{refused:?}");
}

#[test]
fn what_is_wrong_with_a_policy_is_said_by_field() {
    let mut nothing = policy("nothing", "web");
    nothing.0.spec.target_refs[0].kind = "Pod".to_owned();
    nothing.0.spec.target_refs.push(nothing.0.spec.target_refs[0].clone());
    let cluster_ = Cluster::with([
        web(),
        nothing.build(),
        policy("zero", "web").max(0).build(),
        policy("lost", "nowhere").target("web/admin").max(1).build(),
    ]);
    assert_eq!(cluster_.traffic(&cluster("web", 80, "")), "RANDOM");
    let refused = cluster_.refused();
    for said in [
        "default/nothing: spec: the policy says nothing",
        "default/nothing: spec.targetRefs[0].kind: Pod of group",
        "default/nothing: spec.targetRefs[1]: web stands there twice",
        "default/zero: spec.maxConnections: 0 would refuse every connection",
        "default/lost: spec.targetRefs[0].name: there is no Service default/nowhere; the policy takes effect when",
        "default/lost: spec.targetRefs[1].sectionName: Service default/web has no port named admin (it has http, tcp)",
    ] {
        assert!(
            refused.iter().any(|r| r.starts_with(&format!("TrafficPolicy {said}"))),
            "{said}: {refused:#?}"
        );
    }
    assert!(cluster_.said(Severity::NotSupported).is_empty());
}
