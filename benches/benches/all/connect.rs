//! connect() and close() through a VIP beside direct, on loopback, in a network namespace of its own.
//!
//! Direct is measured by a process outside the mesh's cgroup, where no program runs at all.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use prost::Message as _;
use slotmesh_ads::{Sink as _, Update};
use slotmesh_agent::{Agent, MapSizes, Options, Workload, metrics::Metrics};
use slotmesh_bench::{row, section, show, verdict};
use slotmesh_kernel::Host;
use slotmesh_slots::Config;
use slotmesh_xds::{
    CallerClass, ConnectionRate, OneOfClasses, Resource, ResourceType, SessionAffinity, Transport,
    envoy::envoy::config::{
        cluster::v3::{self as cluster, cluster::ClusterDiscoveryType},
        core::v3::{self as core, address, socket_address::PortSpecifier},
        endpoint::v3::{self as endpoint, lb_endpoint::HostIdentifier},
        listener::v3::{self as listener, filter::ConfigType},
    },
    envoy::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
    envoy::google::protobuf::{Any, UInt32Value},
    envoy::xds::{
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
};
use socket2::{Domain, Socket, Type};

use crate::{
    clients::{Side, compare_connects},
    pin_root,
};

const VIP: &str = "10.96.0.10:80";
/// The address of a service with session affinity, and how many endpoints that has.
const STICKY_VIP: &str = "10.96.0.11:80";
const STICKY_ENDPOINTS: usize = 1_000;
/// The address of a service with all that may be in use at a time.
const FULL_VIP: &str = "10.96.0.12:80";
/// The namespace of the workload that connects.
const NAMESPACE: &str = "bench";
/// Processes that hold sockets while memory is measured, and how many each: below the usual limit of
/// descriptors.
const HOLDERS: usize = 8;
const HELD: usize = 900;
/// What an operator reckons with for each connection (`--max-sockets`).
const SOCKET_BYTES: f64 = 400.0;
/// None may be left; what else the kernel allocates meanwhile is in the figure.
const LEFT_BYTES: f64 = 8.0;
/// A grace period, after which the kernel has freed what it was given back.
const SETTLE: Duration = Duration::from_millis(300);

/// A cgroup that goes when dropped.
pub struct Cgroup(pub PathBuf);

impl Cgroup {
    pub fn create() -> anyhow::Result<Self> {
        let path = Host::probe()?.cgroup2.join(format!("slotmesh-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

pub fn socket_address(protocol: Transport, to: SocketAddr) -> core::Address {
    core::Address {
        address: Some(address::Address::SocketAddress(core::SocketAddress {
            protocol: protocol.to_proto().into(),
            address: to.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(to.port().into())),
            ..Default::default()
        })),
    }
}

/// A load assignment that names the same endpoint so many times.
pub fn assignment(name: &str, to: SocketAddr, count: usize, weight: u32) -> Resource {
    let endpoint = endpoint::LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(socket_address(Transport::Tcp, to)),
            ..Default::default()
        })),
        load_balancing_weight: Some(UInt32Value { value: weight }),
        ..Default::default()
    };
    let assignment = endpoint::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: vec![endpoint; count],
            ..Default::default()
        }],
        ..Default::default()
    };
    Resource::encode(ResourceType::Endpoints, name, &assignment)
}

/// One service with one endpoint.
pub fn resources(vip: SocketAddr, to: SocketAddr) -> [Resource; 3] {
    service("web", vip, assignment("web", to, 1, 1), None, false)
}

