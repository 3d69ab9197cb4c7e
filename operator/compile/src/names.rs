//! Names of the compiled resources.

use std::net::IpAddr;

use crate::{ServiceId, port::PortKey};

/// The name of the cluster that refuses connections: what a route says and can't be resolved leads there.
pub(crate) const BLACK_HOLE: &str = "BlackHoleCluster";

/// The name of a cluster that there never is: requests whose destination can't be resolved are sent there, which
/// answers them with 500.
pub(crate) const INVALID_BACKEND: &str = "InvalidBackend";

/// The name of the cluster that leaves connections as they are.
pub(crate) const PASSTHROUGH: &str = "PassthroughCluster";

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

#[cfg(test)]
mod tests {
    use slotmesh_xds::Transport;

    use super::*;

    #[test]
    fn names_of_resources() {
        let long = "x".repeat(253);
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
    }
}
