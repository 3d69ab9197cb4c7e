//! Nodes of one proxy, and pods.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::gettid,
};
use slotmesh_ads::Handle;
use slotmesh_broker::{Broker, Counterpart, Key, NamespaceAt, PeerRole};
use slotmesh_feed::{PodSockets, ResourceSink, follow_agent};
use slotmesh_proxy::{EngineOptions, ProxyEngine, ProxyLimits};
use slotmesh_serve::{AdsServerConfig, Rejected, Store, UnixSocket};
use slotmesh_xds::{
    Change, Fingerprint, Resource, ResourceName, ResourceType, Sketch, Version, Workload,
    envoy::envoy::config::{
        cluster::v3::{
            Cluster,
            cluster::{ClusterDiscoveryType, DiscoveryType},
        },
        core::v3::{Address, SocketAddress, address, socket_address::PortSpecifier},
        endpoint::v3 as eds,
        route::v3 as rds,
    },
};
use tokio::{runtime::Runtime, task::JoinHandle as Task};
use tokio_util::sync::CancellationToken;

/// Where the broker's process finds what it is told.
const FOLDER: &str = "SLOTMESH_TEST_BROKER_FOLDER";

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

/// Tells whether somebody listens at a port of the loopback interface, in this thread's namespace.
pub fn listens(port: u16) -> bool {
    let connected = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    // Where nobody does, a socket may find itself.
    connected.is_ok_and(|stream| stream.local_addr().unwrap() != stream.peer_addr().unwrap())
}

