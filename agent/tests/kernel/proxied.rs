//! Connections whose requests are looked at go to the proxy of their network namespace.

use std::{
    collections::HashMap,
    fs::File,
    io::Read as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};
use slotmesh_agent::Pins;
use slotmesh_kernel::{Map, netns_cookie};
use slotmesh_records::{NamespaceProxy, ProxyTotals};
use slotmesh_xds::{
    Resource,
    ResourceType::{Cluster, Endpoints, Listener, Route},
    RoutedByRequest,
    envoy::{envoy::config::route::v3 as route, google::protobuf::Any},
};
use socket2::{Domain, Socket, Type};

use crate::{
    Bench,
    cgroup::Cgroup,
    config::{cluster, cluster_route, endpoints, http_listener, route as all_to},
    start::{bench, start},
};

const WEB: &str = "80|web";

/// A route configuration for requests: `/a` is answered, everything else goes to these clusters; without any there is
/// nothing else.
pub(crate) fn by_request(name: &str, clusters: &[(String, u32)]) -> Resource {
    let mut answered = cluster_route("a", &[]);
    answered.r#match.as_mut().unwrap().path_specifier =
        Some(route::route_match::PathSpecifier::Path("/a".to_owned()));
    answered.action = Some(route::route::Action::DirectResponse(route::DirectResponseAction::default()));
    let mut routes = vec![answered];
    if !clusters.is_empty() {
        routes.push(cluster_route("all", clusters));
    }
    let mut message = route::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![route::VirtualHost {
            domains: vec!["*".to_owned()],
            routes,
            ..Default::default()
        }],
        ..Default::default()
    };
    let mark = Any { type_url: RoutedByRequest::TYPE_URL.to_owned(), value: Vec::new() };
    let metadata = message.metadata.get_or_insert_default();
    metadata.typed_filter_metadata.insert(RoutedByRequest::KEY.to_owned(), mark);
    Resource::encode(Route, name, &message)
}

fn publish(bench: &Bench, vips: &[SocketAddr], backends: &[SocketAddr]) {
    let backends: Vec<_> = backends.iter().map(|&at| (at, 1)).collect();
    assert_eq!(bench.upsert(Cluster, vec![cluster("web")]), []);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &backends)]), []);
    assert_eq!(bench.upsert(Route, vec![by_request(WEB, &[("web".to_owned(), 1)])]), []);
    assert_eq!(bench.upsert(Listener, vec![http_listener("l", vips, WEB)]), []);
}

/// The listener of a proxy in this thread's network namespace.
fn proxy() -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind_device(Some(b"lo")).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into()).unwrap();
    socket.listen(16).unwrap();
    socket.into()
}

fn proxies(bench: &Bench) -> Map<u64, NamespaceProxy> {
    Map::open(&Pins::new(&bench.options().pin_root).proxies()).unwrap().expect("it is pinned")
}

/// Names the proxy of this thread's network namespace.
fn name(bench: &Bench, port: u16) {
    let here = TcpListener::bind("127.0.0.1:0").unwrap();
    let cookie = netns_cookie(here.as_fd()).unwrap();
    let proxy = NamespaceProxy { port: port.to_be(), ..NamespaceProxy::default() };
    proxies(bench).update(&cookie, &proxy).unwrap();
}

/// The address at which the proxy is to see connections for this configuration.
fn handle(bench: &Bench, name: &str) -> Ipv4Addr {
    let shown = bench.show(Route, name).expect("it is in force");
    shown["proxy"].as_str().unwrap_or_else(|| panic!("{shown}")).parse().unwrap()
}

fn without_proxy(bench: &Bench) -> [u64; 3] {
    let ProxyTotals { sent: _, absent, refused, unreachable, reserved: _ } = bench.running().proxied;
    [absent, refused, unreachable]
}

