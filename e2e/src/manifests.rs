//! Builders of manifests: `service("web").ip("10.96.0.10").port(80).build()`.

use serde_json::{Value, json};

macro_rules! builder {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(Value);

        impl $name {
            /// In this namespace instead of `default`.
            #[must_use]
            pub fn namespace(mut self, namespace: &str) -> Self {
                self.0["metadata"]["namespace"] = json!(namespace);
                self
            }

            /// The object.
            pub fn build(self) -> Value {
                self.0
            }
        }

        impl From<$name> for Value {
            fn from(builder: $name) -> Self {
                builder.0
            }
        }
    };
}

fn push(list: &mut Value, value: Value) {
    match list {
        Value::Array(values) => values.push(value),
        other => *other = json!([value]),
    }
}

builder!(
    /// Builds a Service.
    ServiceBuilder
);

/// A Service in namespace `default`.
pub fn service(name: &str) -> ServiceBuilder {
    ServiceBuilder(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {}}))
}

impl ServiceBuilder {
    /// One more cluster IP.
    #[must_use]
    pub fn ip(mut self, ip: &str) -> Self {
        let spec = &mut self.0["spec"];
        if spec["clusterIP"].is_null() {
            spec["clusterIP"] = json!(ip);
        }
        push(&mut spec["clusterIPs"], json!(ip));
        self
    }

    /// A port without name.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        push(&mut self.0["spec"]["ports"], json!({"port": port}));
        self
    }

    /// A UDP port with this name.
    #[must_use]
    pub fn udp_port(mut self, name: &str, port: u16) -> Self {
        push(&mut self.0["spec"]["ports"], json!({"name": name, "port": port, "protocol": "UDP"}));
        self
    }

    /// A port with a name that leads to the pods' port of this name.
    #[must_use]
    pub fn named_port(mut self, name: &str, port: u16, target: &str) -> Self {
        push(&mut self.0["spec"]["ports"], json!({"name": name, "port": port, "targetPort": target}));
        self
    }
}

builder!(
    /// Builds an EndpointSlice.
    SliceBuilder
);

/// An EndpointSlice of `service`; IPv4 unless an endpoint says otherwise.
pub fn slice(name: &str, service: &str) -> SliceBuilder {
    SliceBuilder(json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [],
        "endpoints": [],
    }))
}

impl SliceBuilder {
    /// The port for the Service port without name.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.named_port("", port)
    }

    /// The port for the Service port with this name.
    #[must_use]
    pub fn named_port(mut self, name: &str, port: u16) -> Self {
        push(&mut self.0["ports"], json!({"name": name, "port": port}));
        self
    }

    /// The UDP port for the Service port with this name.
    #[must_use]
    pub fn udp_port(mut self, name: &str, port: u16) -> Self {
        push(&mut self.0["ports"], json!({"name": name, "port": port, "protocol": "UDP"}));
        self
    }

    /// A ready endpoint.
    #[must_use]
    pub fn endpoint(self, ip: &str) -> Self {
        self.any_endpoint(ip, json!({"addresses": [ip], "conditions": {"ready": true}}))
    }

    /// A ready endpoint that is this pod.
    #[must_use]
    pub fn pod_endpoint(self, ip: &str, pod: &str) -> Self {
        let target = json!({"kind": "Pod", "name": pod, "namespace": "default"});
        self.any_endpoint(ip, json!({"addresses": [ip], "conditions": {"ready": true}, "targetRef": target}))
    }

    /// An endpoint with these conditions.
    #[must_use]
    pub fn endpoint_with(self, ip: &str, conditions: Value) -> Self {
        self.any_endpoint(ip, json!({"addresses": [ip], "conditions": conditions}))
    }

    /// An endpoint as it stands there, whatever it is.
    #[must_use]
    pub fn raw_endpoint(self, endpoint: Value) -> Self {
        self.any_endpoint("", endpoint)
    }

    fn any_endpoint(mut self, ip: &str, endpoint: Value) -> Self {
        if ip.contains(':') {
            self.0["addressType"] = json!("IPv6");
        }
        push(&mut self.0["endpoints"], endpoint);
        self
    }
}

