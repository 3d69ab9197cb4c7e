//! One endpoint changes: when the kernel's maps say so, and when connections go there.
//!
//! ```text
//!  apply ----> API server ---> operator's watch ---> operator ---> agent ---> maps: the flip
//!    ^             |    \----> our watch: the event                            ^
//!    begin         answer: the write's end                 asked every 20 us --+
//! ```
//!
//! Whose watch the API server serves first is chance: our event is the operator's, but for that.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use kube::Client;
use nix::sys::prctl::set_timerslack;
use slotmesh_agent::{ConnectAttempt, ConnectOutcome, Datapath};
use slotmesh_bench::{Samples, effort, report, row, section, show, verdict};
use slotmesh_e2e::{Backends, Client as Connecting, ClientSpec, connect::now, names::binary};
use tokio::{sync::mpsc, task::JoinHandle, time::sleep};

use crate::{
    load::{self, NAMESPACE, PROBE, Post, TARGET},
    world::World,
};

/// The pause between two changes: what the last one leaves to do is done then.
const PAUSE: Duration = Duration::from_millis(20);
/// How often the maps are asked.
const EVERY: Duration = Duration::from_micros(20);
const PATIENCE: Duration = Duration::from_secs(20);

/// A watch of EndpointSlices. It ends when this is dropped.
pub struct Watch {
    events: mpsc::UnboundedReceiver<(Instant, String)>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Watches from now on.
    pub async fn open(client: &Client) -> Result<Self> {
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices");
        let request = http::Request::get(format!("{path}?limit=1")).body(Vec::new())?;
        let list = client.request::<serde_json::Value>(request).await?;
        let version = list["metadata"]["resourceVersion"].as_str().context("a list has a version")?;
        let watch = format!("{path}?watch=1&timeoutSeconds=3600&resourceVersion={version}");
        let mut lines = client.request_stream(http::Request::get(watch).body(Vec::new())?).await?.lines();
        let (sender, events) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            // Nothing is read of it before the time is noted.
            while let Ok(Some(line)) = lines.try_next().await {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { events, task })
    }

