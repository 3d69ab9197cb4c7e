//! The names of both ends of a connection: a workload from its pod's name, a Service from the name of a cluster.

/// Letters and digits of which Kubernetes makes the ends of generated names.
const GENERATED: &str = "bcdfghjklmnpqrstvwxz2456789";

/// The destination of a cluster, as its name tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Destination {
    /// The whole host name; that of the cluster where it has no such form.
    pub host: String,
    /// The name of the Service; the host where it is none.
    pub name: String,
    /// Its namespace; `unknown` where it has none.
    pub namespace: String,
    /// The port; 0 where it isn't known.
    pub port: u16,
    /// The subset; empty where it is the whole Service.
    pub subset: String,
}

impl Destination {
    /// That of a cluster of this name: `outbound|PORT|SUBSET|HOST`, as Istio has them, too.
    pub fn of_cluster(cluster: &str) -> Self {
        let mut parts = cluster.splitn(4, '|');
        let (Some("outbound"), Some(port), Some(subset), Some(host)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Self {
                host: cluster.to_owned(),
                name: cluster.to_owned(),
                namespace: UNKNOWN.to_owned(),
                ..Self::default()
            };
        };
        let mut labels = host.splitn(4, '.');
        let (name, namespace) = match (labels.next(), labels.next(), labels.next()) {
            (Some(name), Some(namespace), Some("svc")) => (name, namespace),
            _ => (host, UNKNOWN),
        };
        // Callers for whom it is another one have a further part in the name.
        let (host, name) = (host.split('|').next().unwrap_or(host), name.split('|').next().unwrap_or(name));
        Self {
            host: host.to_owned(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            port: port.parse().unwrap_or(0),
            subset: subset.to_owned(),
        }
    }
}

/// The word where nobody knows.
pub(super) const UNKNOWN: &str = "unknown";

/// The workload that a pod belongs to, by the form of its name: of a Deployment, a DaemonSet or a Job without the ends that
/// are generated, of a StatefulSet without its number. Any other name is its own.
pub(super) fn workload_of(pod: &str) -> &str {
    let generated = |part: &str, lengths: std::ops::RangeInclusive<usize>| {
        lengths.contains(&part.len()) && part.chars().all(|c| GENERATED.contains(c))
    };
    let Some((rest, last)) = pod.rsplit_once('-').filter(|(rest, _)| !rest.is_empty()) else { return pod };
    if !last.is_empty() && last.len() <= 4 && last.chars().all(|c| c.is_ascii_digit()) {
        return rest;
    }
    if !generated(last, 5..=5) {
        return pod;
    }
    match rest.rsplit_once('-') {
        // The hash of a pod template has at least a digit in nearly all cases; a word that has none is a name.
        Some((workload, hash))
            if !workload.is_empty()
                && generated(hash, 6..=10)
                && hash.chars().any(|c| c.is_ascii_digit()) =>
        {
            workload
        }
        _ => rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_tells_the_service() {
        let found = Destination::of_cluster("outbound|80|v1|web.shop.svc.cluster.local");
        assert_eq!(
            (&*found.host, &*found.name, &*found.namespace),
            ("web.shop.svc.cluster.local", "web", "shop")
        );
        assert_eq!((found.port, &*found.subset), (80, "v1"));
        let found = Destination::of_cluster("outbound|443||api.example.com");
        assert_eq!(
            (&*found.host, &*found.name, &*found.namespace),
            ("api.example.com", "api.example.com", UNKNOWN)
        );
        assert_eq!((found.port, &*found.subset), (443, ""));
        let found = Destination::of_cluster("BlackHoleCluster");
        assert_eq!((&*found.host, &*found.namespace, found.port), ("BlackHoleCluster", UNKNOWN, 0));
    }

    #[test]
    fn a_pod_tells_the_workload() {
        for (pod, workload) in [
            ("web-7d9f8c6b54-x2x4z", "web"),
            ("my-web-5b8f9d7c4-zzzzz", "my-web"),
            ("agent-x2x4z", "agent"),
            ("db-0", "db"),
            ("db-12", "db"),
            ("client", "client"),
            ("web-client", "web-client"),
            ("backup-28391440-x2x4z", "backup-28391440"),
            ("-0", "-0"),
            ("", ""),
        ] {
            assert_eq!(workload_of(pod), workload, "{pod}");
        }
    }
}
