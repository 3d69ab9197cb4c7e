//! Services: cluster IPs, and TCP and UDP ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::{api::core::v1, apimachinery::pkg::util::intstr::IntOrString};

use slotmesh_xds::Transport;

use super::{Age, PortKey, Read, ip_address, port_number};
use crate::{CompileOptions, ObjectName, report::Findings};

/// The protocol spoken on a port, as far as it decides which routes apply.
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
    /// The name of what a port declares, in lower case, as Istio decides: `appProtocol`, else the prefix of the port's
    /// name.
    fn declared(port: &v1::ServicePort) -> String {
        if let Some(declared) = &port.app_protocol {
            let declared = declared.to_ascii_lowercase();
            return declared.strip_prefix("kubernetes.io/").unwrap_or(&declared).to_owned();
        }
        let name = port.name.as_deref().unwrap_or_default().to_ascii_lowercase();
        if name == "grpc-web" || name.starts_with("grpc-web-") {
            return "grpc-web".to_owned();
        }
        name.split('-').next().unwrap_or_default().to_owned()
    }

    /// Tells whether a name, in lower case, means HTTP/2 and nothing else.
    pub(super) fn is_http2(name: &str) -> bool {
        matches!(name, "http2" | "h2c" | "grpc")
    }

    /// The name that users are told.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Undeclared => "HTTP or TCP",
        }
    }

    /// The protocol of a name in lower case.
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
    /// The port that the workload calls so.
    Name(String),
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePort {
    pub(crate) key: PortKey,
    /// The name by which slices refer to the port; empty for the single port without a name.
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    /// Tells whether only HTTP/2 is spoken there.
    pub(crate) http2: bool,
    /// For workloads that aren't Pods: slices say it of theirs.
    pub(crate) target: TargetPort,
    /// The port of nodes at which it is reached, too.
    pub(crate) node_port: Option<u16>,
}

impl ServicePort {
    /// Tells whether requests may come to the port.
    pub(crate) fn may_have_requests(&self) -> bool {
        self.key.protocol == Transport::Tcp && matches!(self.protocol, Protocol::Http | Protocol::Undeclared)
    }
}

/// A valid Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) age: Age,
    /// The cluster IPs; none for a headless Service.
    pub(crate) vips: Vec<IpAddr>,
    /// Further addresses at which it is reached, each with the field that says so: of the families that its cluster IPs
    /// have, and none of these.
    pub(crate) external: Vec<(IpAddr, &'static str)>,
    /// In the order of their keys.
    pub(crate) ports: Vec<ServicePort>,
    /// The labels of the workloads that it selects; none where it selects none.
    pub(crate) selector: BTreeMap<String, String>,
    /// For so many seconds after its last connection a workload keeps to its endpoint; 0 where it doesn't.
    pub(crate) affinity: u32,
    /// Tells whether callers have the endpoints of their own node only.
    pub(crate) local: bool,
    /// The field by which it asks for what isn't known here: connections to it are left to kube-proxy.
    pub(crate) left: Option<&'static str>,
}

/// For so many seconds a workload keeps to its endpoint where a Service doesn't say for how many.
const AFFINITY: i32 = 10_800;
/// The most seconds that there may be: a day.
const LONGEST_AFFINITY: i32 = 86_400;

/// A Service with this label is another proxy's.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// Of `sessionAffinity`.
const CLIENT_IP: &str = "ClientIP";
/// Of `internalTrafficPolicy`.
const LOCAL: &str = "Local";

impl Service {
    /// One that asks for nothing in particular.
    pub(crate) const fn plain(
        age: Age,
        vips: Vec<IpAddr>,
        ports: Vec<ServicePort>,
        selector: BTreeMap<String, String>,
    ) -> Self {
        Self { age, vips, external: Vec::new(), ports, selector, affinity: 0, local: false, left: None }
    }

    /// Merges what both say; of what only one can say, `self` counts.
    pub(crate) fn merge(mut self, other: &Self) -> Self {
        self.vips.extend(&other.vips);
        self.vips.sort_unstable();
        self.vips.dedup();
        let fresh =
            other.ports.iter().filter(|port| self.port(port.key).is_none()).cloned().collect::<Vec<_>>();
        self.ports.extend(fresh);
        self.ports.sort_by_key(|port| port.key);
        self
    }

    /// The port with this key.
    pub(crate) fn port(&self, key: PortKey) -> Option<&ServicePort> {
        self.ports.binary_search_by_key(&key, |port| port.key).ok().map(|i| &self.ports[i])
    }
}

impl Read<v1::Service> for Service {
    /// Reads a Service; `None` when it must be refused.
    fn read(object: &v1::Service, _: &ObjectName, _: &CompileOptions, found: &mut Findings) -> Option<Self> {
        let age = Age::of(&object.metadata);
        let spec = object.spec.clone().unwrap_or_default();
        if spec.type_.as_deref() == Some("ExternalName") {
            found.note("spec.type", "a Service of type ExternalName has no cluster IP; it is left alone");
            return Some(Self::plain(age, Vec::new(), Vec::new(), BTreeMap::new()));
        }
        let mut vips = read_vips(&spec, found);
        let mut ports = read_ports(&spec, found);
        let labels = object.metadata.labels.as_ref();
        if let Some(proxy) = labels.and_then(|labels| labels.get(PROXY_NAME)) {
            let what =
                format!("the Service is that of the proxy {proxy:?}; connections to it are left to that");
            found.note(format!("metadata.labels.{PROXY_NAME}"), what);
            vips.clear();
        }
        let affinity = read_affinity(&spec, found);
        let known = |value: &Option<String>, known: &[&str]| {
            value.as_deref().is_none_or(|value| value.is_empty() || known.contains(&value))
        };
        let left = if !known(&spec.session_affinity, &["None", CLIENT_IP]) {
            Some("spec.sessionAffinity")
        } else if !known(&spec.internal_traffic_policy, &["Cluster", LOCAL]) {
            Some("spec.internalTrafficPolicy")
        } else {
            None
        };
        let local = spec.internal_traffic_policy.as_deref() == Some(LOCAL);
        let external = read_external(object, &vips, local, found);
        leave_node_ports(&spec, local, &mut ports, found);
        let selector = spec.selector.unwrap_or_default();
        let service = Self { age, vips, external, ports, selector, affinity, local, left };
        (!found.refused()).then_some(service)
    }
}

