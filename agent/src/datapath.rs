//! Programs: loading, attaching to workloads, upgrading in place, and asking them.

mod attached;

use std::{
    collections::{HashMap, HashSet},
    fmt, fs, io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use aya::{
    Btf, Ebpf, EbpfError, EbpfLoader,
    programs::{CgroupSock, CgroupSockAddr, Iter, ProgramError, SchedClassifier},
};
use bytemuck::{Pod, Zeroable as _};
use slotmesh_kernel::{
    BpfError, Hook, Host, HostError, KernelTypes, Link, Map, MapKind, MapSpec, Sockets, ask_of_cgroup,
    attached_programs, cgroup_id, program_id, test_run,
};
use slotmesh_records::{
    Answer, BucketKey, EndpointKey, FlowTotals, Identity, LAYOUT_HASH, ProxyTotals, Question, Removal,
    SocketLimit, SocketShare, SocketState, Verdict, VipKey,
    fields::{self, KernelFields},
    name_hash,
};
use slotmesh_xds::Transport;

use self::attached::AttachedWorkloads;
use crate::{
    pins::{Pins, remove_links},
    running::RunningMaps,
};

/// The eBPF object; empty where the build had none.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/slotmesh.bpf.o"));

/// An Ethernet header, which a test run insists on.
const ETHERNET: usize = 14;

/// What went wrong with the programs.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// Built without the eBPF object.
    #[error("this build has no eBPF programs; run `make ebpf` and build again")]
    NoObject,
    /// The object doesn't load.
    #[error("the eBPF programs can't be loaded: {0}")]
    Load(#[from] EbpfError),
    /// The verifier refuses a program.
    #[error("the kernel refuses the eBPF program {program}: {source}")]
    Program {
        /// Which.
        program: &'static str,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// Another build's programs.
    #[error(
        "the eBPF programs have record layout {found:016x}, the agent has {LAYOUT_HASH:016x}; \
         run `make ebpf` and build again"
    )]
    Layout {
        /// The programs' layout hash.
        found: u64,
    },
    /// A call failed.
    #[error("{what}: {source}")]
    Bpf {
        /// What was being done.
        what: String,
        /// The call.
        #[source]
        source: BpfError,
    },
    /// Not a cgroup.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A process would belong to two workloads.
    #[error(
        "workload {inner} lies in the cgroup of workload {outer} or below it; give each workload a cgroup \
         of its own, beside the others'"
    )]
    Nested {
        /// The one in whose cgroup.
        outer: String,
        /// The other one.
        inner: String,
    },
    /// A pin can't be created or removed.
    #[error("{path}: {source}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DatapathError {
    pub(crate) fn running(source: BpfError) -> Self {
        bpf("read what runs")(source)
    }
}

fn bpf(what: impl Into<String>) -> impl FnOnce(BpfError) -> DatapathError {
    let what = what.into();
    move |source| DatapathError::Bpf { what, source }
}

fn pin_error(path: &Path) -> impl FnOnce(io::Error) -> DatapathError {
    let path = path.to_owned();
    move |source| DatapathError::Pin { path, source }
}

/// How many elements there may be of the maps beside the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// Virtual addresses.
    pub addresses: u32,
    /// Clusters whose connections count.
    pub clusters: u32,
    /// Endpoints at which connections count; and those to which they fail.
    pub endpoints: u32,
    /// Endpoints that workloads keep to.
    pub affinities: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self { addresses: 65_536, clusters: 65_536, endpoints: 65_536, affinities: 16_384 }
    }
}

/// Network namespaces with a proxy: more pods than a node has.
const MOST_PROXIES: u32 = 4_096;

/// An element takes memory when it is used (`BPF_F_NO_PREALLOC`).
const AS_USED: (MapKind, u32) = (MapKind::Hash, 1);
/// Where there is no room, the element goes that was used longest ago; such a map takes all its memory at once.
const LEAST_RECENT_GOES: (MapKind, u32) = (MapKind::LruHash, 0);

