//! Endpoint updates as fast as one core makes them, while the other core connects through what is being
//! updated: every connection must be made, and reach a server.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    unistd::Pid,
};
use slotmesh_ads::{Sink as _, Update};
use slotmesh_agent::{Agent, MapSizes, Options, Workload, metrics::Metrics};
use slotmesh_bench::{report, row, verdict};
use slotmesh_slots::Config;
use slotmesh_xds::Resource;
use socket2::SockRef;

use crate::{
    connect::{Cgroup, assignment, resources},
    effort, pin_root,
};

const VIP: &str = "10.96.0.10:80";
/// Load assignments that are updated in turn; connections go to the first.
const ASSIGNMENTS: usize = 1_000;
/// Responses of the stream, each with an update of every load assignment.
const RESPONSES: usize = 1_500;
/// The core that updates, and the one that connects.
const CORES: (usize, usize) = (0, 1);

fn stay_on(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

pub fn run() -> anyhow::Result<()> {
    report::section("Churn: updates on one core, connections on the other");
    // Only this thread and what it starts are in the new namespace, which has no way out.
    std::thread::scope(|scope| scope.spawn(isolated).join().map_err(|_| anyhow::anyhow!("panicked"))?)
}

fn isolated() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace needs root")?;
    ensure!(Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success(), "ip link");
    ensure!(
        std::thread::available_parallelism()?.get() > CORES.1,
        "churn needs two processors: one updates, one connects"
    );
    // Threads that the agent starts inherit it.
    stay_on(CORES.0)?;
    let cgroup = Cgroup::create()?;
    let workload =
        Workload { namespace: "bench".to_owned(), name: "client".to_owned(), cgroup: cgroup.0.clone() };
    let slots = Config { initial: 256, high_watermark: 2_048, ..Config::default() };
    let options = Options {
        pin_root: pin_root("churn"),
        slots,
        sockets: slotmesh_agent::memory::SOCKETS,
        maps: MapSizes::default(),
        workloads: vec![workload],
        node: String::new(),
    };
    let agent = Agent::start(options, Arc::new(Metrics::new()))?;
    let result =
        measure(&agent, &cgroup, 1, Some(300_000.0)).and_then(|()| measure(&agent, &cgroup, 10, None));
    agent.remove()?;
    result
}

/// Load assignments of so many endpoints; an update replaces all of them.
fn measure(agent: &Agent, cgroup: &Cgroup, endpoints: usize, target: Option<f64>) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?;
    let handlers = agent.handlers();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let apply = |upserts: Vec<Resource>| {
        let update = Update { ty: upserts[0].ty, upserts, removed: Vec::new() };
        let refused = runtime.block_on(handlers.apply(update));
        ensure!(refused.is_empty(), "{refused:?}");
        anyhow::Ok(())
    };
    for resource in resources(VIP.parse()?, to) {
        apply(vec![resource])?;
    }
    // All endpoints are the one server, so that each choice can be connected to. Two versions in turn.
    let versions = [1, 2].map(|weight| -> Vec<Resource> {
        let name = |i: usize| if i == 0 { "web".to_owned() } else { format!("other-{i}") };
        (0..ASSIGNMENTS).map(|i| assignment(&name(i), to, endpoints, weight)).collect()
    });
    let mut client = Command::new(std::env::current_exe()?)
        .args(["child-churn", VIP])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let outcome = (|| {
        fs::write(cgroup.0.join("cgroup.procs"), client.id().to_string())?;
        std::thread::Builder::new().spawn(move || {
            // With the clients, not with the updates.
            stay_on(CORES.1).expect("the processor was counted");
            listener.incoming().for_each(drop);
        })?;
        load(&mut client, &versions, &apply)
    })();
    if outcome.is_err() {
        client.kill()?;
        client.wait()?;
    }
    let (updates, took, connects, failed) = outcome?;
    let rate = updates as f64 / took.as_secs_f64();
    let stats = runtime.block_on(agent.handle().stats()).context("the agent runs")?.0;
    let what = format!("load assignments of {endpoints} endpoint(s) updated a second, from bytes to current");
    let target = target.map_or(String::new(), |least| verdict(rate >= least, &format!("at least {least}")));
    row(&what, &format!("{rate:.0}"), &target);
    row("connections a second meanwhile", &format!("{:.0}", connects as f64 / took.as_secs_f64()), "");
    row("connections that failed", &failed.to_string(), &verdict(failed == 0, "0"));
    row(
        "slabs at the end (each grace period frees what was retired before it)",
        &stats.slabs.to_string(),
        "",
    );
    row("grace periods meanwhile", &stats.grace_periods.to_string(), "");
    Ok(())
}

type Outcome = (u64, Duration, u64, u64);

/// Updates while the client connects.
fn load(
    client: &mut Child,
    versions: &[Vec<Resource>; 2],
    apply: &impl Fn(Vec<Resource>) -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let mut orders = client.stdin.take().context("piped")?;
    let mut answers = BufReader::new(client.stdout.take().context("piped")?);
    for version in versions {
        apply(version.clone())?;
    }
    let mut batches = Vec::new();
    let count = effort(RESPONSES);
    orders.write_all(b"go\n")?;
    let started = Instant::now();
    let mut updates = 0;
    let mut applying = Duration::ZERO;
    for i in 0..count {
        // What the stream hands over: made outside of the time that counts.
        if batches.is_empty() {
            batches = vec![versions[i % 2].clone()];
        }
        let batch = batches.pop().context("just made")?;
        updates += batch.len() as u64;
        let began = Instant::now();
        apply(batch)?;
        applying += began.elapsed();
    }
    drop(orders);
    let mut line = String::new();
    answers.read_line(&mut line)?;
    let mut numbers = line.split_whitespace().map(str::parse::<u64>);
    let mut next = || numbers.next().with_context(|| format!("the client said {line:?}"));
    let (connects, failed) = (next()??, next()??);
    ensure!(client.wait()?.success(), "the client failed");
    ensure!(connects > 0, "nothing was connected in {:?}", started.elapsed());
    Ok((updates, applying, connects, failed))
}

/// Connects until its input ends.
pub fn child(target: SocketAddr) -> anyhow::Result<()> {
    stay_on(CORES.1)?;
    let mut order = String::new();
    std::io::stdin().read_line(&mut order)?;
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let waits = {
        let done = done.clone();
        std::thread::spawn(move || {
            let ended = std::io::stdin().read_to_end(&mut Vec::new());
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            ended
        })
    };
    let (mut connects, mut failed) = (0_u64, 0_u64);
    while !done.load(std::sync::atomic::Ordering::Relaxed) {
        connects += 1;
        let reached = TcpStream::connect(target).and_then(|mut stream| {
            // The server only closes; reset on close, so that no sockets pile up in TIME_WAIT.
            let read = stream.read(&mut [0])?;
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            Ok(read)
        });
        failed += u64::from(!matches!(reached, Ok(0)));
    }
    waits.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    println!("{connects} {failed}");
    Ok(())
}
