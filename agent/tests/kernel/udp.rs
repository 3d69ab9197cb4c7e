//! Datagrams to VIPs: where they go, and whence their answers come. With real sockets.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use slotmesh_agent::{ConnectAttempt, ConnectOutcome, Pins, Workload};
use slotmesh_kernel::{Map, tcp};
use slotmesh_records::{FlowTotals, SocketFlows};
use slotmesh_xds::{
    Resource,
    ResourceType::{Cluster, Endpoints, Listener},
    Transport,
};

use crate::{
    Bench,
    callers::udp_by_caller,
    cgroup::Cgroup,
    config::{cluster, endpoints, tcp_listener, udp_listener},
    running::{active, is_refused, publish, until},
    start::{bench, start},
};

/// Longer than an answer takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// A socket that answers whoever asks by its own port.
struct Server(UdpSocket);

impl Server {
    fn at(ip: IpAddr) -> Self {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    fn new() -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into())
    }

    fn at_addr(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// Answers one question.
    fn answer(&self) {
        let mut question = [0; 64];
        let (_, from) = self.0.recv_from(&mut question).unwrap();
        self.0.send_to(&self.at_addr().port().to_be_bytes(), from).unwrap();
    }

    /// Takes a question, if one is there.
    fn is_asked(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let asked = self.0.recv_from(&mut [0; 64]).is_ok();
        self.0.set_nonblocking(false).unwrap();
        asked
    }
}