/// Opens a hash map, or creates it. The agent makes the elements of addresses, in a system call; those of clusters and
/// endpoints the programs make, which take them from what the kernel keeps ready for each processor and never wait;
/// where nothing is ready, the connection isn't counted. A map that is there keeps its size: attached programs use it.
fn open_hash<K: Pod, V: Pod>(
    path: &Path,
    name: &'static str,
    (kind, flags): (MapKind, u32),
    max_entries: u32,
    what: &str,
) -> Result<Map<K, V>, DatapathError> {
    let spec = MapSpec { name, kind, max_entries, flags };
    let (map, found) =
        Map::open_or_create_of_any_size(path, &spec, None).map_err(bpf(format!("open {what}")))?;
    if found != max_entries {
        tracing::warn!(
            map = what,
            elements = found,
            asked_for = max_entries,
            "a map keeps its size while anything of slotmesh is left on the node"
        );
    }
    Ok(map)
}

/// A workload and its cgroup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its cgroup's directory.
    pub cgroup: PathBuf,
}

impl Workload {
    /// The hash by which programs and pins know it.
    pub fn id(&self) -> u64 {
        name_hash(&self.to_string())
    }

    /// Checks that the workloads can be attached: each has a cgroup, none in or below that of another.
    ///
    /// # Errors
    /// At the first that can't.
    pub fn check(workloads: &[Self], host: &Host) -> Result<(), DatapathError> {
        let mut cgroups = Vec::with_capacity(workloads.len());
        for workload in workloads {
            let dir = host.cgroup(&workload.cgroup)?;
            let pin = |source| DatapathError::Pin { path: workload.cgroup.clone(), source };
            cgroups.push((
                workload.cgroup.canonicalize().map_err(pin)?,
                cgroup_id(&dir).map_err(pin)?,
                workload,
            ));
        }
        // In the order of paths, what lies below a directory follows it.
        cgroups.sort();
        for pair in cgroups.windows(2) {
            let [(outer, _, of), (inner, _, with)] = pair else { continue };
            if inner.starts_with(outer) {
                return Err(DatapathError::Nested { outer: of.to_string(), inner: with.to_string() });
            }
        }
        // One hierarchy may be mounted at several places.
        let mut ids = HashMap::new();
        let root = host.cgroup(&host.cgroup2).ok().and_then(|root| cgroup_id(&root).ok());
        for (_, id, workload) in cgroups {
            if Some(id) == root {
                tracing::warn!(
                    %workload, cgroup = %workload.cgroup.display(),
                    "its cgroup is the root of the hierarchy: connections of every process on this machine are routed"
                );
            }
            if let Some(other) = ids.insert(id, workload) {
                return Err(DatapathError::Nested { outer: other.to_string(), inner: workload.to_string() });
            }
        }
        Ok(())
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The loaded programs.
pub struct Datapath {
    /// Those of a workload.
    hooks: Vec<(Hook, OwnedFd)>,
    /// That of a cgroup.
    release: OwnedFd,
    question: OwnedFd,
    removal: OwnedFd,
    /// Finds connections that are over; `None` where the kernel can't go over sockets.
    sockets: Option<Sockets>,
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

    /// Opens the VIP map, or creates it, before the programs that use it.
    ///
    /// # Errors
    /// Where the kernel refuses, or another kind of map is pinned there.
    pub fn open_vips(pins: &Pins, sizes: MapSizes) -> Result<Map<VipKey, u64>, DatapathError> {
        open_hash(&pins.records().join("vips"), "slotmesh_vips", AS_USED, sizes.addresses, "the VIP map")
    }

    /// Opens the maps of what runs, or creates them, before the programs that use them.
    ///
    /// # Errors
    /// Where the kernel refuses, or other kinds of maps are pinned there.
    pub(crate) fn open_running(pins: &Pins, sizes: MapSizes) -> Result<RunningMaps, DatapathError> {
        const TOTALS: MapSpec = MapSpec {
            name: "slotmesh_totals",
            kind: MapKind::Array,
            max_entries: SocketShare::ELEMENTS,
            flags: 0,
        };
        const FLOWS: MapSpec = MapSpec {
            name: "slotmesh_flows",
            kind: MapKind::Array,
            max_entries: FlowTotals::LANES,
            flags: 0,
        };
        const KEPT: MapSpec =
            MapSpec { name: "slotmesh_afftot", kind: MapKind::Array, max_entries: 1, flags: 0 };
        const PROXIED: MapSpec = MapSpec {
            name: "slotmesh_proxtot",
            kind: MapKind::Array,
            max_entries: ProxyTotals::LANES,
            flags: 0,
        };
        let MapSizes { addresses: _, clusters, endpoints, affinities } = sizes;
        Ok(RunningMaps {
            proxies: open_hash(&pins.proxies(), "slotmesh_proxies", AS_USED, MOST_PROXIES, "the proxies")?,
            proxy_totals: Map::open_or_create(&pins.proxy_totals(), &PROXIED, None)
                .map_err(bpf("open the numbers of connections to proxies"))?,
            clusters: open_hash(
                &pins.clusters(),
                "slotmesh_clust",
                AS_USED,
                clusters,
                "what runs of clusters",
            )?,
            lanes: open_hash(
                &pins.lanes(),
                "slotmesh_lanes",
                AS_USED,
                clusters,
                "what runs of clusters by CPU",
            )?,
            endpoints: open_hash(
                &pins.endpoints(),
                "slotmesh_endp",
                AS_USED,
                endpoints,
                "what runs at endpoints",
            )?,
            buckets: open_hash(
                &pins.buckets(),
                "slotmesh_bucket",
                AS_USED,
                clusters,
                "rates of new connections",
            )?,
            outliers: open_hash(
                &pins.outliers(),
                "slotmesh_outl",
                AS_USED,
                endpoints,
                "endpoints to which connects fail",
            )?,
            affinities: open_hash(
                &pins.affinities(),
                "slotmesh_affin",
                LEAST_RECENT_GOES,
                affinities,
                "session affinities",
            )?,
            affinity_totals: Map::open_or_create(&pins.affinity_totals(), &KEPT, None)
                .map_err(bpf("open the number of session affinities"))?,
            totals: Map::open_or_create(&pins.totals(), &TOTALS, None)
                .map_err(bpf("open the number of sockets"))?,
            flows: Map::open_or_create(&pins.flow_totals(), &FLOWS, None)
                .map_err(bpf("open the numbers of flows"))?,
        })
    }

    /// Loads the programs over the maps that are pinned; they record at most so many sockets.
    ///
    /// # Errors
    /// Where the kernel refuses, or the programs are another build's.
    pub fn load(pins: Pins, host: Host, sockets: u32) -> Result<Self, DatapathError> {
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
            question: load_classifier(&mut object, "question")?,
            removal: load_classifier(&mut object, "removal")?,
            sockets: load_closed(&mut object, btf.as_ref(), &sockets_path)
                .map_err(|error| {
                    tracing::warn!(
                        %error,
                        "a connection that the other end reset counts until its socket is closed"
                    );
                })
                .ok(),
            pod_network: load_pod_network(&mut object, btf.as_ref())
                .map_err(|error| tracing::warn!(%error, "a pod's network namespace is known from its first connect on only"))
                .ok(),
            identity,
            classes: Mutex::default(),
            attached: AttachedWorkloads::default(),
            pins,
            host,
        };
        let found = datapath.run(&Question::zeroed())?.layout;
        if found != LAYOUT_HASH {
            return Err(DatapathError::Layout { found });
        }
        Ok(datapath)
    }

    /// Attaches the programs to exactly these workloads: in place where an earlier agent attached
    /// them, so that no connection meets a moment without them; what is no longer named is detached.
    ///
    /// # Errors
    /// At the first workload that can't be attached; those that this call attached are detached again.
    pub fn attach(&self, workloads: &[Workload]) -> Result<(), DatapathError> {
        let mut new = Vec::new();
        for workload in workloads {
            if let Err(error) = self.attach_one(workload, false, &mut new) {
                undo(new);
                return Err(error);
            }
        }
        self.retain(workloads)
    }

    /// Attaches the programs to a workload: in place where they are attached already, and anew where
    /// its cgroup has been made again.
    ///
    /// # Errors
    /// Where it can't be attached; what this call attached is detached again.
    pub fn enrol(&self, workload: &Workload) -> Result<(), DatapathError> {
        let mut new = Vec::new();
        self.attach_one(workload, false, &mut new).inspect_err(|_| undo(new))
    }

    /// As [`enrol`](Self::enrol), of a workload whose cgroup is a pod's: what connects in a network namespace within
    /// the pod, which has addresses of its own, is left alone.
    ///
    /// # Errors
    /// As [`enrol`](Self::enrol).
    pub fn enrol_pod(&self, workload: &Workload) -> Result<(), DatapathError> {
        let mut new = Vec::new();
        self.attach_one(workload, true, &mut new).inspect_err(|_| undo(new))
    }

    /// Says of which class a workload is as a caller, from its next [`enrol`](Self::enrol) on; an empty class is that of
    /// its namespace. Until somebody says so, a workload keeps the class that an earlier agent gave it.
    pub fn classify(&self, workload: &Workload, class: &str) {
        let class = if class.is_empty() { &workload.namespace } else { class }.to_owned();
        self.classes.lock().unwrap_or_else(PoisonError::into_inner).insert(workload.id(), class);
    }

    /// Detaches the programs from a workload, if they are attached to it. The one that counts its sockets
    /// down stays until the cgroup is gone, and all its sockets.
    ///
    /// # Errors
    /// Where a pin can't be removed.
    pub fn release(&self, workload: &Workload) -> Result<(), DatapathError> {
        self.classes.lock().unwrap_or_else(PoisonError::into_inner).remove(&workload.id());
        self.attached.remove(workload.id());
        let path = self.pins.links_of(workload.id());
        remove_links(&path).map_err(pin_error(&path))
    }

    /// Detaches the programs from all but these workloads.
    ///
    /// # Errors
    /// Where a pin can't be removed.
    pub fn retain<'w>(&self, workloads: impl IntoIterator<Item = &'w Workload>) -> Result<(), DatapathError> {
        let wanted: HashSet<u64> = workloads.into_iter().map(Workload::id).collect();
        self.attached.retain(&wanted);
        let wanted: HashSet<PathBuf> = wanted.into_iter().map(|id| self.pins.links_of(id)).collect();
        for path in entries(&self.pins.links())? {
            if !wanted.contains(&path) {
                remove_links(&path).map_err(pin_error(&path))?;
                tracing::info!(links = %path.display(), "detached a workload that is no longer named");
            }
        }
        // Of cgroups that aren't routed any more, too.
        for path in entries(&self.pins.releases())? {
            if let Some(link) = self.live_release(&path)? {
                link.replace(self.release.as_fd()).map_err(bpf("upgrade the program that counts down"))?;
            }
        }
        Ok(())
    }

