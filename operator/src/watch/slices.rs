//! The part of the EndpointSlice controller, which a directory of manifests doesn't have.
//!
//! A Service with a selector and without EndpointSlices of its own gets slices made from the Pods
//! that its selector matches. In a cluster the real controller does this.
//!
//! Invariant: after `flush`, each such Service has exactly the slices that its Pods make. One Pod
//! costs only the Services that select it, before or after.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Pod, Service, ServicePort},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use slotmesh_compile::{Kind, Object, ObjectKey, ObjectName, ObjectRef, Report, Severity, Source};

use super::{ReportChanges, Sourced, Step};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Longest name of an object, without the suffix of a slice.
const MAX_BASE: usize = 253 - 6;

/// Namespace, key and value of a label.
type Label = (Arc<str>, String, String);

#[derive(Debug)]
struct KnownPod {
    pod: Arc<Pod>,
    source: Option<Source>,
}

/// What is made for a Service at present.
#[derive(Debug, Default)]
struct Made {
    slices: BTreeMap<ObjectName, Arc<EndpointSlice>>,
    reports: Vec<Report>,
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
                    Object::VirtualService(_) | Object::DestinationRule(_) => {}
                }
            }
            Step::Delete(ObjectKey { kind, name }) => match kind {
                Kind::Service => self.service(name, None),
                Kind::Pod => self.pod(name, None),
                Kind::EndpointSlice => self.given(name, None),
                Kind::VirtualService | Kind::DestinationRule => {}
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
        let mut groups: BTreeMap<(bool, Vec<(String, i32)>), Vec<Endpoint>> = BTreeMap::new();
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
                made.reports.push(Report {
                    object,
                    field: Some(field.into()),
                    severity: Severity::Note,
                    message,
                });
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

/// The address families of a Service: true for IPv4.
fn families(service: &Service) -> BTreeSet<bool> {
    let Some(spec) = &service.spec else { return BTreeSet::new() };
    let named: BTreeSet<_> = spec.ip_families.iter().flatten().map(|family| family == "IPv4").collect();
    if !named.is_empty() {
        return named;
    }
    let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let of_ips: BTreeSet<_> = ips.filter_map(|ip| ip.parse::<IpAddr>().ok()).map(|ip| ip.is_ipv4()).collect();
    if of_ips.is_empty() { BTreeSet::from([true, false]) } else { of_ips }
}

/// The addresses of a Pod, one of each family.
fn pod_ips(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else { return Vec::new() };
    let several: Vec<_> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if several.is_empty() { status.pod_ip.as_deref().into_iter().collect() } else { several }
}

/// The number of a Service port at a Pod, or the name that the Pod doesn't have.
fn target_port<'a>(port: &'a ServicePort, pod: &Pod) -> Result<i32, &'a str> {
    let wanted = match &port.target_port {
        None => return Ok(port.port),
        // What an unset number is read as.
        Some(IntOrString::Int(0)) => return Ok(port.port),
        Some(IntOrString::Int(number)) => return Ok(*number),
        Some(IntOrString::String(name)) => name,
    };
    let tcp = |protocol: Option<&str>| protocol.unwrap_or("TCP").to_owned();
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .find(|p| {
            p.name.as_ref() == Some(wanted) && tcp(p.protocol.as_deref()) == tcp(port.protocol.as_deref())
        })
        .map(|p| p.container_port)
        .ok_or(wanted)
}

