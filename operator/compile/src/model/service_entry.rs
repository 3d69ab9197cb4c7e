//! ServiceEntries: services that aren't Kubernetes Services, known by their hosts.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use slotmesh_crds as crds;
use slotmesh_xds::Transport;

use super::{
    Age, Export, PortKey, Protocol, Read, Service, ServicePort, TargetPort, Workload, ip_address, port_number,
};
use crate::{
    CompileOptions, ObjectName, ServiceId, domain::cluster_domain, object::name_fault, report::Findings,
};

/// A host, to which connections are made as to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EntryHost {
    /// The field that names it.
    pub(crate) field: String,
    pub(crate) name: ServiceId,
    pub(crate) service: Service,
}

/// A valid ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceEntry {
    pub(crate) age: Age,
    /// Whose connections to its addresses it takes.
    pub(crate) export: Export,
    /// All have the same ports and endpoints. The first has the addresses.
    pub(crate) hosts: Vec<EntryHost>,
    /// The endpoints that it names itself.
    pub(crate) endpoints: Vec<Workload>,
}

/// How endpoints are found, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resolution {
    /// As given.
    Static,
    /// Those that are given as addresses.
    Dns,
    /// Not at all.
    Nowhere,
}

impl Read<crds::ServiceEntry> for ServiceEntry {
    /// Reads a ServiceEntry; `None` when it must be refused.
    fn read(
        object: &crds::ServiceEntry,
        key: &ObjectName,
        _: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        let spec = &object.spec;
        let age = Age::of(&object.metadata);
        let export = Export::read(&spec.export_to, &key.namespace, found);
        for name in spec.rest.keys() {
            let consequence = if name == "subjectAltNames" { "nobody verifies who answers" } else { "" };
            found.unsupported(format!("spec.{name}"), consequence);
        }
        if let Some(location) =
            spec.location.as_deref().filter(|l| !matches!(*l, "MESH_EXTERNAL" | "MESH_INTERNAL"))
        {
            let fault = format!("{location:?} is no location; write MESH_EXTERNAL or MESH_INTERNAL");
            found.refuse("spec.location", fault);
        }
        let resolution = read_resolution(spec, found);
        let hosts = read_hosts(&spec.hosts, found);
        let vips = read_addresses(&spec.addresses, found);
        let ports = read_ports(&spec.ports, found);
        let selector = read_selector(spec, found);
        let endpoints = read_endpoints(&spec.endpoints, resolution, found);
        let acts = resolution != Resolution::Nowhere;
        if acts && vips.is_empty() {
            found.note(
                "spec.addresses",
                "no address is given, so connections to the hosts are left alone; routes can lead to them",
            );
        }
        for (field, _) in hosts.iter().skip(1).filter(|_| acts && !vips.is_empty()) {
            let what =
                "connections to the addresses are those of the first host; routes can lead to this one";
            found.note(field, what);
        }
        let hosts = hosts.into_iter().enumerate().map(|(i, (field, name))| {
            let vips = if i == 0 && acts { vips.clone() } else { Vec::new() };
            let ports = if acts { ports.clone() } else { Vec::new() };
            EntryHost { field, name, service: Service::plain(age, vips, ports, selector.clone()) }
        });
        let hosts = hosts.collect();
        let export = export.filter(|_| !found.refused())?;
        Some(Self { age, export, hosts, endpoints })
    }
}

fn read_resolution(spec: &crds::ServiceEntrySpec, found: &mut Findings) -> Resolution {
    let left_alone = |found: &mut Findings, why: &str| {
        let consequence = format!(
            "{why}, so connections go where they are meant to go, and routes and rules have no effect on them; use \
             STATIC and give the addresses of endpoints"
        );
        found.unsupported("spec.resolution", &consequence);
        Resolution::Nowhere
    };
    let given = !spec.endpoints.is_empty() || spec.workload_selector.is_some();
    match spec.resolution.as_deref() {
        Some("STATIC") => Resolution::Static,
        Some("DNS" | "DNS_ROUND_ROBIN") if given => Resolution::Dns,
        Some("DNS" | "DNS_ROUND_ROBIN" | "DYNAMIC_DNS") => left_alone(found, "names aren't looked up"),
        None | Some("" | "NONE") => left_alone(found, "without endpoints there is nothing to choose from"),
        Some(other) => {
            let fault =
                format!("{other:?} is no resolution; write STATIC and give the addresses of endpoints");
            found.refuse("spec.resolution", fault);
            Resolution::Nowhere
        }
    }
}

