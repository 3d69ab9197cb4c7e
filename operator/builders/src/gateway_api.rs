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

/// The builder of a kind of route, and how such a route begins.
macro_rules! route_builder {
    ($kind:literal, $builder:ident, $begin:ident, $route:ident, $spec:ident, $rule:ident) => {
        #[doc = concat!("Builds a route of the kind ", $kind, ".")]
        #[derive(Clone, Debug)]
        pub struct $builder(pub gateway::$route);

        #[doc = concat!($kind, " in namespace `default` for this Service: `service`, or `service:port`.")]
        pub fn $begin(name: &str, service: &str) -> $builder {
            let spec = gateway::$spec { parent_refs: vec![parent(service)], ..Default::default() };
            $builder(gateway::$route::new(name, spec))
        }

        impl $builder {
            /// A rule for all connections.
            #[must_use]
            pub fn to(self, backends: impl IntoIterator<Item = gateway::BackendRef>) -> Self {
                let backend_refs = backends.into_iter().collect();
                self.rule(gateway::$rule { backend_refs, ..Default::default() })
            }

            /// Any rule.
            #[must_use]
            pub fn rule(mut self, rule: gateway::$rule) -> Self {
                self.0.spec.rules.push(rule);
                self
            }
        }
    };
}

route_builder!("HTTPRoute", HttpRouteBuilder, http_route, HttpRoute, HttpRouteSpec, HttpRule);
route_builder!("GRPCRoute", GrpcRouteBuilder, grpc_route, GrpcRoute, GrpcRouteSpec, HttpRule);
route_builder!("TLSRoute", TlsRouteBuilder, tls_route, TlsRoute, TlsRouteSpec, TcpRule);
route_builder!("TCPRoute", TcpRouteBuilder, tcp_route, TcpRoute, TcpRouteSpec, TcpRule);

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