    /// The cookie of a workload's network namespace, that of its first process; `None` while it has none. Of a pod whose
    /// processes can't be looked at, it is known from its first connect on. What this says is to be checked: a process that
    /// is made or ends in this moment may have been taken for another.
    ///
    /// # Errors
    /// Where its cgroup can't be opened, or the kernel refuses.
    pub fn network_of(&self, workload: &Workload) -> Result<Option<u64>, DatapathError> {
        let dir = self.host.cgroup(&workload.cgroup)?;
        if let Some(program) = &self.pod_network
            && let Some(cookie) =
                ask_of_cgroup(program.as_fd(), dir.as_fd()).map_err(bpf("ask for a pod's namespace"))?
        {
            return Ok(Some(cookie));
        }
        let cgroup = cgroup_id(&dir).map_err(pin_error(&workload.cgroup))?;
        let identity = self.identity.get(&cgroup).map_err(bpf("read an identity"))?;
        Ok(identity.map(|identity| identity.network).filter(|network| *network != 0))
    }

    /// Lets the connections count no more that are over although their sockets aren't closed.
    pub(crate) fn release_closed(&self) -> Result<(), DatapathError> {
        self.sockets.as_ref().map_or(Ok(()), |sockets| sockets.run().map_err(bpf("go over the sockets")))
    }

