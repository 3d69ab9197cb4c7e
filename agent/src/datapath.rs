//! Programs: loading, attaching to workloads, upgrading in place, and asking them.

use std::{
    collections::{HashMap, HashSet},
    fmt, fs, io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{CgroupSockAddr, ProgramError, SchedClassifier, SockOps},
};
use bytemuck::Zeroable as _;
use slotmesh_kernel::{
    BpfError, Hook, Host, HostError, Link, Map, MapKind, MapSpec, attached_programs, cgroup_id, program_id,
    test_run,
};
use slotmesh_records::{
    Answer, ClusterState, EndpointCount, EndpointKey, Identity, LAYOUT_HASH, Question, Verdict, VipKey,
    name_hash,
};

use crate::pins::Pins;

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

fn bpf(what: impl Into<String>) -> impl FnOnce(BpfError) -> DatapathError {
    let what = what.into();
    move |source| DatapathError::Bpf { what, source }
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
    hooks: Vec<(Hook, OwnedFd)>,
    question: OwnedFd,
    identity: Map<u64, Identity>,
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
    pub fn open_vips(pins: &Pins) -> Result<Map<VipKey, u64>, DatapathError> {
        const VIPS: MapSpec =
            MapSpec { name: "slotmesh_vips", kind: MapKind::Hash, max_entries: 65_536, flags: NO_PREALLOC };
        const NO_PREALLOC: u32 = 1;
        Map::open_or_create(&pins.records().join("vips"), &VIPS, None).map_err(bpf("open the VIP map"))
    }

    /// Opens the map of what runs of each cluster, or creates it, before the programs that use it.
    ///
    /// # Errors
    /// Where the kernel refuses, or another kind of map is pinned there.
    pub fn open_clusters(pins: &Pins) -> Result<Map<u64, ClusterState>, DatapathError> {
        const CLUSTERS: MapSpec =
            MapSpec { name: "slotmesh_clust", kind: MapKind::Hash, max_entries: 65_536, flags: 1 };
        Map::open_or_create(&pins.clusters(), &CLUSTERS, None).map_err(bpf("open what runs of clusters"))
    }

    /// Opens the map of how many connections count at each endpoint, or creates it, before the programs that
    /// use it.
    ///
    /// # Errors
    /// Where the kernel refuses, or another kind of map is pinned there.
    pub fn open_endpoints(pins: &Pins) -> Result<Map<EndpointKey, EndpointCount>, DatapathError> {
        const ENDPOINTS: MapSpec =
            MapSpec { name: "slotmesh_endp", kind: MapKind::Hash, max_entries: 65_536, flags: 1 };
        Map::open_or_create(&pins.endpoints(), &ENDPOINTS, None).map_err(bpf("open the counts of endpoints"))
    }

    /// Loads the programs over the maps that are pinned.
    ///
    /// # Errors
    /// Where the kernel refuses, or the programs are another build's.
    pub fn load(pins: Pins, host: Host) -> Result<Self, DatapathError> {
        const IDENTITY: MapSpec =
            MapSpec { name: "slotmesh_ident", kind: MapKind::CgroupStorage, max_entries: 0, flags: 0 };
        Self::check_object()?;
        let identity_path = pins.state().join("identity");
        let identity =
            Map::open_or_create(&identity_path, &IDENTITY, None).map_err(bpf("open the identities"))?;
        let mut object = EbpfLoader::new()
            .map_pin_path("OUTER", pins.records().join("outer"))
            .map_pin_path("VIPS", pins.records().join("vips"))
            .map_pin_path("SOCKETS", pins.state().join("sockets"))
            .map_pin_path("IDENTITY", identity_path)
            .map_pin_path("CLUSTERS", pins.clusters())
            .map_pin_path("ENDPOINTS", pins.endpoints())
            .load(OBJECT)?;
        let hooks = Hook::ALL
            .into_iter()
            .map(|hook| load_hook(&mut object, hook).map(|fd| (hook, fd)))
            .collect::<Result<Vec<_>, _>>()?;
        let question = load_question(&mut object)?;
        let datapath = Self { hooks, question, identity, pins, host };
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
            if let Err(error) = self.attach_one(workload, &mut new) {
                for dir in new {
                    // The error that led here says more than one that follows from it.
                    let _ = fs::remove_dir_all(dir);
                }
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
        self.attach_one(workload, &mut new).inspect_err(|_| {
            for dir in new {
                // The error that led here says more than one that follows from it.
                let _ = fs::remove_dir_all(dir);
            }
        })
    }

    /// Detaches the programs from a workload, if they are attached to it.
    ///
    /// # Errors
    /// Where a pin can't be removed.
    pub fn release(&self, workload: &Workload) -> Result<(), DatapathError> {
        let path = self.pins.links_of(workload.id());
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DatapathError::Pin { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Detaches the programs from all but these workloads.
    ///
    /// # Errors
    /// Where a pin can't be removed.
    pub fn retain<'w>(&self, workloads: impl IntoIterator<Item = &'w Workload>) -> Result<(), DatapathError> {
        let wanted: HashSet<PathBuf> = workloads.into_iter().map(|w| self.pins.links_of(w.id())).collect();
        let links = self.pins.links();
        let pin = |path: &Path| {
            let path = path.to_owned();
            move |source| DatapathError::Pin { path, source }
        };
        for entry in fs::read_dir(&links).map_err(pin(&links))? {
            let path = entry.map_err(pin(&links))?.path();
            if !wanted.contains(&path) {
                fs::remove_dir_all(&path).map_err(pin(&path))?;
                tracing::info!(links = %path.display(), "detached a workload that is no longer named");
            }
        }
        Ok(())
    }

    /// What was found on the host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The directory of the links goes to `new` where it was missing.
    fn attach_one(&self, workload: &Workload, new: &mut Vec<PathBuf>) -> Result<(), DatapathError> {
        let describe = |what: &str| format!("{what} workload {workload}");
        let dir = self.host.cgroup(&workload.cgroup)?;
        let pin_error = |path: &Path| {
            let path = path.to_owned();
            move |source| DatapathError::Pin { path, source }
        };
        let cgroup = cgroup_id(&dir).map_err(pin_error(&workload.cgroup))?;
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
                let identity =
                    Identity { workload: workload.id(), namespace: name_hash(&workload.namespace) };
                self.identity.update(&cgroup, &identity).map_err(bpf(describe("store the identity of")))?;
            }
        }
        self.warn_of_others(workload, &dir);
        Ok(())
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
    pub fn ask(&self, to: SocketAddr, numbers: impl Into<Numbers>) -> Result<Decision, DatapathError> {
        let Numbers { cluster, endpoint, other } = numbers.into();
        let vip = crate::flatten::vip_key(to);
        let question =
            Question { vip, cluster_random: cluster, endpoint_random: endpoint, other_random: other };
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

/// What a connection chooses by.
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

/// What becomes of a connection.
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

fn load_hook(object: &mut Ebpf, hook: Hook) -> Result<OwnedFd, DatapathError> {
    let program = hook.as_str();
    if hook == Hook::SockOps {
        let loaded: &mut SockOps = find(object, program)?;
        return load(program, || {
            loaded.load()?;
            duplicate(loaded.fd()?.as_fd())
        });
    }
    let loaded: &mut CgroupSockAddr = find(object, program)?;
    load(program, || {
        loaded.load()?;
        duplicate(loaded.fd()?.as_fd())
    })
}

fn load_question(object: &mut Ebpf) -> Result<OwnedFd, DatapathError> {
    let program = "question";
    let loaded: &mut SchedClassifier = find(object, program)?;
    load(program, || {
        loaded.load()?;
        duplicate(loaded.fd()?.as_fd())
    })
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
