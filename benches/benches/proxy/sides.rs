//! The proxies: each a process on a processor of its own, with its CPU time and memory.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use slotmesh_proxy::{EngineOptions, ProxyEngine, bootstrap};

use crate::config::{self, Ports, Site};

/// Word with which this program starts itself as our proxy.
pub const SERVE: &str = "serve-as-proxy";
/// The processor of the proxies.
const OF_PROXY: usize = 0;
/// The processor of load and endpoints.
const OF_LOAD: usize = 1;

/// A proxy that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Ours,
    Envoy,
    Nginx,
}

impl Side {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "slotmesh",
            Self::Envoy => "Envoy",
            Self::Nginx => "nginx",
        }
    }
}

/// A proxy that runs.
pub struct Running {
    pub side: Side,
    pub ports: Ports,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        // nginx's worker ends with its master where that is asked to.
        let asked = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        debug_assert!(asked.is_ok(), "a child that isn't waited for is there");
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Binds this thread, and what it starts, to a processor.
fn bind_to(processor: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("processor {processor} isn't there"))
}

/// Binds this thread, and what it starts, to the processor of load and endpoints.
pub fn bind_to_load() -> anyhow::Result<()> {
    bind_to(OF_LOAD)
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The programs of others, where they are there.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(name).join(name);
    path.is_file().then_some(path)
}

impl Running {
    /// Starts a proxy before these endpoints.
    pub fn start(side: Side, http1: [u16; 2], http2: [u16; 2]) -> anyhow::Result<Self> {
        let mut sites = [0; Site::ALL.len()];
        for port in &mut sites {
            *port = free_port()?;
        }
        let ports = Ports { sites, http1, http2 };
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("config.yaml");
        let missing = || format!("{} isn't there", side.name());
        let mut command = match side {
            Side::Ours => {
                fs::write(&file, config::envoy(&ports))?;
                let mut command = Command::new(std::env::current_exe()?);
                command.arg(SERVE).arg(&file);
                command
            }
            Side::Envoy => {
                fs::write(&file, config::envoy(&ports))?;
                let mut command = Command::new(program("envoy").with_context(missing)?);
                command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
                command.arg("--config-path").arg(&file);
                command
            }
            Side::Nginx => {
                let path = folder.path().to_str().context("a folder with a plain name")?;
                fs::write(&file, config::nginx(&ports, path))?;
                let mut command = Command::new(program("nginx").with_context(missing)?);
                command.arg("-p").arg(path).arg("-e").arg("stderr").arg("-c").arg(&file);
                command
            }
        };
        // What it starts inherits the processor.
        bind_to(OF_PROXY)?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        bind_to(OF_LOAD)?;
        let mut running = Self { side, ports, child: child.with_context(|| side.name())?, _folder: folder };
        running.wait()?;
        Ok(running)
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        for port in self.ports.sites {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
                if let Some(status) = self.child.try_wait()? {
                    bail!("{} has ended: {status}", self.side.name());
                }
                ensure!(Instant::now() < until, "{} doesn't listen on port {port}", self.side.name());
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    pub fn port(&self, site: Site) -> u16 {
        self.ports.sites[site.index()]
    }

    /// Its process, and those that it has started.
    fn processes(&self) -> Vec<u32> {
        let own = self.child.id();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        std::iter::once(own).chain(children).collect()
    }

    /// CPU time that it has had.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let mut sum = 0;
        for process in self.processes() {
            for task in fs::read_dir(format!("/proc/{process}/task"))? {
                let text = fs::read_to_string(task?.path().join("schedstat"))?;
                sum += text.split(' ').next().context("schedstat")?.parse::<u64>()?;
            }
        }
        Ok(Duration::from_nanos(sum))
    }

    /// A line of its processes' status, in bytes, summed up.
    pub fn memory(&self, line: &str) -> anyhow::Result<u64> {
        let mut sum = 0;
        for process in self.processes() {
            let status = fs::read_to_string(format!("/proc/{process}/status"))?;
            let found = status.lines().find_map(|of| of.strip_prefix(line)?.strip_prefix(':'));
            let kilobytes =
                found.and_then(|value| value.split_whitespace().next()).context("no such line")?;
            sum += kilobytes.parse::<u64>()? << 10;
        }
        Ok(sum)
    }
}

/// Our proxy: serves a file until it is told to end.
pub fn serve(file: &str) -> anyhow::Result<()> {
    let engine = ProxyEngine::start(EngineOptions { workers: 1, ..EngineOptions::default() })?;
    for resource in bootstrap::parse(&fs::read_to_string(file)?)? {
        let faults = engine.apply(&resource)?;
        ensure!(faults.is_empty(), "{faults:?}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        end.recv().await;
        anyhow::Ok(())
    })?;
    engine.drain(Duration::ZERO);
    Ok(())
}