    /// Removes the state of a cluster where nothing counts in it; whether nothing is left of it.
    pub(crate) fn remove_cluster(&self, cluster: u64) -> Result<bool, DatapathError> {
        self.remove_state(EndpointKey::new(cluster, [0; 4], 0))
    }

    /// Removes the state of an endpoint where nothing counts at it; whether it did.
    pub(crate) fn remove_endpoint(&self, endpoint: &EndpointKey) -> Result<bool, DatapathError> {
        self.remove_state(*endpoint)
    }

    /// Takes an endpoint back whose time is over, and forgets it where it has been quiet for long; whether it did.
    pub(crate) fn settle_outlier(&self, endpoint: &EndpointKey) -> Result<bool, DatapathError> {
        self.remove_state(Removal::outlier(*endpoint))
    }

    /// Removes a bucket that is full; whether it did.
    pub(crate) fn remove_bucket(&self, bucket: &BucketKey) -> Result<bool, DatapathError> {
        self.remove_state(Removal::bucket(*bucket))
    }

    fn remove_state(&self, of: EndpointKey) -> Result<bool, DatapathError> {
        let mut packet = [0_u8; ETHERNET + size_of::<Removal>()];
        packet[ETHERNET..].copy_from_slice(bytemuck::bytes_of(&Removal { of, removed: 0 }));
        test_run(self.removal.as_fd(), &mut packet).map_err(bpf("run the removing program"))?;
        Ok(bytemuck::pod_read_unaligned::<Removal>(&packet[ETHERNET..]).removed != 0)
    }