builder!(
    /// Builds a Pod.
    PodBuilder
);

/// A running Pod.
pub fn pod(name: &str, ip: &str) -> PodBuilder {
    PodBuilder(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {}},
        "spec": {"containers": [{"name": "main"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    }))
}

impl PodBuilder {
    /// With this label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0["metadata"]["labels"][key] = json!(value);
        self
    }
}

builder!(
    /// Builds a DestinationRule.
    RuleBuilder
);

/// A DestinationRule for the Service of the same name.
pub fn destination_rule(host: &str) -> RuleBuilder {
    RuleBuilder(json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": host},
        "spec": {"host": host, "subsets": []},
    }))
}

impl RuleBuilder {
    /// With this traffic policy.
    #[must_use]
    pub fn traffic_policy(mut self, policy: &Value) -> Self {
        self.0["spec"]["trafficPolicy"] = policy.clone();
        self
    }

    /// A subset named `version` of the pods with the label `version` of that value.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        push(&mut self.0["spec"]["subsets"], json!({"name": version, "labels": {"version": version}}));
        self
    }
}

builder!(
    /// Builds a VirtualService.
    RouteBuilder
);

/// A VirtualService for the Service of the same name.
pub fn virtual_service(host: &str) -> RouteBuilder {
    RouteBuilder(json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": host},
        "spec": {"hosts": [host]},
    }))
}

impl RouteBuilder {
    /// Its name, where it isn't the host's.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.0["metadata"]["name"] = json!(name);
        self
    }

    /// A default HTTP route to subsets of `host` by weight.
    #[must_use]
    pub fn http(self, host: &str, weights: &[(&str, i64)]) -> Self {
        self.route("http", host, weights)
    }

    /// A default TCP route to subsets of `host` by weight.
    #[must_use]
    pub fn tcp(self, host: &str, weights: &[(&str, i64)]) -> Self {
        self.route("tcp", host, weights)
    }

    fn route(mut self, protocol: &str, host: &str, weights: &[(&str, i64)]) -> Self {
        let destination = |(subset, weight): &(&str, i64)| json!({"destination": {"host": host, "subset": subset}, "weight": weight});
        let route: Vec<_> = weights.iter().map(destination).collect();
        push(&mut self.0["spec"][protocol], json!({"route": route}));
        self
    }
}

/// An object of Istio of this kind with this spec.
pub fn istio(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    })
}

/// A SlotProfile with this spec.
pub fn slot_profile(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "slotmesh.dev/v1alpha1",
        "kind": "SlotProfile",
        "metadata": {"name": name},
        "spec": spec,
    })
}

/// A TrafficPolicy for a Service with this spec besides its target.
pub fn traffic_policy(name: &str, service: &str, spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["targetRefs"] = json!([{"group": "", "kind": "Service", "name": service}]);
    json!({
        "apiVersion": "slotmesh.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {"name": name},
        "spec": spec,
    })
}

builder!(
    /// Builds a route of Gateway API.
    GatewayRouteBuilder
);

/// A route of this kind for a Service, to port 80 of `service` or `namespace/service` by weight.
pub fn gateway_route(kind: &str, name: &str, parent: &str, weights: &[(&str, i64)]) -> GatewayRouteBuilder {
    let version = if matches!(kind, "TCPRoute" | "TLSRoute") { "v1alpha2" } else { "v1" };
    let backend = |(to, weight): &(&str, i64)| match to.split_once('/') {
        Some((namespace, name)) => {
            json!({"namespace": namespace, "name": name, "port": 80, "weight": weight})
        }
        None => json!({"name": to, "port": 80, "weight": weight}),
    };
    let backends: Vec<_> = weights.iter().map(backend).collect();
    GatewayRouteBuilder(json!({
        "apiVersion": format!("gateway.networking.k8s.io/{version}"),
        "kind": kind,
        "metadata": {"name": name},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": parent}],
            "rules": [{"backendRefs": backends}],
        },
    }))
}
