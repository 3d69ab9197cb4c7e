//! Services: cluster IPs and TCP ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::{api::core::v1, apimachinery::pkg::util::intstr::IntOrString};

use super::{Age, ip_address, port_number};
use crate::report::Findings;

/// What is spoken on a port, as far as it decides which routes apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP routes apply.
    Http,
    /// TCP routes apply.
    Tcp,
    /// TLSRoutes apply: the content is encrypted.
    Tls,
    /// Not declared: both apply, HTTP routes first.
    Undeclared,
}

impl Protocol {
    /// As Istio decides: `appProtocol`, else the prefix of the port's name.
    fn of(port: &v1::ServicePort) -> Self {
        if let Some(declared) = &port.app_protocol {
            let declared = declared.to_ascii_lowercase();
            return Self::named(declared.strip_prefix("kubernetes.io/").unwrap_or(&declared));
        }
        let name = port.name.as_deref().unwrap_or_default().to_ascii_lowercase();
        if name == "grpc-web" || name.starts_with("grpc-web-") {
            return Self::Http;
        }
        Self::named(name.split('-').next().unwrap_or_default())
    }

    /// What users are told.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Undeclared => "HTTP or TCP",
        }
    }

    /// What a name means, in lower case.
    pub(super) fn named(name: &str) -> Self {
        match name {
            "http" | "http2" | "h2c" | "grpc" | "grpc-web" | "ws" => Self::Http,
            "tcp" | "mongo" | "mysql" | "redis" => Self::Tcp,
            "https" | "tls" | "wss" => Self::Tls,
            _ => Self::Undeclared,
        }
    }
}

/// The port of a workload to which connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TargetPort {
    Number(u16),
    /// What the workload calls so.
    Name(String),
}

/// A TCP port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub(crate) number: u16,
    /// The name by which slices refer to the port; empty for the single port without a name.
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    /// For workloads that aren't Pods: slices say it of theirs.
    pub(crate) target: TargetPort,
}

/// A valid Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) age: Age,
    /// The cluster IPs; none for a headless Service.
    pub(crate) vips: Vec<IpAddr>,
    /// In the order of their numbers.
    pub(crate) ports: Vec<ServicePort>,
    /// The labels of the workloads that it selects; none where it selects none.
    pub(crate) selector: BTreeMap<String, String>,
    /// The field by which it asks for what isn't done yet: connections to it are left to kube-proxy.
    pub(crate) left: Option<&'static str>,
}

/// Annotations that ask for endpoints of the caller's zone.
pub const TOPOLOGY: [&str; 2] =
    ["service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"];

/// A Service with this label is another proxy's.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

impl Service {
    /// Reads a Service; `None` when it must be refused.
    pub(crate) fn read(object: &v1::Service, found: &mut Findings) -> Option<Self> {
        let age = Age::of(&object.metadata);
        let spec = object.spec.clone().unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            found.note("spec.type", "a Service of type ExternalName has no cluster IP; it is left alone");
            let selector = BTreeMap::new();
            return Some(Self { age, vips: Vec::new(), ports: Vec::new(), selector, left: None });
        }
        let mut vips = read_vips(&spec, found);
        let ports = read_ports(&spec, found);
        let labels = object.metadata.labels.as_ref();
        if let Some(proxy) = labels.and_then(|labels| labels.get(PROXY_NAME)) {
            let what =
                format!("the Service is that of the proxy {proxy:?}; connections to it are left to that");
            found.note(format!("metadata.labels.{PROXY_NAME}"), what);
            vips.clear();
        }
        let annotations = object.metadata.annotations.as_ref();
        for name in TOPOLOGY {
            if annotations
                .and_then(|all| all.get(name))
                .is_some_and(|mode| !mode.eq_ignore_ascii_case("disabled"))
            {
                found.unsupported(
                    format!("metadata.annotations[{name}]"),
                    "without hints in its EndpointSlices endpoints of all zones are used alike",
                );
            }
        }
        let left = if spec.session_affinity.as_deref().is_some_and(|affinity| affinity != "None") {
            Some("spec.sessionAffinity")
        } else if spec.internal_traffic_policy.as_deref().is_some_and(|policy| policy != "Cluster") {
            Some("spec.internalTrafficPolicy")
        } else {
            None
        };
        let selector = spec.selector.unwrap_or_default();
        (!found.refused()).then_some(Self { age, vips, ports, selector, left })
    }

    /// What both say; of what only one can say, `self`.
    pub(crate) fn merge(mut self, other: &Self) -> Self {
        self.vips.extend(&other.vips);
        self.vips.sort_unstable();
        self.vips.dedup();
        let fresh =
            other.ports.iter().filter(|port| self.port(port.number).is_none()).cloned().collect::<Vec<_>>();
        self.ports.extend(fresh);
        self.ports.sort_by_key(|port| port.number);
        self
    }

    /// The TCP port with this number.
    pub(crate) fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.binary_search_by_key(&number, |p| p.number).ok().map(|i| &self.ports[i])
    }
}

