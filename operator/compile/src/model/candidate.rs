//! Pods that could take part, and what stands against it.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::api::core::v1::{Container, Namespace, Pod};

/// The label of namespaces that take part, and of pods that don't.
pub const MESH: &str = "slotmesh.dev/mesh";
pub(crate) const ENABLED: &str = "enabled";
pub(crate) const DISABLED: &str = "disabled";

/// A static pod's cgroup is named after this, not after the uid of its mirror in the API.
const STATIC_HASH: &str = "kubernetes.io/config.hash";
/// The kubelet's annotation of a mirror pod, again with the hash.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// How Istio's agent says that ztunnel has the pod's connections.
const AMBIENT: &str = "ambient.istio.io/redirection";
/// The label of the pods that run KubeVirt's machines.
const KUBEVIRT: &str = "kubevirt.io";
const KUBEVIRT_LAUNCHER: &str = "virt-launcher";

/// The annotations of a pod by which it is decided whether it takes part.
pub const ANNOTATIONS: [&str; 3] = [STATIC_HASH, MIRROR, AMBIENT];

/// Why a pod that could take part is left alone: another mesh has its connections, or it makes them in a kernel
/// of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeftAlone {
    /// It has a sidecar of Istio's or Linkerd's.
    Sidecar,
    /// Istio's ambient mode has it.
    Ambient,
    /// It runs under gVisor.
    Gvisor,
    /// It runs under Kata Containers.
    Kata,
    /// It runs one of KubeVirt's machines.
    Kubevirt,
    /// It claims to be a static pod that another one is already, or that none can be.
    NotItself,
}

impl LeftAlone {
    /// All reasons.
    pub const ALL: [Self; 6] =
        [Self::Sidecar, Self::Ambient, Self::Gvisor, Self::Kata, Self::Kubevirt, Self::NotItself];

    /// The reason as metrics name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Ambient => "ambient",
            Self::Gvisor => "gvisor",
            Self::Kata => "kata",
            Self::Kubevirt => "kubevirt",
            Self::NotItself => "not_itself",
        }
    }
}

impl fmt::Display for LeftAlone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sidecar => "it has a sidecar of another mesh, which has its connections already",
            Self::Ambient => "Istio's ambient mode has its connections already",
            Self::Gvisor => {
                "it runs under gVisor, whose connections the node's kernel doesn't see being made"
            }
            Self::Kata => "it runs under Kata Containers, in a kernel of its own",
            Self::Kubevirt => "it runs a virtual machine, which has a kernel of its own",
            Self::NotItself => {
                "its kubernetes.io/config.hash isn't that of a static pod, or is another pod's"
            }
        })
    }
}

/// Tells whether a container of this name makes a pod that of another mesh.
pub fn is_sidecar(container: &Container) -> bool {
    matches!(&*container.name, "istio-proxy" | "linkerd-proxy")
}

/// Why a pod doesn't take part, whatever its namespace says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absence {
    /// A label or an annotation of its own says so.
    SaysNo,
    /// It makes its connections as its node.
    HostNetwork,
    /// It has ended.
    Ended,
    /// It has no node yet.
    Unscheduled,
}

impl Absence {
    /// The first that a pod has.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let node = spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        if mesh_values(pod).any(|(_, value)| value == DISABLED) {
            Some(Self::SaysNo)
        } else if spec.is_some_and(|spec| spec.host_network == Some(true)) {
            Some(Self::HostNetwork)
        } else if matches!(phase, Some("Succeeded" | "Failed")) {
            Some(Self::Ended)
        } else if node.is_empty() {
            Some(Self::Unscheduled)
        } else {
            None
        }
    }
}

/// A pod that could take part if its namespace does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) node: Box<str>,
    /// The name of its cgroup.
    pub(crate) uid: Box<str>,
    pub(crate) service_account: Box<str>,
    /// Where its cgroup's name is one that it says itself: since when it does, in seconds.
    pub(crate) static_since: Option<i64>,
    pub(crate) left_alone: Option<LeftAlone>,
}

impl Candidate {
    /// Reads a pod; `None` where it doesn't take part, whatever its namespace says.
    pub(crate) fn read(pod: &Pod) -> Option<Self> {
        if Absence::of(pod).is_some() {
            return None;
        }
        let (meta, spec) = (&pod.metadata, pod.spec.as_ref()?);
        let node = spec.node_name.as_deref()?;
        let hash = static_hash(pod, node);
        let created = meta.creation_timestamp.as_ref().map_or(0, |created| created.0.as_second());
        Some(Self {
            node: node.into(),
            uid: hash.ok().flatten().or(meta.uid.as_deref())?.into(),
            service_account: spec.service_account_name.as_deref().unwrap_or_default().into(),
            static_since: matches!(hash, Ok(Some(_))).then_some(created),
            left_alone: if hash.is_err() { Some(LeftAlone::NotItself) } else { left_alone(pod) },
        })
    }
}

/// The hash of a pod's file, where it is a mirror: one that the kubelet of its node has made. An error where it
/// says to be one and isn't.
///
/// Anybody may write annotations. So the hash counts only with the kubelet's other marks; and only in the form in
/// which the kubelet makes it, which no uid of the API server has.
fn static_hash<'p>(pod: &'p Pod, node: &str) -> Result<Option<&'p str>, NotAMirror> {
    let annotation = |name: &str| pod.metadata.annotations.as_ref()?.get(name).map(String::as_str);
    let Some(hash) = annotation(STATIC_HASH) else { return Ok(None) };
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let is_the_nodes = owners.iter().any(|owner| owner.kind == "Node" && owner.name == node);
    let is_hash = hash.len() == 32 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if annotation(MIRROR) == Some(hash) && is_the_nodes && is_hash { Ok(Some(hash)) } else { Err(NotAMirror) }
}

#[derive(Clone, Copy)]
struct NotAMirror;

fn left_alone(pod: &Pod) -> Option<LeftAlone> {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref()?);
    let of = |map: Option<&BTreeMap<String, String>>, name: &str, value: &str| {
        map.and_then(|map| map.get(name)).is_some_and(|has| has == value)
    };
    let runtime = spec.runtime_class_name.as_deref().unwrap_or_default().to_ascii_lowercase();
    let is = |names: &[&str]| names.iter().any(|name| runtime.contains(name));
    if spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(is_sidecar) {
        Some(LeftAlone::Sidecar)
    } else if of(meta.annotations.as_ref(), AMBIENT, ENABLED) {
        Some(LeftAlone::Ambient)
    } else if is(&["gvisor", "runsc"]) {
        Some(LeftAlone::Gvisor)
    } else if is(&["kata"]) {
        Some(LeftAlone::Kata)
    } else if of(meta.labels.as_ref(), KUBEVIRT, KUBEVIRT_LAUNCHER) {
        Some(LeftAlone::Kubevirt)
    } else {
        None
    }
}

/// The values that a pod's label and annotation have for the mesh, by field.
pub(crate) fn mesh_values(pod: &Pod) -> impl Iterator<Item = (&'static str, &str)> {
    let maps = [("labels", &pod.metadata.labels), ("annotations", &pod.metadata.annotations)];
    maps.into_iter().filter_map(|(field, map)| Some((field, map.as_ref()?.get(MESH)?.as_str())))
}

/// The value that a namespace's label has for the mesh.
pub(crate) fn mesh_value(namespace: &Namespace) -> Option<&str> {
    namespace.metadata.labels.as_ref()?.get(MESH).map(String::as_str)
}