    /// Removes the links of cgroups that are gone, and all their sockets.
    pub(crate) fn collect_releases(&self) -> Result<(), DatapathError> {
        for path in entries(&self.pins.releases())? {
            if self.live_release(&path)?.is_none() {
                fs::remove_file(&path).map_err(pin_error(&path))?;
            }
        }
        Ok(())
    }

    /// The link that counts a cgroup's sockets down; `None` where the cgroup is gone.
    fn live_release(&self, path: &Path) -> Result<Option<Link>, DatapathError> {
        let Some(link) = Link::open(path).map_err(bpf("open a link"))? else { return Ok(None) };
        let (cgroup, is_release) = link.target(Hook::SockRelease).map_err(bpf("read a link"))?;
        Ok((cgroup != 0 && is_release).then_some(link))
    }

    /// What was found on the host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The directory of the links goes to `new` where it was missing.
    fn attach_one(
        &self,
        workload: &Workload,
        is_pod: bool,
        new: &mut Vec<PathBuf>,
    ) -> Result<(), DatapathError> {
        let describe = |what: &str| format!("{what} workload {workload}");
        let dir = self.host.cgroup(&workload.cgroup)?;
        let cgroup = cgroup_id(&dir).map_err(pin_error(&workload.cgroup))?;
        // First, and of the cgroup: whatever is redirected is counted down, whoever the workload is then.
        let release = self.pins.release_of(cgroup);
        match self.live_release(&release)? {
            Some(link) => {
                link.replace(self.release.as_fd()).map_err(bpf(describe("upgrade the programs of")))?;
            }
            None => {
                let link = Link::attach(Hook::SockRelease, dir.as_fd(), self.release.as_fd())
                    .map_err(bpf(describe("attach sock_release to")))?;
                link.pin(&release).map_err(bpf(describe("pin the link of")))?;
                new.push(release);
            }
        }
        let links = self.pins.links_of(workload.id());
        if self.pins.create_links_of(workload.id()).map_err(pin_error(&links))? {
            new.push(links.clone());
        }
        for (i, (hook, program)) in self.hooks.iter().enumerate() {
            let path = links.join(hook.as_str());
            let earlier = Link::open(&path).map_err(bpf(describe("open the link of")))?;
            match earlier {
                Some(link)
                    if link.target(*hook).map_err(bpf(describe("read the link of")))? == (cgroup, true) =>
                {
                    link.replace(program.as_fd()).map_err(bpf(describe("upgrade the programs of")))?;
                }
                other => {
                    // The cgroup was removed and made again, or the workload moved. Should it not be possible to
                    // attach to the new one, the old link stays.
                    let link = Link::attach(*hook, dir.as_fd(), program.as_fd())
                        .map_err(bpf(describe(&format!("attach {} to", hook.as_str()))))?;
                    if other.is_some() {
                        fs::remove_file(&path).map_err(pin_error(&path))?;
                    }
                    link.pin(&path).map_err(bpf(describe("pin the link of")))?;
                }
            }
            if i == 0 {
                // The first attachment makes the cgroup's storage; nothing decides yet.
                let identity = self.identity_of(workload, cgroup, is_pod);
                self.identity.update(&cgroup, &identity).map_err(bpf(describe("store the identity of")))?;
            }
        }
        self.attached.insert(workload, cgroup);
        self.warn_of_others(workload, &dir);
        Ok(())
    }

