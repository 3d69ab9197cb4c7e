//! Random sequences of what sockets, workloads, agents and others do, against a model: the sockets that there are. Counts of
//! clusters and endpoints agree with it, and a limit is met exactly. With real sockets.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use slotmesh_agent::{Agent, ConnectionCounts, Options, Pins, Workload};
use slotmesh_kernel::{Map, tcp};
use slotmesh_records::{EndpointKey, EndpointState, name_hash};
use slotmesh_slots::Config;
use slotmesh_xds::{
    ResourceType::{Cluster, Endpoints, Listener},
    envoy::envoy::config::cluster::v3::cluster::LbPolicy,
};
use socket2::{SockRef, Socket};

use crate::{
    Bench,
    cgroup::Cgroup,
    choice::eds,
    config::{endpoints, tcp_listener},
    counts::{nobody, server, socket},
    foreign::Foreign,
    running::{counts_of, is_refused, publish, until},
    start::{bench, start},
};

const STEPS: usize = 30;
/// Variables for the process of an agent.
const PIN_ROOT: &str = "SLOTMESH_TEST_PIN_ROOT";
const CGROUP: &str = "SLOTMESH_TEST_CGROUP";

/// A socket of a client, and where a connection of it counts.
struct Held {
    socket: Socket,
    counts: Option<Counts>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Counts {
    /// In the cluster `web`.
    Web,
    /// In the cluster `least`, and at this endpoint of it.
    Least(SocketAddr),
}

/// A server, and the connections that it has accepted and kept, by the client's address.
struct Server {
    listener: TcpListener,
    at: SocketAddr,
    kept: HashMap<SocketAddr, TcpStream>,
}

impl Server {
    fn new() -> Self {
        let (listener, at) = server();
        listener.set_nonblocking(true).unwrap();
        Self { listener, at, kept: HashMap::new() }
    }

    fn accept(&mut self) {
        while let Ok((stream, from)) = self.listener.accept() {
            self.kept.insert(from, stream);
        }
    }

    fn has(&mut self, client: SocketAddr) -> bool {
        self.accept();
        self.kept.contains_key(&client)
    }

