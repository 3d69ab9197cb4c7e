//! The part of the EndpointSlice controller, which a directory of manifests doesn't have.
//!
//! A Service with a selector and without EndpointSlices of its own gets slices made from the Pods
//! that its selector matches. In a cluster the real controller does this.
//!
//! Invariant: after `flush`, each such Service has exactly the slices that its Pods make. One Pod
//! costs only the Services that select it, before or after.

mod make;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::{Endpoint, EndpointSlice},
};
use slotmesh_compile::{Kind, Object, ObjectKey, ObjectName, ObjectRef, Report, Severity, Source};

use self::make::{Ports, endpoint, families, free_name, pod_ips, slice, target_port};
use super::{ReportChanges, Sourced, Step};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Namespace, key and value of a label.
type Label = (Arc<str>, String, String);

#[derive(Debug)]
struct KnownPod {
    pod: Arc<Pod>,
    source: Option<Source>,
}

/// The slices that are made for a Service at present.
#[derive(Debug, Default)]
struct Made {
    slices: BTreeMap<ObjectName, Arc<EndpointSlice>>,
    /// Two ports may have the same to say; it holds until neither has.
    reports: BTreeSet<Report>,
}

/// Makes EndpointSlices from Services and Pods.
#[derive(Debug, Default)]
pub(crate) struct SliceController {
    services: HashMap<ObjectName, Arc<Service>>,
    pods: HashMap<ObjectName, KnownPod>,
    /// Service -> its slices that were not made here, and back.
    given: HashMap<ObjectName, BTreeSet<ObjectName>>,
    given_for: HashMap<ObjectName, ObjectName>,
    /// The first label of a selector -> Services; each label of a Pod -> Pods.
    selecting: HashMap<Label, BTreeSet<ObjectName>>,
    labelled: HashMap<Label, BTreeSet<ObjectName>>,
    made: HashMap<ObjectName, Made>,
    dirty: BTreeSet<ObjectName>,
    reports: ReportChanges,
}

impl SliceController {
    /// Takes notice of a step that came from the source.
    pub(crate) fn observe(&mut self, step: &Step) {
        match step {
            Step::Apply(Sourced { object, source }) => {
                let name = object.key().name;
                match object {
                    Object::Service(service) => self.service(&name, Some(service.clone())),
                    Object::Pod(pod) => {
                        self.pod(&name, Some(KnownPod { pod: pod.clone(), source: source.clone() }));
                    }
                    Object::EndpointSlice(slice) => self.given(&name, Some(slice)),
                    _ => {}
                }
            }
            Step::Delete(ObjectKey { kind, name }) => match kind {
                Kind::Service => self.service(name, None),
                Kind::Pod => self.pod(name, None),
                Kind::EndpointSlice => self.given(name, None),
                _ => {}
            },
        }
    }

    fn service(&mut self, name: &ObjectName, service: Option<Arc<Service>>) {
        self.dirty.insert(name.clone());
        if let Some(label) = self.services.remove(name).and_then(|old| selector_label(name, &old)) {
            unlink(&mut self.selecting, &label, name);
        }
        if let Some(service) = service {
            if let Some(label) = selector_label(name, &service) {
                self.selecting.entry(label).or_default().insert(name.clone());
            }
            self.services.insert(name.clone(), service);
        }
    }

    fn pod(&mut self, name: &ObjectName, pod: Option<KnownPod>) {
        if let Some(old) = self.pods.remove(name) {
            for label in labels(name, &old.pod) {
                self.dirty.extend(self.selecting.get(&label).into_iter().flatten().cloned());
                unlink(&mut self.labelled, &label, name);
            }
        }
        if let Some(new) = pod {
            for label in labels(name, &new.pod) {
                self.dirty.extend(self.selecting.get(&label).into_iter().flatten().cloned());
                self.labelled.entry(label).or_default().insert(name.clone());
            }
            self.pods.insert(name.clone(), new);
        }
    }

    fn given(&mut self, name: &ObjectName, slice: Option<&EndpointSlice>) {
        if let Some(service) = self.given_for.remove(name) {
            unlink(&mut self.given, &service, name);
            self.dirty.insert(service);
        }
        let label = slice.and_then(|slice| slice.metadata.labels.as_ref()?.get(SERVICE_LABEL));
        if let Some(service) = label {
            let service = ObjectName::new(name.namespace.clone(), service.as_str());
            self.given.entry(service.clone()).or_default().insert(name.clone());
            self.given_for.insert(name.clone(), service.clone());
            self.dirty.insert(service);
        }
    }