fn client(pod: &Cgroup, ip: IpAddr) -> UdpSocket {
    let socket = pod.within(|| UdpSocket::bind((ip, 0)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn v4(pod: &Cgroup) -> UdpSocket {
    client(pod, Ipv4Addr::UNSPECIFIED.into())
}

/// The answer: who gave it by its port, and whence it came.
fn answer(socket: &UdpSocket) -> (u16, SocketAddr) {
    let mut said = [0; 2];
    let (_, from) = socket.recv_from(&mut said).unwrap();
    (u16::from_be_bytes(said), from)
}

/// Asks by a datagram of its own, and lets the server answer.
fn ask(socket: &UdpSocket, to: SocketAddr, server: &Server) -> SocketAddr {
    socket.send_to(b"who", to).unwrap();
    server.answer();
    let (port, from) = answer(socket);
    assert_eq!(port, server.at_addr().port());
    from
}

fn serve(bench: &Bench, name: &str, vip: SocketAddr, to: &[&Server]) {
    assert_eq!(bench.upsert(Cluster, vec![cluster(name)]), []);
    move_to(bench, name, to);
    assert_eq!(bench.upsert(Listener, vec![udp_listener(&format!("l-{name}"), vip, name)]), []);
}

fn move_to(bench: &Bench, name: &str, to: &[&Server]) {
    let to: Vec<_> = to.iter().map(|server| (server.at_addr(), 1)).collect();
    assert_eq!(bench.upsert(Endpoints, vec![endpoints(name, &to)]), []);
}

fn totals(bench: &Bench) -> FlowTotals {
    let map: Map<u32, FlowTotals> =
        Map::open(&Pins::new(&bench.options().pin_root).flow_totals()).unwrap().expect("it is pinned");
    map.entries().unwrap().into_iter().fold(FlowTotals::default(), |sum, (_, lane)| sum.plus(lane))
}

fn recorded(bench: &Bench) -> u64 {
    bench.running().sockets.recorded
}

#[test]
fn an_answer_comes_from_what_was_asked() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let (a, b) = (Server::new(), Server::new());
    let (first, second) = ("198.18.20.1:53".parse().unwrap(), "198.18.20.2:53".parse().unwrap());
    serve(&bench, "a", first, &[&a]);
    serve(&bench, "b", second, &[&b]);
    let socket = v4(&pod);
    // One socket asks several VIPs in turn, and an endpoint itself.
    for _ in 0..3 {
        assert_eq!(ask(&socket, first, &a), first);
        assert_eq!(ask(&socket, second, &b), second);
    }
    // All at once.
    socket.send_to(b"who", first).unwrap();
    socket.send_to(b"who", second).unwrap();
    b.answer();
    assert_eq!(answer(&socket), (b.at_addr().port(), second));
    a.answer();
    assert_eq!(answer(&socket), (a.at_addr().port(), first));
    // Who asks an endpoint itself gets its own answer, and again that of the VIP afterwards.
    assert_eq!(ask(&socket, a.at_addr(), &a), a.at_addr());
    assert_eq!(ask(&socket, first, &a), first);
    assert_eq!(totals(&bench).opened, 3, "the first of them twice");
    // Nobody else's sockets are touched.
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(ask(&stranger, a.at_addr(), &a), a.at_addr());
}

#[test]
fn each_class_of_callers_has_its_own_answer() {
    let pods = [Cgroup::new(), Cgroup::new()];
    let of =
        |i: usize, namespace: &str| Workload { namespace: namespace.to_owned(), ..pods[i].workload("pod") };
    let bench = bench(&[of(0, "shop"), of(1, "other")]);
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let servers = [Server::at(ip), Server::at(ip)];
        let vip: SocketAddr =
            if ip.is_ipv4() { "198.18.20.9:53" } else { "[2001:db8::9]:53" }.parse().unwrap();
        let all = Server::at(ip);
        for (name, to) in [("shop", &servers[0]), ("other", &servers[1]), ("all", &all)] {
            assert_eq!(bench.upsert(Cluster, vec![cluster(name)]), []);
            move_to(&bench, name, &[to]);
        }
        let put = |callers: &[(&str, &str)]| {
            let listener = udp_by_caller(vip, "all", callers);
            assert_eq!(bench.upsert(Listener, vec![Resource::encode(Listener, "l", &listener)]), []);
        };
        let any = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let sockets = [client(&pods[0], any), client(&pods[1], any)];
        put(&[("shop", "shop"), ("other", "other")]);
        for (socket, server) in sockets.iter().zip(&servers) {
            assert_eq!(ask(socket, vip, server), vip);
        }
        // Sockets that are connected, too; these stay where they are.
        for (pod, server) in pods.iter().zip(&servers) {
            let connected = client(pod, any);
            pod.within(|| connected.connect(vip)).unwrap();
            connected.send(b"who").unwrap();
            server.answer();
            assert_eq!(answer(&connected), (server.at_addr().port(), vip));
        }
        // Who has no answer of its own any more gets everybody's, the next time it asks.
        put(&[("shop", "shop")]);
        assert_eq!(ask(&sockets[0], vip, &servers[0]), vip);
        assert_eq!(ask(&sockets[1], vip, &all), vip);
        bench.remove(Listener, &["l"]);
    }
}

#[test]
fn two_vips_may_share_an_endpoint() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let server = Server::new();
    let vips: [SocketAddr; 2] = ["198.18.20.1:53".parse().unwrap(), "198.18.20.2:53".parse().unwrap()];
    serve(&bench, "a", vips[0], &[&server]);
    serve(&bench, "b", vips[1], &[&server]);
    let socket = v4(&pod);
    for vip in [vips[0], vips[1], vips[0], vips[1], vips[1], vips[0]] {
        assert_eq!(ask(&socket, vip, &server), vip, "that asked last");
    }
    assert_eq!(ask(&socket, server.at_addr(), &server), server.at_addr());
}