/// A service over a load assignment of its name, with nothing in use, with session affinity, or with all that may be in
/// use at a time: affinity, outlier detection, a limit, a rate, and an answer for the callers of a class. (Localities are
/// chosen from when an assignment is written.)
fn service(
    name: &str,
    vip: SocketAddr,
    assignment: Resource,
    affinity: Option<SessionAffinity>,
    all: bool,
) -> [Resource; 3] {
    let metadata = affinity.map(|affinity| {
        let any = Any { type_url: SessionAffinity::TYPE_URL.to_owned(), value: affinity.encode_to_vec() };
        let entry = (SessionAffinity::KEY.to_owned(), any);
        core::Metadata { typed_filter_metadata: [entry].into(), ..Default::default() }
    });
    let number = |value| Some(UInt32Value { value });
    let rate = ConnectionRate { per_second: 10_000_000, burst: 10_000_000, per_caller: true };
    let rate = Any { type_url: ConnectionRate::TYPE_URL.to_owned(), value: rate.encode_to_vec() };
    let rate = cluster::Filter { typed_config: Some(rate), ..Default::default() };
    let limit =
        cluster::circuit_breakers::Thresholds { max_connections: number(1_000_000), ..Default::default() };
    let limit = cluster::CircuitBreakers { thresholds: vec![limit], ..Default::default() };
    let cluster = cluster::Cluster {
        name: name.to_owned(),
        metadata,
        outlier_detection: all.then(cluster::OutlierDetection::default),
        circuit_breakers: all.then_some(limit),
        filters: all.then_some(rate).into_iter().collect(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(cluster::cluster::DiscoveryType::Eds as i32)),
        lb_policy: cluster::cluster::LbPolicy::Random as i32,
        ..Default::default()
    };
    let chain = |chain: &str| chain_to(chain, name);
    let listener = listener::Listener {
        address: Some(socket_address(Transport::Tcp, vip)),
        filter_chains: if all { vec![chain("all"), chain("own")] } else { vec![chain("")] },
        filter_chain_matcher: all.then(own_chain),
        ..Default::default()
    };
    [
        Resource::encode(ResourceType::Cluster, name, &cluster),
        assignment,
        Resource::encode(ResourceType::Listener, name, &listener),
    ]
}

