//! Programs: loading, attaching to workloads, upgrading in place, and asking them.

mod attach;
mod attached;
mod ends;
mod error;
mod explained;
mod programs;
mod removal;
mod running_maps;
mod workloads;

use std::{collections::HashMap, os::fd::OwnedFd, sync::Mutex};

use aya::{Btf, EbpfLoader};
use bytemuck::Zeroable as _;
use slotmesh_kernel::{Hook, Host, Map, MapKind, MapSpec, Sockets};
use slotmesh_records::{
    ExplainRequest, Identity, LAYOUT_HASH, OpenConnection, SocketLimit,
    fields::{self, KernelFields},
};

pub(crate) use self::ends::Ends;
use self::{
    attached::AttachedWorkloads,
    error::{bpf, pin_error},
    programs::{
        NESTED_NETWORKS, kernel_fields, load_classifier, load_hook, load_over_sockets, load_pod_network,
        load_release,
    },
};
pub use self::{
    error::DatapathError,
    explained::{ChoiceNumbers, ConnectAttempt, ConnectOutcome},
    running_maps::MapSizes,
    workloads::Workload,
};
use crate::pins::Pins;

/// The eBPF object; empty where the build had none.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/slotmesh.bpf.o"));

/// An Ethernet header, which a test run insists on.
const ETHERNET: usize = 14;

/// The loaded programs.
pub struct Datapath {
    /// Those of a workload.
    hooks: Vec<(Hook, OwnedFd)>,
    /// That of a cgroup.
    release: OwnedFd,
    explain: OwnedFd,
    removal: OwnedFd,
    /// Finds connections that are over; `None` where the kernel can't go over sockets.
    sockets: Option<Sockets>,
    /// Tells of connections that are open, where the kernel can go over sockets.
    open: Option<Sockets>,
    /// Where the programs tell of connections that end, until somebody reads it.
    ends: Mutex<Option<Ends>>,
    /// Finds a workload's network namespace, where the kernel can.
    pod_network: Option<OwnedFd>,
    identity: Map<u64, Identity>,
    /// The classes of workloads as callers, where they aren't their namespaces', by the ids of the workloads.
    classes: Mutex<HashMap<u64, String>>,
    attached: AttachedWorkloads,
    pins: Pins,
    host: Host,
}

impl Datapath {
    /// Whether this build has programs at all: to be asked before anything is created for them.
    ///
    /// # Errors
    /// Where it has none.
    pub fn check_object() -> Result<(), DatapathError> {
        if OBJECT.is_empty() { Err(DatapathError::NoObject) } else { Ok(()) }
    }

    /// Loads the programs over the maps that are pinned; they record at most so many sockets.
    ///
    /// # Errors
    /// Where the kernel refuses, or the programs are another build's.
    pub fn load(pins: Pins, host: Host, sockets: u32) -> Result<Self, DatapathError> {
        Self::load_telling(pins, host, sockets, MapSizes::default().ends)
    }

