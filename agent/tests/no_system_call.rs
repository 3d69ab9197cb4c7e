//! An update of what exists makes no bpf(2) call, also at the cap with a full quarantine, and while clusters that are
//! gone have connections: what the thread that writes does is traced.
//!
//! A binary of its own, so that there is one thread of that name. Growth and grace periods run on
//! other threads, where such calls belong. Needs root, BPF and strace; fails with the reason where they
//! are missing.

#[path = "kernel/bench.rs"]
#[expect(dead_code, reason = "shared with the tests in kernel/")]
mod bench;
#[path = "kernel/cgroup.rs"]
mod cgroup;
#[path = "kernel/config.rs"]
#[expect(dead_code, reason = "shared with the tests in kernel/")]
mod config;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
};

use bench::Bench;
use cgroup::Cgroup;
use config::{cluster, endpoints, route, tcp_listener};
use slotmesh_slots::Config;
use slotmesh_xds::ResourceType::{Cluster, Endpoints, Listener, Route};

/// The thread that owns the maps and writes the records.
const OWNER: &str = "slots-owner";

fn owner() -> String {
    let mut owners = Vec::new();
    for task in fs::read_dir("/proc/self/task").expect("threads are listed") {
        let task = task.expect("threads are listed").path();
        // A thread may end meanwhile.
        if fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end() == OWNER) {
            owners.push(task.file_name().expect("a thread has an id").to_string_lossy().into_owned());
        }
    }
    assert_eq!(owners.len(), 1, "one thread {OWNER} writes");
    owners.remove(0)
}

/// The bpf(2) calls of the owner while `work` is done.
fn calls_during(work: impl FnOnce()) -> Vec<String> {
    let trace = tempfile::NamedTempFile::new().expect("a file");
    let mut strace = Command::new("strace")
        .args(["-e", "trace=bpf", "-p", &owner(), "-o"])
        .arg(trace.path())
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace can't be started; run `make setup`");
    let mut said = BufReader::new(strace.stderr.take().expect("piped"));
    let mut attached = String::new();
    said.read_line(&mut attached).expect("what strace says can be read");
    assert!(attached.contains("attached"), "strace: {attached}");
    work();
    let interrupted = Command::new("kill").args(["-INT", &strace.id().to_string()]).status();
    assert!(interrupted.expect("kill can be run").success());
    strace.wait().expect("strace ends");
    let text = fs::read_to_string(trace.path()).expect("the trace can be read");
    text.lines().filter(|line| line.contains("bpf(")).map(str::to_owned).collect()
}

/// One test, as there is one thread of that name at a time.
#[test]
fn an_update_of_what_exists_makes_no_bpf_call() {
    with_room();
    at_the_cap();
    with_departed_clusters();
}

/// Clusters that are gone count until their connections are.
fn with_departed_clusters() {
    let pod = Cgroup::new();
    let bench = Bench::new(Config { initial: 8, ..Config::default() });
    bench.agent().datapath().attach(&[pod.workload("pod")]).expect("it can be attached");
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = [(server.local_addr().expect("it has one"), 1)];
    let connect_and_remove = |i: u8| -> TcpStream {
        let (name, vip) = (format!("gone{i}"), SocketAddr::from(([198, 18, 15, i], 80)));
        assert_eq!(bench.upsert(Cluster, vec![cluster(&name)]), []);
        assert_eq!(bench.upsert(Endpoints, vec![endpoints(&name, &to)]), []);
        assert_eq!(bench.upsert(Listener, vec![tcp_listener(&name, &[vip], &[(name.clone(), 1)])]), []);
        let held = pod.connect(vip).expect("it is routed");
        for ty in [Listener, Cluster, Endpoints] {
            bench.remove(ty, &[&name]);
        }
        held
    };
    let held: Vec<TcpStream> = (0..32).map(connect_and_remove).collect();
    let update = |n: u16| {
        let to: SocketAddr = ([10, 0, 1, n as u8], 80).into();
        assert_eq!(bench.upsert(Cluster, vec![cluster("web"), cluster("other")]), []);
        assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &[(to, 1)])]), []);
        bench.remove(Cluster, &["other"]);
    };
    update(0);
    let calls = calls_during(|| (1..=50).for_each(update));
    assert_eq!(calls, Vec::<String>::new(), "200 updates beside 32 clusters that are gone");
    drop(held);
}

/// All slabs are in use, and what is updated waits for the grace periods of what it replaces; what is new is
/// refused; and what is nearly idle is put together.
fn at_the_cap() {
    let cap = Config { initial: 4, cap: 4, low_watermark: 0, high_watermark: 32, ..Config::default() };
    let bench = Bench::new(cap);
    let list = |first: u8| -> Vec<(SocketAddr, u32)> {
        (0..200).map(|i| (SocketAddr::from(([10, 0, first, i], 80)), 1)).collect()
    };
    let upsert = |name: &str, n: u8| bench.upsert(Endpoints, vec![endpoints(name, &list(n))]);
    let mut last = 0;
    while upsert(&format!("e{last}"), 0).is_empty() {
        last += 1;
    }
    assert!(last > 6, "{last} fit");
    for i in 1..4 {
        bench.remove(Endpoints, &[&format!("e{}", i * 2)]);
    }
    let before = bench.stats();
    let mut most = 0;
    let calls = calls_during(|| {
        for n in 0..60 {
            assert_eq!(upsert("e0", n), [], "it waits");
            most = most.max(bench.stats().quarantined);
            if n % 20 == 0 {
                (0..last + 2).for_each(|i| drop(upsert(&format!("more-{n}-{i}"), n)));
                let refused = upsert("one more", n);
                assert!(refused[0].reason.contains("no idle slot"), "{refused:?}");
                (0..last + 2).for_each(|i| bench.remove(Endpoints, &[&format!("more-{n}-{i}")]));
            }
        }
    });
    let after = bench.stats();
    assert_eq!(calls, Vec::<String>::new(), "60 updates and more");
    assert!(most >= 3 && after.grace_periods > before.grace_periods + 10, "{most}, {after:?}");
}

fn with_room() {
    let bench = Bench::new(Config { initial: 8, ..Config::default() });
    let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let address = |n: u16, i: u16| SocketAddr::from(([10, 0, n as u8, i as u8], 80));
    let list = |n: u16, len: u16| (0..len).map(|i| (address(n, i), u32::from(i % 7 + 1))).collect::<Vec<_>>();
    let weighted = |n: u32| [("web".to_owned(), n + 1), ("other".to_owned(), 1)];
    let update = |n: u16| {
        // From a single slot to chunks and back.
        let len = if n.is_multiple_of(10) { 200 } else { n % 20 + 1 };
        assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &list(n, len))]), []);
        assert_eq!(bench.upsert(Cluster, vec![cluster("web"), cluster("other")]), []);
        assert_eq!(bench.upsert(Route, vec![route("r", &weighted(n.into()))]), []);
        assert_eq!(bench.upsert(Listener, vec![tcp_listener("l", &[vip], &weighted(n.into()))]), []);
    };
    update(0);
    let calls = calls_during(|| (1..=50).for_each(update));
    assert_eq!(calls, Vec::<String>::new(), "200 updates");
    // A new address is one, which shows that calls are seen.
    let second = tcp_listener("second", &["10.96.0.2:80".parse().unwrap()], &weighted(1));
    let calls = calls_during(|| assert_eq!(bench.upsert(Listener, vec![second]), []));
    assert!(!calls.is_empty(), "strace sees no call, not even of a new address");
}
