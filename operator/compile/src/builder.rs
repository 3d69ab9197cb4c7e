//! Builders of objects, for tests and benches: `service("web").ip("10.0.0.1").port(80).build()`.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{
            Node, NodeAddress, ObjectReference, Pod, PodCondition, PodIP, PodStatus, Service, ServicePort,
            ServiceSpec,
        },
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use slotmesh_crds as crds;

use crate::Object;

fn meta(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

macro_rules! meta_setters {
    ($($builder:ty),*) => {$(
        impl $builder {
            /// In this namespace instead of `default`.
            #[must_use]
            pub fn namespace(mut self, namespace: &str) -> Self {
                self.0.metadata.namespace = Some(namespace.to_owned());
                self
            }

            /// Created this many seconds after the epoch.
            #[must_use]
            pub fn created(mut self, seconds: i64) -> Self {
                self.0.metadata.creation_timestamp = Timestamp::from_second(seconds).ok().map(Time);
                self
            }

            /// The object.
            #[must_use]
            pub fn build(self) -> Object {
                self.0.into()
            }
        }
    )*};
}
meta_setters!(
    ServiceBuilder,
    SliceBuilder,
    PodBuilder,
    VirtualServiceBuilder,
    RuleBuilder,
    EntryBuilder,
    WorkloadBuilder,
    NodeBuilder,
    ProfileBuilder,
    PolicyBuilder,
    GrpcRouteBuilder,
    HttpRouteBuilder,
    TlsRouteBuilder,
    TcpRouteBuilder,
    GrantBuilder,
    SidecarBuilder
);

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

/// Builds a Service.
#[derive(Clone, Debug)]
pub struct ServiceBuilder(pub Service);

/// A Service in namespace `default`.
pub fn service(name: &str) -> ServiceBuilder {
    ServiceBuilder(Service { metadata: meta(name), spec: Some(ServiceSpec::default()), status: None })
}

impl ServiceBuilder {
    fn spec(&mut self) -> &mut ServiceSpec {
        self.0.spec.get_or_insert_default()
    }

    /// One more cluster IP.
    #[must_use]
    pub fn ip(mut self, ip: &str) -> Self {
        let spec = self.spec();
        spec.cluster_ip.get_or_insert_with(|| ip.to_owned());
        spec.cluster_ips.get_or_insert_default().push(ip.to_owned());
        self
    }

    /// A TCP port without name.
    #[must_use]
    pub fn port(self, number: i32) -> Self {
        self.full_port(ServicePort { port: number, ..ServicePort::default() })
    }

    /// A TCP port with this name.
    #[must_use]
    pub fn named_port(self, name: &str, number: i32) -> Self {
        self.full_port(ServicePort { name: Some(name.to_owned()), port: number, ..ServicePort::default() })
    }

    /// A UDP port with this name.
    #[must_use]
    pub fn udp_port(self, name: &str, number: i32) -> Self {
        let (name, protocol) = (Some(name.to_owned()), Some("UDP".to_owned()));
        self.full_port(ServicePort { name, protocol, port: number, ..ServicePort::default() })
    }

    /// Any port.
    #[must_use]
    pub fn full_port(mut self, port: ServicePort) -> Self {
        self.spec().ports.get_or_insert_default().push(port);
        self
    }

    /// A NodePort for the port that was added last.
    #[must_use]
    pub fn node_port(mut self, number: i32) -> Self {
        let spec = self.spec();
        spec.type_ = Some("NodePort".to_owned());
        if let Some(port) = spec.ports.iter_mut().flatten().last() {
            port.node_port = Some(number);
        }
        self
    }

    /// Selects pods with this label.
    #[must_use]
    pub fn selector(mut self, key: &str, value: &str) -> Self {
        self.spec().selector.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        self
    }
}

/// Builds an EndpointSlice.
#[derive(Clone, Debug)]
pub struct SliceBuilder(pub EndpointSlice);

/// An IPv4 EndpointSlice of `service` in namespace `default`.
pub fn slice(name: &str, service: &str) -> SliceBuilder {
    let mut slice =
        EndpointSlice { address_type: "IPv4".to_owned(), metadata: meta(name), ..EndpointSlice::default() };
    let labels = slice.metadata.labels.get_or_insert_default();
    labels.insert("kubernetes.io/service-name".to_owned(), service.to_owned());
    SliceBuilder(slice)
}

impl SliceBuilder {
    /// The endpoints' port for the Service port without name.
    #[must_use]
    pub fn port(self, number: i32) -> Self {
        self.named_port("", number)
    }

    /// The endpoints' port for the Service port with this name.
    #[must_use]
    pub fn named_port(mut self, name: &str, number: i32) -> Self {
        self.0.ports.get_or_insert_default().push(EndpointPort {
            name: Some(name.to_owned()),
            port: Some(number),
            ..EndpointPort::default()
        });
        self
    }

    /// The endpoints' UDP port for the Service port with this name.
    #[must_use]
    pub fn udp_port(mut self, name: &str, number: i32) -> Self {
        self.0.ports.get_or_insert_default().push(EndpointPort {
            name: Some(name.to_owned()),
            port: Some(number),
            protocol: Some("UDP".to_owned()),
            ..EndpointPort::default()
        });
        self
    }

    /// A ready endpoint. An IPv6 address makes this a slice of IPv6 endpoints.
    #[must_use]
    pub fn endpoint(self, ip: &str) -> Self {
        self.full_endpoint(Endpoint { addresses: vec![ip.to_owned()], ..Endpoint::default() })
    }

    /// An endpoint with these conditions: ready, serving, terminating.
    #[must_use]
    pub fn endpoint_when(self, ip: &str, ready: bool, serving: bool, terminating: bool) -> Self {
        let conditions =
            EndpointConditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) };
        self.full_endpoint(Endpoint {
            addresses: vec![ip.to_owned()],
            conditions: Some(conditions),
            ..Endpoint::default()
        })
    }

    /// A ready endpoint that is this pod.
    #[must_use]
    pub fn pod_endpoint(self, ip: &str, pod: &str) -> Self {
        let target = ObjectReference {
            kind: Some("Pod".to_owned()),
            name: Some(pod.to_owned()),
            ..ObjectReference::default()
        };
        self.full_endpoint(Endpoint {
            addresses: vec![ip.to_owned()],
            target_ref: Some(target),
            ..Endpoint::default()
        })
    }

    /// Any endpoint.
    #[must_use]
    pub fn full_endpoint(mut self, endpoint: Endpoint) -> Self {
        if endpoint.addresses.first().is_some_and(|a| a.contains(':')) {
            "IPv6".clone_into(&mut self.0.address_type);
        }
        self.0.endpoints.push(endpoint);
        self
    }
}