/// A filter chain of this name that leads to a cluster.
pub fn chain_to(name: &str, cluster: &str) -> listener::FilterChain {
    let proxy = TcpProxy {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    let filter = Any {
        type_url: "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy".to_owned(),
        value: Resource::encode(ResourceType::Listener, "proxy", &proxy).content.to_vec(),
    };
    listener::FilterChain {
        name: name.to_owned(),
        filters: vec![listener::Filter {
            config_type: Some(ConfigType::TypedConfig(filter)),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// To the chain `own` for callers of the namespace of the workload here, to `all` for others.
fn own_chain() -> Matcher {
    let go_to = |chain: &str| OnMatch {
        on_match: Some(on_match::OnMatch::Action(TypedExtensionConfig {
            name: chain.to_owned(),
            typed_config: None,
        })),
        ..Default::default()
    };
    let extension = |type_url: &str, value: Vec<u8>| TypedExtensionConfig {
        name: "x".to_owned(),
        typed_config: Some(Any { type_url: type_url.to_owned(), value }),
    };
    let classes = OneOfClasses { classes: vec![NAMESPACE.to_owned()] };
    let single = SinglePredicate {
        input: Some(extension(CallerClass::TYPE_URL, Vec::new())),
        matcher: Some(single_predicate::Matcher::CustomMatch(extension(
            OneOfClasses::TYPE_URL,
            classes.encode_to_vec(),
        ))),
    };
    let own = FieldMatcher {
        predicate: Some(Predicate { match_type: Some(MatchType::SinglePredicate(single)) }),
        on_match: Some(go_to("own")),
    };
    Matcher {
        matcher_type: Some(MatcherType::MatcherList(MatcherList { matchers: vec![own] })),
        on_no_match: Some(Box::new(go_to("all"))),
    }
}

pub fn run() -> anyhow::Result<()> {
    section("connect() and close(): through a VIP beside direct, loopback");
    with_agent("connect", measure)
}

/// Measures with an agent that has no resources yet, and a cgroup of its own that it routes. Only the measuring thread
/// and what it starts are in a new network namespace, which has no way out.
pub fn with_agent(name: &str, measure: fn(&Agent, &Cgroup) -> anyhow::Result<()>) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        scope.spawn(|| isolated(name, measure)).join().map_err(|_| anyhow::anyhow!("panicked"))?
    })
}

fn isolated(name: &str, measure: fn(&Agent, &Cgroup) -> anyhow::Result<()>) -> anyhow::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("a network namespace needs root")?;
    ensure!(Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success(), "ip link");
    let cgroup = Cgroup::create()?;
    let workload =
        Workload { namespace: NAMESPACE.to_owned(), name: "client".to_owned(), cgroup: cgroup.0.clone() };
    let options = Options {
        pin_root: pin_root(name),
        slots: Config::default(),
        sockets: slotmesh_agent::memory::SOCKETS,
        maps: MapSizes::default(),
        workloads: vec![workload],
        node: String::new(),
    };
    let agent = Agent::start(options, Arc::new(Metrics::new()))?;
    let result = measure(&agent, &cgroup);
    agent.remove()?;
    result
}

fn measure(agent: &Agent, cgroup: &Cgroup) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?;
    let vip: SocketAddr = VIP.parse()?;
    publish(agent, resources(vip, to))?;
    let sticky_vip: SocketAddr = STICKY_VIP.parse()?;
    let affinity = Some(SessionAffinity { seconds: 10_800 });
    let sticky = assignment("sticky", to, STICKY_ENDPOINTS, 1);
    publish(agent, service("sticky", sticky_vip, sticky, affinity, false))?;
    let full_vip: SocketAddr = FULL_VIP.parse()?;
    publish(agent, service("full", full_vip, assignment("full", to, STICKY_ENDPOINTS, 1), affinity, true))?;
    std::thread::spawn(move || listener.incoming().for_each(drop));

    for clients in [1, 2] {
        let inside = Some(cgroup.0.as_path());
        let [direct, mesh, sticky, full] =
            compare_connects(clients, [(to, None), (vip, inside), (sticky_vip, inside), (full_vip, inside)])?;
        let mesh_p50 = mesh.p50();
        let [ratio, sticky, full] = [mesh, sticky, full].map(|side| side.ratio(&direct));
        let many = if clients == 1 { String::new() } else { format!(", {clients} clients at once") };
        row(&format!("connect() + close() direct, p50{many}"), &show(direct.p50()), "");
        row(&format!("connect() + close() through a VIP, p50{many}"), &show(mesh_p50), "");
        row(
            &format!("through a VIP / direct{many}"),
            &format!("{ratio:.3}"),
            &verdict(ratio <= 1.12, "1.12"),
        );
        row(
            &format!("to one of {STICKY_ENDPOINTS} endpoints by session affinity / direct{many}"),
            &format!("{sticky:.3}"),
            &verdict(sticky <= 1.25, "1.25"),
        );
        row(
            &format!(
                "with affinity, outlier detection, a limit, a rate of each caller and an answer for its class / direct{many}"
            ),
            &format!("{full:.3}"),
            &verdict(full <= 1.25, "1.25"),
        );
    }

    counted(agent, cgroup, to, vip)?;

    let open = bytes(vip, Some(cgroup), Held::Open)? - bytes(to, None, Held::Open)?;
    // Nobody listens there any more.
    let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    publish(agent, resources(vip, nobody))?;
    let failed = bytes(vip, Some(cgroup), Held::Open)? - bytes(nobody, None, Held::Open)?;
    let left = bytes(vip, Some(cgroup), Held::Closed)? - bytes(nobody, None, Held::Closed)?;
    for (what, bytes, most) in [
        ("of an open connection", open, SOCKET_BYTES),
        ("of a failed connect, while its socket is kept", failed, SOCKET_BYTES),
        ("left of a failed connect, when its socket is closed", left, LEFT_BYTES),
    ] {
        let figure = format!("{bytes:.0} B");
        // Less than nothing says that other work gave memory back meanwhile, and nothing of these.
        let met = (-LEFT_BYTES..=most).contains(&bytes);
        row(&format!("kernel memory {what}"), &figure, &verdict(met, &format!("{most:.0} B")));
    }
    Ok(())
}

