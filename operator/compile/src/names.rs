//! Names of the compiled resources, and host names of Services.

use std::net::IpAddr;

use crate::{ObjectName, domain::cluster_domain, model::PortKey};

/// The name of the cluster that refuses connections: what a route says and can't be resolved leads there.
pub(crate) const BLACK_HOLE: &str = "BlackHoleCluster";

/// The name of a cluster that there never is: requests whose destination can't be resolved are sent there, which
/// answers them with 500.
pub(crate) const INVALID_BACKEND: &str = "InvalidBackend";

/// The name of the cluster that leaves connections as they are.
pub(crate) const PASSTHROUGH: &str = "PassthroughCluster";

/// The longest name that an object may have (a DNS subdomain).
pub(crate) const MAX_NAME: usize = 253;

impl ObjectName {
    /// The full host name of the Service with this name.
    pub(crate) fn host(&self) -> String {
        format!("{}.{}.svc.{}", self.name, self.namespace, cluster_domain())
    }

    /// The host of a ServiceEntry that has this name.
    pub(crate) fn external_host(&self) -> String {
        match &*self.namespace {
            "" => self.name.to_string(),
            rest => format!("{}.{rest}", self.name),
        }
    }
}

/// What users are told where nothing has this name.
pub(crate) fn absent(name: &ObjectName) -> String {
    match &*name.namespace {
        "" => format!("no ServiceEntry has the host {name}"),
        _ => format!("there is no Service {name}"),
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

/// What a host means for an object in `namespace`: the Service `web`, `web.shop`, `web.shop.svc` or
/// `web.shop.svc.cluster.local` (with the domain of the cluster); any other host by its whole name, in no namespace. `None` when it can't be one
/// host.
///
/// A host of two parts, such as `example.com`, can be a Service's or a ServiceEntry's: for both it is the name
/// `example` in the namespace `com`, and the index knows whose it is.
pub(crate) fn resolve_host(host: &str, namespace: &str) -> Option<ObjectName> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || host.contains('*') {
        return None;
    }
    let qualified = host
        .strip_suffix(cluster_domain())
        .and_then(|h| h.strip_suffix(".svc."))
        .or_else(|| host.strip_suffix(".svc"));
    match qualified {
        Some(qualified) => {
            // A namespace has no dot; a Service name of a manifest may.
            let (name, namespace) = qualified.rsplit_once('.')?;
            Some(ObjectName::new(namespace, name))
        }
        None => match host.split_once('.') {
            None => Some(ObjectName::new(namespace, host)),
            Some((name, namespace)) if !namespace.contains('.') => Some(ObjectName::new(namespace, name)),
            Some(_) => Some(ObjectName::new("", host)),
        },
    }
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
    fn hosts_resolve_in_every_form() {
        let web = Some(ObjectName::new("shop", "web"));
        for host in
            ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "web.shop.svc.cluster.local."]
        {
            assert_eq!(resolve_host(host, "shop"), web, "{host}");
        }
        assert_eq!(resolve_host("www.example.com.", "shop"), Some(ObjectName::new("", "www.example.com")));
        for host in ["", "*", "*.shop.svc.cluster.local", "web.svc"] {
            let resolved = resolve_host(host, "shop");
            assert!(resolved.is_none(), "{host}: {resolved:?}");
        }
        assert_eq!(resolve_host("a.b.shop.svc.cluster.local", "x"), Some(ObjectName::new("shop", "a.b")));
    }

    #[test]
    fn names_of_resources() {
        let long = "x".repeat(MAX_NAME);
        let service = ObjectName::new("shop", long.as_str());
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