/// Builds a Pod.
#[derive(Clone, Debug)]
pub struct PodBuilder(pub Pod);

/// A Pod in namespace `default`.
pub fn pod(name: &str) -> PodBuilder {
    PodBuilder(Pod { metadata: meta(name), ..Pod::default() })
}

impl PodBuilder {
    /// One more label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.labels.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// One more address.
    #[must_use]
    pub fn ip(mut self, ip: &str) -> Self {
        let status: &mut PodStatus = self.0.status.get_or_insert_default();
        status.pod_ip.get_or_insert_with(|| ip.to_owned());
        status.pod_ips.get_or_insert_default().push(PodIP { ip: ip.to_owned() });
        self
    }

    /// Its Ready condition.
    #[must_use]
    pub fn ready(mut self, ready: bool) -> Self {
        let status: &mut PodStatus = self.0.status.get_or_insert_default();
        status.conditions.get_or_insert_default().push(PodCondition {
            type_: "Ready".to_owned(),
            status: if ready { "True" } else { "False" }.to_owned(),
            ..PodCondition::default()
        });
        self
    }
}

/// Builds a Node.
#[derive(Clone, Debug)]
pub struct NodeBuilder(pub Node);

/// A Node.
pub fn node(name: &str) -> NodeBuilder {
    NodeBuilder(Node { metadata: meta(name), ..Node::default() })
}

impl NodeBuilder {
    /// One more label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0.metadata.labels.get_or_insert_default().insert(key.to_owned(), value.to_owned());
        self
    }
}

impl NodeBuilder {
    /// One more address by which it is reached from within the cluster.
    #[must_use]
    pub fn ip(mut self, ip: &str) -> Self {
        let status = self.0.status.get_or_insert_default();
        let address = NodeAddress { address: ip.to_owned(), type_: "InternalIP".to_owned() };
        status.addresses.get_or_insert_default().push(address);
        self
    }
}

/// Builds a SlotProfile.
#[derive(Clone, Debug)]
pub struct ProfileBuilder(pub crds::own::SlotProfile);