    /// Resets a connection.
    fn reset(&mut self, client: SocketAddr) {
        until("the connection to be accepted", || self.has(client));
        let stream = self.kept.remove(&client).unwrap();
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

struct World {
    pod: Cgroup,
    workloads: [Workload; 1],
    bench: Bench,
    web: SocketAddr,
    least: SocketAddr,
    servers: [Server; 2],
    bad: SocketAddr,
    limit: Option<u32>,
    held: Vec<Held>,
    /// Connections of `web` that are over, and may count for some seconds.
    ending: usize,
    routed: bool,
    foreign: Option<Foreign>,
    rng: StdRng,
    steps: Vec<&'static str>,
}

#[test]
fn counts_are_the_open_connections_after_any_sequence() {
    let seeds = std::env::var("SLOTMESH_SEQUENCES").map_or(1, |seeds| seeds.parse().expect("a number"));
    for seed in 0..seeds {
        let pod = Cgroup::new();
        let workloads = [pod.workload("pod")];
        let bench = bench(&workloads);
        let mut world = World {
            pod,
            workloads,
            bench,
            web: "198.18.14.1:80".parse().unwrap(),
            least: "198.18.14.2:80".parse().unwrap(),
            servers: [Server::new(), Server::new()],
            bad: nobody(),
            limit: Some(12),
            held: Vec::new(),
            ending: 0,
            routed: true,
            foreign: None,
            rng: StdRng::seed_from_u64(seed),
            steps: Vec::new(),
        };
        world.publish_all();
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
        world.enrol();
        world.held.clear();
        world.settle();
    }
}

impl World {
    fn publish_web(&self, to: SocketAddr) {
        publish(&self.bench, self.web, &[(to, 1)], self.limit);
    }

    fn publish_all(&self) {
        self.publish_web(self.servers[0].at);
        let to: Vec<_> = self.servers.iter().map(|server| (server.at, 1)).collect();
        assert_eq!(self.bench.upsert(Cluster, vec![eds("least", LbPolicy::LeastRequest)]), []);
        assert_eq!(self.bench.upsert(Endpoints, vec![endpoints("web", &to)]), []);
        let listener = tcp_listener("least", &[self.least], &[("least".to_owned(), 1)]);
        assert_eq!(self.bench.upsert(Listener, vec![listener]), []);
    }

    fn enrol(&mut self) {
        self.bench.agent().datapath().enrol(&self.workloads[0]).unwrap();
        self.routed = true;
    }

    fn step(&mut self) {
        let any = (!self.held.is_empty()).then(|| self.rng.random_range(0..self.held.len()));
        let step = self.rng.random_range(0..22);
        let name = match (step, any) {
            (0..=4, _) if self.routed => self.connect_to_web(step == 0),
            (5..=7, _) if self.routed => self.connect_to_least(),
            (8..=10, Some(any)) => {
                drop(self.held.swap_remove(any));
                "close"
            }
            (11, Some(any)) => {
                tcp::disconnect(self.held[any].socket.as_fd()).unwrap();
                self.ends(any);
                "disconnect"
            }
            (12, _) if self.routed && self.fits() => {
                self.publish_web(self.bad);
                let socket = self.pod.within(socket);
                assert!(is_refused(socket.connect(&self.web.into())), "{:?}", self.steps);
                self.publish_web(self.servers[0].at);
                self.held.push(Held { socket, counts: None });
                self.ending += 1;
                "a connect that fails"
            }
            (13, Some(any)) if self.held[any].counts.is_some() => self.reset(any),
            (14, _) => {
                self.bench.agent().datapath().release(&self.workloads[0]).unwrap();
                self.routed = false;
                "detach"
            }
            (15 | 16, _) => {
                self.enrol();
                "attach"
            }
            (17, _) => {
                self.bench.stop();
                self.start();
                "restart"
            }
            (18, _) => {
                self.bench.stop();
                self.kill_another();
                self.start();
                "SIGKILL"
            }
            (19, _) => {
                self.upgrade();
                "upgrade"
            }
            (20, _) => {
                self.foreign = match self.foreign.take() {
                    Some(_) => None,
                    None => Some(Foreign::attach(&Pins::new(&self.bench.options().pin_root), &self.pod)),
                };
                "foreign program"
            }
            (21, _) => {
                self.limit = [None, Some(4), Some(8), Some(12)][self.rng.random_range(0..4)];
                self.publish_web(self.servers[0].at);
                "limit"
            }
            _ => return,
        };
        self.steps.push(name);
    }

    /// Tells if one more connection of `web` is within its limit.
    fn fits(&mut self) -> bool {
        let Some(limit) = self.limit else { return true };
        let open = self.open(Counts::Web);
        if self.ending > 0 && open + self.ending >= limit as usize {
            self.settle();
        }
        open < limit as usize
    }

    fn open(&self, which: Counts) -> usize {
        self.held.iter().filter(|held| held.counts == Some(which)).count()
    }

    fn ends(&mut self, i: usize) {
        if self.held[i].counts.take() == Some(Counts::Web) {
            self.ending += 1;
        }
    }

    fn connect_to_web(&mut self, deferred: bool) -> &'static str {
        let fits = self.fits();
        let socket = self.pod.within(socket);
        if deferred {
            tcp::defer_connect(socket.as_fd()).unwrap();
        }
        let connected = socket.connect(&self.web.into());
        assert_eq!(connected.is_ok(), fits, "{:?}: {connected:?}", self.steps);
        self.held.push(Held { socket, counts: fits.then_some(Counts::Web) });
        if deferred { "deferred connect" } else { "connect" }
    }

    fn connect_to_least(&mut self) -> &'static str {
        let socket = self.pod.within(socket);
        socket.connect(&self.least.into()).unwrap();
        let client = socket.local_addr().unwrap().as_socket().unwrap();
        let mut at = None;
        until("it to be accepted", || {
            at = self.servers.iter_mut().find_map(|server| server.has(client).then_some(server.at));
            at.is_some()
        });
        self.held.push(Held { socket, counts: at.map(Counts::Least) });
        "connect to the less busy"
    }