/// The hosts with their fields.
fn read_hosts(hosts: &[String], found: &mut Findings) -> Vec<(String, ServiceId)> {
    if hosts.is_empty() {
        found.refuse("spec.hosts", "no host is given; name the service, such as api.example.com");
    }
    let mut read: Vec<(String, ServiceId)> = Vec::new();
    for (i, host) in hosts.iter().enumerate() {
        let field = format!("spec.hosts[{i}]");
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.contains('*') {
            found.unsupported(field, "which host a connection is for isn't known when it is made");
        } else if host.ends_with(".svc") || host.ends_with(&format!(".svc.{}", cluster_domain())) {
            let what = "it is the host of a Service of this cluster, which has its own endpoints; add EndpointSlices \
                        to the Service";
            found.unsupported(field, what);
        } else if let Some(fault) = name_fault(host) {
            found.refuse(field, format!("the host {fault}"));
        } else if !host.contains('.') {
            found.refuse(
                field,
                format!("{host:?} is a short name; write the full one, such as {host}.example.com"),
            );
        } else if let Some(name) = ServiceId::of_host(host, "") {
            if read.iter().any(|(_, other)| *other == name) {
                found.note(field, format!("{host} stands there twice"));
            } else {
                read.push((field, name));
            }
        }
    }
    read
}

/// The single addresses.
fn read_addresses(addresses: &[String], found: &mut Findings) -> Vec<IpAddr> {
    let mut vips = Vec::new();
    for (i, text) in addresses.iter().enumerate() {
        let field = format!("spec.addresses[{i}]");
        let (ip, length) = match text.split_once('/') {
            Some((ip, length)) => (ip, Some(length)),
            None => (text.as_str(), None),
        };
        let all = |ip: IpAddr| if ip.is_ipv4() { "32" } else { "128" };
        match ip_address(ip) {
            Err(fault) => found.refuse(field, format!("{fault}; write an address such as 240.0.0.10")),
            Ok(ip) if length.is_some_and(|length| length != all(ip)) => match length.map(str::parse::<u8>) {
                Some(Ok(length)) if length <= if ip.is_ipv4() { 32 } else { 128 } => {
                    found.unsupported(
                        field,
                        "a range can't be looked up when a connection is made; list addresses",
                    );
                }
                _ => found.refuse(field, format!("{text:?} is neither an address nor a range of addresses")),
            },
            Ok(ip) if vips.contains(&ip) => found.refuse(field, format!("{ip} stands there twice")),
            Ok(ip) => vips.push(ip),
        }
    }
    vips
}

fn read_ports(ports: &[crds::EntryPort], found: &mut Findings) -> Vec<ServicePort> {
    let mut read: Vec<ServicePort> = Vec::new();
    let mut names = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        found.unsupported_rest(&at, &port.rest);
        let mut number = |field: &str, number: u32| {
            let valid = port_number(number);
            if valid.is_none() {
                found
                    .refuse(format!("{at}.{field}"), format!("{number} is not a port; ports are 1 to 65535"));
            }
            valid
        };
        let target = port.target_port.map_or(Some(None), |target| number("targetPort", target).map(Some));
        let (Some(number), Some(target)) = (number("number", port.number), target) else { continue };
        if port.name.is_empty() {
            found.refuse(format!("{at}.name"), "it is missing; each port needs a name");
        } else if !names.insert(&port.name) {
            let fault = format!("the name {:?} stands there twice; each port needs its own", port.name);
            found.refuse(format!("{at}.name"), fault);
        }
        let declared = port.protocol.as_deref().unwrap_or_default().to_ascii_lowercase();
        let protocol = Protocol::named(&declared);
        let transport = if declared == "udp" { Transport::Udp } else { Transport::Tcp };
        let is_known = transport == Transport::Udp || protocol != Protocol::Undeclared || declared.is_empty();
        if !is_known {
            let fault = format!("{declared:?} is no protocol that is known; write TCP, UDP or HTTP");
            found.refuse(format!("{at}.protocol"), fault);
        }
        let key = PortKey { number, protocol: transport };
        if read.iter().any(|other| other.key == key) {
            found.refuse(format!("{at}.number"), format!("port {key} stands there twice; remove one"));
        }
        let target = TargetPort::Number(target.unwrap_or(number));
        let http2 = Protocol::is_http2(&declared);
        read.push(ServicePort { key, name: port.name.clone(), protocol, http2, target, node_port: None });
    }
    read.sort_by_key(|port| port.key);
    read
}

/// The labels by which workloads are selected; none where none is.
fn read_selector(spec: &crds::ServiceEntrySpec, found: &mut Findings) -> BTreeMap<String, String> {
    let Some(selector) = &spec.workload_selector else { return BTreeMap::new() };
    let at = "spec.workloadSelector";
    found.unsupported_rest(at, &selector.rest);
    if selector.labels.is_empty() {
        found.refuse(format!("{at}.labels"), "no label is given; name one that the workloads carry");
    }
    if !spec.endpoints.is_empty() {
        found.refuse(at, "there are endpoints already, and only one of both can be given; remove one");
    }
    selector.labels.clone()
}

fn read_endpoints(
    endpoints: &[crds::WorkloadEntrySpec],
    resolution: Resolution,
    found: &mut Findings,
) -> Vec<Workload> {
    let mut read = Vec::new();
    for (i, endpoint) in endpoints.iter().enumerate() {
        let at = format!("spec.endpoints[{i}]");
        if resolution != Resolution::Static && ip_address(&endpoint.address).is_err() {
            let field = format!("{at}.address");
            found.unsupported(field, "names aren't looked up, so the endpoint is left out; give its address");
        } else {
            read.extend(Workload::read_at(endpoint, &at, found));
        }
    }
    read
}
