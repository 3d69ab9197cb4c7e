//! Manifests to kernel maps through the whole pipeline: directory, index, compile, delta ADS, agent.

use std::{
    fmt::Write as _,
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use slotmesh_ads::{Client, FromStreams, Sink, Subscription, Update};
use slotmesh_agent::{Agent, MapSizes, Options, RecordType, handlers::Handlers, metrics::Metrics};
use slotmesh_bench::{Samples, row, section, show, verdict};
use slotmesh_operator::{Operator, OperatorOptions};
use slotmesh_slots::Config;
use slotmesh_xds::{Rejection, ResourceName, ResourceType, Version};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::pin_root;

const SMALL: usize = 10;
const LARGE: usize = 1_000;
const ENDPOINTS: usize = 10;
const CHANGES: usize = 60;
const PATIENCE: Duration = Duration::from_secs(60);

/// The agent, with a note of how many resources it has applied, and when the last one was.
struct Counting {
    agent: Handlers,
    progress: Arc<Progress>,
}

#[derive(Default)]
struct Progress {
    applied: AtomicU64,
}

impl Sink for Counting {
    async fn held(&self) -> Vec<(ResourceType, ResourceName, Version)> {
        self.agent.held().await
    }

    async fn apply(&self, update: Update) -> Vec<Rejection> {
        let count = update.upserts.len() as u64;
        let refused = self.agent.apply(update).await;
        self.progress.applied.fetch_add(count, Ordering::Release);
        refused
    }

    fn synced(&self) {
        self.agent.synced();
    }
}

/// One running pipeline on a directory of its own.
struct Pipeline {
    dir: tempfile::TempDir,
    progress: Arc<Progress>,
    agent: Option<Agent>,
    operator: Option<Operator>,
    stop: CancellationToken,
    /// When the changes left the compiler, in nanoseconds since `epoch`.
    published: Arc<AtomicU64>,
    epoch: Instant,
}

impl Pipeline {
    /// The pipeline and how long it took from the start of the operator until everything was in the
    /// kernel's maps.
    fn start(services: usize, runtime: &tokio::runtime::Runtime) -> anyhow::Result<(Self, Duration)> {
        let dir = tempfile::tempdir()?;
        for i in 0..services {
            write(dir.path(), i, 0)?;
        }
        let options = Options {
            pin_root: pin_root(&format!("pipeline-{services}")),
            slots: Config::default(),
            sockets: slotmesh_agent::memory::SOCKETS,
            maps: MapSizes::default(),
            workloads: Vec::new(),
            node: String::new(),
        };
        let agent = Agent::start(options, Arc::new(Metrics::new()))?;
        let (progress, stop) = (Arc::<Progress>::default(), CancellationToken::new());
        let store = slotmesh_serve::Store::new();
        let (pipes, incoming) = mpsc::unbounded_channel::<io::Result<tokio::io::DuplexStream>>();
        let incoming = UnboundedReceiverStream::new(incoming);
        runtime.spawn(slotmesh_serve::serve(
            store.clone(),
            slotmesh_serve::AdsServerConfig::default(),
            incoming,
            stop.clone(),
        ));
        let connector = FromStreams::new(move || {
            let (near, far) = tokio::io::duplex(1 << 20);
            let connected = pipes.send(Ok(far)).map(|()| near);
            std::future::ready(connected.map_err(|_| io::ErrorKind::ConnectionRefused.into()))
        });
        let sink = Counting { agent: agent.handlers(), progress: progress.clone() };
        let (client, subscriptions) = Client::new(slotmesh_ads::Config::new("bench"), connector, sink);
        for ty in RecordType::RESOURCES {
            subscriptions.set(ty, Subscription::Wildcard);
        }
        runtime.spawn(client.run(stop.clone()));

        let (epoch, published) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let operator = {
            let published = published.clone();
            Operator::from_manifests(dir.path(), OperatorOptions::default(), move |changes| {
                published.store(epoch.elapsed().as_nanos() as u64, Ordering::Release);
                store.apply(changes);
            })?
        };
        let pipeline =
            Self { dir, progress, agent: Some(agent), operator: Some(operator), stop, published, epoch };
        // A cluster, its endpoints and a listener for each.
        pipeline.wait(3 * services as u64)?;
        Ok((pipeline, epoch.elapsed()))
    }

    fn wait(&self, applied: u64) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.progress.applied.load(Ordering::Acquire) < applied {
            ensure!(started.elapsed() < PATIENCE, "not in the maps after {PATIENCE:?}");
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Changes one endpoint of one service: time from saved file to kernel maps, and of that the part
    /// behind the compiler (serve, stream, agent).
    fn change(&self, service: usize, generation: usize) -> anyhow::Result<(Duration, Duration)> {
        let before = self.progress.applied.load(Ordering::Acquire);
        let started = Instant::now();
        write(self.dir.path(), service, generation)?;
        self.wait(before + 1)?;
        let now = self.epoch.elapsed();
        let published = Duration::from_nanos(self.published.load(Ordering::Acquire));
        Ok((started.elapsed(), now.saturating_sub(published)))
    }

    fn end(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        drop(self.operator.take());
        self.agent.take().context("runs until here")?.remove()?;
        Ok(())
    }
}

/// The manifests of a service; its first endpoint moves with the generation.
fn write(dir: &Path, service: usize, generation: usize) -> anyhow::Result<()> {
    let (high, low) = (service / 250, service % 250);
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{service}, namespace: bench}}\n\
         spec: {{clusterIP: 10.96.{high}.{low}, ports: [{{name: tcp, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{service}-1, namespace: bench, \
         labels: {{kubernetes.io/service-name: s{service}}}}}\naddressType: IPv4\n\
         ports: [{{name: tcp, port: 8080, protocol: TCP}}]\nendpoints:\n"
    );
    for i in 0..ENDPOINTS {
        let last = if i == 0 { 100 + generation % 100 } else { i };
        writeln!(text, "- {{addresses: [10.{high}.{low}.{last}], conditions: {{ready: true}}}}")?;
    }
    let (path, draft) = (dir.join(format!("s{service}.yaml")), dir.join(format!(".s{service}")));
    fs::write(&draft, text)?;
    Ok(fs::rename(draft, path)?)
}

pub fn run() -> anyhow::Result<()> {
    section(&format!(
        "pipeline: manifests to kernel maps ({ENDPOINTS} endpoints a service, one file a service)"
    ));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (small, _) = Pipeline::start(SMALL, &runtime)?;
    let (large, start) = Pipeline::start(LARGE, &runtime)?;
    row(
        &format!("{LARGE} services from start of the operator to the maps"),
        &show(start),
        &verdict(start <= Duration::from_secs(1), "1 s"),
    );
    let (mut few, mut many) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for i in 1..=CHANGES {
        for (pipeline, times, services) in [(&small, &mut few, SMALL), (&large, &mut many, LARGE)] {
            let (whole, behind) = pipeline.change(i % services, i)?;
            times.0.push(whole);
            times.1.push(behind);
        }
    }
    small.end()?;
    large.end()?;
    let report = |what: &str, few: Vec<Duration>, many: Vec<Duration>| {
        let (few, many) = (Samples::new(few), Samples::new(many));
        let ratio = many.ratio(&few);
        row(&format!("{what}, {SMALL} services"), &show(few.p50()), "");
        row(&format!("{what}, {LARGE} services"), &show(many.p50()), "");
        row(&format!("{what}, {LARGE} / {SMALL}"), &format!("{ratio:.2}"), &verdict(ratio <= 1.3, "1.3"));
    };
    report("one endpoint, saved file to maps", few.0, many.0);
    report("one endpoint, compiled to maps", few.1, many.1);
    Ok(())
}
