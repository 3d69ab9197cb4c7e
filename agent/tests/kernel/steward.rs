//! Pods get a proxy and lose it: a real broker, real network namespaces, and proxies that say what they take.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use prost::Message as _;
use slotmesh_ads::Sink as _;
use slotmesh_agent::{AcknowledgedPods, Pins, ProxyFeed, StewardParts, start_steward};
use slotmesh_broker::{AskError, Broker, Counterpart, Key, PeerRole};
use slotmesh_kernel::Map;
use slotmesh_records::NamespaceProxy;
use slotmesh_xds::{
    Change, ResourceName,
    ResourceType::{Cluster, Endpoints, Listener, Route},
    Version, Workload,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{cluster, endpoints, http_listener},
    enrol::Node,
    proxied::by_request,
};

/// Environment variables of the broker's process.
const NAMESPACES: &str = "SLOTMESH_TEST_NAMESPACES";
const SOCKETS: &str = "SLOTMESH_TEST_SOCKETS";

fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A pod's process, in a network namespace that has a name in a folder.
struct PodProcess {
    process: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    name: PathBuf,
}

impl PodProcess {
    fn begin(cgroup: &Path, name: PathBuf) -> Self {
        const SCRIPT: &str = r#"
            echo $$ > "$CGROUP/cgroup.procs"
            exec unshare --net bash -c 'ip link set lo up; echo there; while read -r line; do eval "$line"; done'"#;
        let mut process = Command::new("bash")
            .args(["-c", SCRIPT])
            .env("CGROUP", cgroup)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash can be started");
        let (commands, answers) = (process.stdin.take(), BufReader::new(process.stdout.take().unwrap()));
        let mut pod = Self { process, commands, answers, name };
        assert_eq!(pod.answer(), "there");
        File::create(&pod.name).unwrap();
        let namespace = format!("/proc/{}/ns/net", pod.process.id());
        let mounted = Command::new("mount").args(["--bind", &namespace]).arg(&pod.name).status();
        assert!(mounted.unwrap().success(), "this needs root");
        pod
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Connects from within, and stays connected until it does so again.
    fn connects(&mut self, to: SocketAddr) -> bool {
        let (ip, port) = (to.ip(), to.port());
        let line = format!("{{ exec 9<>/dev/tcp/{ip}/{port}; }} 2>/dev/null && echo yes || echo no");
        writeln!(self.commands.as_mut().unwrap(), "{line}").unwrap();
        self.answer() == "yes"
    }
}

impl Drop for PodProcess {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.process.wait();
        let _ = Command::new("umount").arg(&self.name).status();
    }
}

/// A process that is killed when this is dropped.
struct BrokerProcess(Child);

impl BrokerProcess {
    /// In a cgroup of its own: this process is in those of other tests at times.
    fn start(namespaces: &Path, sockets: &Path, cgroup: &Path) -> Self {
        for socket in ["steward", "proxy"] {
            let _ = fs::remove_file(sockets.join(socket));
        }
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "steward::the_broker_until_it_is_killed"])
            .env(NAMESPACES, namespaces)
            .env(SOCKETS, sockets)
            .stdout(Stdio::null())
            .spawn()
            .expect("this program can be started");
        let broker = Self(process);
        fs::write(cgroup.join("cgroup.procs"), broker.0.id().to_string()).expect("it can be moved");
        broker
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "the process of another test"]
fn the_broker_until_it_is_killed() {
    let path = |name| PathBuf::from(std::env::var_os(name).expect("another test starts this"));
    let mut broker = Broker::new(path(NAMESPACES));
    broker.listen(&path(SOCKETS).join("steward"), PeerRole::Steward).unwrap();
    broker.listen(&path(SOCKETS).join("proxy"), PeerRole::Proxy).unwrap();
    broker.run().unwrap();
}

/// Pods that proxies are told of: name, version, port.
type Served = Arc<Mutex<BTreeMap<ResourceName, (Version, u16)>>>;

fn acknowledge(served: &Served, to: &watch::Sender<AcknowledgedPods>) {
    let pods = served.lock().unwrap();
    to.send_replace(Some(pods.iter().map(|(name, (version, _))| (name.clone(), *version)).collect()));
}