#[test]
fn a_flow_keeps_its_endpoint_until_that_goes() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let servers = [(); 8].map(|()| Server::new());
    let all: Vec<&Server> = servers.iter().collect();
    let vip = "198.18.20.3:53".parse().unwrap();
    serve(&bench, "a", vip, &all[..4]);
    let sockets: Vec<UdpSocket> = (0..32).map(|_| v4(&pod)).collect();
    let asked = |socket: &UdpSocket, of: &[&Server]| -> usize {
        socket.send_to(b"who", vip).unwrap();
        let mut found = None;
        until("the question to arrive", || {
            found = of.iter().position(|server| server.is_asked());
            found.is_some()
        });
        found.unwrap()
    };
    let chosen: Vec<usize> = sockets.iter().map(|socket| asked(socket, &all)).collect();
    assert!((0..4).all(|i| chosen.contains(&i)), "each has some: {chosen:?}");
    let again = || sockets.iter().map(|socket| asked(socket, &all)).collect::<Vec<usize>>();
    assert_eq!(again(), chosen);
    // More endpoints change nothing.
    move_to(&bench, "a", &all);
    assert_eq!(again(), chosen);
    assert_eq!(totals(&bench).moved, 0);
    // Where one goes, only its flows go elsewhere.
    move_to(&bench, "a", &all[1..]);
    let after = again();
    for (before, after) in chosen.iter().zip(&after) {
        assert!(if *before == 0 { *after != 0 } else { before == after }, "{before} {after}");
    }
    let moved = chosen.iter().filter(|&&i| i == 0).count() as u64;
    assert_eq!(totals(&bench).moved, moved);
    assert_eq!(again(), after);
    // Many endpoints, in several slots.
    let mut many: Vec<(SocketAddr, u32)> =
        (1..=300_u16).map(|i| (SocketAddr::new([127, 3, (i >> 8) as u8, i as u8].into(), 9), 1)).collect();
    many.extend(all[1..].iter().map(|server| (server.at_addr(), 1)));
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("a", &many)]), []);
    assert_eq!(again(), after);
    // In whatever order they were sent.
    many.reverse();
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("a", &many)]), []);
    assert_eq!(again(), after);
}

#[test]
fn a_connected_socket_asks_one_endpoint_and_shows_the_vip() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let (a, b) = (Server::new(), Server::new());
    let (first, second) = ("198.18.20.4:53".parse().unwrap(), "198.18.20.5:53".parse().unwrap());
    serve(&bench, "a", first, &[&a]);
    serve(&bench, "b", second, &[&b]);
    let socket = v4(&pod);
    socket.connect(first).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), first);
    socket.send(b"who").unwrap();
    a.answer();
    assert_eq!(answer(&socket), (a.at_addr().port(), first), "whence it came, too");
    // It connects again.
    socket.connect(second).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), second);
    socket.send(b"who").unwrap();
    b.answer();
    assert_eq!(answer(&socket), (b.at_addr().port(), second));
    // To no VIP.
    socket.connect(a.at_addr()).unwrap();
    assert_eq!(socket.peer_addr().unwrap(), a.at_addr());
    socket.send(b"who").unwrap();
    a.answer();
    assert_eq!(answer(&socket), (a.at_addr().port(), a.at_addr()));
    // To nothing: it asks several again.
    socket.connect(first).unwrap();
    tcp::disconnect(socket.as_fd()).unwrap();
    socket.peer_addr().unwrap_err();
    assert_eq!(ask(&socket, second, &b), second);
    assert_eq!(ask(&socket, first, &a), first);
    assert_eq!(ask(&socket, a.at_addr(), &a), a.at_addr());
}

#[test]
fn both_families_and_ipv4_by_ipv6_sockets() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let (four, six) = (Server::new(), Server::at(Ipv6Addr::LOCALHOST.into()));
    let (vip4, vip6): (SocketAddr, SocketAddr) =
        ("198.18.20.6:53".parse().unwrap(), "[fd00:20::6]:53".parse().unwrap());
    serve(&bench, "four", vip4, &[&four]);
    serve(&bench, "six", vip6, &[&six]);
    let mapped: SocketAddr = "[::ffff:198.18.20.6]:53".parse().unwrap();
    let dual = || {
        let socket = pod.within(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None).unwrap();
            socket.set_only_v6(false).unwrap();
            socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0).into()).unwrap();
            socket
        });
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let socket = dual();
    for _ in 0..2 {
        assert_eq!(ask(&socket, vip6, &six), vip6);
        assert_eq!(ask(&socket, mapped, &four), mapped);
    }
    for (vip, server) in [(vip6, &six), (mapped, &four)] {
        let socket = dual();
        socket.connect(vip).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), vip);
        socket.send(b"who").unwrap();
        server.answer();
        assert_eq!(answer(&socket), (server.at_addr().port(), vip));
    }
}

