//! Real configuration: filter chains by port, virtual hosts by address, inline assignments with
//! localities, long lists and long names. All of it is held, and every choice is the right one.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
};

use serde_json::{Value, json};
use slotmesh_agent::{ConnectAttempt, ConnectOutcome};
use slotmesh_records::name_hash;
use slotmesh_slots::Config;
use slotmesh_xds::{
    Resource,
    ResourceType::{self, Cluster, Endpoints, Listener, Route},
    envoy::{
        envoy::config::{
            cluster::v3::{self as cluster, circuit_breakers::Thresholds, cluster::ClusterDiscoveryType},
            core::v3::Locality,
            endpoint::v3::{self as endpoint},
            listener::v3 as listener,
            route::v3 as route,
        },
        google::protobuf::UInt32Value,
    },
};

use crate::{
    Bench,
    config::{
        chain, cluster as eds, cluster_route, endpoints, http_listener, lb_endpoint, listener_of, tcp_filter,
    },
};

fn bench() -> Bench {
    Bench::new(Config { initial: 4, ..Config::default() })
}

/// The cluster that a connection goes to, with one endpoint or more; `None` where it is refused.
fn cluster_of(bench: &Bench, vip: SocketAddr) -> Option<u64> {
    match bench.agent().datapath().explain(ConnectAttempt::to(vip)).expect("the kernel answers") {
        ConnectOutcome::Redirect { cluster, .. } => Some(cluster),
        ConnectOutcome::Refuse => None,
        ConnectOutcome::Pass => panic!("{vip} isn't known"),
    }
}

fn shown(bench: &Bench, ty: ResourceType, name: &str) -> Value {
    bench.show(ty, name).unwrap_or_else(|| panic!("{ty} {name} is in force"))
}

fn one_endpoint(bench: &Bench, names: &[String]) {
    let to = [("10.0.0.1:80".parse().unwrap(), 1)];
    assert_eq!(bench.upsert(Cluster, names.iter().map(|name| eds(name)).collect()), []);
    assert_eq!(bench.upsert(Endpoints, names.iter().map(|name| endpoints(name, &to)).collect()), []);
}

#[test]
fn each_port_has_its_filter_chain() {
    let mut bench = bench();
    // One slot of chains, and of addresses, holds some 200.
    for count in [1_u16, 4, 63, 204, 205, 1_000, 5] {
        let ports: Vec<u16> = (0..count).map(|i| 100 + (u32::from(i) * 1_009 % 9_973) as u16).collect();
        let name = |port: u16| format!("outbound|{port}||kube-dns.kube-system.svc.cluster.local");
        let rest = "rest".to_owned();
        let mut names: Vec<String> = ports.iter().map(|&port| name(port)).collect();
        names.push(rest.clone());
        one_endpoint(&bench, &names);
        let at = |port: u16| SocketAddr::from(([10, 96, 0, 10], port));
        let mut chains: Vec<listener::FilterChain> = ports
            .iter()
            .map(|&port| chain(&format!("chain of {port}"), Some(port), tcp_filter(&[(name(port), 1)])))
            .collect();
        let vips: Vec<SocketAddr> = ports.iter().copied().chain([99, 20_000]).map(at).collect();
        let without = listener_of("l", &vips, chains.clone(), None);
        assert_eq!(bench.upsert(Listener, vec![without]), []);
        for &port in &ports {
            assert_eq!(cluster_of(&bench, at(port)), Some(name_hash(&name(port))), "{port} of {count}");
        }
        assert_eq!([99, 20_000].map(|port| cluster_of(&bench, at(port))), [None, None], "no chain matches");

        // The one that matches all may be among them, or be the default.
        let all = chain("all", None, tcp_filter(&[(rest.clone(), 1)]));
        let default = listener_of("l", &vips, chains.clone(), Some(all.clone()));
        assert_eq!(bench.upsert(Listener, vec![default]), []);
        assert_eq!([99, 20_000].map(|port| cluster_of(&bench, at(port))), [Some(name_hash(&rest)); 2]);
        chains.insert(0, all);
        assert_eq!(bench.upsert(Listener, vec![listener_of("l", &vips, chains, None)]), []);
        assert_eq!([99, 20_000].map(|port| cluster_of(&bench, at(port))), [Some(name_hash(&rest)); 2]);

        let mut sorted = ports.clone();
        sorted.sort_unstable();
        let mut expected: Vec<Value> = sorted
            .iter()
            .map(|&port| {
                json!({ "name": format!("chain of {port}"), "port": port, "to": { "cluster": name(port) } })
            })
            .collect();
        expected.push(json!({ "name": "all", "port": null, "to": { "cluster": "rest" } }));
        let shown_now = shown(&bench, Listener, "l");
        assert_eq!(shown_now["chains"], Value::Array(expected));
        assert_eq!(shown_now["addresses"].as_array().map(Vec::len), Some(vips.len()));
        // A new agent finds all of it, and which addresses are the listener's.
        bench.stop();
        bench.start();
        assert_eq!(shown(&bench, Listener, "l"), shown_now);
        assert_eq!(
            cluster_of(&bench, at(ports[count as usize / 2])),
            Some(name_hash(&name(ports[count as usize / 2])))
        );
    }
}

