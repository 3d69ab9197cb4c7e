//! Identity and host names of what connections are made to.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use crate::{ObjectName, domain::cluster_domain};

/// A Service, or a host of ServiceEntries: what a reference leads to once it is read. Cheap to clone.
///
/// A host of two labels, such as `example.com`, can be that of the Service `example` in the namespace `com`, or of a
/// ServiceEntry. For both it is [`ServiceId::Service`], and the index knows whose it is. Hosts go before Services.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceId {
    /// A host that can't be a Service's, by its whole name.
    Host(Arc<str>),
    /// A Service, or a host that can be one's.
    Service(ObjectName),
}

impl ServiceId {
    /// The Service of this name.
    pub fn service(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self::Service(ObjectName::new(namespace, name))
    }

    /// The meaning of a host for an object in `namespace`: the Service `web`, `web.shop`, `web.shop.svc` or
    /// `web.shop.svc.cluster.local` (with the domain of the cluster); any other host by its whole name. `None` when it
    /// can't be one host.
    pub(crate) fn of_host(host: &str, namespace: &str) -> Option<Self> {
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
                Some(Self::service(namespace, name))
            }
            None => match host.split_once('.') {
                None => Some(Self::service(namespace, host)),
                Some((name, namespace)) if !namespace.contains('.') => Some(Self::service(namespace, name)),
                Some(_) => Some(Self::Host(Arc::from(host))),
            },
        }
    }

    /// The name of the Service, where it can be one.
    pub const fn object(&self) -> Option<&ObjectName> {
        match self {
            Self::Host(_) => None,
            Self::Service(name) => Some(name),
        }
    }

    /// The namespace of the Service; empty where it can't be one.
    pub(crate) fn namespace(&self) -> &Arc<str> {
        static NONE: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(""));
        self.object().map_or_else(|| &*NONE, |name| &name.namespace)
    }

    /// The full host name, where it is that of a Service if it can be one.
    pub(crate) fn host(&self) -> String {
        match self {
            Self::Host(host) => host.to_string(),
            Self::Service(name) => format!("{}.{}.svc.{}", name.name, name.namespace, cluster_domain()),
        }
    }

    /// The host of a ServiceEntry that it is.
    pub(crate) fn external_host(&self) -> String {
        match self {
            Self::Host(host) => host.to_string(),
            Self::Service(name) => format!("{}.{}", name.name, name.namespace),
        }
    }
}

impl From<ObjectName> for ServiceId {
    fn from(service: ObjectName) -> Self {
        Self::Service(service)
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => f.write_str(host),
            Self::Service(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_resolve_in_every_form() {
        let web = Some(ServiceId::service("shop", "web"));
        for host in
            ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "web.shop.svc.cluster.local."]
        {
            assert_eq!(ServiceId::of_host(host, "shop"), web, "{host}");
        }
        let external = ServiceId::of_host("www.example.com.", "shop").unwrap();
        assert_eq!(external, ServiceId::Host("www.example.com".into()));
        assert_eq!((external.host(), external.object()), ("www.example.com".to_owned(), None));
        for host in ["", "*", "*.shop.svc.cluster.local", "web.svc"] {
            let resolved = ServiceId::of_host(host, "shop");
            assert!(resolved.is_none(), "{host}: {resolved:?}");
        }
        assert_eq!(
            ServiceId::of_host("a.b.shop.svc.cluster.local", "x"),
            Some(ServiceId::service("shop", "a.b"))
        );
    }

    #[test]
    fn a_host_of_two_labels_may_be_either() {
        let id = ServiceId::of_host("example.com", "shop").unwrap();
        assert_eq!(id.host(), "example.com.svc.cluster.local");
        assert_eq!(id.external_host(), "example.com");
        assert!(ServiceId::Host("www.example.com".into()) < id);
    }
}
