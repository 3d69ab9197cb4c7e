//! The life of one pod on this node.
//!
//! ```text
//! prepare (network, volumes) -> init containers, one after the other -> containers -> all ended
//!                  \______________________ deletion, at any time ______________________/-> removed
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use slotmesh_cluster::node::POD_UIDS;
use tokio::{
    sync::{Mutex, watch},
    task::{JoinSet, spawn_blocking},
    time::{interval, sleep},
};

use crate::{
    container::{Restart, Runner},
    environment::{Addresses, hostname},
    kubelet::Kubelet,
    network::PodNetwork,
    runtime::Exit,
    status::{self, Board, Progress},
    volumes::Volumes,
};

/// How often what comes from the API is brought up to date.
const REFRESH: Duration = Duration::from_secs(10);

/// State that the containers of a pod share.
pub struct Sandbox {
    pub addresses: Addresses,
    pub hostname: String,
    /// None: the node's.
    pub network: Option<PodNetwork>,
    pub volumes: Mutex<Volumes>,
}

impl Sandbox {
    async fn new(kubelet: &Arc<Kubelet>, pod: &Pod) -> Result<Self> {
        let volumes = Volumes::new(kubelet, pod).await?;
        let host = [kubelet.config.address.to_string(), kubelet.config.address6.to_string()];
        let spec = pod.spec.as_ref().context("a pod has a spec")?;
        let network = if spec.host_network == Some(true) {
            None
        } else {
            let (kubelet, uid) = (kubelet.clone(), pod.uid().context("a pod has a uid")?);
            Some(spawn_blocking(move || PodNetwork::new(&kubelet.config, &uid, kubelet.next_host())).await??)
        };
        let own = network.as_ref().map_or_else(
            || host.clone(),
            |network| [network.address.to_string(), network.address6.to_string()],
        );
        let this = Self {
            addresses: Addresses { pod: own, host },
            hostname: hostname(kubelet, pod),
            network,
            volumes: Mutex::new(volumes),
        };
        this.write_etc(kubelet, pod).await?;
        Ok(this)
    }

    /// The files of name resolution, as a kubelet writes them.
    async fn write_etc(&self, kubelet: &Kubelet, pod: &Pod) -> Result<()> {
        let dir = self.volumes.lock().await.dir().to_owned();
        fs::create_dir_all(&dir)?;
        let spec = pod.spec.as_ref().context("a pod has a spec")?;
        let mut hosts = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        for address in &self.addresses.pod {
            hosts.push_str(&format!("{address} {}\n", self.hostname));
        }
        for alias in spec.host_aliases.iter().flatten() {
            hosts.push_str(&format!(
                "{} {}\n",
                alias.ip,
                alias.hostnames.clone().unwrap_or_default().join(" ")
            ));
        }
        let of_cluster = match spec.dns_policy.as_deref() {
            Some("ClusterFirstWithHostNet") => true,
            Some("Default" | "None") => false,
            _ => spec.host_network != Some(true),
        };
        let mut resolv = String::new();
        if of_cluster {
            let namespace = pod.namespace().unwrap_or_default();
            resolv = format!(
                "search {namespace}.svc.cluster.local svc.cluster.local cluster.local\nnameserver {}\n\
                 options ndots:5\n",
                kubelet.config.dns
            );
        } else if spec.dns_policy.as_deref() != Some("None") {
            resolv = fs::read_to_string("/etc/resolv.conf")?;
        }
        if let Some(config) = &spec.dns_config {
            for server in config.nameservers.iter().flatten() {
                resolv.push_str(&format!("nameserver {server}\n"));
            }
            if let Some(searches) = config.searches.as_ref().filter(|list| !list.is_empty()) {
                resolv.push_str(&format!("search {}\n", searches.join(" ")));
            }
        }
        fs::write(dir.join("hosts"), hosts)?;
        fs::write(dir.join("hostname"), format!("{}\n", self.hostname))?;
        fs::write(dir.join("resolv.conf"), resolv)?;
        Ok(())
    }
}

