//! Istio's kinds.

use std::collections::BTreeMap;

use slotmesh_crds as crds;

/// Builds a Sidecar.
#[derive(Clone, Debug)]
pub struct SidecarBuilder(pub crds::Sidecar);

/// A Sidecar in namespace `default` whose callers see these hosts.
pub fn sidecar(name: &str, hosts: &[&str]) -> SidecarBuilder {
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    let egress = vec![crds::EgressListener { hosts, ..Default::default() }];
    SidecarBuilder(crds::Sidecar::new(name, crds::SidecarSpec { egress, ..Default::default() }))
}

impl SidecarBuilder {
    /// Connections to what they don't see are refused.
    #[must_use]
    pub fn registry_only(mut self) -> Self {
        let mode = Some("REGISTRY_ONLY".to_owned());
        self.0.spec.outbound_traffic_policy =
            Some(crds::OutboundTrafficPolicy { mode, ..Default::default() });
        self
    }

    /// For callers with this label.
    #[must_use]
    pub fn select(mut self, key: &str, value: &str) -> Self {
        let selector = self.0.spec.workload_selector.get_or_insert_default();
        selector.labels.insert(key.to_owned(), value.to_owned());
        self
    }
}

/// Builds a VirtualService.
#[derive(Clone, Debug)]
pub struct VirtualServiceBuilder(pub crds::VirtualService);

/// A VirtualService in namespace `default` for this host.
pub fn virtual_service(name: &str, host: &str) -> VirtualServiceBuilder {
    let spec = crds::VirtualServiceSpec { hosts: vec![host.to_owned()], ..Default::default() };
    VirtualServiceBuilder(crds::VirtualService::new(name, spec))
}

/// A destination with a weight, from `host` or `host/subset`.
pub fn to(host_and_subset: &str, weight: i32) -> crds::RouteDestination {
    let (host, subset) = match host_and_subset.split_once('/') {
        Some((host, subset)) => (host, Some(subset.to_owned())),
        None => (host_and_subset, None),
    };
    crds::RouteDestination {
        destination: crds::Destination { host: host.to_owned(), subset, ..Default::default() },
        weight: Some(weight),
        ..Default::default()
    }
}

impl VirtualServiceBuilder {
    /// One more host.
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        self.0.spec.hosts.push(host.to_owned());
        self
    }

    /// A HTTP route for all connections.
    #[must_use]
    pub fn http(self, destinations: impl IntoIterator<Item = crds::RouteDestination>) -> Self {
        let route = destinations.into_iter().collect();
        self.http_route(crds::HttpRoute { route, ..Default::default() })
    }

    /// Any HTTP route.
    #[must_use]
    pub fn http_route(mut self, route: crds::HttpRoute) -> Self {
        self.0.spec.http.push(route);
        self
    }

    /// A TCP route for all connections.
    #[must_use]
    pub fn tcp(mut self, destinations: impl IntoIterator<Item = crds::RouteDestination>) -> Self {
        let route = destinations.into_iter().collect();
        self.0.spec.tcp.push(crds::TcpRoute { route, ..Default::default() });
        self
    }
}

/// Builds a DestinationRule.
#[derive(Clone, Debug)]
pub struct RuleBuilder(pub crds::DestinationRule);

/// A DestinationRule in namespace `default` for this host.
pub fn rule(name: &str, host: &str) -> RuleBuilder {
    let spec = crds::DestinationRuleSpec { host: host.to_owned(), ..Default::default() };
    RuleBuilder(crds::DestinationRule::new(name, spec))
}

impl RuleBuilder {
    /// A subset of the pods with this label `version`, under the version's name.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        self.0.spec.subsets.push(crds::RuleSubset {
            name: version.to_owned(),
            labels: BTreeMap::from([("version".to_owned(), version.to_owned())]),
            ..Default::default()
        });
        self
    }

    /// Balances by this algorithm.
    #[must_use]
    pub fn balance(mut self, simple: &str) -> Self {
        let policy = self.0.spec.traffic_policy.get_or_insert_default();
        policy.load_balancer.get_or_insert_default().simple = Some(simple.to_owned());
        self
    }
}

/// Builds a ServiceEntry.
#[derive(Clone, Debug)]
pub struct EntryBuilder(pub crds::ServiceEntry);

/// A ServiceEntry in namespace `default` for this host, of resolution STATIC.
pub fn service_entry(name: &str, host: &str) -> EntryBuilder {
    let resolution = Some("STATIC".to_owned());
    let spec = crds::ServiceEntrySpec { hosts: vec![host.to_owned()], resolution, ..Default::default() };
    EntryBuilder(crds::ServiceEntry::new(name, spec))
}

/// An endpoint at this address, with this label `version`.
pub fn workload(ip: &str, version: &str) -> crds::WorkloadEntrySpec {
    let labels = BTreeMap::from([("version".to_owned(), version.to_owned())]);
    crds::WorkloadEntrySpec { address: ip.to_owned(), labels, ..Default::default() }
}

impl EntryBuilder {
    /// One more address.
    #[must_use]
    pub fn ip(mut self, ip: &str) -> Self {
        self.0.spec.addresses.push(ip.to_owned());
        self
    }

    /// One more TCP port, whose endpoints have the port `target`.
    #[must_use]
    pub fn port(mut self, name: &str, number: u32, target: u32) -> Self {
        self.0.spec.ports.push(crds::EntryPort {
            number,
            name: name.to_owned(),
            protocol: Some("TCP".to_owned()),
            target_port: Some(target),
            ..Default::default()
        });
        self
    }

    /// A UDP port of this name, and the port of the endpoints.
    #[must_use]
    pub fn udp_port(mut self, name: &str, number: u32, target: u32) -> Self {
        self = self.port(name, number, target);
        if let Some(port) = self.0.spec.ports.last_mut() {
            port.protocol = Some("UDP".to_owned());
        }
        self
    }

    /// One more endpoint.
    #[must_use]
    pub fn endpoint(mut self, endpoint: crds::WorkloadEntrySpec) -> Self {
        self.0.spec.endpoints.push(endpoint);
        self
    }

    /// Selects workloads with this label.
    #[must_use]
    pub fn select(mut self, key: &str, value: &str) -> Self {
        let selector = self.0.spec.workload_selector.get_or_insert_default();
        selector.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With this changed.
    #[must_use]
    pub fn set(mut self, set: impl FnOnce(&mut crds::ServiceEntrySpec)) -> Self {
        set(&mut self.0.spec);
        self
    }
}

/// Builds a WorkloadEntry.
#[derive(Clone, Debug)]
pub struct WorkloadBuilder(pub crds::WorkloadEntry);

/// A WorkloadEntry in namespace `default` at this address.
pub fn workload_entry(name: &str, ip: &str) -> WorkloadBuilder {
    let spec = crds::WorkloadEntrySpec { address: ip.to_owned(), ..Default::default() };
    WorkloadBuilder(crds::WorkloadEntry::new(name, spec))
}

impl WorkloadBuilder {
    /// One more label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0.spec.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Its port for the service's port of this name.
    #[must_use]
    pub fn port(mut self, name: &str, number: u32) -> Self {
        self.0.spec.ports.insert(name.to_owned(), number);
        self
    }

    /// With this weight.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.0.spec.weight = Some(weight);
        self
    }
}