fn host_address(i: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a60_0000 + u32::from(i) * 7)
}

/// `i`-th of many: a name, an address with a port, and an address without one.
fn virtual_host(i: u16) -> route::VirtualHost {
    let domains = vec![
        format!("service-{i}.{}.svc.cluster.local", "x".repeat(40)),
        format!("{}:9080", host_address(i)),
        host_address(i).to_string(),
    ];
    let weighted = |part: &str| vec![(format!("{i}-{part}"), 1), ("shared".to_owned(), 1)];
    route::VirtualHost {
        name: format!("host {i}"),
        domains,
        routes: vec![cluster_route("first", &weighted("first")), cluster_route("dead", &weighted("dead"))],
        ..Default::default()
    }
}

#[test]
fn a_thousand_virtual_hosts_are_chosen_by_address() {
    const COUNT: u16 = 1000;
    let bench = bench();
    let mut hosts: Vec<route::VirtualHost> = (0..COUNT).map(virtual_host).collect();
    // An address with another port, of which the one without is another host's; and what is left.
    let extra = |name: &str, domain: String| route::VirtualHost {
        name: name.to_owned(),
        domains: vec![domain],
        routes: vec![cluster_route("", &[(name.to_owned(), 1)])],
        ..Default::default()
    };
    hosts.push(extra("port", format!("{}:81", host_address(0))));
    hosts.push(extra("any", "*".to_owned()));
    hosts.push(extra("six", "[fd00::1]".to_owned()));
    hosts.push(extra("names only", "example.org".to_owned()));
    let config = route::RouteConfiguration {
        name: "80".to_owned(),
        virtual_hosts: hosts.clone(),
        ..Default::default()
    };
    let mut names: Vec<String> = (0..COUNT).map(|i| format!("{i}-first")).collect();
    names.extend(["port", "any", "six"].map(str::to_owned));
    one_endpoint(&bench, &names);
    let six = [("[fd00::2]:80".parse().unwrap(), 1)];
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("six", &six)]), []);
    assert_eq!(bench.upsert(Route, vec![Resource::encode(Route, "80", &config)]), []);
    for first in (0..COUNT).step_by(100) {
        let vips: Vec<SocketAddr> = (first..first + 100)
            .flat_map(|i| [80, 9080].map(|port| SocketAddr::from((host_address(i), port))))
            .collect();
        assert_eq!(bench.upsert(Listener, vec![http_listener(&first.to_string(), &vips, "80")]), []);
    }
    let others: [SocketAddr; 3] =
        [(host_address(0), 81).into(), "10.1.1.1:80".parse().unwrap(), "[fd00::1]:80".parse().unwrap()];
    assert_eq!(bench.upsert(Listener, vec![http_listener("others", &others, "80")]), []);
    assert_eq!(
        others.map(|vip| cluster_of(&bench, vip)),
        ["port", "any", "six"].map(|name| Some(name_hash(name)))
    );
    for i in 0..COUNT {
        for port in [80, 9080] {
            let found = cluster_of(&bench, (host_address(i), port).into());
            assert_eq!(found, Some(name_hash(&format!("{i}-first"))), "host {i} at port {port}");
        }
    }

    let held = shown(&bench, Route, "80");
    assert_eq!(held["addresses"], 2 * COUNT + 2);
    let held = held["virtualHosts"].as_array().unwrap();
    assert_eq!(held.len(), hosts.len());
    for (held, host) in held.iter().zip(&hosts) {
        assert_eq!(held["name"], host.name);
        assert_eq!(held["domains"], json!(host.domains));
    }
    let weighted = |cluster: String| json!({ "cluster": cluster, "weight": 1 });
    let clusters = |i: u16, part: &str| {
        json!({
            "name": part,
            "clusters": [weighted(format!("{i}-{part}")), weighted("shared".to_owned())],
        })
    };
    for i in 0..COUNT {
        assert_eq!(held[usize::from(i)]["routes"], json!([clusters(i, "first"), clusters(i, "dead")]));
    }

    // Without "*", an address that no host names is refused; one that a host names isn't.
    hosts.remove(usize::from(COUNT) + 1);
    let config =
        route::RouteConfiguration { name: "80".to_owned(), virtual_hosts: hosts, ..Default::default() };
    assert_eq!(bench.upsert(Route, vec![Resource::encode(Route, "80", &config)]), []);
    assert_eq!(cluster_of(&bench, others[1]), None);
    assert_eq!(cluster_of(&bench, others[0]), Some(name_hash("port")));
}