/// A SlotProfile for all nodes that sets nothing.
pub fn profile(name: &str) -> ProfileBuilder {
    ProfileBuilder(crds::own::SlotProfile::new(name, crds::own::SlotProfileSpec::default()))
}

impl ProfileBuilder {
    /// For nodes with this label only.
    #[must_use]
    pub fn select(mut self, key: &str, value: &str) -> Self {
        self.0.spec.node_selector.insert(key.to_owned(), value.to_owned());
        self
    }

    /// For the node of this name, and others that are named.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.0.spec.node_names.push(node.to_owned());
        self
    }

    /// With this cap.
    #[must_use]
    pub fn cap(mut self, cap: u32) -> Self {
        self.0.spec.cap = Some(cap);
        self
    }

    /// With these settings.
    #[must_use]
    pub fn set(mut self, set: impl FnOnce(&mut crds::own::SlotProfileSpec)) -> Self {
        set(&mut self.0.spec);
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

/// Builds a TrafficPolicy.
#[derive(Clone, Debug)]
pub struct PolicyBuilder(pub crds::own::TrafficPolicy);

/// A TrafficPolicy in namespace `default` for this Service, or for a port of it: `service/port`.
pub fn policy(name: &str, target: &str) -> PolicyBuilder {
    let policy = crds::own::TrafficPolicy::new(name, crds::own::TrafficPolicySpec::default());
    PolicyBuilder(policy).target(target)
}

impl PolicyBuilder {
    /// One more Service, or port of one: `service/port`.
    #[must_use]
    pub fn target(mut self, target: &str) -> Self {
        let (name, section) = match target.split_once('/') {
            Some((name, section)) => (name, Some(section.to_owned())),
            None => (target, None),
        };
        self.0.spec.target_refs.push(crds::own::PolicyTarget {
            group: String::new(),
            kind: "Service".to_owned(),
            name: name.to_owned(),
            section_name: section,
        });
        self
    }

    /// Balances by this algorithm.
    #[must_use]
    pub fn balance(mut self, algorithm: crds::own::Balancing) -> Self {
        self.0.spec.load_balancing = Some(crds::own::LoadBalancing { algorithm });
        self
    }

    /// Allows this many connections.
    #[must_use]
    pub fn max(mut self, connections: u32) -> Self {
        self.0.spec.max_connections = Some(connections);
        self
    }

    /// Bounds how fast new connections may come.
    #[must_use]
    pub fn new_connections(mut self, rate: crds::own::NewConnections) -> Self {
        self.0.spec.new_connections = Some(rate);
        self
    }

    /// Leaves endpoints out that fail.
    #[must_use]
    pub fn outliers(mut self, outliers: crds::own::Ejection) -> Self {
        self.0.spec.outlier_detection = Some(outliers);
        self
    }

    /// Chooses by where endpoints are.
    #[must_use]
    pub fn locality(mut self, locality: crds::own::LocalityPreference) -> Self {
        self.0.spec.locality = Some(locality);
        self
    }
}

/// A backend of a route with a weight: `service:port`, or `namespace/service:port`.
///
/// # Panics
/// Where it is written otherwise.
pub fn backend(text: &str, weight: i32) -> crds::gateway::BackendRef {
    let (place, port) = text.split_once(':').expect("service:port");
    let (namespace, name) = match place.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name),
        None => (None, place),
    };
    crds::gateway::BackendRef {
        namespace,
        name: name.to_owned(),
        port: Some(port.parse().expect("a port")),
        weight: Some(weight),
        ..Default::default()
    }
}

/// A parent that is a Service: `service`, or `service:port`.
///
/// # Panics
/// Where it is written otherwise.
pub fn parent(text: &str) -> crds::gateway::ParentRef {
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port.parse().expect("a port"))),
        None => (text, None),
    };
    crds::gateway::ParentRef {
        group: Some(String::new()),
        kind: Some("Service".to_owned()),
        name: name.to_owned(),
        port,
        ..Default::default()
    }
}

/// Builds an HTTPRoute.
#[derive(Clone, Debug)]
pub struct HttpRouteBuilder(pub crds::gateway::HttpRoute);

/// An HTTPRoute in namespace `default` for this Service: `service`, or `service:port`.
pub fn http_route(name: &str, service: &str) -> HttpRouteBuilder {
    let spec = crds::gateway::HttpRouteSpec { parent_refs: vec![parent(service)], ..Default::default() };
    HttpRouteBuilder(crds::gateway::HttpRoute::new(name, spec))
}

