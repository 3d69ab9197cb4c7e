//! Starts that are refused, upgrades to another record layout, and workloads within workloads.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use slotmesh_agent::{Agent, ConnectAttempt, ConnectOutcome, Options, Pins, StartError, Workload};
use slotmesh_kernel::{Hook, Link};
use slotmesh_slots::Config;
use slotmesh_xds::ResourceType::{Cluster, Endpoints, Listener};

use crate::{
    Bench,
    cgroup::Cgroup,
    config::{cluster, endpoints, tcp_listener},
};

/// All paths below a directory.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let deeper: Vec<PathBuf> = found.iter().filter(|path| path.is_dir()).flat_map(|dir| below(dir)).collect();
    found.extend(deeper);
    found.sort();
    found
}

pub(crate) fn start(bench: &Bench, workloads: &[Workload]) -> Result<Agent, StartError> {
    Agent::start(Options { workloads: workloads.to_vec(), ..bench.options() }, bench.metrics.clone())
}

/// A bench whose agent has these workloads.
pub(crate) fn bench(workloads: &[Workload]) -> Bench {
    let mut bench = Bench::new(Config { initial: 4, ..Config::default() });
    bench.agent.take().expect("the agent runs").remove().expect("the pins can be removed");
    bench.agent = Some(start(&bench, workloads).unwrap());
    bench
}

fn publish(bench: &Bench, vip: SocketAddr, to: SocketAddr) {
    assert_eq!(bench.upsert(Cluster, vec![cluster("web")]), []);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &[(to, 1)])]), []);
    assert_eq!(bench.upsert(Listener, vec![tcp_listener("l", &[vip], &[("web".to_owned(), 1)])]), []);
}

fn programs(bench: &Bench, workload: &Workload) -> Vec<u32> {
    let links = Pins::new(&bench.options().pin_root).links_of(workload.id());
    let program = |hook: Hook| Link::open(&links.join(hook.as_str())).unwrap().unwrap().program_id().unwrap();
    Hook::ALL.into_iter().map(program).collect()
}

#[test]
fn a_refused_start_creates_nothing() {
    let mut bench = bench(&[]);
    bench.agent.take().unwrap().remove().unwrap();
    let outer = Cgroup::new();
    let inner = Cgroup::at(outer.0.join("inner"));
    let missing = Workload { cgroup: outer.0.join("missing"), ..outer.workload("missing") };
    for (workloads, words) in [
        (vec![outer.workload("a"), missing], ["missing", "there is no cgroup"]),
        (vec![inner.workload("in"), outer.workload("out")], ["test/in lies", "of workload test/out"]),
        (vec![outer.workload("a"), outer.workload("b")], ["test/b", "test/a"]),
    ] {
        let error = start(&bench, &workloads).map(drop).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(!bench.options().pin_root.exists(), "{error}");
    }
}

#[test]
fn a_refused_take_over_leaves_what_was_there() {
    let (a, b, c) = (Cgroup::new(), Cgroup::new(), Cgroup::new());
    let mut bench = bench(&[a.workload("a")]);
    bench.stop();
    // Where the last link would be pinned lies something else: what was attached before must go again.
    let in_the_way =
        Pins::new(&bench.options().pin_root).links_of(b.workload("b").id()).join(Hook::Connect6.as_str());
    fs::create_dir_all(&in_the_way).unwrap();
    let before = below(&bench.options().pin_root);
    let workloads = [a.workload("a"), c.workload("c"), b.workload("b")];
    start(&bench, &workloads).map(drop).unwrap_err();
    let after = below(&bench.options().pin_root);
    let new: Vec<_> = after.iter().filter(|path| !before.contains(path)).collect();
    let b_links = Pins::new(&bench.options().pin_root).links_of(b.workload("b").id());
    assert!(new.iter().all(|path| path.starts_with(&b_links)), "{new:?}");
    assert!(before.iter().all(|path| after.contains(path)));
    fs::remove_dir(&in_the_way).unwrap();
    bench.agent = Some(start(&bench, &workloads).unwrap());
}