    /// The steps that bring the made slices up to date, and the reports that appeared and
    /// disappeared.
    pub(crate) fn flush(&mut self) -> (Vec<Step>, Vec<Report>, Vec<Report>) {
        let mut steps = Vec::new();
        for service in std::mem::take(&mut self.dirty) {
            let new = self.make(&service);
            let old = self.made.remove(&service).unwrap_or_default();
            for (name, slice) in &new.slices {
                if old.slices.get(name) != Some(slice) {
                    let object = Object::EndpointSlice(slice.clone());
                    steps.push(Step::Apply(Sourced { object, source: None }));
                }
            }
            let gone = old.slices.into_keys().filter(|name| !new.slices.contains_key(name));
            steps.extend(gone.map(|name| Step::Delete(ObjectKey { kind: Kind::EndpointSlice, name })));
            self.reports.replace(old.reports, new.reports.iter().cloned());
            if !new.slices.is_empty() || !new.reports.is_empty() {
                self.made.insert(service, new);
            }
        }
        let (appeared, disappeared) = self.reports.take();
        (steps, appeared, disappeared)
    }

    fn make(&self, name: &ObjectName) -> Made {
        let mut made = Made::default();
        let Some(service) = self.services.get(name).filter(|_| !self.given.contains_key(name)) else {
            return made;
        };
        let Some(label) = selector_label(name, service) else { return made };
        let spec = service.spec.clone().unwrap_or_default();
        let families = families(service);
        let mut groups: BTreeMap<(bool, Ports), Vec<Endpoint>> = BTreeMap::new();
        for pod_name in self.labelled.get(&label).into_iter().flatten() {
            let Some(known) = self.pods.get(pod_name).filter(|known| selects(service, &known.pod)) else {
                continue;
            };
            if known
                .pod
                .status
                .as_ref()
                .is_some_and(|s| matches!(s.phase.as_deref(), Some("Failed" | "Succeeded")))
            {
                continue;
            }
            let mut note = |field: &str, message: String| {
                let key = ObjectKey { kind: Kind::Pod, name: pod_name.clone() };
                let object = ObjectRef::new(&key, known.source.clone());
                made.reports.insert(Report::new(object, Some(field.into()), Severity::Note, message));
            };
            let mut ports = Vec::new();
            for port in spec.ports.iter().flatten() {
                match target_port(port, &known.pod) {
                    Ok(number) => ports.push((port.name.clone().unwrap_or_default(), number)),
                    Err(wanted) => note(
                        "spec.containers",
                        format!("no container port is named {wanted}, which Service {name} asks for"),
                    ),
                }
            }
            let ips = pod_ips(&known.pod);
            if ips.is_empty() {
                let message = format!("the Pod has no address, so Service {name} sends no connections to it");
                note("status.podIP", message);
            }
            for ip in ips {
                let v4 = ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()) || !ip.contains(':');
                if families.contains(&v4) {
                    let ready = spec.publish_not_ready_addresses == Some(true);
                    let endpoint = endpoint(pod_name, &known.pod, ip, ready);
                    groups.entry((v4, ports.clone())).or_default().push(endpoint);
                }
            }
        }
        for ((v4, ports), endpoints) in groups {
            let slice_name = free_name(name, v4, &ports, &made.slices);
            let slice = slice(name, &slice_name, v4, &ports, &spec.ports, endpoints);
            made.slices.insert(slice_name, Arc::new(slice));
        }
        made
    }
}

fn unlink<K: Hash + Eq>(index: &mut HashMap<K, BTreeSet<ObjectName>>, key: &K, name: &ObjectName) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

/// One label that every selected Pod has.
fn selector_label(name: &ObjectName, service: &Service) -> Option<Label> {
    let (key, value) = service.spec.as_ref()?.selector.as_ref()?.first_key_value()?;
    Some((name.namespace.clone(), key.clone(), value.clone()))
}

fn labels(name: &ObjectName, pod: &Pod) -> Vec<Label> {
    let labels = pod.metadata.labels.iter().flatten();
    labels.map(|(key, value)| (name.namespace.clone(), key.clone(), value.clone())).collect()
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let has = |key, value| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key)) == Some(value);
    selector.into_iter().flatten().all(|(key, value)| has(key, value))
}
