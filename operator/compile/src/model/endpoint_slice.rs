//! EndpointSlices: the addresses behind a Service.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::api::discovery::v1;
use slotmesh_xds::Transport;

use super::{Read, ServicePort, ip_address, port_number};
use crate::{CompileOptions, ObjectName, report::Findings};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) ip: IpAddr,
    pub(crate) ready: bool,
    /// Used when no endpoint is ready: it still serves while it terminates.
    pub(crate) fallback: bool,
    /// The Pod behind it, where the slice names one.
    pub(crate) pod: Option<ObjectName>,
    /// The node that it is on, where the slice names one.
    pub(crate) node: Option<Box<str>>,
    /// Its zone, where the slice names one.
    pub(crate) zone: Option<Box<str>>,
    /// Whose callers it is meant for, where it is meant for some.
    pub(crate) hints: Option<Box<Hints>>,
}

/// For whom an endpoint is meant: what `trafficDistribution`, or the annotation for it, makes of the EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hints {
    /// By their names, sorted.
    pub(crate) nodes: Vec<String>,
    /// By their names, sorted.
    pub(crate) zones: Vec<String>,
}

impl Hints {
    /// `None` where there are none.
    fn read(endpoint: &v1::Endpoint) -> Option<Box<Self>> {
        let hints = endpoint.hints.as_ref()?;
        let nodes = hints.for_nodes.iter().flatten().map(|node| node.name.clone());
        let zones = hints.for_zones.iter().flatten().map(|zone| zone.name.clone());
        let sorted = |names: BTreeSet<String>| names.into_iter().collect();
        let hints = Self { nodes: sorted(nodes.collect()), zones: sorted(zones.collect()) };
        (hints != Self::default()).then(|| Box::new(hints))
    }
}

/// A port of a slice's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlicePort {
    /// The name of the Service's port.
    pub(crate) name: String,
    pub(crate) number: u16,
    pub(crate) protocol: Transport,
}

impl SlicePort {
    /// Tells whether it stands behind this port of the Service.
    pub(crate) fn is_of(&self, port: &ServicePort) -> bool {
        self.name == port.name && self.protocol == port.key.protocol
    }
}

/// The usable part of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointSlice {
    pub(crate) service: Option<ObjectName>,
    pub(crate) ports: Vec<SlicePort>,
    pub(crate) endpoints: Vec<Endpoint>,
}

impl Read<v1::EndpointSlice> for EndpointSlice {
    /// Reads a slice; `None` when it must be refused: a port that can't be, or an unknown address type,
    /// would take every endpoint of the slice away. A single endpoint that is wrong is left out, and
    /// the others work.
    fn read(
        object: &v1::EndpointSlice,
        key: &ObjectName,
        _: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        let label = object.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
        let service = label.map(|name| ObjectName::new(key.namespace.clone(), name.as_str()));
        if service.is_none() {
            found.note(
                "metadata.labels",
                format!("the label {SERVICE_LABEL} is missing, so these endpoints belong to no Service"),
            );
        }
        let v4 = match object.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            "FQDN" => {
                found.unsupported("addressType", "endpoints of type \"FQDN\" are not used");
                return Some(Self { service, ports: Vec::new(), endpoints: Vec::new() });
            }
            other => {
                found.refuse("addressType", format!("{other:?} is no address type; it is IPv4 or IPv6"));
                return None;
            }
        };
        let endpoints = object.endpoints.iter().enumerate();
        Some(Self {
            service,
            ports: read_ports(object, found)?,
            endpoints: endpoints.filter_map(|(i, e)| read_endpoint(i, e, v4, key, found)).collect(),
        })
    }
}

/// `None` where one can't be.
fn read_ports(object: &v1::EndpointSlice, found: &mut Findings) -> Option<Vec<SlicePort>> {
    let mut ports = Some(Vec::new());
    for (i, port) in object.ports.iter().flatten().enumerate() {
        // Where it is another one, the Service's port says so already.
        let Some(protocol) = Transport::named(port.protocol.as_deref()) else { continue };
        let field = format!("ports[{i}].port");
        match port.port {
            None => found.unsupported(field, "a slice for all ports is not used"),
            Some(number) => match port_number(number) {
                Some(number) => {
                    let name = port.name.clone().unwrap_or_default();
                    ports.iter_mut().for_each(|ports| {
                        ports.push(SlicePort { name: name.clone(), number, protocol });
                    });
                }
                None => {
                    found.refuse(field, format!("{number} is not a port; ports are 1 to 65535"));
                    ports = None;
                }
            },
        }
    }
    ports
}

fn read_endpoint(
    i: usize,
    endpoint: &v1::Endpoint,
    v4: bool,
    key: &ObjectName,
    found: &mut Findings,
) -> Option<Endpoint> {
    // Kubernetes defines all addresses of an endpoint as the same thing; consumers use the first.
    let Some(text) = endpoint.addresses.first() else {
        let field = format!("endpoints[{i}].addresses");
        found.refuse(field, "the endpoint has no address and is left out; the others are used");
        return None;
    };
    let field = format!("endpoints[{i}].addresses[0]");
    let ip = match ip_address(text) {
        Ok(ip) if ip.is_ipv4() == v4 => ip,
        Ok(ip) => {
            found.refuse(field, format!("{ip} is not of the slice's addressType and is left out"));
            return None;
        }
        Err(fault) => {
            found.refuse(field, format!("{fault}; the endpoint is left out, the others are used"));
            return None;
        }
    };
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let serving = conditions.serving.unwrap_or(true);
    let terminating = conditions.terminating.unwrap_or(false);
    let target = endpoint.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod"));
    let pod = target.and_then(|t| {
        let namespace = t.namespace.as_deref().unwrap_or(&key.namespace);
        t.name.as_deref().map(|name| ObjectName::new(namespace, name))
    });
    let node = endpoint.node_name.as_deref().filter(|node| !node.is_empty()).map(Box::from);
    let zone = endpoint.zone.as_deref().filter(|zone| !zone.is_empty()).map(Box::from);
    let hints = Hints::read(endpoint);
    Some(Endpoint { ip, ready, fallback: serving && terminating, pod, node, zone, hints })
}
