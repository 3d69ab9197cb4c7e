//! The life of one container of a pod: created, started, probed, ended, started again.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};
use slotmesh_cluster::node::{MEMORY, POD_LOGS, STDIN, bundle};
use tokio::{
    net::{UnixListener, unix::pipe},
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::timeout,
};

use crate::{
    environment,
    kubelet::Kubelet,
    oci,
    pod::Sandbox,
    probe::{self, Target, Verdict},
    quantity,
    runtime::{Created, Exit},
    status::Board,
};

/// The pause before the first restart; it doubles up to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// When a container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    Always,
    OnFailure,
    Never,
}

/// A container of a pod on this node.
#[derive(Clone)]
pub struct Runner {
    pub kubelet: Arc<Kubelet>,
    pub pod: Arc<Pod>,
    pub sandbox: Arc<Sandbox>,
    pub container: Container,
    pub board: Arc<Board>,
    pub restart: Restart,
    /// Once it is some: end within this time.
    pub stop: watch::Receiver<Option<Duration>>,
}

impl Runner {
    /// Runs it until it isn't to be started again: how it ended.
    pub async fn run(mut self) -> Option<Exit> {
        let name = self.container.name.clone();
        let mut pause = BACK_OFF.0;
        let mut count = 0;
        loop {
            if self.stop.borrow().is_some() {
                return None;
            }
            match self.once(count).await {
                Ok(exit) => {
                    let again = self.stop.borrow().is_none()
                        && match self.restart {
                            Restart::Always => true,
                            Restart::OnFailure => exit.code != 0,
                            Restart::Never => false,
                        };
                    if !again {
                        return Some(exit);
                    }
                    count += 1;
                    self.board.waiting(
                        &name,
                        "CrashLoopBackOff",
                        &format!("back-off {pause:?} after {exit:?}"),
                    );
                }
                Err(error) => {
                    eprintln!("{}/{name}: {error:?}", self.pod.name_any());
                    self.board.waiting(&name, "CreateContainerError", &format!("{error:#}"));
                }
            }
            drop(timeout(pause, self.stop.wait_for(Option::is_some)).await);
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    /// Runs it once, to its end.
    async fn once(&mut self, count: u32) -> Result<Exit> {
        let name = self.container.name.clone();
        let image = self.container.image.clone().unwrap_or_default();
        let (root, start) = self.kubelet.images.open(&image)?;
        let addresses = self.sandbox.addresses.clone();
        let env = environment::of(&self.kubelet, &self.pod, &self.container, &start.env, &addresses).await?;
        let uid = self.pod.uid().context("a pod has a uid")?;
        let id = format!("{uid}-{name}-{count}");
        let this = self.clone();
        let made = id.clone();
        let ground = spawn_blocking(move || Ground::new(&this, &made, &root, &start, &env)).await??;
        let log = self.log(count)?;
        let mut beside = JoinSet::new();
        let input = if self.container.stdin == Some(true) {
            let (to, from) = pipe::pipe()?;
            let given = UnixListener::bind(ground.bundle.join(STDIN))?;
            beside.spawn(feed(given, to, self.container.stdin_once == Some(true)));
            from.into_blocking_fd()?.into()
        } else {
            Stdio::null()
        };
        let created = {
            let (id, bundle) = (id.clone(), ground.bundle.clone());
            spawn_blocking(move || Created::new(&id, &bundle, &log, input)).await??
        };
        let result = self.live(&created, &id, count).await;
        drop(beside);
        let message = ground.message();
        let (kept, end) = (created.clone(), result.as_ref().ok().copied());
        spawn_blocking(move || kept.delete()).await??;
        drop(ground);
        let exit = result?;
        self.board.terminated(&name, &id, end.unwrap_or(exit), message);
        Ok(exit)
    }

    async fn live(&mut self, created: &Created, id: &str, count: u32) -> Result<Exit> {
        let name = self.container.name.clone();
        limit_memory(&self.container, created, id)?;
        let started = created.clone();
        spawn_blocking(move || started.start()).await??;
        let target = Target {
            container: self.container.clone(),
            created: created.clone(),
            address: self.sandbox.addresses.pod[0].parse::<IpAddr>().context("a pod has an address")?,
        };
        let lifecycle = self.container.lifecycle.clone().unwrap_or_default();
        self.board.running(&name, id, count, self.container.startup_probe.is_none());
        if let Some(hook) = &lifecycle.post_start
            && let Err(error) = target.hook(hook).await
        {
            eprintln!("{name}: postStart: {error:?}");
            created.kill(Signal::SIGKILL)?;
        }
        let (unhealthy, mut killed) = mpsc::channel(1);
        let mut probes = JoinSet::new();
        probes.spawn(probing(target.clone(), self.board.clone(), unhealthy));
        let grace =
            self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        let grace = Duration::from_secs(u64::try_from(grace).unwrap_or_default());
        let left = tokio::select! {
            exit = created.wait() => return exit,
            Ok(left) = self.stop.wait_for(Option::is_some) => left.unwrap_or_default(),
            Some(reason) = killed.recv() => {
                eprintln!("{name}: {reason}");
                grace
            }
        };
        // It goes on saying whether it is ready, as it may serve to its end; that it isn't alive is nothing new.
        let ending = async {
            if let Some(hook) = &lifecycle.pre_stop {
                tokio::select! {
                    exit = created.wait() => return exit,
                    done = target.hook(hook) => if let Err(error) = done {
                        eprintln!("{name}: preStop: {error:?}");
                    }
                }
            }
            created.kill(Signal::SIGTERM)?;
            created.wait().await
        };
        match timeout(left.max(Duration::from_secs(2)), ending).await {
            Ok(exit) => exit,
            Err(_) => {
                created.kill(Signal::SIGKILL)?;
                created.wait().await
            }
        }
    }

    fn log(&self, count: u32) -> Result<PathBuf> {
        let pod = &self.pod;
        let of = format!(
            "{}_{}_{}",
            pod.namespace().unwrap_or_default(),
            pod.name_any(),
            pod.uid().unwrap_or_default()
        );
        let dir = Path::new(POD_LOGS).join(of).join(&self.container.name);
        fs::create_dir_all(&dir)?;
        Ok(dir.join(format!("{count}.log")))
    }
}

/// Gives a container what comes over the connections to its socket, one after the other; where `once`, its input
/// ends with the first.
async fn feed(given: UnixListener, mut to: pipe::Sender, once: bool) {
    while let Ok((mut from, _)) = given.accept().await {
        if tokio::io::copy(&mut from, &mut to).await.is_err() || once {
            return;
        }
    }
}

/// Startup first, then readiness and liveness; says when the container must be killed.
async fn probing(target: Target, board: Arc<Board>, unhealthy: mpsc::Sender<String>) {
    let container = target.container.clone();
    let name = container.name.clone();
    if let Some(startup) = container.startup_probe.clone() {
        let (done, mut wait) = mpsc::channel(1);
        let asking = probe::run(target.clone(), startup, |verdict, why| drop(done.try_send((verdict, why))));
        tokio::select! {
            () = asking => {}
            verdict = wait.recv() => if let Some((Verdict::Failure, why)) = verdict {
                drop(unhealthy.send(format!("startup probe: {}", why.unwrap_or_default())).await);
                return;
            }
        }
        board.started(&name);
    }
    let ready = async {
        match container.readiness_probe.clone() {
            None => board.set_ready(&name, true),
            Some(probe) => {
                let tell = |verdict, _: Option<String>| board.set_ready(&name, verdict == Verdict::Success);
                probe::run(target.clone(), probe, tell).await;
            }
        }
    };
    let live = async {
        if let Some(probe) = container.liveness_probe.clone() {
            let tell = |verdict, why: Option<String>| {
                if verdict == Verdict::Failure {
                    drop(unhealthy.try_send(format!("liveness probe: {}", why.unwrap_or_default())));
                }
            };
            probe::run(target.clone(), probe, tell).await;
        }
    };
    tokio::join!(ready, live);
    // Nothing is asked any more: the channel stays open, or the container would seem unhealthy.
    unhealthy.closed().await;
}

/// Limits a container's memory, by the hierarchy that has the controller.
fn limit_memory(container: &Container, created: &Created, id: &str) -> Result<()> {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let Some(limit) = limits.and_then(|limits| limits.get("memory")) else { return Ok(()) };
    let bytes = quantity::value(&limit.0)?.round();
    if Path::new(MEMORY).is_dir() {
        let dir = Path::new(MEMORY).join(id);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("memory.limit_in_bytes"), format!("{bytes:.0}"))?;
        fs::write(dir.join("cgroup.procs"), created.pid().to_string())?;
        return Ok(());
    }
    let own = fs::read_to_string(format!("/proc/{}/cgroup", created.pid()))?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).context("no cgroup of version 2")?;
    let file = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')).join("memory.max");
    // Without the controller there is no limit here: said once, in the node's log.
    if !file.exists() {
        eprintln!("no memory controller: {id} has no limit");
        return Ok(());
    }
    Ok(fs::write(file, format!("{bytes:.0}"))?)
}

