//! A small mesh for scenarios: manifests, a workload, an agent, backends.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    Backends, Cgroup, Client, ClientSpec, Log, ManifestDir, Up, UpSpec,
    manifests::{destination_rule, pod, service, slice},
    names::PinRoot,
    net,
};

/// All that a scenario needs. Its parts go in the order in which they stand here.
#[derive(Debug)]
pub struct Mesh {
    /// The agent, when it runs.
    pub up: Option<Up>,
    /// The servers.
    pub backends: Backends,
    /// The cgroup of the workload `default/client`.
    pub cgroup: Cgroup,
    /// The manifests.
    pub manifests: ManifestDir,
    spec: UpSpec,
    _pin_root: PinRoot,
}

impl Mesh {
    /// Everything but the agent.
    ///
    /// # Errors
    /// When the machine doesn't allow it.
    pub fn new() -> Result<Self> {
        let (cgroup, manifests, pin_root) = (Cgroup::new()?, ManifestDir::new()?, PinRoot::new());
        let spec = UpSpec::new(manifests.path(), pin_root.path(), &cgroup);
        Ok(Self { up: None, backends: Backends::new(), cgroup, manifests, spec, _pin_root: pin_root })
    }

    /// With these manifests and an agent that is ready.
    ///
    /// # Errors
    /// When the agent isn't soon.
    pub fn with(objects: &[Value]) -> Result<Self> {
        let mut mesh = Self::new()?;
        mesh.manifests.write("mesh.yaml", objects)?;
        mesh.start()?;
        Ok(mesh)
    }

    /// How its agent is called.
    pub fn spec(&mut self) -> &mut UpSpec {
        &mut self.spec
    }

    /// Starts the agent and waits until it is ready.
    ///
    /// # Errors
    /// When it isn't soon.
    pub fn start(&mut self) -> Result<()> {
        self.up = Some(self.spec.start_ready()?);
        Ok(())
    }

    /// The agent.
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn agent(&self) -> Result<&Up> {
        self.up.as_ref().context("the agent was stopped")
    }

    /// Ends the agent gracefully.
    ///
    /// # Errors
    /// When it doesn't end well.
    pub fn stop(&mut self) -> Result<()> {
        self.up.take().context("the agent was stopped")?.stop()
    }

    /// Ends the agent by SIGKILL.
    ///
    /// # Errors
    /// When it had ended.
    pub fn kill(&mut self) -> Result<()> {
        self.up.take().context("the agent was stopped")?.kill()
    }

    /// Starts a load from the workload.
    ///
    /// # Errors
    /// When the client can't be started.
    pub fn load(&self, to: &[SocketAddr]) -> Result<Client> {
        ClientSpec::load(to).start(Some(&self.cgroup))
    }

    /// Connects that often from the workload.
    ///
    /// # Errors
    /// When the client fails (not when connects fail).
    pub fn connect(&self, to: SocketAddr, count: u64) -> Result<Log> {
        ClientSpec::to(to).count(count).run(Some(&self.cgroup))
    }
}

/// The address `ip:port`.
///
/// # Panics
/// When `ip` isn't an address.
pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap_or_else(|error| panic!("{ip}: {error}")), port)
}

/// A service `reviews` in the versions v1 (two pods), v2 (two pods) and v3 (one pod), dual stack.
pub mod reviews {
    use super::*;

    /// Its IPv4 cluster address.
    pub const V4: &str = "10.96.0.10";
    /// Its IPv6 cluster address.
    pub const V6: &str = "fd00:96::10";
    /// Its port.
    pub const PORT: u16 = 80;
    const TARGET: u16 = 8080;
    /// The pods: version and number, which together are the backend's id.
    const PODS: [(u16, u16); 5] = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)];

    fn v4(version: u16, number: u16) -> String {
        format!("127.1.{version}.{number}")
    }

    fn v6(version: u16, number: u16) -> String {
        format!("fd00:1:{version}::{number}")
    }

    /// Both cluster addresses, and the first as an IPv6 socket may name it.
    pub fn addresses() -> [SocketAddr; 3] {
        [at(V4, PORT), at(V6, PORT), at(&format!("::ffff:{V4}"), PORT)]
    }

    /// The Service, its EndpointSlices and Pods, and a DestinationRule with the subsets.
    pub fn objects() -> Vec<Value> {
        objects_without(&[])
    }

    /// As [`objects`], without the pods of these ids.
    pub fn objects_without(gone: &[u16]) -> Vec<Value> {
        let mut objects = vec![
            service("reviews").ip(V4).ip(V6).port(PORT).build(),
            destination_rule("reviews").version("v1").version("v2").version("v3").build(),
        ];
        let mut slices =
            [slice("reviews-v4", "reviews").port(TARGET), slice("reviews-v6", "reviews").port(TARGET)];
        for (version, number) in PODS.into_iter().filter(|(v, n)| !gone.contains(&(v * 10 + n))) {
            let name = format!("reviews-v{version}-{number}");
            objects.push(pod(&name, &v4(version, number)).label("version", &format!("v{version}")).build());
            let [four, six] = slices;
            slices = [
                four.pod_endpoint(&v4(version, number), &name),
                six.pod_endpoint(&v6(version, number), &name),
            ];
        }
        objects.extend(slices.map(Into::into));
        objects
    }

    /// Starts all its pods' servers.
    ///
    /// # Errors
    /// When an address can't be had.
    pub fn open(backends: &mut Backends) -> Result<()> {
        for (version, number) in PODS {
            net::add_loopback_v6(&v6(version, number))?;
            open_pod(backends, version * 10 + number)?;
        }
        Ok(())
    }

    /// The addresses of the servers of the pod with this id.
    fn listeners(id: u16) -> [String; 2] {
        [v4(id / 10, id % 10), v6(id / 10, id % 10)].map(|ip| at(&ip, TARGET).to_string())
    }

    /// Starts the servers of the pod with this id.
    ///
    /// # Errors
    /// When an address can't be bound.
    pub fn open_pod(backends: &mut Backends, id: u16) -> Result<()> {
        listeners(id).iter().try_for_each(|address| backends.open(address, id))
    }

    /// Closes the servers of the pod with this id.
    ///
    /// # Errors
    /// When they are closed.
    pub fn close_pod(backends: &mut Backends, id: u16) -> Result<()> {
        listeners(id).iter().try_for_each(|address| backends.close(address))
    }

    /// How many connects each of these versions got.
    pub fn by_version<const N: usize>(log: &Log, versions: [u16; N]) -> [u64; N] {
        let counts = log.by_backend();
        versions.map(|version| counts.iter().filter(|(id, _)| *id / 10 == version).map(|(_, n)| n).sum())
    }
}