#[test]
fn connections_of_a_pod_go_to_the_proxy_while_that_and_the_broker_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::new();
    let pod = node.cgroup("kubepods/podaaaa-1");
    let container = node.cgroup("kubepods/podaaaa-1/container");
    let mut process = PodProcess::begin(&container, folder.path().join("cni-a"));
    let beside = node.cgroup("beside");
    let sockets = tempfile::tempdir().unwrap();
    let broker = BrokerProcess::start(folder.path(), sockets.path(), &beside);
    // What an agent before left, of a namespace that is gone.
    let map: Map<u64, NamespaceProxy> =
        Map::open(&Pins::new(&node.bench.options().pin_root).proxies()).unwrap().expect("it is pinned");
    map.update(&u64::MAX, &NamespaceProxy { port: 1, ..NamespaceProxy::default() }).unwrap();

    let vip: SocketAddr = "198.18.42.1:80".parse().unwrap();
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    assert_eq!(node.bench.upsert(Cluster, vec![cluster("web")]), []);
    assert_eq!(node.bench.upsert(Endpoints, vec![endpoints("web", &[(nobody, 1)])]), []);
    assert_eq!(node.bench.upsert(Route, vec![by_request("80|web", &[("web".to_owned(), 1)])]), []);
    assert_eq!(node.bench.upsert(Listener, vec![http_listener("l", &[vip], "80|web")]), []);

    let served = Served::default();
    let publish = {
        let served = served.clone();
        move |changes: Vec<Change>| {
            let mut served = served.lock().unwrap();
            for change in changes {
                match change {
                    Change::Upsert(one) if one.ty == slotmesh_xds::ResourceType::Workload => {
                        let port = Workload::decode(one.content.as_ref()).unwrap().proxy_port;
                        served.insert(one.name, (one.version, u16::try_from(port).unwrap()));
                    }
                    Change::Remove(slotmesh_xds::ResourceType::Workload, name) => drop(served.remove(&name)),
                    _ => {}
                }
            }
        }
    };
    let enrolment = node.enrolment().clone();
    let attached = enrolment.attached();
    let handlers = node.bench.agent().handlers().with(enrolment);
    let feed = ProxyFeed::new(handlers, node.bench.agent().handle(), Some(Box::new(publish)));
    let (acknowledged_sender, acknowledged) = watch::channel(None);
    let stop = CancellationToken::new();
    let parts =
        StewardParts { broker: sockets.path().join("steward"), attached, proxied: feed.pods(), acknowledged };
    let steward = start_steward(node.bench.agent(), parts, stop.clone()).unwrap();
    let proxies = |node: &Node| node.bench.running().proxies;

    node.apply(&[("aaaa-1", "a")], &[]);
    node.until_attached("a", &pod);
    feed.synced();
    let name = ResourceName::from("n/aaaa-1");
    let told = |served: &Served| served.lock().unwrap().get(&name).map(|(_, port)| *port);
    let port = until("proxies are told of the pod", || told(&served));
    until("what an agent before left goes", || (proxies(&node) == 0).then_some(()));
    // No proxy takes them yet.
    assert!(!process.connects(vip));
    acknowledge(&served, &acknowledged_sender);
    until("connections go to the proxy", || (proxies(&node) == 1).then_some(()));
    let key = Key::new("aaaa-1").unwrap();
    let accept = |process: &mut PodProcess, port: u16| {
        let proxy = Counterpart::connect(&sockets.path().join("proxy")).unwrap();
        let (listener, listening) = proxy.listener(&key).unwrap();
        assert_eq!(listening, port);
        assert!(process.connects(vip));
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let address = node.bench.proxy_addresses(None)[&ResourceName::from("80|web")];
        assert_eq!(accepted.local_addr().unwrap(), SocketAddr::from((address, port)));
    };
    accept(&mut process, port);
    let [sent, absent] = [node.bench.running().proxied.sent, node.bench.running().proxied.absent];
    assert_eq!([sent, absent], [1, 1]);

    // The proxy goes, and its successor comes.
    acknowledged_sender.send_replace(Some(BTreeMap::new()));
    until("connections go to no proxy", || (proxies(&node) == 0).then_some(()));
    assert!(!process.connects(vip));
    acknowledge(&served, &acknowledged_sender);
    until("connections go to the next one", || (proxies(&node) == 1).then_some(()));

    // The broker goes: connections wait in the listener that the steward keeps, for a while. Its successor has the same.
    drop(broker);
    assert!(process.connects(vip));
    until("connections go to no proxy without a broker", || (proxies(&node) == 0).then_some(()));
    let broker = BrokerProcess::start(folder.path(), sockets.path(), &beside);
    until("connections go to the proxy again", || (proxies(&node) == 1).then_some(()));
    assert_eq!(told(&served), Some(port));
    accept(&mut process, port);
    accept(&mut process, port);

    // The pod goes.
    node.apply(&[], &["aaaa-1"]);
    until("proxies are told that it has gone", || told(&served).is_none().then_some(()));
    until("its namespace has no proxy", || (proxies(&node) == 0).then_some(()));
    until("the broker has given it up", || {
        let proxy = Counterpart::connect(&sockets.path().join("proxy")).unwrap();
        matches!(proxy.listener(&key), Err(AskError::Failed(_))).then_some(())
    });
    stop.cancel();
    steward.join().unwrap();
    drop(broker);
    drop(process);
}
