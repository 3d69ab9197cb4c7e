//! Follows the pods that are bound to this node, says that the node is ready, and runs kube-proxy and the server
//! that `kubectl exec` and the like are answered by.

use std::{
    collections::HashMap,
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
};
use kube_runtime::watcher::{self, watcher};
use serde_json::json;
use slotmesh_cluster::{
    control_plane::client_of,
    images::Images,
    node::{Config, IMAGES, POD_UIDS, PODS, PROGRAMS},
};
use tokio::{sync::watch, time::sleep};
use tokio_stream::StreamExt as _;

use crate::pod;

/// State that all pods of the node share.
pub struct Kubelet {
    pub config: Config,
    pub client: Client,
    pub images: Images,
    next_host: AtomicU8,
}

impl Kubelet {
    /// The last byte of the next pod's address. An address isn't used again soon.
    pub fn next_host(&self) -> u8 {
        const HOSTS: std::ops::RangeInclusive<u8> = 10..=250;
        let next = |last: u8| Some(if HOSTS.contains(&(last + 1)) { last + 1 } else { *HOSTS.start() });
        self.next_host.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or(*HOSTS.start())
    }
}

/// Runs until the process is ended.
pub async fn run(config: Config) -> Result<()> {
    let client = client_of(Path::new("/etc/kubernetes/kubelet.conf")).await?;
    let images = Images::in_folder(Path::new(IMAGES))?;
    proxy(&config)?;
    server(&config)?;
    let kubelet = Arc::new(Kubelet { config, client, images, next_host: AtomicU8::new(10) });
    tokio::spawn(report(kubelet.clone()));
    let pods: Api<Pod> = Api::all(kubelet.client.clone());
    let own = watcher::Config::default().fields(&format!("spec.nodeName={}", kubelet.config.name));
    let mut events = Box::pin(watcher(pods, own));
    let mut workers: HashMap<String, watch::Sender<Option<Arc<Pod>>>> = HashMap::new();
    let mut listed: Option<Vec<String>> = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed = Some(Vec::new()),
            Ok(watcher::Event::InitApply(pod)) => {
                if let (Some(uid), Some(listed)) = (pod.uid(), &mut listed) {
                    listed.push(uid);
                }
                apply(&kubelet, &mut workers, pod);
            }
            Ok(watcher::Event::InitDone) => {
                // What went while nobody watched.
                let listed = listed.take().unwrap_or_default();
                workers.retain(|uid, worker| listed.contains(uid) || gone(worker));
            }
            Ok(watcher::Event::Apply(pod)) => apply(&kubelet, &mut workers, pod),
            Ok(watcher::Event::Delete(pod)) => {
                if let Some(worker) = pod.uid().and_then(|uid| workers.remove(&uid)) {
                    worker.send_replace(None);
                }
            }
            Err(error) => {
                eprintln!("watch: {error}");
                sleep(Duration::from_millis(500)).await;
            }
        }
    }
    Ok(())
}

fn gone(worker: &watch::Sender<Option<Arc<Pod>>>) -> bool {
    worker.send_replace(None);
    false
}

fn apply(kubelet: &Arc<Kubelet>, workers: &mut HashMap<String, watch::Sender<Option<Arc<Pod>>>>, pod: Pod) {
    let Some(uid) = pod.uid() else { return };
    let pod = Arc::new(pod);
    match workers.get(&uid) {
        Some(worker) => drop(worker.send_replace(Some(pod))),
        None => {
            let (worker, wish) = watch::channel(Some(pod));
            tokio::spawn(pod::run(kubelet.clone(), wish));
            workers.insert(uid, worker);
        }
    }
}

/// Says that the node is ready, now and then.
async fn report(kubelet: Arc<Kubelet>) {
    let Config { name, address, address6, .. } = &kubelet.config;
    let nodes: Api<Node> = Api::all(kubelet.client.clone());
    loop {
        let now = Time(Timestamp::now());
        let room = json!({"cpu": "8", "memory": "16Gi", "pods": "110", "ephemeral-storage": "64Gi"});
        let status = json!({"status": {
            // Merged by their type, of which there are two alike.
            "addresses": [
                {"$patch": "replace"},
                {"type": "InternalIP", "address": address},
                {"type": "InternalIP", "address": address6},
                {"type": "Hostname", "address": name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "capacity": room,
            "allocatable": room,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                            "message": "the node plays a kubelet", "lastHeartbeatTime": now}],
        }});
        let pause = match nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(&status)).await
        {
            Ok(_) => Duration::from_secs(10),
            Err(error) => {
                eprintln!("node status: {error}");
                Duration::from_millis(500)
            }
        };
        sleep(pause).await;
    }
}

/// Starts the server for exec, attach, logs and port-forward.
fn server(config: &Config) -> Result<()> {
    fs::create_dir_all(POD_UIDS)?;
    let log = File::create("/var/log/kubelet-server.log")?;
    Command::new(Path::new(PROGRAMS).join("kubelet-server"))
        .arg("--tls-cert-file=/etc/kubernetes/kubelet.crt")
        .arg("--tls-private-key-file=/etc/kubernetes/kubelet.key")
        .arg("--client-ca-file=/etc/kubernetes/ca.crt")
        .arg(format!("--client-user={}", config.client))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start kubelet-server")?;
    Ok(())
}

/// Starts kube-proxy, which makes Service addresses work on this node.
fn proxy(config: &Config) -> Result<()> {
    let log = File::create("/var/log/kube-proxy.log")?;
    Command::new(Path::new(PROGRAMS).join("kube-proxy"))
        .args([
            "--kubeconfig=/etc/kubernetes/proxy.conf",
            "--proxy-mode=nftables",
            // The machine's tables of connections are left as they are.
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ])
        .arg(format!("--hostname-override={}", config.name))
        .arg(format!("--cluster-cidr={PODS}"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start kube-proxy")?;
    Ok(())
}
