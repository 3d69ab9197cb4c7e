//! The content of a slice that is made from Pods.

use std::{
    collections::{BTreeMap, BTreeSet},
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
use slotmesh_compile::ObjectName;

use super::SERVICE_LABEL;

const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Longest name of an object, without the suffix of a slice.
const MAX_BASE: usize = 253 - 6;

/// Names and numbers of the ports of a slice.
pub(super) type Ports = Vec<(String, i32)>;

/// The address families of a Service: true for IPv4.
pub(super) fn families(service: &Service) -> BTreeSet<bool> {
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
pub(super) fn pod_ips(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else { return Vec::new() };
    let several: Vec<_> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if several.is_empty() { status.pod_ip.as_deref().into_iter().collect() } else { several }
}

/// The number of a Service port at a Pod, or the name that the Pod doesn't have.
pub(super) fn target_port<'a>(port: &'a ServicePort, pod: &Pod) -> Result<i32, &'a str> {
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
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.is_empty() || conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

pub(super) fn endpoint(name: &ObjectName, pod: &Pod, ip: &str, always_ready: bool) -> Endpoint {
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = is_ready(pod);
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(always_ready || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
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
pub(super) fn free_name(
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

pub(super) fn slice(
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