#[test]
fn a_connection_goes_to_the_proxy_of_its_namespace_by_the_address_of_its_routes() {
    let pod = Cgroup::new();
    let workloads = [pod.workload("pod")];
    let mut bench = bench(&workloads);
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = backend.local_addr().unwrap();
    let vip: SocketAddr = "198.18.41.1:80".parse().unwrap();
    publish(&bench, &[vip], &[at]);
    // Nobody has named a proxy: by the rule for every request.
    let direct = pod.connect(vip).unwrap();
    assert_eq!(backend.accept().unwrap().1, direct.local_addr().unwrap());
    assert_eq!(without_proxy(&bench), [1, 0, 0]);
    let proxy = proxy();
    let port = proxy.local_addr().unwrap().port();
    name(&bench, port);
    let expect = |bench: &Bench| {
        let client = pod.connect(vip).unwrap();
        let (served, from) = proxy.accept().unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        assert_eq!(served.local_addr().unwrap(), SocketAddr::from((handle(bench, WEB), port)));
        assert_eq!(client.peer_addr().unwrap(), vip, "as it was asked");
    };
    expect(&bench);
    let first = handle(&bench, WEB);
    assert!(first.is_loopback() && first > Ipv4Addr::new(127, 1, 0, 0), "{first}");
    // Another configuration has another address, and a new version the same one.
    assert_eq!(
        bench.upsert(Route, vec![by_request("81|web", &[]), by_request(WEB, &[("web".to_owned(), 2)])]),
        []
    );
    let other = handle(&bench, "81|web");
    assert_ne!(other, first);
    assert_eq!(handle(&bench, WEB), first);
    let both = HashMap::from([(WEB.into(), first), ("81|web".into(), other)]);
    assert_eq!(bench.proxy_addresses(None), both);
    assert_eq!(bench.proxy_addresses(Some(&["81|web", "82|web"])), HashMap::from([("81|web".into(), other)]));
    bench.remove(Route, &["81|web"]);
    assert_eq!(bench.proxy_addresses(None), HashMap::from([(WEB.into(), first)]));
    // And so it has after the agent was stopped; connections go on meanwhile.
    bench.stop();
    bench.agent = Some(start(&bench, &workloads).unwrap());
    assert_eq!(handle(&bench, WEB), first);
    assert_eq!(bench.proxy_addresses(None), HashMap::from([(WEB.into(), first)]));
    expect(&bench);
    // A proxy's connections count nowhere: the one from before does.
    let active: u64 = bench.running().clusters.iter().map(|(_, counts)| counts.active).sum();
    assert_eq!(active, 1, "{:?}", bench.running().clusters);
    // Where there is none at the moment, and it isn't to be done without.
    name(&bench, 0);
    let refused = pod.connect(vip).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(without_proxy(&bench), [1, 1, 0]);
    assert_eq!(bench.running().proxied.sent, 2);
    // A configuration that isn't for requests any more has none.
    assert_eq!(bench.upsert(Route, vec![all_to(WEB, &[("web".to_owned(), 1)])]), []);
    assert_eq!(bench.proxy_addresses(None), HashMap::new());
    let direct = pod.connect(vip).unwrap();
    assert_eq!(backend.accept().unwrap().1, direct.local_addr().unwrap());
}

#[test]
fn a_socket_of_another_namespace_does_not_go_to_this_ones_proxy() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let vip: SocketAddr = "198.18.41.2:80".parse().unwrap();
    publish(&bench, &[vip], &[backend.local_addr().unwrap()]);
    let proxy = proxy();
    name(&bench, proxy.local_addr().unwrap().port());
    let error = pod.within(|| {
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("this needs root");
            TcpStream::connect(vip).unwrap_err()
        })
        .join()
        .unwrap()
    });
    // Nothing is reached there, not even its own loopback interface.
    assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable, "{error}");
    assert_eq!(without_proxy(&bench), [1, 0, 0]);
}

#[test]
fn a_route_without_a_rule_for_every_request_is_refused_without_a_proxy() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let vip: SocketAddr = "198.18.41.3:80".parse().unwrap();
    assert_eq!(bench.upsert(Route, vec![by_request(WEB, &[])]), []);
    assert_eq!(bench.upsert(Listener, vec![http_listener("l", &[vip], WEB)]), []);
    assert_eq!(pod.connect(vip).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let proxy = proxy();
    name(&bench, proxy.local_addr().unwrap().port());
    let client = pod.connect(vip).unwrap();
    assert_eq!(proxy.accept().unwrap().1, client.local_addr().unwrap());
}