    /// Who a workload is, in this cgroup.
    fn identity_of(&self, workload: &Workload, cgroup: u64, is_pod: bool) -> Identity {
        let (id, namespace) = (workload.id(), name_hash(&workload.namespace));
        let told = self.classes.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.get(&id).map(|class| name_hash(class));
        let before = self.identity.get(&cgroup).ok().flatten().filter(|before| before.workload == id);
        let class = told.or_else(|| before.map(|before| before.class)).unwrap_or(namespace);
        let pod = if is_pod { cgroup } else { 0 };
        Identity { workload: id, namespace, class, pod, network: 0 }
    }

    /// Whoever else decides about the workload's connections does so beside us: another agent, with another pin root
    /// or on another BPF file system, knows nothing of this one.
    fn warn_of_others(&self, workload: &Workload, cgroup: &fs::File) {
        for (hook, program) in
            self.hooks.iter().filter(|(hook, _)| matches!(hook, Hook::Connect4 | Hook::Connect6))
        {
            let others = attached_programs(*hook, cgroup.as_fd()).and_then(|mut ids| {
                let own = program_id(program.as_fd())?;
                ids.retain(|id| *id != own);
                Ok(ids)
            });
            match others {
                Ok(others) if others.is_empty() => {}
                Ok(programs) => tracing::warn!(
                    %workload, hook = hook.as_str(), ?programs,
                    "other programs are attached to its cgroup, too, and both decide; is there another slotmesh agent, \
                     with a pin root of its own or on another BPF file system? `bpftool prog show id ID` tells whose they are"
                ),
                Err(error) => tracing::debug!(%workload, %error, "can't find out what else is attached"),
            }
        }
    }

    /// Asks where a connection would go that chooses by these numbers.
    ///
    /// # Errors
    /// Where the kernel refuses the test run.
    pub fn ask(
        &self,
        to: impl Into<AskedAddress>,
        numbers: impl Into<Numbers>,
    ) -> Result<Decision, DatapathError> {
        self.ask_as("", "", to, numbers)
    }