/// For how many seconds a workload keeps to its endpoint; 0 where it doesn't.
fn read_affinity(spec: &v1::ServiceSpec, found: &mut Findings) -> u32 {
    if spec.session_affinity.as_deref() != Some(CLIENT_IP) {
        return 0;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(AFFINITY);
    if !(1..=LONGEST_AFFINITY).contains(&seconds) {
        found.refuse(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format!("{seconds} is not between 1 and {LONGEST_AFFINITY}"),
        );
    }
    seconds.unsigned_abs()
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

/// `externalIPs`, and the addresses of a load balancer that are routed here (`ipMode: VIP`): connections from within the
/// cluster go to the Service's endpoints at once, whatever `externalTrafficPolicy` says.
fn read_external(
    object: &v1::Service,
    vips: &[IpAddr],
    local: bool,
    found: &mut Findings,
) -> Vec<(IpAddr, &'static str)> {
    const EXTERNAL: &str = "spec.externalIPs";
    const BALANCER: &str = "status.loadBalancer.ingress";
    let spec = object.spec.as_ref();
    let named = spec.into_iter().flat_map(|spec| spec.external_ips.iter().flatten());
    let balancer = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    let routed = ingress.filter(|one| one.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"));
    let ranges = spec.and_then(|spec| spec.load_balancer_source_ranges.as_ref());
    let is_ranged = ranges.is_some_and(|ranges| !ranges.is_empty());
    let all = named
        .map(|ip| (EXTERNAL, ip.as_str()))
        .chain(routed.filter_map(|one| one.ip.as_deref()).map(|ip| (BALANCER, ip)));
    let mut external: Vec<(IpAddr, &'static str)> = Vec::new();
    for (field, text) in all {
        let Ok(ip) = ip_address(text) else {
            found.unsupported(field, &format!("{text:?} is not an IP address and is left out"));
            continue;
        };
        let is_known = vips.contains(&ip) || external.iter().any(|(known, _)| *known == ip);
        if is_known || !vips.iter().any(|vip| vip.is_ipv4() == ip.is_ipv4()) {
            continue;
        }
        if local {
            let why = "with internalTrafficPolicy Local its cluster IPs have other endpoints";
            found.unsupported(field, &format!("{why}; connections to {ip} are left to kube-proxy"));
        } else if field == BALANCER && is_ranged {
            let why = "loadBalancerSourceRanges say who may connect";
            found.unsupported(field, &format!("{why}; connections to {ip} are left to kube-proxy"));
        } else {
            external.push((ip, field));
        }
    }
    external
}

/// NodePorts are left to kube-proxy where they have other endpoints than the cluster IPs.
fn leave_node_ports(spec: &v1::ServiceSpec, local: bool, ports: &mut [ServicePort], found: &mut Findings) {
    let has_type = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
    let why = match spec.external_traffic_policy.as_deref() {
        Some(LOCAL) => Some((
            "spec.externalTrafficPolicy",
            "at a NodePort, Local means the endpoints of the node that is connected to",
        )),
        _ if local => Some((
            "spec.internalTrafficPolicy",
            "at a NodePort there are other endpoints than those of the caller's node",
        )),
        _ => None,
    };
    if has_type && why.is_none() {
        return;
    }
    let mut left = ports.iter_mut().filter_map(|port| port.node_port.take()).collect::<Vec<_>>();
    left.sort_unstable();
    if let Some((field, why)) = why.filter(|_| has_type && !left.is_empty()) {
        found.unsupported(field, &format!("{why}; connections to NodePorts are left to kube-proxy"));
    }
}

fn read_ports(spec: &v1::ServiceSpec, found: &mut Findings) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    let mut keys = BTreeSet::new();
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
        let Some(protocol) = Transport::named(port.protocol.as_deref()) else {
            let other = port.protocol.as_deref().unwrap_or_default();
            let consequence = format!("{other} port {number} is left alone");
            found.unsupported(format!("spec.ports[{i}].protocol"), &consequence);
            continue;
        };
        let key = PortKey { number, protocol };
        if !keys.insert(key) {
            let fault = format!("{protocol} port {number} stands there twice; remove one");
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
        let node_port = port.node_port.filter(|number| *number != 0);
        let node_port = node_port.and_then(|number| {
            let valid = port_number(number);
            if valid.is_none() {
                let fault = format!("{number} is not a port; ports are 1 to 65535");
                found.refuse(format!("spec.ports[{i}].nodePort"), fault);
            }
            valid
        });
        let declared = Protocol::declared(port);
        let (protocol, http2) = (Protocol::named(&declared), Protocol::is_http2(&declared));
        ports.push(ServicePort { key, name, protocol, http2, target, node_port });
    }
    ports.sort_by_key(|port| port.key);
    ports
}
