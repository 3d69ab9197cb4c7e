//! `make demo`: an example shop whose connections are routed in the kernel, by manifests that change
//! while it runs.
//!
//! ```text
//!  a namespace without a route out           one namespace a pod
//!    cgroup [ client processes ] --connect--> reviews v1, v2, v3, web, ratings, details
//!    slotmesh up  <--manifests (a copy of e2e/shop)
//! ```
//!
//! All of it belongs to values of one thread, which undo it when that ends: at the end, by a failure
//! or by Ctrl-C. Afterwards the main thread looks whether something is left.

mod left;
mod pods;
mod requests;
mod show;

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::{Command, ExitCode},
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use slotmesh_e2e::{
    Cgroup, Client, ClientSpec, Log, ManifestDir, Up, UpSpec,
    connect::now,
    metrics::{self, Scrape},
    names::{self, PinRoot},
    net, up, wait,
};

use left::Made;
use pods::{Pod, Spec};
use show::{split, step, thousands};

/// Shows live traffic shifting on an example shop.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// How many connections each count makes
    #[arg(long, default_value_t = 10_000)]
    connections: u64,
    /// The shop's manifests (they are copied; the copy is edited)
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/shop"))]
    shop: PathBuf,
    /// The manifests that are added for the canary by header
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/shop-by-header"))]
    by_header: PathBuf,
}

/// The pods; their ids are their places here, from 1.
const PODS: [Spec; 8] = [
    Spec { name: "reviews-v1-0", ip: "10.244.4.1", ports: &[8080], http: &[] },
    Spec { name: "reviews-v1-1", ip: "10.244.4.2", ports: &[8080], http: &[] },
    Spec { name: "reviews-v2-0", ip: "10.244.4.3", ports: &[8080], http: &[] },
    Spec { name: "reviews-v3-0", ip: "10.244.4.4", ports: &[8080], http: &[] },
    Spec { name: "web-0", ip: "10.244.1.1", ports: &[8080], http: &[] },
    Spec { name: "ratings-0", ip: "10.244.3.1", ports: &[8080, 9001], http: &[] },
    Spec { name: "details-0", ip: "10.244.2.1", ports: &[], http: &[(8080, "v1")] },
    Spec { name: "details-v2-0", ip: "10.244.2.2", ports: &[], http: &[(8080, "v2")] },
];
/// The ids of the pods of each version of reviews.
const VERSIONS: [(&str, &[u16]); 3] = [("v1", &[1, 2]), ("v2", &[3]), ("v3", &[4])];
/// The cluster address of reviews.
const REVIEWS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 13)), 80);

static MADE: Mutex<Option<Made>> = Mutex::new(None);
/// Set by Ctrl-C.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

