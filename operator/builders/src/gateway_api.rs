//! Gateway API's kinds.

use slotmesh_crds::gateway;

/// A backend of a route with a weight: `service:port`, or `namespace/service:port`.
///
/// # Panics
/// Where it is written otherwise.
pub fn backend(text: &str, weight: i32) -> gateway::BackendRef {
    let (place, port) = text.split_once(':').expect("service:port");
    let (namespace, name) = match place.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name),
        None => (None, place),
    };
    gateway::BackendRef {
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
pub fn parent(text: &str) -> gateway::ParentRef {
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port.parse().expect("a port"))),
        None => (text, None),
    };
    gateway::ParentRef {
        group: Some(String::new()),
        kind: Some("Service".to_owned()),
        name: name.to_owned(),
        port,
        ..Default::default()
    }
}

/// Builds an HTTPRoute.
#[derive(Clone, Debug)]
pub struct HttpRouteBuilder(pub gateway::HttpRoute);

/// An HTTPRoute in namespace `default` for this Service: `service`, or `service:port`.
pub fn http_route(name: &str, service: &str) -> HttpRouteBuilder {
    let spec = gateway::HttpRouteSpec { parent_refs: vec![parent(service)], ..Default::default() };
    HttpRouteBuilder(gateway::HttpRoute::new(name, spec))
}

impl HttpRouteBuilder {
    /// A rule for all connections.
    #[must_use]
    pub fn to(self, backends: impl IntoIterator<Item = gateway::BackendRef>) -> Self {
        let backend_refs = backends.into_iter().collect();
        self.rule(gateway::HttpRule { backend_refs, ..Default::default() })
    }

    /// Any rule.
    #[must_use]
    pub fn rule(mut self, rule: gateway::HttpRule) -> Self {
        self.0.spec.rules.push(rule);
        self
    }
}

/// Builds a GRPCRoute.
#[derive(Clone, Debug)]
pub struct GrpcRouteBuilder(pub gateway::GrpcRoute);

/// A GRPCRoute in namespace `default` for this Service: `service`, or `service:port`.
pub fn grpc_route(name: &str, service: &str) -> GrpcRouteBuilder {
    let spec = gateway::GrpcRouteSpec { parent_refs: vec![parent(service)], ..Default::default() };
    GrpcRouteBuilder(gateway::GrpcRoute::new(name, spec))
}

impl GrpcRouteBuilder {
    /// A rule for all connections.
    #[must_use]
    pub fn to(mut self, backends: impl IntoIterator<Item = gateway::BackendRef>) -> Self {
        let backend_refs = backends.into_iter().collect();
        self.0.spec.rules.push(gateway::HttpRule { backend_refs, ..Default::default() });
        self
    }
}

/// Builds a TLSRoute.
#[derive(Clone, Debug)]
pub struct TlsRouteBuilder(pub gateway::TlsRoute);

/// A TLSRoute in namespace `default` for this Service: `service`, or `service:port`.
pub fn tls_route(name: &str, service: &str) -> TlsRouteBuilder {
    let spec = gateway::TlsRouteSpec { parent_refs: vec![parent(service)], ..Default::default() };
    TlsRouteBuilder(gateway::TlsRoute::new(name, spec))
}

impl TlsRouteBuilder {
    /// A rule for all connections.
    #[must_use]
    pub fn to(mut self, backends: impl IntoIterator<Item = gateway::BackendRef>) -> Self {
        let backend_refs = backends.into_iter().collect();
        self.0.spec.rules.push(gateway::TcpRule { backend_refs, ..Default::default() });
        self
    }
}

/// Builds a TCPRoute.
#[derive(Clone, Debug)]
pub struct TcpRouteBuilder(pub gateway::TcpRoute);

/// A TCPRoute in namespace `default` for this Service: `service`, or `service:port`.
pub fn tcp_route(name: &str, service: &str) -> TcpRouteBuilder {
    let spec = gateway::TcpRouteSpec { parent_refs: vec![parent(service)], ..Default::default() };
    TcpRouteBuilder(gateway::TcpRoute::new(name, spec))
}

impl TcpRouteBuilder {
    /// A rule for all connections.
    #[must_use]
    pub fn to(mut self, backends: impl IntoIterator<Item = gateway::BackendRef>) -> Self {
        let backend_refs = backends.into_iter().collect();
        self.0.spec.rules.push(gateway::TcpRule { backend_refs, ..Default::default() });
        self
    }
}

/// Builds a ReferenceGrant.
#[derive(Clone, Debug)]
pub struct GrantBuilder(pub gateway::ReferenceGrant);

/// A ReferenceGrant in namespace `default` that lets routes of this kind and namespace lead to all of its
/// Services.
pub fn grant(name: &str, kind: &str, namespace: &str) -> GrantBuilder {
    let from = gateway::GrantFrom {
        group: gateway::GATEWAY_GROUP.to_owned(),
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
    };
    let to = gateway::GrantTo { group: String::new(), kind: "Service".to_owned(), name: None };
    let spec = gateway::ReferenceGrantSpec { from: vec![from], to: vec![to], ..Default::default() };
    GrantBuilder(gateway::ReferenceGrant::new(name, spec))
}

impl GrantBuilder {
    /// To this Service only.
    #[must_use]
    pub fn only(mut self, service: &str) -> Self {
        self.0.spec.to.iter_mut().for_each(|to| to.name = Some(service.to_owned()));
        self
    }
}