/// Turns of measuring without and with traffic counted: what drifts, drifts for both.
const TURNS: usize = 6;

/// Connects through a VIP while their traffic is counted, beside the same while it isn't, each as a ratio to direct.
fn counted(agent: &Agent, cgroup: &Cgroup, to: SocketAddr, vip: SocketAddr) -> anyhow::Result<()> {
    let mut ratios = [const { Vec::new() }; 2];
    for turn in 0..TURNS {
        for i in 0..2 {
            // Who goes first alternates.
            let is_counted = (turn + i).is_multiple_of(2);
            agent.handle().show_traffic(if is_counted { 100 } else { 0 })?;
            let [direct, mesh] = compare_connects(1, [(to, None), (vip, Some(&cgroup.0))])?;
            ratios[usize::from(is_counted)].push(mesh.ratio(&direct));
        }
    }
    agent.handle().show_traffic(0)?;
    let [without, with] = ratios.map(|mut of| {
        of.sort_by(f64::total_cmp);
        of[TURNS / 2]
    });
    let ratio = with / without;
    row(
        "through a VIP with traffic counted / without",
        &format!("{ratio:.3}"),
        &verdict(ratio <= 1.03, "1.03"),
    );
    Ok(())
}

pub fn publish(agent: &Agent, resources: impl IntoIterator<Item = Resource>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for resource in resources {
        let update = Update { ty: resource.ty, upserts: vec![resource], removed: Vec::new() };
        let refused = runtime.block_on(agent.handlers().apply(update));
        ensure!(refused.is_empty(), "{refused:?}");
    }
    Ok(())
}

/// Sockets that are kept until all have connected, or closed one by one.
#[derive(Clone, Copy)]
enum Held {
    Open,
    Closed,
}

/// By how much the kernel's memory grows for each socket that connects there, or tries to.
fn bytes(target: SocketAddr, cgroup: Option<&Cgroup>, held: Held) -> anyhow::Result<f64> {
    let what = match held {
        Held::Open => "child-hold",
        Held::Closed => "child-close",
    };
    let mut holders = (0..HOLDERS)
        .map(|_| Side::run(&[what, &HELD.to_string(), &target.to_string()]))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(cgroup) = cgroup {
        for holder in &holders {
            fs::write(cgroup.0.join("cgroup.procs"), holder.pid().to_string())?;
        }
    }
    // What goes by itself after a grace period has gone.
    let settle = || std::thread::sleep(SETTLE);
    settle();
    let before = slab()?;
    holders.iter_mut().try_for_each(|holder| {
        holder.order()?;
        holder.answer().map(drop)
    })?;
    settle();
    let after = slab()?;
    holders.into_iter().try_for_each(Side::end)?;
    Ok((after - before) / (HOLDERS * HELD) as f64)
}

/// The kernel's memory for objects that have no cache of their own, in bytes: a socket's storage is among them, sockets
/// themselves and their files aren't.
fn slab() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/slabinfo").context("/proc/slabinfo")?;
    let mut sum = 0.0;
    for line in text.lines().filter(|line| line.starts_with("kmalloc-")) {
        // name, objects in use, objects, bytes of one
        let mut words = line.split_whitespace().skip(2);
        let mut number = || words.next().and_then(|word| word.parse::<f64>().ok()).context("/proc/slabinfo");
        sum += number()? * number()?;
    }
    Ok(sum)
}

/// Connects so often when told to. It holds the sockets until the end, whatever came of it, or closes each at once.
pub fn child_hold(count: usize, target: SocketAddr, keeps: bool) -> anyhow::Result<()> {
    let mut held = Vec::with_capacity(count);
    for _ in std::io::stdin().lines() {
        for _ in 0..count {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
            let connected = socket.connect(&target.into());
            if keeps {
                held.push((socket, connected));
            }
        }
        println!("{}", held.len());
    }
    Ok(())
}
