//! Custom resources: slotmesh's own ([`own`]), and those of others that it reads.
//!
//! Invariant of the latter: nothing that a user wrote is lost when it is read. Only the supported
//! fields are typed; at every level the others land in a `rest` map, so the compiler can name each of
//! them by its exact path instead of ignoring it in silence. These types follow the published APIs of
//! Istio and Gateway API ([`gateway`]); the CRDs themselves are theirs and are not generated from here
//! (hence no schemas). What slotmesh
//! itself defines needs no such map: the API server refuses unknown fields, or drops them.

mod destination_rule;
pub mod gateway;
pub mod own;
mod service_entry;
mod sidecar;
mod virtual_service;

pub use destination_rule::{
    CallerSelector, ConnectionPool, ConsistentHash, DestinationRule, DestinationRuleSpec, Distribute,
    Failover, LoadBalancer, LocalityLbSetting, OutlierDetection, PortTrafficPolicy, RuleSubset, TcpPool,
    TrafficPolicy,
};
pub use service_entry::{
    EntryPort, ServiceEntry, ServiceEntrySpec, WorkloadEntry, WorkloadEntrySpec, WorkloadSelector,
};
pub use sidecar::{EgressListener, OutboundTrafficPolicy, Sidecar, SidecarSelector, SidecarSpec};
pub use virtual_service::{
    Delegate, Destination, HttpMatch, HttpRoute, PortSelector, RouteDestination, TcpMatch, TcpRoute,
    VirtualService, VirtualServiceSpec,
};

/// The fields of one level that slotmesh does not support (yet), by name.
pub type Rest = std::collections::BTreeMap<String, serde_json::Value>;

/// Reads `null` as the default, as the API server does for an unset list or map.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + serde::Deserialize<'de>,
{
    use serde::Deserialize as _;
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// The API group of Istio's traffic objects.
pub const ISTIO_GROUP: &str = "networking.istio.io";

/// The versions of [`ISTIO_GROUP`] that are read; their content is the same.
pub const ISTIO_VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unsupported_fields_are_kept_by_name_at_every_level() {
        let vs: VirtualService = serde_json::from_value(json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "web"},
            "spec": {
                "hosts": ["web"],
                "tls": [],
                "http": [{
                    "match": [{"port": 80, "headers": {"x": {"exact": "y"}}}],
                    "timeout": "3s",
                    "route": [{
                        "destination": {"host": "web", "subset": "v1", "port": {"number": 80}},
                        "weight": 80,
                        "headers": {},
                    }],
                }],
            },
        }))
        .unwrap();
        let http = &vs.spec.http[0];
        assert!(vs.spec.rest.contains_key("tls"));
        assert!(http.rest.contains_key("timeout"));
        assert_eq!(http.matches[0].port, Some(80));
        assert!(http.matches[0].rest.contains_key("headers"));
        assert!(http.route[0].rest.contains_key("headers"));
        assert_eq!(http.route[0].destination.port.as_ref().unwrap().number, Some(80));
        assert!(http.route[0].destination.rest.is_empty());
    }

    #[test]
    fn unset_and_null_are_the_same() {
        let spec: DestinationRuleSpec = serde_json::from_value(json!({
            "host": "web", "subsets": null, "trafficPolicy": null, "exportTo": null,
        }))
        .unwrap();
        assert_eq!(spec, DestinationRuleSpec { host: "web".into(), ..Default::default() });
    }

    #[test]
    fn a_written_object_reads_back() {
        let rule = DestinationRule::new(
            "web",
            DestinationRuleSpec {
                host: "web".into(),
                subsets: vec![RuleSubset { name: "v1".into(), ..Default::default() }],
                ..Default::default()
            },
        );
        let json = serde_json::to_value(&rule).unwrap();
        assert_eq!(json["apiVersion"], "networking.istio.io/v1");
        let back: DestinationRule = serde_json::from_value(json).unwrap();
        assert_eq!(back.spec, rule.spec);
    }
}