/// A Pod of a manifest that says nothing of conditions is ready.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.is_empty() || conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn endpoint(name: &ObjectName, pod: &Pod, ip: &str, always_ready: bool) -> Endpoint {
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = is_ready(pod);
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(always_ready || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(name.namespace.to_string()),
            name: Some(name.name.to_string()),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

/// The name of a slice, as the controller's: the Service's and five characters. They follow from the
/// content that doesn't change, so a slice keeps its name.
fn free_name(
    service: &ObjectName,
    v4: bool,
    ports: &[(String, i32)],
    taken: &BTreeMap<ObjectName, Arc<EndpointSlice>>,
) -> ObjectName {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let base = service.name.get(..MAX_BASE).unwrap_or(&service.name);
    let content = format!("{service} {v4} {ports:?}");
    let mut seed = 0;
    loop {
        let mut hash = xxhash_rust::xxh3::xxh3_64_with_seed(content.as_bytes(), seed);
        let mut name = format!("{base}-");
        for _ in 0..5 {
            let letter = (hash % ALPHABET.len() as u64) as usize;
            name.push(char::from(ALPHABET[letter]));
            hash /= ALPHABET.len() as u64;
        }
        let name = ObjectName::new(service.namespace.clone(), name);
        if !taken.contains_key(&name) {
            return name;
        }
        seed += 1;
    }
}

fn slice(
    service: &ObjectName,
    name: &ObjectName,
    v4: bool,
    ports: &[(String, i32)],
    service_ports: &Option<Vec<ServicePort>>,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let labels = [(SERVICE_LABEL, &*service.name), (MANAGED_BY_LABEL, "slotmesh")];
    let protocol = |name: &str| {
        let mut of_service = service_ports.iter().flatten();
        of_service.find(|p| p.name.as_deref().unwrap_or_default() == name).and_then(|p| p.protocol.clone())
    };
    let ports = ports.iter().map(|(name, number)| EndpointPort {
        name: Some(name.clone()),
        port: Some(*number),
        protocol: protocol(name),
        ..EndpointPort::default()
    });
    EndpointSlice {
        address_type: if v4 { "IPv4" } else { "IPv6" }.to_owned(),
        metadata: ObjectMeta {
            name: Some(name.name.to_string()),
            namespace: Some(name.namespace.to_string()),
            labels: Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
            ..ObjectMeta::default()
        },
        endpoints,
        ports: Some(ports.collect()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec};
    use slotmesh_compile::builder::{PodBuilder, pod, service, slice};

    use super::*;

    fn web() -> Object {
        service("web").ip("10.0.0.1").port(80).selector("app", "web").build()
    }

    fn web_pod(name: &str, ip: &str) -> PodBuilder {
        pod(name).label("app", "web").ip(ip)
    }

    fn apply(controller: &mut SliceController, objects: impl IntoIterator<Item = Object>) -> Vec<Step> {
        for object in objects {
            controller.observe(&Step::Apply(Sourced { object, source: None }));
        }
        controller.flush().0
    }

    /// `address:ports ready` of each endpoint.
    fn endpoints(steps: &[Step]) -> Vec<String> {
        let mut all = Vec::new();
        for step in steps {
            let Step::Apply(Sourced { object: Object::EndpointSlice(slice), .. }) = step else {
                panic!("{step:?}")
            };
            let ports = slice.ports.iter().flatten().map(|p| p.port.unwrap()).collect::<Vec<_>>();
            for endpoint in &slice.endpoints {
                let ready = endpoint.conditions.as_ref().unwrap().ready.unwrap();
                all.push(format!("{} {ports:?} {ready}", endpoint.addresses[0]));
            }
        }
        all
    }

    #[test]
    fn pods_make_slices_and_a_pod_that_goes_takes_its_endpoint_along() {
        let mut controller = SliceController::default();
        let [a, b] = [web_pod("a", "10.1.0.1").build(), web_pod("b", "10.1.0.2").ready(false).build()];
        let other = pod("c").label("app", "other").ip("10.1.0.3").build();
        let steps = apply(&mut controller, [web(), a.clone(), b.clone(), other]);
        assert_eq!(endpoints(&steps), ["10.1.0.1 [80] true", "10.1.0.2 [80] false"]);
        controller.observe(&Step::Delete(a.key()));
        let steps = controller.flush().0;
        assert_eq!(endpoints(&steps), ["10.1.0.2 [80] false"]);
        controller.observe(&Step::Delete(b.key()));
        assert!(matches!(&controller.flush().0[..], [Step::Delete(_)]));
    }

    #[test]
    fn a_label_moves_a_pod_from_one_service_to_another() {
        let mut controller = SliceController::default();
        let api = service("api").ip("10.0.0.2").port(80).selector("app", "api").build();
        apply(&mut controller, [web(), api, web_pod("a", "10.1.0.1").build()]);
        let steps = apply(&mut controller, [pod("a").label("app", "api").ip("10.1.0.1").build()]);
        assert_eq!(steps.len(), 2);
        assert_eq!(endpoints(&steps[..1]), ["10.1.0.1 [80] true"]);
        assert!(matches!(&steps[1], Step::Delete(key) if key.name.name.starts_with("web-")));
    }

    #[test]
    fn slices_in_the_manifests_are_left_alone() {
        let mut controller = SliceController::default();
        let given = slice("mine", "web").port(80).endpoint("10.1.0.9").build();
        assert!(apply(&mut controller, [web(), web_pod("a", "10.1.0.1").build(), given.clone()]).is_empty());
        controller.observe(&Step::Delete(given.key()));
        assert_eq!(endpoints(&controller.flush().0), ["10.1.0.1 [80] true"]);
        let steps = apply(&mut controller, [given]);
        assert!(matches!(&steps[..], [Step::Delete(_)]));
    }

    #[test]
    fn named_ports_are_resolved_at_each_pod() {
        let port = ServicePort {
            port: 80,
            target_port: Some(IntOrString::String("main".into())),
            ..ServicePort::default()
        };
        let named = |name: &str, ip: &str, number| {
            let mut built = web_pod(name, ip);
            let ports = vec![ContainerPort {
                name: Some("main".into()),
                container_port: number,
                ..ContainerPort::default()
            }];
            let containers = vec![Container { ports: Some(ports), ..Container::default() }];
            built.0.spec = Some(PodSpec { containers, ..PodSpec::default() });
            built.build()
        };
        let web = service("web").ip("10.0.0.1").full_port(port).selector("app", "web").build();
        let mut controller = SliceController::default();
        let steps = apply(
            &mut controller,
            [web, named("a", "10.1.0.1", 8080), named("b", "10.1.0.2", 9090), named("c", "10.1.0.3", 8080)],
        );
        assert_eq!(steps.len(), 2);
        assert_eq!(
            endpoints(&steps).into_iter().collect::<BTreeSet<_>>(),
            ["10.1.0.1 [8080] true", "10.1.0.2 [9090] true", "10.1.0.3 [8080] true"]
                .map(str::to_owned)
                .into()
        );
    }

    #[test]
    fn families_of_the_service_and_pods_without_address() {
        let mut controller = SliceController::default();
        let dual = service("web").ip("10.0.0.1").ip("fd00::1").port(80).selector("app", "web").build();
        let both = web_pod("a", "10.1.0.1").ip("fd01::1").build();
        assert_eq!(endpoints(&apply(&mut controller, [both.clone(), web()])), ["10.1.0.1 [80] true"]);
        assert_eq!(endpoints(&apply(&mut controller, [dual])), ["fd01::1 [80] true"]);
        controller
            .observe(&Step::Apply(Sourced { object: pod("none").label("app", "web").build(), source: None }));
        let said = controller.flush().1;
        assert_eq!(
            said[0].to_string(),
            "Pod default/none: status.podIP: the Pod has no address, so Service default/web sends no connections \
             to it"
        );
    }

    #[test]
    fn a_long_name_leaves_room_for_the_suffix() {
        let long = "n".repeat(253);
        let mut controller = SliceController::default();
        let web = service(&long).ip("10.0.0.1").port(80).selector("app", "web").build();
        let steps = apply(&mut controller, [web, web_pod("a", "10.1.0.1").build()]);
        assert!(matches!(&steps[0], Step::Apply(s) if s.object.key().name.name.len() == 253));
    }
}