#[test]
fn sockets_of_ipv6_go_there_where_they_can() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let backend = TcpListener::bind("[::1]:0").unwrap();
    let vip: SocketAddr = "[fd00:41::4]:80".parse().unwrap();
    publish(&bench, &[vip], &[backend.local_addr().unwrap()]);
    let proxy = proxy();
    let port = proxy.local_addr().unwrap().port();
    name(&bench, port);
    let connect = |prepare: &dyn Fn(&Socket)| {
        pod.within(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
            prepare(&socket);
            socket.connect(&vip.into()).unwrap();
            TcpStream::from(socket)
        })
    };
    let client = connect(&|socket| socket.set_only_v6(false).unwrap());
    let (served, _) = proxy.accept().unwrap();
    assert_eq!(served.local_addr().unwrap(), SocketAddr::from((handle(&bench, WEB), port)));
    assert_eq!(client.peer_addr().unwrap(), vip);
    // For IPv6 only, or bound to an address of it: by the rule for every request.
    for (i, prepare) in [
        (&|socket: &Socket| socket.set_only_v6(true).unwrap()) as &dyn Fn(&Socket),
        &|socket| socket.bind(&SocketAddr::from((Ipv6Addr::LOCALHOST, 0)).into()).unwrap(),
        &|socket| socket.bind_device(Some(b"lo")).unwrap(),
    ]
    .into_iter()
    .enumerate()
    {
        let client = connect(prepare);
        assert_eq!(backend.accept().unwrap().1, client.local_addr().unwrap());
        assert_eq!(without_proxy(&bench), [0, 0, i as u64 + 1]);
    }
}

/// A process in a network namespace of its own, which ends with this.
struct Namespaced {
    process: Child,
}

impl Namespaced {
    /// Begins in this cgroup.
    fn begin(cgroup: &Path) -> Self {
        let mut process = Command::new("bash")
            .args([
                "-c",
                r#"echo $$ > "$CGROUP/cgroup.procs"; exec unshare --net bash -c "echo there; read""#,
            ])
            .env("CGROUP", cgroup)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash can be started");
        let mut said = [0; 6];
        process.stdout.as_mut().unwrap().read_exact(&mut said).expect("it gets there");
        Self { process }
    }

    /// The cookie of its namespace.
    fn cookie(&self) -> u64 {
        let namespace = File::open(format!("/proc/{}/ns/net", self.process.id())).unwrap();
        let ask = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("this needs root");
            netns_cookie(UdpSocket::bind("0.0.0.0:0").unwrap().as_fd()).unwrap()
        };
        thread::spawn(ask).join().unwrap()
    }
}

impl Drop for Namespaced {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.wait().expect("it ends");
    }
}

#[test]
fn the_network_namespace_of_a_workload_is_that_of_its_first_process() {
    let pod = Cgroup::new();
    let (empty, first, second) =
        (Cgroup::at(pod.0.join("empty")), Cgroup::at(pod.0.join("first")), Cgroup::at(pod.0.join("second")));
    let workload = pod.workload("pod");
    let bench = bench(std::slice::from_ref(&workload));
    let found = || bench.agent().datapath().network_of(&workload).unwrap();
    assert_eq!(found(), None);
    let container = Namespaced::begin(&first.0);
    assert_eq!(found(), Some(container.cookie()));
    let other = Namespaced::begin(&second.0);
    let nested = Namespaced::begin(&first.0);
    let cookies = [&container, &other, &nested].map(Namespaced::cookie);
    assert!(cookies[0] != cookies[1] && cookies[0] != cookies[2] && cookies[1] != cookies[2]);
    assert_eq!(found(), Some(cookies[0]));
    drop((container, nested));
    assert_eq!(found(), Some(cookies[1]));
    drop(other);
    assert_eq!(found(), None);
    drop((empty, first, second));
}