impl HttpRouteBuilder {
    /// A rule for all connections.
    #[must_use]
    pub fn to(self, backends: impl IntoIterator<Item = crds::gateway::BackendRef>) -> Self {
        let backend_refs = backends.into_iter().collect();
        self.rule(crds::gateway::HttpRule { backend_refs, ..Default::default() })
    }

    /// Any rule.
    #[must_use]
    pub fn rule(mut self, rule: crds::gateway::HttpRule) -> Self {
        self.0.spec.rules.push(rule);
        self
    }
}

/// Builds a GRPCRoute.
#[derive(Clone, Debug)]
pub struct GrpcRouteBuilder(pub crds::gateway::GrpcRoute);

/// A GRPCRoute in namespace `default` for this Service: `service`, or `service:port`.
pub fn grpc_route(name: &str, service: &str) -> GrpcRouteBuilder {
    let spec = crds::gateway::GrpcRouteSpec { parent_refs: vec![parent(service)], ..Default::default() };
    GrpcRouteBuilder(crds::gateway::GrpcRoute::new(name, spec))
}

impl GrpcRouteBuilder {
    /// A rule for all connections.
    #[must_use]
    pub fn to(mut self, backends: impl IntoIterator<Item = crds::gateway::BackendRef>) -> Self {
        let backend_refs = backends.into_iter().collect();
        self.0.spec.rules.push(crds::gateway::HttpRule { backend_refs, ..Default::default() });
        self
    }
}

/// Builds a TLSRoute.
#[derive(Clone, Debug)]
pub struct TlsRouteBuilder(pub crds::gateway::TlsRoute);

/// A TLSRoute in namespace `default` for this Service: `service`, or `service:port`.
pub fn tls_route(name: &str, service: &str) -> TlsRouteBuilder {
    let spec = crds::gateway::TlsRouteSpec { parent_refs: vec![parent(service)], ..Default::default() };
    TlsRouteBuilder(crds::gateway::TlsRoute::new(name, spec))
}

impl TlsRouteBuilder {
    /// A rule for all connections.
    #[must_use]
    pub fn to(mut self, backends: impl IntoIterator<Item = crds::gateway::BackendRef>) -> Self {
        let backend_refs = backends.into_iter().collect();
        self.0.spec.rules.push(crds::gateway::TcpRule { backend_refs, ..Default::default() });
        self
    }
}

/// Builds a TCPRoute.
#[derive(Clone, Debug)]
pub struct TcpRouteBuilder(pub crds::gateway::TcpRoute);

/// A TCPRoute in namespace `default` for this Service: `service`, or `service:port`.
pub fn tcp_route(name: &str, service: &str) -> TcpRouteBuilder {
    let spec = crds::gateway::TcpRouteSpec { parent_refs: vec![parent(service)], ..Default::default() };
    TcpRouteBuilder(crds::gateway::TcpRoute::new(name, spec))
}

impl TcpRouteBuilder {
    /// A rule for all connections.
    #[must_use]
    pub fn to(mut self, backends: impl IntoIterator<Item = crds::gateway::BackendRef>) -> Self {
        let backend_refs = backends.into_iter().collect();
        self.0.spec.rules.push(crds::gateway::TcpRule { backend_refs, ..Default::default() });
        self
    }
}

/// Builds a ReferenceGrant.
#[derive(Clone, Debug)]
pub struct GrantBuilder(pub crds::gateway::ReferenceGrant);

/// A ReferenceGrant in namespace `default` that lets routes of this kind and namespace lead to all of its
/// Services.
pub fn grant(name: &str, kind: &str, namespace: &str) -> GrantBuilder {
    let from = crds::gateway::GrantFrom {
        group: crds::gateway::GATEWAY_GROUP.to_owned(),
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
    };
    let to = crds::gateway::GrantTo { group: String::new(), kind: "Service".to_owned(), name: None };
    let spec = crds::gateway::ReferenceGrantSpec { from: vec![from], to: vec![to], ..Default::default() };
    GrantBuilder(crds::gateway::ReferenceGrant::new(name, spec))
}

impl GrantBuilder {
    /// To this Service only.
    #[must_use]
    pub fn only(mut self, service: &str) -> Self {
        self.0.spec.to.iter_mut().for_each(|to| to.name = Some(service.to_owned()));
        self
    }
}