/// What decides goes first, of all workloads: else a connect in between would be redirected, and counted down by nobody.
#[test]
fn what_counts_down_is_removed_last() {
    let pods: Vec<Cgroup> = (0..12).map(|_| Cgroup::new()).collect();
    let workloads: Vec<Workload> =
        pods.iter().enumerate().map(|(i, pod)| pod.workload(&format!("pod{i}"))).collect();
    let mut bench = bench(&workloads);
    let pins = Pins::new(&bench.options().pin_root);
    let agent = bench.agent.take().unwrap();
    let connects: Vec<PathBuf> = workloads
        .iter()
        .flat_map(|one| {
            [Hook::Connect4, Hook::Connect6].map(|hook| pins.links_of(one.id()).join(hook.as_str()))
        })
        .collect();
    let releases = below(&pins.releases());
    assert!(releases.len() == pods.len() && connects.iter().all(|path| path.exists()));
    let mut looks = 0;
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| agent.remove().unwrap());
        while !removal.is_finished() || looks == 0 {
            // In this order: what was gone before stays so.
            let gone = releases.iter().any(|path| !path.exists());
            let decides = connects.iter().any(|path| path.exists());
            assert!(!(gone && decides), "a connect would be redirected and counted down by nobody");
            looks += 1;
        }
    });
    assert!(releases.iter().all(|path| !path.exists()));
}

#[test]
fn another_record_layout_takes_over_when_it_is_complete() {
    let pod = Cgroup::new();
    let workload = pod.workload("pod");
    let mut bench = bench(std::slice::from_ref(&workload));
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let (vip, to) = ("198.18.7.1:80".parse().unwrap(), server.local_addr().unwrap());
    publish(&bench, vip, to);
    assert_eq!(pod.connect(vip).unwrap().peer_addr().unwrap(), vip);
    bench.stop();

    // As if an agent of another layout had left it.
    let pins = Pins::new(&bench.options().pin_root);
    let old = pins.records().with_file_name("records-0000000000000001");
    fs::rename(pins.records(), &old).unwrap();
    let before = programs(&bench, &workload);
    // An upgrade that ends before its first sync, and another one.
    for _ in 0..2 {
        bench.stop();
        bench.agent = Some(start(&bench, std::slice::from_ref(&workload)).unwrap());
        assert!(bench.agent().took_over());
        assert_eq!(
            bench.agent().datapath().explain(ConnectAttempt::to(vip)).unwrap(),
            ConnectOutcome::Pass,
            "new records are empty"
        );
        assert_eq!(programs(&bench, &workload), before);
        assert!(old.exists());
        assert_eq!(pod.connect(vip).unwrap().peer_addr().unwrap(), vip, "the old records are in force");
    }
    publish(&bench, vip, to);
    bench.sync();
    assert!(programs(&bench, &workload).iter().all(|program| !before.contains(program)));
    assert!(!old.exists() && pins.records().exists());
    assert_eq!(pod.connect(vip).unwrap().peer_addr().unwrap(), vip);
}

/// The agent refuses such workloads; but two starts may overlap, and cgroups may be moved about.
#[test]
fn a_program_further_up_leaves_alone_what_one_further_down_redirected() {
    let bench = bench(&[]);
    let outer = Cgroup::new();
    let inner = Cgroup::at(outer.0.join("inner"));
    bench.agent().datapath().attach(&[outer.workload("outer"), inner.workload("inner")]).unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let (vip, to) = ("198.18.7.2:80".parse().unwrap(), server.local_addr().unwrap());
    publish(&bench, vip, to);
    assert_eq!(inner.connect(vip).unwrap().peer_addr().unwrap(), vip);
    assert_eq!(outer.connect(vip).unwrap().peer_addr().unwrap(), vip);
    assert_eq!(inner.connect(to).unwrap().peer_addr().unwrap(), to);
}