/// One request on a connection: the whole answer.
fn answer(mut stream: TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// One request on a connection: the body of its answer.
pub fn ask(stream: TcpStream) -> String {
    let answer = answer(stream);
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    body.to_owned()
}

/// One request on a connection: the first line of its answer.
pub fn status(stream: TcpStream) -> String {
    answer(stream).lines().next().expect("an answer").to_owned()
}

/// One request of a pod.
pub fn get(pod: &Pod, to: Ipv4Addr, port: u16) -> String {
    pod.run(move || ask(TcpStream::connect((to, port)).unwrap()))
}

type Work = Box<dyn FnOnce() + Send>;

/// A pod: a thread in a network namespace of its own, whose file is in a folder.
pub struct Pod {
    name: String,
    work: mpsc::Sender<Work>,
    thread: JoinHandle<()>,
    file: PathBuf,
    /// The thread, which stands for the namespace.
    pub tid: i32,
}

impl Pod {
    /// Its address, at its loopback interface.
    pub const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

    pub fn new(folder: &Path, name: &str) -> Self {
        let file = folder.join(name);
        File::create(&file).unwrap();
        let (work, jobs) = mpsc::channel::<Work>();
        let (ready, is_ready) = mpsc::channel();
        let at = file.clone();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("this needs root: it makes network namespaces");
            ip("link set lo up");
            ip(&format!("addr add {}/32 dev lo", Self::ADDRESS));
            mount(Some("/proc/thread-self/ns/net"), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .unwrap();
            ready.send(gettid().as_raw()).unwrap();
            jobs.into_iter().for_each(|job| job());
        });
        let tid = is_ready.recv().expect("the pod is there");
        Self { name: name.to_owned(), work, thread, file, tid }
    }

    /// Runs something in the pod's namespace; threads that it starts are there, too.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.work.send(Box::new(move || done.send(work()).unwrap())).unwrap();
        result.recv().expect("it runs to its end")
    }

    fn key(&self) -> Key {
        Key::new(&self.name).unwrap()
    }

    /// As the agent tells the proxy of it.
    pub fn workload(&self, port: u16) -> Resource {
        let (uid, node) = (self.name.clone(), "n".to_owned());
        let workload = Workload { uid, node, proxy_port: port.into(), ..Workload::default() };
        Resource::encode(ResourceType::Workload, workload.resource_name(), &workload)
    }

    pub fn end(self) {
        drop(self.work);
        self.thread.join().unwrap();
        umount2(&self.file, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Answers each request with its name, in a pod's namespace.
pub struct Backend {
    pub address: SocketAddr,
    /// Whoever has connected, each once.
    pub peers: Arc<Mutex<Vec<IpAddr>>>,
}

impl Backend {
    pub fn start(pod: &Pod, name: &'static str) -> Self {
        let peers = Arc::<Mutex<Vec<IpAddr>>>::default();
        let seen = peers.clone();
        let address = pod.run(move || {
            let listener = TcpListener::bind((Pod::ADDRESS, 0)).unwrap();
            let address = listener.local_addr().unwrap();
            thread::spawn(move || {
                loop {
                    let (stream, peer) = listener.accept().unwrap();
                    let mut first = [0];
                    // Nothing but a line ends it.
                    if stream.peek(&mut first).is_ok_and(|some| some == 1) && first == *b"\n" {
                        return;
                    }
                    let mut seen = seen.lock().unwrap();
                    if !seen.contains(&peer.ip()) {
                        seen.push(peer.ip());
                    }
                    thread::spawn(move || serve(stream, name));
                }
            });
            address
        });
        Self { address, peers }
    }

    pub fn end(self, pod: &Pod) {
        let Self { address, .. } = self;
        pod.run(move || TcpStream::connect(address).unwrap().write_all(b"\n").unwrap());
    }
}

fn serve(mut stream: TcpStream, name: &str) {
    let mut read = Vec::new();
    let mut buffer = [0; 1_024];
    while let Ok(some @ 1..) = stream.read(&mut buffer) {
        read.extend_from_slice(&buffer[..some]);
        while let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            read.drain(..end + 4);
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

/// The process that [`Node::start_broker`] starts.
pub fn run_broker() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = PathBuf::from(folder);
    let mut broker = Broker::new(&folder);
    broker.listen(&folder.join("proxy.sock"), PeerRole::Proxy).unwrap();
    broker.listen(&folder.join("steward.sock"), PeerRole::Steward).unwrap();
    broker.run().unwrap();
}

/// A node: agent, broker and proxy.
pub struct Node {
    folder: tempfile::TempDir,
    runtime: Runtime,
    store: Store,
    agent: Option<(CancellationToken, Task<()>)>,
    broker: Option<(Child, Counterpart)>,
    proxy: Option<Proxy>,
}

struct Proxy {
    engine: Arc<ProxyEngine>,
    sink: ResourceSink,
    handle: Handle,
    stop: CancellationToken,
    follows: Task<()>,
}

impl Node {
    /// An agent and a broker, and no proxy.
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let mut node = Self {
            folder: tempfile::tempdir().unwrap(),
            runtime: runtime.unwrap(),
            store: Store::new(),
            agent: None,
            broker: None,
            proxy: None,
        };
        node.start_agent();
        node.start_broker();
        node
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn start_agent(&mut self) {
        let stop = CancellationToken::new();
        let (store, stopped) = (self.store.clone(), stop.clone());
        let socket = {
            let _runtime = self.runtime.enter();
            UnixSocket::bind(&self.folder().join("agent.sock"), None, 4).unwrap()
        };
        let serving = async move {
            slotmesh_serve::serve(store, AdsServerConfig::default(), socket, stopped).await.unwrap();
        };
        self.agent = Some((stop, self.runtime.spawn(serving)));
    }

    pub fn stop_agent(&mut self) {
        let (stop, serving) = self.agent.take().expect("it is there");
        stop.cancel();
        self.runtime.block_on(serving).unwrap();
    }

    pub fn start_broker(&mut self) {
        let steward = self.folder().join("steward.sock");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "broker_process", "--ignored", "--nocapture"]).env(FOLDER, self.folder());
        let child = command.process_group(0).spawn().unwrap();
        let mut connected = None;
        until("the broker is there", || {
            connected = Counterpart::connect(&steward).ok();
            connected.is_some()
        });
        self.broker = connected.map(|steward| (child, steward));
    }

    pub fn kill_broker(&mut self) {
        let (mut child, _) = self.broker.take().expect("it is there");
        child.kill().unwrap();
        child.wait().unwrap();
        for socket in ["proxy.sock", "steward.sock"] {
            fs::remove_file(self.folder().join(socket)).unwrap();
        }
    }

    fn steward(&self) -> &Counterpart {
        &self.broker.as_ref().expect("it is there").1
    }

    /// Makes the broker know a pod; the port of its listener.
    pub fn enrol(&self, pod: &Pod) -> u16 {
        let at = NamespaceAt::Name(pod.name.clone());
        self.steward().enrol(&pod.key(), &at, None).unwrap().1
    }

    pub fn release(&self, pod: &Pod) {
        self.steward().release(&pod.key()).unwrap();
    }

    pub fn start_proxy(&mut self) {
        let sockets = PodSockets::new(&self.folder().join("proxy.sock")).unwrap();
        let limits = ProxyLimits {
            origin_grace: Duration::from_millis(200),
            listener_wait: Duration::from_secs(120),
            ..ProxyLimits::default()
        };
        let options = EngineOptions {
            workers: 2,
            limits,
            dial: Arc::new(sockets.clone()),
            bind: false,
            ..EngineOptions::default()
        };
        let engine = Arc::new(ProxyEngine::start(options).unwrap());
        let sink = ResourceSink::new(engine.clone(), sockets);
        let stop = CancellationToken::new();
        let (following, handle) = follow_agent(self.folder().join("agent.sock"), sink.clone(), stop.clone());
        let follows = self.runtime.spawn(following);
        self.proxy = Some(Proxy { engine, sink, handle, stop, follows });
    }

    fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("it runs")
    }

    pub fn sink(&self) -> &ResourceSink {
        &self.proxy().sink
    }

    pub fn is_connected(&self) -> bool {
        self.proxy().handle.stats().connected()
    }

    pub fn apply(&self, changes: Vec<Change>) {
        self.store.apply(changes);
    }

    pub fn until_acknowledged(&self, resource: &Resource) {
        until(&format!("{} {} is acknowledged", resource.ty, resource.name), || {
            let one = Fingerprint::of(resource.ty, &resource.name, resource.version);
            self.store.agents().iter().any(|agent| {
                let held = agent.types[resource.ty].sketch.difference(&Sketch::default());
                held.is_ok_and(|held| held.first.contains(&one))
            })
        });
    }

    /// The resources of a type that are refused.
    pub fn rejected(&self, ty: ResourceType) -> Vec<Rejected> {
        self.store.agents().into_iter().flat_map(|status| status.types[ty].rejected.clone()).collect()
    }

    /// The resources of a type that the proxy has in force.
    pub fn held(&self, ty: ResourceType) -> Vec<(ResourceName, Version)> {
        let held = self.runtime.block_on(slotmesh_ads::Sink::held(self.sink()));
        held.into_iter().filter(|(of, ..)| *of == ty).map(|(_, name, version)| (name, version)).collect()
    }

    pub fn end(&mut self) {
        if let Some(Proxy { engine, sink, handle, stop, follows }) = self.proxy.take() {
            stop.cancel();
            self.runtime.block_on(follows).unwrap();
            drop((sink, handle));
            Arc::into_inner(engine).expect("nobody else has it").drain(Duration::ZERO);
        }
        if self.agent.is_some() {
            self.stop_agent();
        }
        if self.broker.is_some() {
            self.kill_broker();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A test that has failed leaves no process behind.
        if let Some((mut child, _)) = self.broker.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn encoded(ty: ResourceType, name: &str, message: &impl prost::Message) -> Resource {
    Resource::encoded(ty, name, message.encode_to_vec())
}

pub fn cluster(name: &str) -> Resource {
    let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds.into());
    let cluster = Cluster { name: name.to_owned(), cluster_discovery_type: Some(eds), ..Default::default() };
    encoded(ResourceType::Cluster, name, &cluster)
}

pub fn endpoints(name: &str, addresses: &[SocketAddr]) -> Resource {
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
    let assignment = eds::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![eds::LocalityLbEndpoints {
            lb_endpoints: addresses.iter().map(endpoint).collect(),
            ..Default::default()
        }],
        ..Default::default()
    };
    encoded(ResourceType::Endpoints, name, &assignment)
}

/// Routes that send all to one cluster.
pub fn route(name: &str, cluster: &str) -> Resource {
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
    let config =
        rds::RouteConfiguration { name: name.to_owned(), virtual_hosts: vec![host], ..Default::default() };
    encoded(ResourceType::Route, name, &config)
}