    /// The same of a connection that a caller of this namespace and class makes.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn ask_as(
        &self,
        namespace: &str,
        class: &str,
        to: impl Into<AskedAddress>,
        numbers: impl Into<Numbers>,
    ) -> Result<Decision, DatapathError> {
        self.ask_by_hashes([namespace, class].map(name_hash), to.into(), numbers.into())
    }

    /// The same, by the hashes of namespace and class.
    fn ask_by_hashes(
        &self,
        [namespace, class]: [u64; 2],
        AskedAddress { address, protocol }: AskedAddress,
        Numbers { cluster, endpoint, other }: Numbers,
    ) -> Result<Decision, DatapathError> {
        let question = Question {
            vip: crate::flatten::asked_key(address, protocol),
            namespace,
            class,
            cluster_random: cluster,
            endpoint_random: endpoint,
            other_random: other,
            ..Question::zeroed()
        };
        let answer = self.run(&question)?;
        Ok(match Verdict::try_from(answer.verdict) {
            Ok(Verdict::Redirect) => Decision::Redirect {
                to: VipKey { addr: answer.addr, port: answer.port, protocol: 0, reserved: 0 }.socket_addr(),
                cluster: answer.cluster,
            },
            Ok(Verdict::Refuse) => Decision::Refuse,
            Ok(Verdict::Pass) | Err(_) => Decision::Pass,
        })
    }

    fn run(&self, question: &Question) -> Result<Answer, DatapathError> {
        const ANSWER: usize = ETHERNET + size_of::<Question>();
        let mut packet = [0_u8; ANSWER + size_of::<Answer>()];
        packet[ETHERNET..ANSWER].copy_from_slice(bytemuck::bytes_of(question));
        test_run(self.question.as_fd(), &mut packet).map_err(bpf("ask the question program"))?;
        Ok(bytemuck::pod_read_unaligned(&packet[ANSWER..]))
    }
}

/// Address to which a connection, or a datagram, is meant to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedAddress {
    /// The address.
    pub address: SocketAddr,
    /// Its protocol.
    pub protocol: Transport,
}

impl From<SocketAddr> for AskedAddress {
    /// In TCP.
    fn from(address: SocketAddr) -> Self {
        Self { address, protocol: Transport::Tcp }
    }
}

/// The numbers that a connection chooses by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// The random number for the cluster.
    pub cluster: u32,
    /// The random number for the endpoint; where the source decides,
    /// [`source_hash`](slotmesh_records::source_hash) of it.
    pub endpoint: u32,
    /// The random number for another endpoint, where the less busy of two is taken.
    pub other: u32,
}

impl From<(u32, u32)> for Numbers {
    /// For cluster and endpoint; where the less busy of two is taken, both are the same.
    fn from((cluster, endpoint): (u32, u32)) -> Self {
        Self { cluster, endpoint, other: endpoint }
    }
}

/// The outcome of a connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Not an address of ours.
    Pass,
    /// A known service without endpoints.
    Refuse,
    /// It goes to an endpoint.
    Redirect {
        /// The endpoint.
        to: SocketAddr,
        /// [`name_hash`] of the cluster's name.
        cluster: u64,
    },
}

/// The warning where programs can't tell network namespaces apart.
const NESTED_NETWORKS: &str =
    "connections from a network namespace within a pod (docker or kind in a pod) are routed as the pod's own";

/// Facts about the running kernel that the programs need.
fn kernel_fields() -> KernelFields {
    let find = || -> io::Result<KernelFields> {
        let types = KernelTypes::read()?;
        let mut fields = fields::UNKNOWN;
        for (found, (of, field)) in fields.iter_mut().zip(fields::FIELDS) {
            let missing = || io::Error::new(io::ErrorKind::NotFound, format!("there is no {of}.{field}"));
            *found = types.offset(of, field).ok_or_else(missing)?;
        }
        fields[fields::BYTES_RECEIVED] = types.offset("tcp_sock", "bytes_received").unwrap_or(0);
        let of_tasks = fields::OF_TASKS.map(|(of, field)| types.offset(of, field));
        if of_tasks.iter().all(Option::is_some) {
            fields[fields::CSET_LINKS..].copy_from_slice(&of_tasks.map(Option::unwrap_or_default));
        }
        fields[fields::HAS_MPTCP] = types.offset("mptcp_sock", "sk").is_some().into();
        Ok(fields)
    };
    find().unwrap_or_else(|error| {
        tracing::warn!(%error, "{NESTED_NETWORKS}");
        fields::UNKNOWN
    })
}