    fn reset(&mut self, any: usize) -> &'static str {
        let client = self.held[any].socket.local_addr().unwrap().as_socket().unwrap();
        if client.ip().is_unspecified() {
            // Deferred, and nothing was sent.
            return "nothing to reset";
        }
        let server = match self.held[any].counts {
            Some(Counts::Least(at)) => self.servers.iter_mut().find(|server| server.at == at).unwrap(),
            _ => &mut self.servers[0],
        };
        server.reset(client);
        self.ends(any);
        "reset"
    }

    /// Attaches what it is told to.
    fn start(&mut self) {
        self.bench.agent = Some(start(&self.bench, &self.workloads).unwrap());
        self.routed = true;
    }

    /// An agent in a process of its own, which is killed while it looks after what runs.
    fn kill_another(&mut self) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sequences::an_agent_until_it_is_killed", "--ignored", "--nocapture"])
            .env(PIN_ROOT, self.bench.options().pin_root)
            .env(CGROUP, &self.pod.0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.map_while(Result::ok).any(|line| line.contains("attached"));
        assert!(ready, "it doesn't start: {:?}", child.wait());
        let rest = self.rng.random_range(0..1500);
        std::thread::sleep(Duration::from_millis(rest));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// As if an agent of another layout had left its records.
    fn upgrade(&mut self) {
        self.bench.stop();
        let pins = Pins::new(&self.bench.options().pin_root);
        std::fs::rename(pins.records(), pins.records().with_file_name("records-0000000000000001")).unwrap();
        self.start();
        self.publish_all();
        self.bench.sync();
    }

    /// Waits until the counts are what is open.
    fn settle(&mut self) {
        self.ending = 0;
        let counted = |counts: Option<ConnectionCounts>| counts.map_or(0, |counts| counts.active as usize);
        let at = |server: &Server| self.open(Counts::Least(server.at));
        let least: Vec<usize> = self.servers.iter().map(at).collect();
        let expected = (self.open(Counts::Web), least.iter().sum::<usize>(), least);
        let mut found = None;
        until(&format!("{expected:?} after {:?}", self.steps), || {
            let at = self.servers.iter().map(|server| at_endpoint(&self.bench, server.at)).collect();
            let [web, least] = ["web", "least"].map(|name| counted(counts_of(&self.bench, name)));
            found.replace((web, least, at)).is_some_and(|found| found == expected)
        });
    }
}

/// How many connections count at an endpoint of `least`.
fn at_endpoint(bench: &Bench, to: SocketAddr) -> usize {
    let map: Map<EndpointKey, EndpointState> =
        Map::open(&Pins::new(&bench.options().pin_root).endpoints()).unwrap().unwrap();
    let key = EndpointKey::new(name_hash("least"), slotmesh_records::words(to.ip()), to.port().to_be());
    map.get(&key).unwrap().map_or(0, |state| state.active.get() as usize)
}

/// The process that [`World::kill_another`] starts.
#[test]
#[ignore = "the process of another test"]
fn an_agent_until_it_is_killed() {
    let path = |name| std::path::PathBuf::from(std::env::var_os(name).expect("another test starts this"));
    let workload = Workload { namespace: "test".to_owned(), name: "pod".to_owned(), cgroup: path(CGROUP) };
    let options = Options {
        pin_root: path(PIN_ROOT),
        slots: Config { initial: 4, ..Config::default() },
        workloads: vec![workload],
        ..Options::default()
    };
    let _agent = Agent::start(options, Arc::default()).unwrap();
    println!("attached");
    std::thread::park();
}
