//! Resources that change while requests flow, and connections that come to addresses of 127/8.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use prost::{Message as _, Name as _};
use slotmesh_proxy::{
    DialOrigin, EngineOptions, ProxyEngine, ProxyLimits, ProxyMetrics, ProxyResource, ProxyResourceKind,
    bootstrap,
};
use slotmesh_xds::{
    envoy::{
        envoy::{
            config::{
                cluster::v3::{
                    Cluster, LoadBalancingPolicy,
                    cluster::{ClusterDiscoveryType, DiscoveryType},
                    load_balancing_policy::Policy,
                },
                core::v3::{
                    Address, SocketAddress, TypedExtensionConfig, address, socket_address::PortSpecifier,
                },
                endpoint::v3 as eds,
                listener::v3::Listener,
                route::v3::{
                    self as rds,
                    route_action::{
                        HashPolicy,
                        hash_policy::{ConnectionProperties, PolicySpecifier},
                    },
                },
            },
            extensions::load_balancing_policies::{
                common::v3::ConsistentHashingLbConfig, maglev::v3::Maglev,
            },
        },
        google::protobuf::Any,
    },
    proxy_listener,
};
use tokio::net::TcpStream;

use crate::support::{Client, Endpoint, File, Proxy, options, soon, until};

const POD: DialOrigin = DialOrigin(7);
const WEB: Ipv4Addr = Ipv4Addr::new(127, 40, 50, 60);

/// An engine with a socket of an origin.
struct Pod {
    engine: Option<ProxyEngine>,
    metrics: ProxyMetrics,
    port: u16,
}

impl Pod {
    fn start(limits: ProxyLimits) -> Self {
        let options = EngineOptions { workers: 2, limits, ..options() };
        let engine = ProxyEngine::start(options).expect("threads");
        let socket = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
        let port = socket.local_addr().expect("it is bound").port();
        engine.listen_for(POD, &socket).expect("a socket");
        let metrics = engine.metrics();
        Self { engine: Some(engine), metrics, port }
    }

    fn engine(&self) -> &ProxyEngine {
        self.engine.as_ref().expect("it runs")
    }

    fn apply(&self, resource: &ProxyResource) {
        assert!(self.engine().apply(resource).expect("it can be served").is_empty());
    }

    async fn connect(&self, to: Ipv4Addr) -> Client {
        Client::new(TcpStream::connect((to, self.port)).await.expect("it listens"))
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.metrics.render();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect("there is such a metric").parse().expect("a number")
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.drain(Duration::ZERO);
        }
    }
}

fn listener(at: Ipv4Addr, route: &str) -> ProxyResource {
    let resource = proxy_listener(at, route);
    ProxyResource::Listener(Listener::decode(resource.content).expect("a listener"))
}

/// Routes that send all to one cluster.
fn route(name: &str, cluster: &str) -> ProxyResource {
    let action = rds::RouteAction {
        cluster_specifier: Some(rds::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    let matches = rds::RouteMatch {
        path_specifier: Some(rds::route_match::PathSpecifier::Prefix("/".to_owned())),
        ..Default::default()
    };
    let host = rds::VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![rds::Route {
            r#match: Some(matches),
            action: Some(rds::route::Action::Route(action)),
            ..Default::default()
        }],
        ..Default::default()
    };
    ProxyResource::Route(rds::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![host],
        ..Default::default()
    })
}

fn cluster(name: &str) -> ProxyResource {
    ProxyResource::Cluster(Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        ..Default::default()
    })
}

fn endpoints(cluster: &str, addresses: &[SocketAddr]) -> ProxyResource {
    let endpoint = |at: &SocketAddr| eds::LbEndpoint {
        host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
            address: Some(Address {
                address: Some(address::Address::SocketAddress(SocketAddress {
                    address: at.ip().to_string(),
                    port_specifier: Some(PortSpecifier::PortValue(at.port().into())),
                    ..Default::default()
                })),
            }),
            ..Default::default()
        })),
        ..Default::default()
    };
    ProxyResource::Endpoints(eds::ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![eds::LocalityLbEndpoints {
            lb_endpoints: addresses.iter().map(endpoint).collect(),
            ..Default::default()
        }],
        ..Default::default()
    })
}