/// The files that a container stands on. They go when this is dropped.
struct Ground {
    id: String,
    bundle: PathBuf,
    message: PathBuf,
}

impl Ground {
    fn new(
        runner: &Runner,
        id: &str,
        image: &Path,
        start: &slotmesh_cluster::images::Start,
        env: &std::collections::BTreeMap<String, String>,
    ) -> Result<Self> {
        let bundle = bundle(id);
        let this = Self { id: id.to_owned(), message: bundle.join("message"), bundle: bundle.clone() };
        let [upper, work, root] = ["upper", "work", "root"].map(|name| bundle.join(name));
        for dir in [&upper, &work, &root] {
            fs::create_dir_all(dir)?;
        }
        fs::write(&this.message, "")?;
        fs::set_permissions(&this.message, fs::Permissions::from_mode(0o666))?;
        let options =
            format!("lowerdir={},upperdir={},workdir={}", image.display(), upper.display(), work.display());
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .context("mount the container's root")?;
        let uid = runner.pod.uid().context("a pod has a uid")?;
        let cgroup = match runner.pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
            Some("Guaranteed") => format!("/kubepods/pod{uid}/{id}"),
            Some("Burstable") => format!("/kubepods/burstable/pod{uid}/{id}"),
            _ => format!("/kubepods/besteffort/pod{uid}/{id}"),
        };
        let config = oci::config(&oci::Input {
            pod: &runner.pod,
            container: &runner.container,
            image: start,
            env,
            sandbox: &runner.sandbox,
            root: &root,
            cgroup: Path::new(&cgroup),
            termination_log: &this.message,
        })?;
        fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        Ok(this)
    }

    /// Text that the container left in its termination log.
    fn message(&self) -> Option<String> {
        fs::read_to_string(&self.message).ok().filter(|text| !text.is_empty())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = umount2(&self.bundle.join("root"), MntFlags::MNT_DETACH);
        drop(fs::remove_dir_all(&self.bundle));
        drop(fs::remove_dir(Path::new(MEMORY).join(&self.id)));
    }
}