    /// As [`load`](Self::load), with room for so many bytes of ends of connections.
    pub(crate) fn load_telling(
        pins: Pins,
        host: Host,
        sockets: u32,
        ends: u32,
    ) -> Result<Self, DatapathError> {
        const IDENTITY: MapSpec =
            MapSpec { name: "slotmesh_ident", kind: MapKind::CgroupStorage, max_entries: 0, flags: 0 };
        const LIMIT: MapSpec =
            MapSpec { name: "slotmesh_limit", kind: MapKind::Array, max_entries: 1, flags: 0 };
        Self::check_object()?;
        let identity_path = pins.state().join("identity");
        if !identity_path.exists() {
            // What is attached keeps the storage of a map that is lost.
            pins.set_links_aside().map_err(pin_error(&pins.links()))?;
        }
        let identity =
            Map::open_or_create(&identity_path, &IDENTITY, None).map_err(bpf("open the identities"))?;
        let limit: Map<u32, SocketLimit> =
            Map::open_or_create(&pins.limit(), &LIMIT, None).map_err(bpf("open the most sockets"))?;
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
        limit.update(&0, &SocketLimit::new(sockets, cpus)).map_err(bpf("store the most sockets"))?;
        let sockets_path = pins.state().join("sockets");
        let btf = Btf::from_sys_fs().map_err(|error| tracing::debug!(%error, "no BTF of the kernel")).ok();
        let open = |fields: &KernelFields| {
            let mut object = EbpfLoader::new()
                .btf(btf.as_ref())
                .override_global("KERNEL_FIELDS", fields, true)
                .map_pin_path("OUTER", pins.records().join("outer"))
                .map_pin_path("VIPS", pins.records().join("vips"))
                .map_pin_path("SOCKETS", &sockets_path)
                .map_pin_path("FLOWS", pins.flows())
                .map_pin_path("FLOW_TOTALS", pins.flow_totals())
                .map_pin_path("IDENTITY", &identity_path)
                .map_pin_path("CLUSTERS", pins.clusters())
                .map_pin_path("LANES", pins.lanes())
                .map_pin_path("ENDPOINTS", pins.endpoints())
                .map_pin_path("OUTLIERS", pins.outliers())
                .map_pin_path("BUCKETS", pins.buckets())
                .map_pin_path("AFFINITIES", pins.affinities())
                .map_pin_path("AFFINITY_TOTALS", pins.affinity_totals())
                .map_pin_path("PROXIES", pins.proxies())
                .map_pin_path("PROXY_TOTALS", pins.proxy_totals())
                .map_pin_path("SOCKET_TOTALS", pins.totals())
                .map_pin_path("SOCKET_LIMIT", pins.limit())
                .map_pin_path("TRAFFIC", pins.traffic())
                .map_pin_path("TRAFFIC_SETTINGS", pins.traffic_settings())
                .map_pin_path("TOLD_TOTALS", pins.told_totals())
                .map_max_entries("ENDS", ends)
                .load(OBJECT)?;
            let hooks = Hook::ALL
                .into_iter()
                .map(|hook| load_hook(&mut object, hook).map(|fd| (hook, fd)))
                .collect::<Result<Vec<_>, _>>()?;
            Ok::<_, DatapathError>((object, hooks))
        };
        let fields = kernel_fields();
        let (mut object, hooks) = match open(&fields) {
            Err(error @ DatapathError::Program { .. }) if fields != fields::UNKNOWN => {
                // As under lockdown, which lets no program read the kernel's memory.
                tracing::warn!(%error, "{NESTED_NETWORKS}");
                open(&fields::UNKNOWN)?
            }
            opened => opened?,
        };
        let datapath = Self {
            hooks,
            release: load_release(&mut object)?,
            explain: load_classifier(&mut object, "explain")?,
            removal: load_classifier(&mut object, "removal")?,
            sockets: load_over_sockets(&mut object, "closed", btf.as_ref(), &sockets_path)
                .map_err(|error| {
                    tracing::warn!(
                        %error,
                        "a connection that the other end reset counts until its socket is closed"
                    );
                })
                .ok(),
            open: load_over_sockets(&mut object, "open", btf.as_ref(), &sockets_path)
                .map_err(|error| {
                    tracing::warn!(%error, "bytes of connections are shown when these end");
                })
                .ok(),
            ends: Mutex::new(Some(Ends::new(object.take_map("ENDS"))?)),
            pod_network: load_pod_network(&mut object, btf.as_ref())
                .map_err(|error| tracing::warn!(%error, "a pod's network namespace is known from its first connect on only"))
                .ok(),
            identity,
            classes: Mutex::default(),
            attached: AttachedWorkloads::default(),
            pins,
            host,
        };
        let found = datapath.run_explain(&ExplainRequest::zeroed())?.layout;
        if found != LAYOUT_HASH {
            return Err(DatapathError::Layout { found });
        }
        Ok(datapath)
    }

    /// The connections that are open, of all that count.
    pub(crate) fn open_connections(&self) -> Result<Vec<OpenConnection>, DatapathError> {
        let Some(open) = &self.open else { return Ok(Vec::new()) };
        let written = open.collect().map_err(bpf("go over the sockets"))?;
        // The program writes nothing else.
        Ok(written.chunks_exact(size_of::<OpenConnection>()).map(bytemuck::pod_read_unaligned).collect())
    }

    /// The hooks of a workload's cgroup, by name.
    pub(crate) fn hooks(&self) -> impl Iterator<Item = &'static str> {
        self.hooks.iter().map(|(hook, _)| hook.as_str())
    }

    /// Features that not each kernel has, and whether this one does.
    pub(crate) fn features(&self) -> [(&'static str, bool); 2] {
        [
            ("connections that the other end resets are counted down at once", self.sockets.is_some()),
            ("a pod's network namespace is known before its first connect", self.pod_network.is_some()),
        ]
    }

    /// What was found on the host.
    pub fn host(&self) -> &Host {
        &self.host
    }
}
