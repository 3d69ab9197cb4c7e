//! Kubernetes' own kinds.

use k8s_openapi::{
    api::{
        core::v1::{
            Node, NodeAddress, ObjectReference, Pod, PodCondition, PodIP, PodStatus, Service, ServicePort,
            ServiceSpec,
        },
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

fn meta(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
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