#[test]
fn without_an_endpoint_it_is_refused_and_costs_nothing() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let vip = "198.18.20.7:53".parse().unwrap();
    serve(&bench, "a", vip, &[]);
    let socket = v4(&pod);
    const FLOOD: u64 = 10_000;
    for _ in 0..FLOOD {
        assert!(is_refused(socket.send_to(b"who", vip)));
    }
    assert!(is_refused(socket.connect(vip)));
    assert_eq!(totals(&bench), FlowTotals { refused: FLOOD + 1, ..FlowTotals::default() });
    assert_eq!(recorded(&bench), 0, "nothing is kept of it");
    // As soon as there is one, the same socket asks it.
    let server = Server::new();
    move_to(&bench, "a", &[&server]);
    assert_eq!(ask(&socket, vip, &server), vip);
}

/// The flows of a socket are its own: one that sends to many VIPs takes nobody's place.
#[test]
fn a_socket_has_so_many_flows_and_the_oldest_goes() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    const FLOWS: usize = SocketFlows::FLOWS;
    let servers: Vec<Server> = (0..=FLOWS).map(|_| Server::new()).collect();
    let vips: Vec<SocketAddr> = (0..=FLOWS).map(|i| format!("198.18.21.{i}:53").parse().unwrap()).collect();
    for (i, (vip, server)) in vips.iter().zip(&servers).enumerate() {
        serve(&bench, &format!("c{i}"), *vip, &[server]);
    }
    let other = v4(&pod);
    assert_eq!(ask(&other, vips[0], &servers[0]), vips[0]);
    let socket = v4(&pod);
    for i in 0..FLOWS {
        assert_eq!(ask(&socket, vips[i], &servers[i]), vips[i]);
    }
    // All are asked, then all answer.
    for i in (0..FLOWS).rev() {
        socket.send_to(b"who", vips[i]).unwrap();
    }
    for i in 0..FLOWS {
        servers[i].answer();
        assert_eq!(answer(&socket), (servers[i].at_addr().port(), vips[i]));
    }
    assert_eq!(totals(&bench).evicted, 0);
    assert_eq!(ask(&socket, vips[FLOWS], &servers[FLOWS]), vips[FLOWS]);
    assert_eq!(totals(&bench).evicted, 1);
    servers[0]
        .0
        .send_to(b"hi", socket.local_addr().map(|at| (Ipv4Addr::LOCALHOST, at.port())).unwrap())
        .unwrap();
    assert_eq!(answer(&socket).1, servers[0].at_addr(), "the oldest has gone");
    servers[1]
        .0
        .send_to(b"hi", socket.local_addr().map(|at| (Ipv4Addr::LOCALHOST, at.port())).unwrap())
        .unwrap();
    assert_eq!(answer(&socket).1, vips[1]);
    servers[0]
        .0
        .send_to(b"hi", other.local_addr().map(|at| (Ipv4Addr::LOCALHOST, at.port())).unwrap())
        .unwrap();
    assert_eq!(answer(&other).1, vips[0]);
}

#[test]
fn one_address_serves_both_protocols_and_their_counts_are_apart() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::new();
    let vip = "198.18.20.8:53".parse().unwrap();
    publish(&bench, vip, &[(listener.local_addr().unwrap(), 1)], Some(1));
    serve(&bench, "dns", vip, &[&server]);
    let asked = |protocol| match bench
        .agent()
        .datapath()
        .explain(ConnectAttempt::to(vip).in_protocol(protocol))
        .unwrap()
    {
        ConnectOutcome::Redirect { to, .. } => to,
        other => panic!("{other:?}"),
    };
    assert_eq!(asked(Transport::Tcp), listener.local_addr().unwrap());
    assert_eq!(asked(Transport::Udp), server.at_addr());
    let connection = pod.connect(vip).unwrap();
    let socket = v4(&pod);
    assert_eq!(ask(&socket, vip, &server), vip);
    socket.connect(vip).unwrap();
    assert_eq!(active(&bench), 1);
    assert!(is_refused(pod.connect(vip)), "the limit is of connections");
    assert_eq!(ask(&v4(&pod), vip, &server), vip);
    drop(socket);
    assert_eq!(active(&bench), 1);
    drop(connection);
    until("the connection to count no more", || active(&bench) == 0);
    // Both are listed, each with its protocol.
    let shown = bench.show(Listener, "l-dns").unwrap();
    assert_eq!(shown["addresses"], serde_json::json!(["198.18.20.8:53/UDP"]));
    assert_eq!(bench.show(Listener, "l").unwrap()["addresses"], serde_json::json!(["198.18.20.8:53"]));
    // One more listener for the same is refused by name.
    let refused = bench.upsert(Listener, vec![udp_listener("twice", vip, "dns")]);
    assert!(
        refused[0].reason.contains("198.18.20.8:53/UDP is already that of listener l-dns"),
        "{refused:?}"
    );
    assert_eq!(
        bench.upsert(
            Listener,
            vec![tcp_listener("other", &["198.18.20.9:53".parse().unwrap()], &[("web".to_owned(), 1)])]
        ),
        []
    );
}

