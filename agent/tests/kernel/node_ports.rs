//! NodePorts: a port at all addresses of nodes, and nothing else at that port. With real sockets.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use prost::Message as _;
use slotmesh_agent::{ConnectAttempt, ConnectOutcome};
use slotmesh_xds::{
    OF_NODES, Resource,
    ResourceType::{Cluster, Endpoints, Listener},
    Transport,
    envoy::{
        envoy::config::{core::v3 as core, listener::v3 as listener},
        google::protobuf::Any,
    },
};

use crate::{
    Bench,
    cgroup::Cgroup,
    config::{address, cluster, endpoints, tcp_listener, udp_listener},
    start::{bench, start},
};

const PORT: u16 = 30_080;

fn marks() -> core::Metadata {
    core::Metadata {
        typed_filter_metadata: [(OF_NODES.to_owned(), Any::default())].into(),
        ..Default::default()
    }
}

/// The listener, of a port at all nodes.
fn at_nodes(resource: &Resource) -> Resource {
    let message = listener::Listener::decode(&*resource.content).unwrap();
    let message = listener::Listener { metadata: Some(marks()), ..message };
    Resource::encode(Listener, resource.name.clone(), &message)
}

/// The addresses of a node.
fn node(name: &str, ips: &[&str]) -> Resource {
    let mut addresses = ips.iter().map(|ip| address(SocketAddr::new(ip.parse().unwrap(), 0)));
    let message = listener::Listener {
        name: name.to_owned(),
        address: addresses.next(),
        additional_addresses: addresses
            .map(|address| listener::AdditionalAddress { address: Some(address), ..Default::default() })
            .collect(),
        metadata: Some(marks()),
        ..Default::default()
    };
    Resource::encode(Listener, name, &message)
}

fn at(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), PORT)
}

fn ask(bench: &Bench, to: SocketAddr, protocol: Transport) -> ConnectOutcome {
    bench.agent().datapath().explain(ConnectAttempt::to(to).in_protocol(protocol)).unwrap()
}

#[test]
fn a_node_port_is_that_of_nodes_addresses_only() {
    let pod = Cgroup::new();
    let mut bench = bench(&[pod.workload("pod")]);
    let four = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let six = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let to = [&four, &six].map(|server| (server.local_addr().unwrap(), 1));
    assert_eq!(bench.upsert(Cluster, vec![cluster("web")]), []);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &to)]), []);
    let everywhere = [at("0.0.0.0"), at("::")];
    let web = at_nodes(&tcp_listener("web", &everywhere, &[("web".to_owned(), 1)]));
    assert_eq!(bench.upsert(Listener, vec![web]), []);
    let passes = |bench: &Bench, ip: &str| ask(bench, at(ip), Transport::Tcp) == ConnectOutcome::Pass;
    assert!(passes(&bench, "127.30.0.5"), "no node is known");
    let nodes = [node("node/a", &["127.30.0.5", "::1"]), node("node/b", &["127.30.0.6"])];
    assert_eq!(bench.upsert(Listener, nodes.to_vec()), []);
    for ip in ["127.30.0.5", "127.30.0.6", "::1", "::ffff:127.30.0.6"] {
        let stream = pod.connect(at(ip)).expect("it is routed");
        let server = if ip == "::1" { &six } else { &four };
        let (_, from) = server.accept().unwrap();
        assert_eq!(stream.local_addr().unwrap().port(), from.port(), "{ip}");
        assert_eq!(stream.peer_addr().unwrap().port(), PORT, "{ip}");
    }
    for ip in ["127.30.0.7", "0.0.0.0", "::", "fd00:30::1"] {
        assert!(passes(&bench, ip), "{ip} is no node's");
    }
    let other_port = SocketAddr::new("127.30.0.5".parse().unwrap(), PORT + 1);
    assert_eq!(ask(&bench, other_port, Transport::Tcp), ConnectOutcome::Pass);
    assert_eq!(ask(&bench, at("127.30.0.5"), Transport::Udp), ConnectOutcome::Pass, "of another protocol");
    // A node goes; the next agent has what this one had.
    bench.remove(Listener, &["node/b"]);
    assert!(passes(&bench, "127.30.0.6") && !passes(&bench, "127.30.0.5"));
    bench.stop();
    bench.agent = Some(start(&bench, &[pod.workload("pod")]).unwrap());
    assert!(passes(&bench, "127.30.0.6") && !passes(&bench, "127.30.0.5"));
    assert!(pod.connect(at("127.30.0.5")).is_ok());
    bench.remove(Listener, &["web"]);
    assert!(passes(&bench, "127.30.0.5"));
}

#[test]
fn datagrams_to_a_node_port_are_answered_by_it() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    for (i, (local, all, node_ip)) in
        [("127.0.0.1", "0.0.0.0", "127.30.1.5"), ("::1", "::", "::1")].into_iter().enumerate()
    {
        let server = UdpSocket::bind((local, 0)).unwrap();
        let name = format!("dns-{i}");
        assert_eq!(bench.upsert(Cluster, vec![cluster(&name)]), []);
        assert_eq!(bench.upsert(Endpoints, vec![endpoints(&name, &[(server.local_addr().unwrap(), 1)])]), []);
        let listener = at_nodes(&udp_listener(&format!("l-{i}"), at(all), &name));
        assert_eq!(bench.upsert(Listener, vec![listener, node(&format!("node/{i}"), &[node_ip])]), []);
        let client = pod.within(|| UdpSocket::bind((local, 0)).unwrap());
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        }
        client.send_to(b"who", at(node_ip)).unwrap();
        let mut question = [0; 8];
        let (length, from) = server.recv_from(&mut question).unwrap();
        server.send_to(&question[..length], from).unwrap();
        let (length, from) = client.recv_from(&mut question).unwrap();
        assert_eq!(
            (&question[..length], from),
            (&b"who"[..], at(node_ip)),
            "the answer is of what was asked"
        );
    }
}

#[test]
fn what_is_not_marked_is_no_node_port() {
    let bench = Bench::new(slotmesh_slots::Config { initial: 4, ..<_>::default() });
    assert_eq!(bench.upsert(Cluster, vec![cluster("web")]), []);
    let everywhere = tcp_listener("web", &[at("0.0.0.0")], &[("web".to_owned(), 1)]);
    let refused = bench.upsert(Listener, vec![everywhere]);
    assert!(refused[0].reason.contains("name the virtual addresses"), "{refused:?}");
    let mixed = at_nodes(&tcp_listener(
        "web",
        &["10.0.0.1:0".parse().unwrap(), at("0.0.0.0")],
        &[("web".to_owned(), 1)],
    ));
    let refused = bench.upsert(Listener, vec![mixed]);
    assert!(refused[0].reason.contains("filter_chains"), "{refused:?}");
}