#[test]
fn a_cluster_with_its_endpoints_is_one_message() {
    let bench = bench();
    let name = "reviews".repeat(36) + "x";
    assert_eq!(name.len(), 253);
    let to = |i: u8| SocketAddr::from(([192, 168, 127, 240 + i], 9090 + u16::from(i)));
    let locality = |i: u8| endpoint::LocalityLbEndpoints {
        locality: Some(Locality {
            region: format!("region-{i}"),
            zone: "z".repeat(253),
            sub_zone: String::new(),
        }),
        lb_endpoints: vec![lb_endpoint(to(i), 1)],
        load_balancing_weight: (i == 3).then_some(UInt32Value { value: 7 }),
        ..Default::default()
    };
    let value = |value| Some(UInt32Value { value });
    let mut message = cluster::Cluster {
        name: name.clone(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(0)),
        load_assignment: Some(endpoint::ClusterLoadAssignment {
            cluster_name: "inbound|9080|http|reviews.default.svc.cluster.local".to_owned(),
            endpoints: (0..10).map(locality).collect(),
            ..Default::default()
        }),
        circuit_breakers: Some(cluster::CircuitBreakers {
            thresholds: vec![Thresholds {
                max_connections: value(1024),
                max_pending_requests: value(2),
                max_requests: value(3),
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    assert_eq!(bench.upsert(Cluster, vec![Resource::encode(Cluster, name.as_str(), &message)]), []);
    let vip = "10.96.0.1:80".parse().unwrap();
    let only = [(name.clone(), 1)];
    assert_eq!(
        bench
            .upsert(Listener, vec![listener_of("l", &[vip], vec![chain("", None, tcp_filter(&only))], None)]),
        []
    );
    let chosen: BTreeSet<SocketAddr> = (0..10_u64)
        .map(|i| {
            match bench
                .agent()
                .datapath()
                .explain(ConnectAttempt::to(vip).choosing((0, (i << 32).div_ceil(10) as u32)))
                .unwrap()
            {
                ConnectOutcome::Redirect { to, cluster } if cluster == name_hash(&name) => to,
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(chosen, (0..10).map(to).collect());
    let held = shown(&bench, Cluster, &name);
    let keys = ["name", "balance", "maxConnections", "maxPendingRequests", "maxRequests", "maxRetries"];
    assert_eq!(
        keys.map(|key| held[key].clone()),
        [json!(name), json!("round robin"), json!(1024), json!(2), json!(3), Value::Null]
    );
    let endpoints = |held: &Value| held["endpoints"]["endpoints"].as_array().unwrap().clone();
    for (i, endpoint) in endpoints(&held).iter().enumerate() {
        let expected = json!({ "address": to(i as u8).to_string(), "weight": 1, "locality": i });
        assert_eq!(*endpoint, expected);
    }
    let localities = held["endpoints"]["localities"].as_array().unwrap();
    for (i, locality) in localities.iter().enumerate() {
        let weight = (i == 3).then_some(7);
        let expected = json!({
            "region": format!("region-{i}"), "zone": "z".repeat(253), "subZone": "", "priority": 0,
            "weight": weight,
        });
        assert_eq!(*locality, expected);
    }

    // Fewer endpoints, and a survivor of a restart.
    message.load_assignment.as_mut().unwrap().endpoints.truncate(1);
    assert_eq!(bench.upsert(Cluster, vec![Resource::encode(Cluster, name.as_str(), &message)]), []);
    let mut bench = bench;
    bench.stop();
    bench.start();
    assert_eq!(endpoints(&shown(&bench, Cluster, &name)).len(), 1);
    assert_eq!(cluster_of(&bench, vip), Some(name_hash(&name)));
}

#[test]
fn five_thousand_endpoints_are_all_held_and_chosen() {
    const COUNT: u16 = 5000;
    let bench = bench();
    let vip = "10.96.0.1:80".parse().unwrap();
    let at = |i: u16| SocketAddr::new(Ipv4Addr::from_bits(0x0a00_0000 + u32::from(i)).into(), 8080);
    let list: Vec<(SocketAddr, u32)> = (0..COUNT).map(|i| (at(i), 1)).collect();
    assert_eq!(bench.upsert(Cluster, vec![eds("many")]), []);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("many", &list)]), []);
    let filter = tcp_filter(&[("many".to_owned(), 1)]);
    assert_eq!(
        bench.upsert(Listener, vec![listener_of("l", &[vip], vec![chain("", None, filter)], None)]),
        []
    );
    for i in 0..COUNT {
        let random = (u64::from(i) << 32).div_ceil(COUNT.into()) as u32;
        match bench.agent().datapath().explain(ConnectAttempt::to(vip).choosing((0, random))).unwrap() {
            ConnectOutcome::Redirect { to, .. } => assert_eq!(to, at(i)),
            other => panic!("{other:?}"),
        }
    }
    let held = shown(&bench, Endpoints, "many");
    let held: Vec<&str> =
        held["endpoints"].as_array().unwrap().iter().filter_map(|one| one["address"].as_str()).collect();
    assert_eq!(held, (0..COUNT).map(|i| at(i).to_string()).collect::<Vec<_>>());
}
