//! Names of the compiled resources.

use std::net::IpAddr;

use crate::{ServiceId, model::PortKey};

/// The name of the cluster that refuses connections: what a route says and can't be resolved leads there.
pub(crate) const BLACK_HOLE: &str = "BlackHoleCluster";

/// The name of a cluster that there never is: requests whose destination can't be resolved are sent there, which
/// answers them with 500.
pub(crate) const INVALID_BACKEND: &str = "InvalidBackend";

/// The name of the cluster that leaves connections as they are.
pub(crate) const PASSTHROUGH: &str = "PassthroughCluster";

/// The longest name that an object may have (a DNS subdomain).
pub(crate) const MAX_NAME: usize = 253;

/// The text for users where nothing has this name.
pub(crate) fn not_found(id: &ServiceId) -> String {
    match id {
        ServiceId::Host(host) => format!("no ServiceEntry has the host {host}"),
        ServiceId::Service(name) => format!("there is no Service {name}"),
    }
}

/// The name of the cluster (and of its assignment) of a port of a host, or of a subset of it.
pub(crate) fn cluster_name(host: &str, port: PortKey, subset: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// The name of the route configuration of a port of a host.
pub(crate) fn route_name(host: &str, port: PortKey) -> String {
    format!("{port}|{host}")
}

/// The name of the route configuration of a port of a host for callers of this class and others that have the same.
pub(crate) fn callers_route_name(host: &str, port: PortKey, class: &str) -> String {
    format!("{port}|{host}|{class}")
}

/// The name of the listener of a cluster IP and port.
pub(crate) fn listener_name(ip: IpAddr, port: PortKey) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{ip}_{port}"),
        IpAddr::V6(ip) => format!("[{ip}]_{port}"),
    }
}

/// The name of the listener that tells a node's addresses: none of the others', which begin with an address.
pub(crate) fn node_listener_name(node: &str) -> String {
    format!("node/{node}")
}

/// Why this can't be the name of an object, if it can't.
pub(crate) fn name_fault(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("is empty".to_owned());
    }
    if name.len() > MAX_NAME {
        return Some(format!("has {} characters, the longest allowed name has {MAX_NAME}", name.len()));
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    name.chars()
        .find(|c| !allowed(*c))
        .map(|c| format!("contains {c:?}; use lower-case letters, digits, '-' and '.'"))
}

#[cfg(test)]
mod tests {
    use slotmesh_xds::Transport;

    use super::*;

    #[test]
    fn names_of_resources() {
        let long = "x".repeat(MAX_NAME);
        let service = ServiceId::service("shop", long.as_str());
        assert_eq!(
            cluster_name(&service.host(), PortKey::tcp(80), "v1"),
            format!("outbound|80|v1|{long}.shop.svc.cluster.local")
        );
        assert_eq!(listener_name("10.0.0.1".parse().unwrap(), PortKey::tcp(80)), "10.0.0.1_80");
        assert_eq!(listener_name("fd00:0::1".parse().unwrap(), PortKey::tcp(80)), "[fd00::1]_80");
        let dns = PortKey { number: 53, protocol: Transport::Udp };
        assert_eq!(listener_name("10.0.0.1".parse().unwrap(), dns), "10.0.0.1_53/UDP");
        assert_eq!(cluster_name("a.b.svc", dns, ""), "outbound|53/UDP||a.b.svc");
        assert!(name_fault(&long).is_none());
        assert!(name_fault(&"x".repeat(MAX_NAME + 1)).unwrap().contains("254 characters"));
        assert!(name_fault("a|b").is_some());
    }
}