fn read_vips(spec: &v1::ServiceSpec, found: &mut Findings) -> Vec<IpAddr> {
    let several = spec.cluster_ips.as_deref().unwrap_or_default();
    let texts: Vec<(String, &str)> = if several.is_empty() {
        spec.cluster_ip.iter().map(|ip| ("spec.clusterIP".to_owned(), ip.as_str())).collect()
    } else {
        several.iter().enumerate().map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip.as_str())).collect()
    };
    let mut vips = Vec::new();
    let mut named = false;
    for (field, text) in texts.iter().filter(|(_, text)| !text.is_empty()) {
        named = true;
        if *text == "None" {
            continue;
        }
        match ip_address(text) {
            Ok(ip) if vips.contains(&ip) => found.refuse(field, format!("{ip} stands there twice")),
            Ok(ip) => vips.push(ip),
            Err(fault) => {
                found.refuse(
                    field,
                    format!("{fault}; write an address such as 10.96.0.10 or fd00::10, or None"),
                );
            }
        }
    }
    if !named {
        found.note("spec.clusterIP", "no cluster IP is given, so no connection can be made to this Service; give it one, such as 10.96.0.20");
    }
    vips
}

fn read_ports(spec: &v1::ServiceSpec, found: &mut Findings) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    let mut numbers = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let Some(number) = port_number(port.port) else {
            let fault = format!("{} is not a port; ports are 1 to 65535", port.port);
            found.refuse(format!("spec.ports[{i}].port"), fault);
            continue;
        };
        let name = port.name.clone().unwrap_or_default();
        if !names.insert(name.clone()) {
            let fault = if name.is_empty() {
                "a Service with several ports must name each of them".to_owned()
            } else {
                format!("the name {name:?} stands there twice; each port needs its own")
            };
            found.refuse(format!("spec.ports[{i}].name"), fault);
        }
        match port.protocol.as_deref() {
            None | Some("" | "TCP") => {}
            Some(other) => {
                let consequence = format!("{other} port {number} is left alone");
                found.unsupported(format!("spec.ports[{i}].protocol"), &consequence);
                continue;
            }
        }
        if !numbers.insert(number) {
            let fault = format!("TCP port {number} stands there twice; remove one");
            found.refuse(format!("spec.ports[{i}].port"), fault);
        }
        let target = match &port.target_port {
            // What an unset number is read as.
            None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
            Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
            Some(IntOrString::Int(target)) => match port_number(*target) {
                Some(target) => TargetPort::Number(target),
                None => {
                    let fault = format!("{target} is not a port; ports are 1 to 65535");
                    found.refuse(format!("spec.ports[{i}].targetPort"), fault);
                    continue;
                }
            },
        };
        ports.push(ServicePort { number, name, protocol: Protocol::of(port), target });
    }
    ports.sort_by_key(|p| p.number);
    ports
}
