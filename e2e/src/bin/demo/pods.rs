//! The shop's pods: a server each, in a network namespace of its own, reached over a veth pair.
//!
//! ```text
//!  clients' namespace                       pod's namespace
//!  10.244.0.1 (no default route)  --veth--  10.244.x.y: server
//! ```
//!
//! A namespace has no name: it lives as long as the thread that made it and what that started.

use std::{
    fs,
    net::SocketAddr,
    sync::mpsc::{self, Receiver, Sender},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow};
use nix::unistd::gettid;
use slotmesh_e2e::{Backends, HttpBackend, net};

/// The clients' end of every veth pair.
const GATEWAY: &str = "10.244.0.1";

/// What a pod is.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// What the demo calls it.
    pub name: &'static str,
    /// Its address.
    pub ip: &'static str,
    /// Its ports, each of which tells a connection who answers.
    pub ports: &'static [u16],
    /// Its ports of HTTP, and what it calls itself there.
    pub http: &'static [(u16, &'static str)],
}

/// A pod that runs. It ends when this is dropped.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace, as the kernel names it.
    pub namespace: String,
    /// Dropping it ends the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Pod {
    /// Starts a pod that answers with `id`, joined to the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start(spec: Spec, id: u16) -> Result<Self> {
        let (said, hears) = mpsc::channel();
        let (stop, go_on) = mpsc::channel();
        let thread =
            thread::Builder::new().name(spec.name.to_owned()).spawn(move || run(spec, id, &said, &go_on))?;
        let mut pod = Self { namespace: String::new(), stop: Some(stop), thread: Some(thread) };
        let Ok((tid, namespace)) = hears.recv() else { return Err(pod.failed()) };
        pod.namespace = namespace;
        let veth = format!("pod{id}");
        net::ip(&format!("link add {veth} type veth peer name eth0 netns {tid}"))?;
        net::ip(&format!("addr add {GATEWAY} peer {}/32 dev {veth}", spec.ip))?;
        net::ip(&format!("link set {veth} up"))?;
        // Both ends are there: the pod may give its end an address and listen.
        pod.stop.as_ref().context("it runs")?.send(()).ok();
        if hears.recv().is_err() {
            return Err(pod.failed());
        }
        Ok(pod)
    }

    fn failed(&mut self) -> anyhow::Error {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => error,
            _ => anyhow!("a pod ended by itself"),
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.stop = None;
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// The calling thread's network namespace, as the kernel names it.
pub fn namespace() -> Result<String> {
    let link = fs::read_link("/proc/thread-self/ns/net").context("read the network namespace")?;
    Ok(link.to_string_lossy().into_owned())
}

fn run(spec: Spec, id: u16, said: &Sender<(i32, String)>, go_on: &Receiver<()>) -> Result<()> {
    net::enter()?;
    let me = (gettid().as_raw(), namespace()?);
    said.send(me.clone())?;
    go_on.recv()?;
    net::ip(&format!("addr add {} peer {GATEWAY}/32 dev eth0", spec.ip))?;
    net::ip("link set eth0 up")?;
    let mut servers = Backends::new();
    for port in spec.ports {
        servers.open(&format!("{}:{port}", spec.ip), id)?;
    }
    let mut web = Vec::new();
    for (port, name) in spec.http {
        web.push(HttpBackend::start(SocketAddr::new(spec.ip.parse()?, *port), |_| (*name).to_owned())?);
    }
    said.send(me)?;
    // Until the other end is dropped.
    while go_on.recv().is_ok() {}
    Ok(())
}