/// A pod's worker.
struct Worker {
    kubelet: Arc<Kubelet>,
    wish: watch::Receiver<Option<Arc<Pod>>>,
    pod: Arc<Pod>,
    board: Arc<Board>,
    began: Timestamp,
}

/// Does what the API says about a pod, until the pod is gone. `None`: it is gone from the API already.
pub async fn run(kubelet: Arc<Kubelet>, wish: watch::Receiver<Option<Arc<Pod>>>) {
    let Some(pod) = wish.borrow().clone() else { return };
    let name = pod.name_any();
    let mut worker = Worker { kubelet, wish, pod, board: Arc::default(), began: Timestamp::now() };
    let done = worker.run().await;
    if let Err(error) = done {
        eprintln!("pod {name}: {error:?}");
    }
}

fn is_leaving(pod: Option<&Arc<Pod>>) -> bool {
    pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
}

impl Worker {
    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.kubelet.client.clone(), &self.pod.namespace().unwrap_or_default())
    }

    async fn run(&mut self) -> Result<()> {
        fs::write(self.uid_file(), self.pod.uid().unwrap_or_default())?;
        // One that has ended before this node was started again.
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.clone());
        if matches!(phase.as_deref(), Some("Succeeded" | "Failed")) {
            self.wish.wait_for(|pod| is_leaving(pod.as_ref())).await?;
            return self.remove().await;
        }
        let Some(sandbox) = self.prepare().await? else { return self.remove().await };
        let sandbox = Arc::new(sandbox);
        let spec = self.pod.spec.clone().context("a pod has a spec")?;
        let (stop, stopped) = watch::channel(None);
        let ended = Arc::new(AtomicBool::new(false));
        let containers = {
            let (pod, board) = (self.pod.clone(), self.board.clone());
            let make = |container: &Container, restart: Restart| Runner {
                kubelet: self.kubelet.clone(),
                pod: pod.clone(),
                sandbox: sandbox.clone(),
                container: container.clone(),
                board: board.clone(),
                restart,
                stop: stopped.clone(),
            };
            let restart = match spec.restart_policy.as_deref() {
                Some("Never") => Restart::Never,
                Some("OnFailure") => Restart::OnFailure,
                _ => Restart::Always,
            };
            let init: Vec<Runner> = spec
                .init_containers
                .iter()
                .flatten()
                .map(|container| match container.restart_policy.as_deref() {
                    Some("Always") => make(container, Restart::Always),
                    _ if restart == Restart::Never => make(container, Restart::Never),
                    _ => make(container, Restart::OnFailure),
                })
                .collect();
            let main: Vec<Runner> =
                spec.containers.iter().map(|container| make(container, restart)).collect();
            init.iter().chain(&main).for_each(|runner| self.board.enter(&runner.container));
            (init, main)
        };
        let (progress, mut progressed) = watch::channel(Progress::Initializing);
        let ran = {
            let ended = ended.clone();
            tokio::spawn(async move {
                let outcome = all(containers.0, containers.1, &progress).await;
                ended.store(true, Ordering::Relaxed);
                progress.send_replace(Progress::Ended(outcome));
                // The last word stays readable.
                progress
            })
        };
        let mut refresh = interval(REFRESH);
        loop {
            let now = *progressed.borrow_and_update();
            let leaving = is_leaving(self.wish.borrow_and_update().as_ref());
            if let Some(pod) = self.wish.borrow().clone() {
                self.pod = pod;
            }
            if leaving && stop.borrow().is_none() {
                stop.send_replace(Some(self.grace()));
            }
            self.write(now, Some(&sandbox.addresses), None).await;
            if leaving && ended.load(Ordering::Relaxed) {
                break;
            }
            tokio::select! {
                _ = progressed.changed(), if !ended.load(Ordering::Relaxed) => {}
                _ = self.wish.changed(), if !leaving => {}
                () = self.board.changed() => {}
                _ = refresh.tick() => {
                    if let Err(error) = sandbox.volumes.lock().await.refresh(&self.kubelet, &self.pod).await {
                        eprintln!("{}: {error:#}", self.pod.name_any());
                    }
                }
            }
        }
        drop(ran.await);
        spawn_blocking(move || drop(sandbox)).await?;
        self.remove().await
    }

    /// Makes network and volumes, again and again until it works; none when the pod leaves before.
    async fn prepare(&mut self) -> Result<Option<Sandbox>> {
        loop {
            if is_leaving(self.wish.borrow_and_update().as_ref()) {
                return Ok(None);
            }
            match Sandbox::new(&self.kubelet, &self.pod).await {
                Ok(sandbox) => return Ok(Some(sandbox)),
                Err(error) => {
                    eprintln!("{}: {error:#}", self.pod.name_any());
                    self.write(Progress::Preparing, None, Some(&format!("{error:#}"))).await;
                }
            }
            tokio::select! {
                _ = self.wish.wait_for(|pod| is_leaving(pod.as_ref())) => {}
                () = sleep(Duration::from_millis(500)) => {}
            }
        }
    }

    /// How long the containers have to end.
    fn grace(&self) -> Duration {
        let Some(pod) = self.wish.borrow().clone() else { return Duration::ZERO };
        let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
        Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    }

    async fn write(&self, progress: Progress, addresses: Option<&Addresses>, trouble: Option<&str>) {
        let status = status::of(&self.pod, &self.board, progress, addresses, &self.began, trouble);
        let name = self.pod.name_any();
        // Of another pod of that name nothing is known here.
        let mut patch = status;
        patch["metadata"] = serde_json::json!({"uid": self.pod.uid()});
        let params = PatchParams::default();
        for attempt in 0.. {
            match self.api().patch_status(&name, &params, &Patch::Merge(&patch)).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => return,
                Err(error) if attempt >= 5 => return eprintln!("{name}: status: {error}"),
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// Where this node tells the pod's uid.
    fn uid_file(&self) -> PathBuf {
        let pod = &self.pod;
        Path::new(POD_UIDS).join(format!("{}_{}", pod.namespace().unwrap_or_default(), pod.name_any()))
    }

    /// Takes the pod from the API. From then on there may be another of its name.
    async fn remove(&self) -> Result<()> {
        // One that is gone from the API already may have been followed by another of its name.
        if fs::read_to_string(self.uid_file()).ok() == self.pod.uid() {
            fs::remove_file(self.uid_file())?;
        }
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: self.pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        loop {
            match self.api().delete(&self.pod.name_any(), &params).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => return Ok(()),
                Err(error) => {
                    eprintln!("{}: delete: {error}", self.pod.name_any());
                    sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }
}

/// Runs all containers to their end: whether all ended well.
async fn all(init: Vec<Runner>, main: Vec<Runner>, progress: &watch::Sender<Progress>) -> bool {
    let mut beside = JoinSet::new();
    let mut failed = false;
    for runner in init {
        if runner.restart == Restart::Always {
            let (board, name, mut stop) =
                (runner.board.clone(), runner.container.name.clone(), runner.stop.clone());
            beside.spawn(runner.run());
            // The next begins when it has started.
            while !board.is_started(&name) && stop.borrow_and_update().is_none() {
                sleep(Duration::from_millis(20)).await;
            }
            continue;
        }
        match runner.run().await {
            Some(Exit { code: 0, .. }) => {}
            _ => {
                failed = true;
                break;
            }
        }
    }
    if !failed {
        progress.send_replace(Progress::Started);
        let mut running: JoinSet<_> = main.into_iter().map(Runner::run).collect();
        while let Some(exit) = running.join_next().await {
            failed |= !matches!(exit, Ok(Some(Exit { code: 0, .. })));
        }
    }
    beside.abort_all();
    !failed
}