fn made<T>(note: impl FnOnce(&mut Made) -> T) -> T {
    note(MADE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// Fails when Ctrl-C was pressed: what was made goes on the way out.
fn go_on() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

fn main() -> ExitCode {
    let args = Args::parse();
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if let Err(error) = signal_hook::flag::register(signal, Arc::clone(&INTERRUPTED)) {
            eprintln!("error: signals can't be handled: {error}");
            return ExitCode::FAILURE;
        }
    }
    let run = move || {
        let result = shop(&args);
        match go_on() {
            Err(_) => println!("\ninterrupted"),
            Ok(()) if result.is_err() => up::print_logs(),
            Ok(()) => {}
        }
        result
    };
    let result = thread::Builder::new().name("demo".to_owned()).spawn(run);
    let result = result.map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("the demo panicked"))));
    let result = result.unwrap_or_else(|error| Err(error.into()));
    let gone = made(|made| made.expect_gone().map(|()| made.describe()));
    match &gone {
        Ok(was) => println!("\nNothing is left behind. There were: {was}."),
        Err(error) => eprintln!("\nSomething is left behind: {error:#}"),
    }
    match result {
        Ok(()) if gone.is_ok() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(_) if go_on().is_err() => ExitCode::from(130),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// All that the demo holds. Its parts go in the order in which they stand here.
struct Demo {
    load: Option<Client>,
    up: Option<Up>,
    pods: Vec<Option<Pod>>,
    cgroup: Cgroup,
    manifests: ManifestDir,
    /// Those that are added for the canary by header.
    added: PathBuf,
    _pin_root: PinRoot,
    connections: u64,
}

fn shop(args: &Args) -> Result<()> {
    println!("slotmesh: an example shop, real TCP connections, routed in the kernel");
    let mut demo = Demo::start(args)?;

    step(2, "80/20: the canary");
    demo.count(&[80, 20, 0])?;
    demo.others()?;

    step(3, "50/50: the manifest is edited while connections go on");
    demo.load = Some(demo.start_load()?);
    demo.edit(
        "canary.yaml",
        &[("      weight: 80\n", "      weight: 50\n"), ("      weight: 20\n", "      weight: 50\n")],
        "route",
    )?;
    demo.count(&[50, 50, 0])?;

    step(4, "v2 is removed: first from the route, then its pod");
    let v2 = "    - destination: {host: reviews, subset: v2}\n      weight: 50\n";
    demo.edit("canary.yaml", &[(v2, ""), ("      weight: 50\n", "      weight: 100\n")], "route")?;
    demo.remove("reviews-v2.yaml")?;
    // Whoever chose it just before has connected by now; then it ends.
    thread::sleep(Duration::from_secs(1));
    demo.pods[2] = None;
    println!("   v2's pod has ended, a second later");
    demo.count(&[100, 0, 0])?;
    demo.end_load()?;

    step(5, "A canary by header: `slotmesh up --proxy` routes each request");
    demo.by_header()?;

    step(6, "The slot table (`slotmesh slots`)");
    demo.slots()?;
    demo.stop()
}

impl Demo {
    fn start(args: &Args) -> Result<Self> {
        net::enter()?;
        made(|made| Ok::<_, anyhow::Error>(made.namespaces.insert(pods::namespace()?)))?;
        step(1, "The shop");
        let (manifests, cgroup, pin_root) = (ManifestDir::new()?, Cgroup::new()?, PinRoot::new());
        let outer = manifests.beside("");
        made(|made| {
            made.cgroups.push(cgroup.path().to_owned());
            made.directories.push(outer);
        });
        copy(&args.shop, &manifests)?;
        let mut pods = Vec::new();
        for (spec, id) in PODS.into_iter().zip(1..) {
            go_on()?;
            let pod = Pod::start(spec, id).with_context(|| format!("start the pod {}", spec.name))?;
            made(|made| made.namespaces.insert(pod.namespace.clone()));
            pods.push(Some(pod));
        }
        println!("   {} pods, each a server in a network namespace of its own", pods.len());
        println!(
            "   4 services by their cluster IPs: web, ratings, reviews (v1: 2 pods, v2, v3), details (HTTP)"
        );
        println!("   clients: processes in the cgroup {}", cgroup.path().display());
        let mut spec = UpSpec::new(manifests.path(), pin_root.path(), &cgroup);
        spec.workloads = vec![("shop/client".to_owned(), cgroup.path().to_owned())];
        spec.args.push("--proxy".to_owned());
        let began = Instant::now();
        let mut up = spec.start()?;
        made(|made| made.processes.insert(up.pid()));
        up.wait_ready()?;
        println!(
            "   slotmesh up --proxy --manifests … --workload shop/client=…: ready after {} ms",
            began.elapsed().as_millis()
        );
        ensure!(up.reports()?.is_empty(), "the shop's manifests are reported: {:?}", up.reports()?);
        let demo = Self {
            load: None,
            up: Some(up),
            pods,
            cgroup,
            manifests,
            added: args.by_header.clone(),
            _pin_root: pin_root,
            connections: args.connections,
        };
        demo.note_footprint()?;
        Ok(demo)
    }

    fn agent(&self) -> Result<&Up> {
        self.up.as_ref().context("the agent was stopped")
    }

    /// What the kernel holds for us now, so that it can be looked for at the end.
    fn note_footprint(&self) -> Result<()> {
        let footprint = slotmesh_e2e::bpf::Footprint::of(self.agent()?)?;
        made(|made| made.footprint = Some(footprint));
        Ok(())
    }

    /// Connects from two processes in the mesh and waits for them.
    fn connect(&self, to: SocketAddr, count: u64) -> Result<Log> {
        let spec = ClientSpec::to(to).count(count.div_ceil(2));
        let mut clients = vec![spec.start(Some(&self.cgroup))?, spec.start(Some(&self.cgroup))?];
        made(|made| made.processes.extend(clients.iter().map(Client::pid)));
        let began = Instant::now();
        let mut told = false;
        loop {
            go_on()?;
            let running = clients.iter_mut().map(Client::is_running).collect::<Result<Vec<_>>>()?;
            if !running.contains(&true) {
                break;
            }
            if began.elapsed() > Duration::from_secs(1) {
                print!("{}", if told { "." } else { "   connecting ." });
                told = true;
                io::stdout().flush()?;
                thread::sleep(Duration::from_millis(200));
            }
            thread::sleep(Duration::from_millis(5));
        }
        if told {
            println!();
        }
        let logs = clients.into_iter().map(Client::finish).collect::<Result<Vec<_>>>()?;
        let start = logs.iter().map(|log| log.start).min().unwrap_or_else(now);
        Ok(Log { start, connects: logs.into_iter().flat_map(|log| log.connects).collect() })
    }

    /// Opens thousands of connections to reviews and prints where they went.
    fn count(&self, weights: &[u32; 3]) -> Result<()> {
        let count = thousands(self.connections as usize);
        println!("   {count} connections to reviews, {REVIEWS}, from processes in the mesh cgroup:");
        let log = self.connect(REVIEWS, self.connections)?;
        let counts = log.by_backend();
        let of = |ids: &[u16]| ids.iter().filter_map(|id| counts.get(id)).sum::<u64>();
        let rows: Vec<_> =
            VERSIONS.iter().zip(weights).map(|((name, ids), w)| (*name, *w, of(ids))).collect();
        split(&log, &rows);
        let first = log.connects.iter().find_map(|c| Some((c.peer?, c.backend?)));
        let (peer, pod) = first.context("no connection succeeded")?;
        let pod = PODS[usize::from(pod) - 1];
        println!("      getpeername says {peer}; the pod that answered is {}, {}", pod.name, pod.ip);
        Ok(())
    }

    /// The services with one version, and what is none.
    fn others(&self) -> Result<()> {
        const COUNT: u64 = 200;
        let mut told = Vec::new();
        for (name, to, id) in [
            ("web", "10.96.0.10:80", 5),
            ("ratings", "10.96.0.12:80", 6),
            ("its port 9000", "10.96.0.12:9000", 6),
        ] {
            let log = self.connect(to.parse()?, COUNT)?;
            log.expect_all(COUNT as usize)?;
            ensure!(log.by_backend().into_keys().eq([id]), "{name}: {:?}", log.by_backend());
            told.push(name);
        }
        println!("   {}: {COUNT} connections each, all reached their pod", told.join(", "));
        let log = ClientSpec::to(REVIEWS).run(None)?;
        let error = log.connects.first().context("one connect")?.errno;
        ensure!(error != 0, "a process outside the cgroup was routed");
        println!("   a process outside the cgroup isn't affected: {}", io::Error::from_raw_os_error(error));
        Ok(())
    }

    fn start_load(&self) -> Result<Client> {
        const GAP: u64 = 500;
        let client = ClientSpec::load(&[REVIEWS]).least(0).gap(GAP).start(Some(&self.cgroup))?;
        made(|made| made.processes.insert(client.pid()));
        println!("   one more client begins to connect all the time, until the last edit is over");
        Ok(client)
    }

    fn end_load(&mut self) -> Result<()> {
        let log = self.load.take().context("there is a load")?.stop()?;
        let failed = log.connects.iter().filter(|c| c.errno != 0).count();
        println!(
            "   the client that went on through all edits made {} connections; {failed} failed",
            thousands(log.len())
        );
        log.expect_all(1)
    }

    /// Replaces text in a manifest as an editor would.
    fn edit(&self, file: &str, changes: &[(&str, &str)], published: &str) -> Result<()> {
        let path = self.manifests.path().join(file);
        let mut text = fs::read_to_string(&path)?;
        println!("   edit {file}:");
        for (old, new) in changes {
            ensure!(text.contains(old), "{file} has no {old:?}");
            text = text.replacen(old, new, 1);
            old.lines().for_each(|line| println!("      -{line}"));
            new.lines().for_each(|line| println!("      +{line}"));
        }
        self.change(published, || self.manifests.write_text(file, &text))
    }

    /// Removes a manifest.
    fn remove(&self, file: &str) -> Result<()> {
        println!("   remove {file}:");
        self.change("endpoints", || self.manifests.remove(file))
    }

    /// Makes a change, waits until what follows from it is published, and prints how long that took.
    fn change(&self, published: &str, change: impl FnOnce() -> Result<()>) -> Result<()> {
        go_on()?;
        let agent = self.agent()?;
        let before = agent.metrics()?;
        let saved = Instant::now();
        change()?;
        wait::until_true(&format!("a flush of a {published}"), || {
            Ok(agent.metrics()?.flushes(published) > before.flushes(published))
        })?;
        let seen = saved.elapsed();
        show::flushes(&before, &settled(agent)?, seen);
        Ok(())
    }

    fn slots(&self) -> Result<()> {
        self.note_footprint()?;
        let binary = names::binary("slotmesh", "slotmesh")?;
        let output =
            Command::new(binary).args(["slots", "--admin", &self.agent()?.spec().admin()]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "slotmesh slots: {said}");
        show::quote(&String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    /// Ends slotmesh gracefully; the rest goes by itself.
    fn stop(mut self) -> Result<()> {
        self.up.take().context("the agent was stopped")?.stop()
    }
}

/// The metrics when no flush has followed for a moment.
fn settled(agent: &Up) -> Result<Scrape> {
    let all = |scrape: &Scrape| metrics::TYPES.map(|of| scrape.flushes(of));
    let mut last = agent.metrics()?;
    wait::until("the flushes to end", || {
        thread::sleep(Duration::from_millis(30));
        let scrape = agent.metrics()?;
        let same = all(&scrape) == all(&last);
        last = scrape.clone();
        Ok(same.then_some(scrape))
    })
}

fn copy(shop: &std::path::Path, to: &ManifestDir) -> Result<()> {
    let mut files = 0;
    for entry in fs::read_dir(shop).with_context(|| format!("read {}", shop.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let name = path.file_name().context("a file has a name")?;
            fs::copy(&path, to.path().join(name))?;
            files += 1;
        }
    }
    if files == 0 {
        bail!("{} has no manifests", shop.display());
    }
    println!("   {files} manifests, copied from {}", shop.file_name().unwrap_or_default().display());
    Ok(())
}