/// An endpoint that answers with its name.
async fn named(name: &'static str) -> Endpoint {
    Endpoint::http(
        false,
        move |_| async move { Response::new(Full::new(Bytes::from_static(name.as_bytes()))) },
    )
    .await
}

const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";

async fn get(client: &mut Client) -> (String, String) {
    client.send(GET).await;
    client.answer().await
}

#[tokio::test]
async fn routes_clusters_and_endpoints_change_and_no_request_fails() {
    let pod = Pod::start(ProxyLimits::default());
    let [one, two, three] = [named("one").await, named("two").await, named("three").await];
    for (name, endpoint) in [("a", &one), ("b", &two)] {
        pod.apply(&cluster(name));
        pod.apply(&endpoints(name, &[endpoint.address]));
    }
    pod.apply(&route("web", "a"));
    pod.apply(&listener(WEB, "web"));
    pod.engine().settled().await;
    let over = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    // Some keep their connection, others make a new one for each request.
    let mut clients = Vec::new();
    for keeps in [true, true, false, false] {
        let (over, served) = (over.clone(), served.clone());
        let to = (WEB, pod.port);
        clients.push(tokio::spawn(async move {
            let mut client = Client::new(TcpStream::connect(to).await.expect("it listens"));
            while !over.load(SeqCst) {
                if !keeps {
                    client = Client::new(TcpStream::connect(to).await.expect("it listens"));
                }
                let (head, body) = get(&mut client).await;
                assert!(head.starts_with("http/1.1 200"), "{head}{body}");
                served.fetch_add(1, SeqCst);
            }
        }));
    }
    let mut client = pod.connect(WEB).await;
    for round in 0..20 {
        let (name, route_to) = if round % 2 == 0 { ("two", "b") } else { ("one", "a") };
        pod.apply(&route("web", route_to));
        pod.engine().settled().await;
        assert_eq!(get(&mut client).await.1, name, "the route changed before");
        // The one that isn't used now changes, goes and comes back; the other gets endpoints and loses some.
        let (idle, used, at) = if route_to == "b" { ("a", "b", &two) } else { ("b", "a", &one) };
        pod.engine().remove(ProxyResourceKind::Cluster, idle);
        pod.apply(&endpoints(used, &[at.address, three.address]));
        pod.apply(&endpoints(used, &[at.address]));
        pod.apply(&cluster(used));
        pod.apply(&cluster(idle));
        let so_far = served.load(SeqCst);
        until("requests between changes", || served.load(SeqCst) > so_far + 4).await;
    }
    over.store(true, SeqCst);
    for client in clients {
        soon("the client's end", client).await.expect("no request failed");
    }
}

#[tokio::test]
async fn the_address_of_a_connection_chooses_its_routes() {
    let pod = Pod::start(ProxyLimits::default());
    let [one, two] = [named("one").await, named("two").await];
    let other = Ipv4Addr::new(127, 255, 1, 2);
    for (at, name, endpoint) in [(WEB, "a", &one), (other, "b", &two)] {
        pod.apply(&cluster(name));
        pod.apply(&endpoints(name, &[endpoint.address]));
        pod.apply(&route(name, name));
        pod.apply(&listener(at, name));
    }
    pod.engine().settled().await;
    assert_eq!(get(&mut pod.connect(WEB).await).await.1, "one");
    let mut client = pod.connect(other).await;
    assert_eq!(get(&mut client).await.1, "two");
    // A second listener can't have the address.
    let ProxyResource::Listener(mut twice) = listener(WEB, "b") else { unreachable!("it is a listener") };
    twice.name = "twice".to_owned();
    let refused = pod.engine().apply(&ProxyResource::Listener(twice)).expect_err("it is taken");
    assert!(refused.to_string().contains("127.40.50.60"), "{refused}");
    // Where the listener goes, connections end, and the address is free.
    pod.engine().remove(ProxyResourceKind::Listener, &other.to_string());
    assert_eq!(client.rest().await, "");
    pod.apply(&listener(other, "a"));
    pod.engine().settled().await;
    assert_eq!(get(&mut pod.connect(other).await).await.1, "one");
}