    /// Waits for the event that brings this endpoint: when it came.
    pub async fn brings(&mut self, endpoint: Ipv4Addr) -> Result<Instant> {
        let address = format!("\"{endpoint}\"");
        let found = async {
            loop {
                let (at, line) = self.events.recv().await.context("the watch has ended")?;
                if line.contains(&address) {
                    return anyhow::Ok(at);
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.with_context(|| format!("no event brings {endpoint}"))?
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `apply`, as a client library does it: when it began and when it was answered.
pub async fn apply(client: &Client, (path, object): Post) -> Result<(Instant, Instant)> {
    let name = object["metadata"]["name"].as_str().context("an object has a name")?;
    let request = http::Request::patch(format!("{path}/{name}?fieldManager=bench&force=true"))
        .header("content-type", "application/apply-patch+yaml")
        .body(serde_json::to_vec(&object)?)?;
    let began = Instant::now();
    client.request_text(request).await?;
    Ok((began, Instant::now()))
}

/// What one change took.
#[derive(Clone, Copy)]
pub struct Change {
    /// From the event to the flip.
    pub flip: Duration,
    /// From `apply` to the flip.
    pub whole: Duration,
    /// The write alone.
    pub write: Duration,
}

/// Changes endpoints of a world, one after the other.
pub struct Changes<'w> {
    world: &'w World,
    kernel: Arc<Datapath>,
    watch: Watch,
}

impl<'w> Changes<'w> {
    pub async fn new(world: &'w World) -> Result<Self> {
        let (kernel, watch) = (Arc::new(world.kernel()?), Watch::open(&world.client).await?);
        Ok(Self { world, kernel, watch })
    }

    /// Moves the last endpoint of the next Service.
    pub async fn next(&mut self) -> Result<Change> {
        sleep(PAUSE).await;
        let (service, endpoints) = self.world.next_move();
        let endpoint = *endpoints.last().context("a Service has endpoints")?;
        let kernel = self.kernel.clone();
        let vip = self.world.vips[service];
        let flips = thread::spawn(move || flip(&kernel, vip, endpoint));
        let (began, ended) =
            apply(&self.world.client, load::slice(&format!("s{service}"), &endpoints)).await?;
        let event = self.watch.brings(endpoint).await?;
        let flip = tokio::task::spawn_blocking(|| flips.join()).await?;
        let flip = flip.map_err(|_| anyhow::anyhow!("the thread that asks panicked"))??;
        Ok(Change { flip: flip.saturating_duration_since(event), whole: flip - began, write: ended - began })
    }
}

/// Asks the kernel until the greatest random number leads to this endpoint: when that was.
fn flip(kernel: &Datapath, vip: SocketAddr, endpoint: Ipv4Addr) -> Result<Instant> {
    set_timerslack(1)?;
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = kernel.explain(ConnectAttempt::to(vip).choosing((0, u32::MAX)))?;
        let now = Instant::now();
        match answer {
            ConnectOutcome::Redirect { to, .. } if to.ip() == endpoint => return Ok(now),
            _ if now > until => bail!("{vip} leads to {answer:?} after {PATIENCE:?}, not to {endpoint}"),
            _ => thread::sleep(EVERY),
        }
    }
}

pub async fn run(world: &World) -> Result<()> {
    section(&format!(
        "One endpoint of {}: from the API server to the maps",
        world.services() * load::ENDPOINTS
    ));
    let mut changes = Changes::new(world).await?;
    for _ in 0..10 {
        changes.next().await?;
    }
    let mut seen = Vec::new();
    for _ in 0..effort(400) {
        seen.push(changes.next().await?);
    }
    let of = |what: fn(&Change) -> Duration| Samples::new(seen.iter().map(what).collect());
    let (flip, whole, write) = (of(|c| c.flip), of(|c| c.whole), of(|c| c.write));
    let ms = Duration::from_millis;
    quantile("from the watch event to the flip in the maps", &flip, 0.5, Some(ms(1)));
    quantile("from the watch event to the flip in the maps", &flip, 0.99, Some(ms(5)));
    quantile("from apply to the flip", &whole, 0.5, None);
    quantile("the API server's own: apply until it is answered", &write, 0.5, None);
    routing(world).await
}

/// A row of one quantile, with a target or without.
pub fn quantile(what: &str, samples: &Samples, q: f64, target: Option<Duration>) {
    let figure = samples.quantile(q);
    let target = target.map(|most| verdict(figure <= most, &format!("at most {}", show(most))));
    let what = format!("{what}, p{:.0}", q * 100.0);
    row(&what, &show(figure), &target.unwrap_or_default());
}

/// Microseconds of [`now`].
struct Moved {
    began: u64,
    ended: u64,
    backend: u16,
}

/// A client that connects all the time, while the only endpoint of its Service moves.
async fn routing(world: &World) -> Result<()> {
    section("One endpoint: from apply to connections");
    let mut backends = Backends::new();
    backends.open_all_v4(TARGET)?;
    let client = connecting(world)?;
    let mut moves = Vec::new();
    for generation in 2..2 + effort(200) as u16 {
        sleep(2 * PAUSE).await;
        let began = now();
        apply(&world.client, load::slice(PROBE, &[load::probe_endpoint(generation)])).await?;
        moves.push(Moved { began, ended: now(), backend: generation });
    }
    sleep(10 * PAUSE).await;
    let log = tokio::task::block_in_place(|| client.stop())?;
    log.expect_all(moves.len())?;
    let (mut whole, mut write, mut behind) = (Vec::new(), Vec::new(), Vec::new());
    let mut connects = log.connects.iter().skip_while(|connect| connect.backend == Some(1)).peekable();
    for moved in &moves {
        let first = connects.peek().context("a connect for each move")?;
        ensure!(first.backend == Some(moved.backend), "{first} went elsewhere than to {}", moved.backend);
        let effective = log.start + first.at + first.took;
        whole.push(Duration::from_micros(effective - moved.began));
        write.push(Duration::from_micros(moved.ended - moved.began));
        behind.push(Duration::from_micros(effective.saturating_sub(moved.ended)));
        while connects.next_if(|connect| connect.backend == Some(moved.backend)).is_some() {}
    }
    ensure!(connects.next().is_none(), "after the last move, connects went elsewhere");
    let (whole, write, behind) = (Samples::new(whole), Samples::new(write), Samples::new(behind));
    for q in [0.5, 0.99] {
        quantile("from apply to the first connection to the new endpoint", &whole, q, None);
        quantile("  the API server's own: apply until it is answered", &write, q, None);
    }
    let most = write.quantile(0.99) + Duration::from_millis(10);
    quantile("from apply to the first connection, against the write's and 10 ms", &whole, 0.99, Some(most));
    quantile("  of each change, what comes after its write", &behind, 0.99, Some(Duration::from_millis(10)));
    report::line(&format!(
        "\n{} connects meanwhile, none failed, none to an endpoint that was gone.",
        log.len()
    ));
    Ok(())
}

/// Starts a client in the node's pod.
fn connecting(world: &World) -> Result<Connecting> {
    let spec = ClientSpec::load(&[world.probe]).threads(1);
    let mut command = Command::new("sh");
    command.args(["-c", r#"echo $$ > "$0" && exec "$@""#]).arg(world.pod().join("cgroup.procs"));
    ClientSpec::start_by(command.arg(binary("slotmesh-e2e", "client")?).args(spec.arguments()))
}