fn load_hook(object: &mut Ebpf, hook: Hook) -> Result<OwnedFd, DatapathError> {
    let program = hook.as_str();
    let loaded: &mut CgroupSockAddr = find(object, program)?;
    load(program, || {
        loaded.load()?;
        duplicate(loaded.fd()?.as_fd())
    })
}

fn load_release(object: &mut Ebpf) -> Result<OwnedFd, DatapathError> {
    let program = Hook::SockRelease.as_str();
    let loaded: &mut CgroupSock = find(object, program)?;
    load(program, || {
        loaded.load()?;
        duplicate(loaded.fd()?.as_fd())
    })
}

fn load_closed(object: &mut Ebpf, btf: Option<&Btf>, sockets: &Path) -> Result<Sockets, DatapathError> {
    let program = "closed";
    let loaded: &mut Iter = find(object, program)?;
    let btf = btf.ok_or_else(|| no_btf(program))?;
    let fd = load(program, || {
        loaded.load("bpf_sk_storage_map", btf)?;
        duplicate(loaded.fd()?.as_fd())
    })?;
    let map: Map<u32, SocketState> =
        Map::open(sockets).map_err(bpf("open the sockets"))?.ok_or(DatapathError::NoObject)?;
    Sockets::attach(fd.as_fd(), map.as_fd()).map_err(bpf("go over the sockets"))
}

fn load_pod_network(object: &mut Ebpf, btf: Option<&Btf>) -> Result<OwnedFd, DatapathError> {
    let program = "pod_network";
    let loaded: &mut Iter = find(object, program)?;
    let btf = btf.ok_or_else(|| no_btf(program))?;
    load(program, || {
        loaded.load("cgroup", btf)?;
        duplicate(loaded.fd()?.as_fd())
    })
}

fn no_btf(program: &'static str) -> DatapathError {
    let source = io::Error::new(io::ErrorKind::NotFound, "/sys/kernel/btf/vmlinux").into();
    DatapathError::Program { program, source }
}

fn load_classifier(object: &mut Ebpf, program: &'static str) -> Result<OwnedFd, DatapathError> {
    let loaded: &mut SchedClassifier = find(object, program)?;
    load(program, || {
        loaded.load()?;
        duplicate(loaded.fd()?.as_fd())
    })
}

/// The pins in a directory.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    let paths =
        fs::read_dir(dir).and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    paths.map_err(pin_error(dir))
}

/// Removes what was attached before an attach failed: the error that led here says more than one that
/// follows from it.
fn undo(new: Vec<PathBuf>) {
    for path in new.iter().rev() {
        let _ = if path.is_dir() { remove_links(path) } else { fs::remove_file(path) };
    }
}

fn load(
    program: &'static str,
    run: impl FnOnce() -> Result<OwnedFd, ProgramError>,
) -> Result<OwnedFd, DatapathError> {
    run().map_err(|source| DatapathError::Program { program, source })
}

fn duplicate(fd: std::os::fd::BorrowedFd<'_>) -> Result<OwnedFd, ProgramError> {
    fd.try_clone_to_owned().map_err(ProgramError::from)
}

fn find<'o, P>(object: &'o mut Ebpf, program: &'static str) -> Result<&'o mut P, DatapathError>
where
    &'o mut P: TryFrom<&'o mut aya::programs::Program, Error = ProgramError>,
{
    object
        .program_mut(program)
        .ok_or(DatapathError::NoObject)?
        .try_into()
        .map_err(|source| DatapathError::Program { program, source })
}