#[tokio::test]
async fn a_connection_waits_for_the_listener_of_its_address() {
    let limits = ProxyLimits { listener_wait: Duration::from_secs(600), ..ProxyLimits::default() };
    let pod = Pod::start(limits);
    let one = named("one").await;
    let mut client = pod.connect(WEB).await;
    client.send(GET).await;
    until("the connection is there", || pod.metric("slotmesh_proxy_connections_open") == 1).await;
    pod.apply(&cluster("a"));
    pod.apply(&endpoints("a", &[one.address]));
    pod.apply(&route("web", "a"));
    pod.apply(&listener(WEB, "web"));
    assert_eq!(client.answer().await.1, "one");
    // Not for ever.
    let limits = ProxyLimits { listener_wait: Duration::from_millis(50), ..ProxyLimits::default() };
    let pod = Pod::start(limits);
    assert_eq!(pod.connect(WEB).await.rest().await, "");
    assert_eq!(pod.metric("slotmesh_proxy_connections_unrouted_total"), 1);
}

#[tokio::test]
async fn nothing_is_left_of_an_origin_that_has_gone() {
    let short = Duration::from_millis(100);
    let limits = ProxyLimits { origin_grace: short, last_chance: short, ..ProxyLimits::default() };
    let pod = Pod::start(limits);
    // Never answers, and notices when the proxy leaves it.
    let (left, are_left) = tokio::sync::mpsc::unbounded_channel();
    let (asked, mut is_asked) = tokio::sync::mpsc::unbounded_channel();
    let silent = Endpoint::raw(move |mut peer, _| {
        let (left, asked) = (left.clone(), asked.clone());
        async move {
            peer.until("\r\n\r\n").await;
            asked.send(()).expect("the test waits");
            peer.rest().await;
            left.send(()).expect("the test waits");
        }
    })
    .await;
    let idle = named("idle").await;
    for (at, name, endpoint) in [(WEB, "a", &silent), (Ipv4Addr::new(127, 40, 50, 61), "b", &idle)] {
        pod.apply(&cluster(name));
        pod.apply(&endpoints(name, &[endpoint.address]));
        pod.apply(&route(name, name));
        pod.apply(&listener(at, name));
    }
    pod.engine().settled().await;
    let mut waiting = pod.connect(WEB).await;
    waiting.send(GET).await;
    soon("the request has come", is_asked.recv()).await.expect("it has");
    let mut quiet = pod.connect(Ipv4Addr::new(127, 40, 50, 61)).await;
    assert_eq!(get(&mut quiet).await.1, "idle");
    pod.engine().remove_origin(POD);
    assert_eq!(quiet.rest().await, "", "it is idle and ends");
    assert_eq!(waiting.rest().await, "", "it is cut off");
    let mut are_left = are_left;
    soon("the endpoint is left", are_left.recv()).await.expect("it is");
    until("no connection is open", || pod.metric("slotmesh_proxy_connections_open") == 0).await;
    // Nobody listens any more.
    soon("the socket is closed", async {
        while let Ok(stream) = TcpStream::connect((WEB, pod.port)).await {
            // Where nobody listens, a socket may find itself.
            if stream.local_addr().ok() == stream.peer_addr().ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Endpoints are chosen by who asks, whatever a route says.
fn by_source() -> LoadBalancingPolicy {
    let source = ConnectionProperties { source_ip: true };
    let hash_policy = vec![HashPolicy {
        policy_specifier: Some(PolicySpecifier::ConnectionProperties(source)),
        ..Default::default()
    }];
    let hashing = ConsistentHashingLbConfig { hash_policy, ..Default::default() };
    let maglev = Maglev { consistent_hashing_lb_config: Some(hashing), ..Default::default() };
    let any = Any { type_url: Maglev::type_url(), value: maglev.encode_to_vec() };
    let extension = TypedExtensionConfig { name: "maglev".into(), typed_config: Some(any) };
    LoadBalancingPolicy { policies: vec![Policy { typed_extension_config: Some(extension) }] }
}

#[tokio::test]
async fn a_source_keeps_its_endpoint_by_its_name_and_not_by_its_address() {
    const SOURCES: u64 = 40;
    let mut endpoints = Vec::new();
    for number in 0..4 {
        endpoints.push(
            Endpoint::raw(move |mut client: Client, _| async move {
                loop {
                    client.until("\r\n\r\n").await;
                    client.send(format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}")).await;
                }
            })
            .await,
        );
    }
    let ports: Vec<u16> = endpoints.iter().map(Endpoint::port).collect();
    let text = File::default().text(&ports);
    let proxy = Proxy::start(&text).await;
    for mut resource in bootstrap::parse(&text).expect("it is one") {
        if let ProxyResource::Cluster(cluster) = &mut resource {
            cluster.load_balancing_policy = Some(by_source());
            proxy.engine().apply(&resource).expect("it is taken");
        }
    }
    // All come from the same address. The last is called as the first.
    let mut answers = Vec::new();
    for number in 0..=SOURCES {
        let (origin, name) = (DialOrigin(number), format!("shop/web-{}", number % SOURCES));
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("it is bound");
        proxy.engine().set_source(origin, &name);
        proxy.engine().listen("web", origin, &socket).expect("a socket");
        proxy.engine().settled().await;
        let mut client = Client::connect(address).await;
        let mut bodies = BTreeSet::new();
        for _ in 0..3 {
            client.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
            bodies.insert(client.answer().await.1);
        }
        assert_eq!(bodies.len(), 1, "{name} keeps its endpoint");
        answers.extend(bodies);
    }
    assert_eq!(answers.first(), answers.last(), "the name says where it goes");
    // That so many have the same one of four doesn't happen.
    assert!(answers.iter().any(|answer| *answer != answers[0]), "{answers:?}");
}

#[tokio::test]
async fn a_connection_that_is_to_end_may_bring_one_more_request() {
    let limits = ProxyLimits { last_chance: Duration::from_secs(600), ..ProxyLimits::default() };
    let mut pod = Pod::start(limits);
    let one = named("one").await;
    pod.apply(&cluster("a"));
    pod.apply(&endpoints("a", &[one.address]));
    pod.apply(&route("web", "a"));
    pod.apply(&listener(WEB, "web"));
    pod.engine().settled().await;
    let (mut idle, mut new) = (pod.connect(WEB).await, pod.connect(WEB).await);
    assert_eq!(get(&mut idle).await.1, "one");
    until("both are there", || pod.metric("slotmesh_proxy_connections_open") == 2).await;
    let engine = pod.engine.take().expect("it runs");
    let drained = tokio::task::spawn_blocking(move || engine.drain(Duration::from_secs(600)));
    soon("nobody is accepted any more", async {
        while let Ok(stream) = TcpStream::connect((WEB, pod.port)).await {
            // Where nobody listens, a socket may find itself.
            if stream.local_addr().ok() == stream.peer_addr().ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    for client in [&mut idle, &mut new] {
        let (head, body) = get(client).await;
        assert!(head.starts_with("http/1.1 200") && head.contains("\r\nconnection: close\r\n"), "{head}");
        assert_eq!(body, "one");
        assert_eq!(client.rest().await, "");
    }
    soon("the engine's end", drained).await.expect("no panic");
}