#[test]
fn sockets_are_recorded_until_they_are_closed() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let server = Server::new();
    let vip = "198.18.20.10:53".parse().unwrap();
    serve(&bench, "a", vip, &[&server]);
    let sockets: Vec<UdpSocket> = (0..50).map(|_| v4(&pod)).collect();
    for (i, socket) in sockets.iter().enumerate() {
        if i % 2 == 0 {
            socket.connect(vip).unwrap();
        } else {
            socket.send_to(b"who", vip).unwrap();
        }
    }
    let places = (50 * SocketFlows::PLACES) as u64;
    assert_eq!(recorded(&bench), places);
    drop(sockets);
    until("their places to be free", || recorded(&bench) == 0);
}

/// A new agent takes the flows over that the old one left.
#[test]
fn flows_outlive_the_agent() {
    let pod = Cgroup::new();
    let workload = pod.workload("pod");
    let mut bench = bench(std::slice::from_ref(&workload));
    let server = Server::new();
    let vip = "198.18.20.11:53".parse().unwrap();
    serve(&bench, "a", vip, &[&server]);
    let (asking, connected) = (v4(&pod), v4(&pod));
    assert_eq!(ask(&asking, vip, &server), vip);
    connected.connect(vip).unwrap();
    bench.stop();
    asking.send_to(b"who", vip).unwrap();
    server.answer();
    assert_eq!(answer(&asking).1, vip);
    bench.agent = Some(start(&bench, std::slice::from_ref(&workload)).unwrap());
    assert_eq!(ask(&asking, vip, &server), vip);
    assert_eq!(connected.peer_addr().unwrap(), vip);
    assert_eq!(totals(&bench).opened, 2);
}

/// Many threads send by one socket to several VIPs while endpoints come and go: no datagram goes elsewhere.
#[test]
fn threads_share_a_socket() {
    const VIPS: usize = 4;
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let servers: Vec<Server> = (0..2 * VIPS).map(|_| Server::new()).collect();
    let vips: Vec<SocketAddr> = (0..VIPS).map(|i| format!("198.18.22.{i}:53").parse().unwrap()).collect();
    for (i, vip) in vips.iter().enumerate() {
        serve(&bench, &format!("c{i}"), *vip, &[&servers[2 * i], &servers[2 * i + 1]]);
    }
    let socket = v4(&pod);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (i, server) in servers.iter().enumerate() {
            let done = &done;
            server.0.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut said = [0; 1];
                    match server.0.recv_from(&mut said) {
                        Ok(_) => assert_eq!(usize::from(said[0]), i / 2, "a datagram to another VIP"),
                        Err(error) => assert!(
                            matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
                            "{error}"
                        ),
                    }
                }
            });
        }
        let senders: Vec<_> = (0..VIPS)
            .map(|i| {
                let (socket, vip) = (&socket, vips[i]);
                scope.spawn(move || {
                    for _ in 0..5_000 {
                        socket.send_to(&[i as u8], vip).unwrap();
                    }
                })
            })
            .collect();
        let until = Instant::now() + PATIENCE;
        let mut round = 0;
        while senders.iter().any(|sender| !sender.is_finished()) && Instant::now() < until {
            for i in 0..VIPS {
                let both = [&servers[2 * i], &servers[2 * i + 1]];
                move_to(&bench, &format!("c{i}"), &both[round % 2..][..1]);
            }
            round += 1;
        }
        for sender in senders {
            sender.join().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
