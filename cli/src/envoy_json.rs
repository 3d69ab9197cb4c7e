//! State in force on a node as Envoy's JSON: as much of it as acts on connections, in the form of Envoy's own
//! configuration (`envoy.config.….v3`), so that what reads that reads this.
//!
//! A listener's classes of callers, for which Envoy has no match, stand in its chain's `metadata`.

use serde_json::{Value, json};
use slotmesh_admin::{
    ActionInForce, AssignmentInForce, ChainInForce, ClusterInForce, HostInForce, ListenerInForce,
    MembersInForce, RouteInForce, WeightedInForce,
};

/// Something that Envoy has, too.
pub trait ToEnvoy {
    /// As Envoy's JSON. `whole` is all that is known of it.
    fn to_envoy(&self, whole: &Value) -> Value;
}

fn typed(name: &str) -> String {
    format!("type.googleapis.com/envoy.{name}")
}

/// `10.96.0.10:80` or `10.96.0.10:53/UDP`
fn address(of: &str) -> Value {
    let (at, protocol) = of.strip_suffix("/UDP").map_or((of, "TCP"), |at| (at, "UDP"));
    let (ip, port) = at.rsplit_once(':').unwrap_or((at, "0"));
    json!({"socketAddress": {
        "protocol": protocol,
        "address": ip.trim_matches(['[', ']']),
        "portValue": port.parse::<u16>().unwrap_or_default(),
    }})
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(all) => !all.is_empty(),
        _ => true,
    }
}

/// Without what isn't set, as protobuf's JSON is.
fn compact(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.values_mut().for_each(|inner| *inner = compact(inner.take()));
            fields.retain(|name, inner| is_set(inner) || name == "ads");
        }
        Value::Array(all) => all.iter_mut().for_each(|inner| *inner = compact(inner.take())),
        _ => {}
    }
    value
}

fn weighted(clusters: &[WeightedInForce]) -> Value {
    let one = |one: &WeightedInForce| json!({"name": one.cluster, "weight": one.weight});
    json!({"clusters": clusters.iter().map(one).collect::<Vec<_>>()})
}

/// The part of an action that says where to.
fn destination(clusters: &[WeightedInForce]) -> Value {
    match clusters {
        [one] => json!({"cluster": one.cluster}),
        all => json!({"weightedClusters": weighted(all)}),
    }
}

fn virtual_host(host: &HostInForce) -> Value {
    let routes = host.routes.iter().map(
        |rule| json!({"name": rule.name, "match": {"prefix": "/"}, "route": destination(&rule.clusters)}),
    );
    json!({"name": host.name, "domains": host.domains, "routes": routes.collect::<Vec<_>>()})
}

fn filter(chain: &ChainInForce) -> Value {
    let ActionInForce { cluster, route, clusters, virtual_hosts, proxy: _ } = &chain.to;
    let prefix = chain.name.as_deref().unwrap_or("connections");
    if route.is_some() || !virtual_hosts.is_empty() {
        let hosts: Vec<Value> = virtual_hosts.iter().map(virtual_host).collect();
        let inline = (!hosts.is_empty()).then(|| json!({"virtualHosts": hosts}));
        let rds = route.as_ref().map(|route| {
            json!({"routeConfigName": route, "configSource": {"ads": {}, "resourceApiVersion": "V3"}})
        });
        return json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typedConfig": {
                "@type": typed("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
                "statPrefix": prefix, "rds": rds, "routeConfig": inline,
            },
        });
    }
    let to = match cluster {
        Some(cluster) => json!({"cluster": cluster}),
        None => destination(clusters),
    };
    let mut config = to;
    config["@type"] = typed("extensions.filters.network.tcp_proxy.v3.TcpProxy").into();
    config["statPrefix"] = prefix.into();
    json!({"name": "envoy.filters.network.tcp_proxy", "typedConfig": config})
}

impl ToEnvoy for ListenerInForce {
    fn to_envoy(&self, _whole: &Value) -> Value {
        let mut addresses = self.addresses.iter().map(|at| address(at));
        let first = addresses.next();
        let more: Vec<Value> = addresses.map(|address| json!({ "address": address })).collect();
        let chains = self.chains.iter().map(|chain| {
            let callers = (!chain.callers.is_empty())
                .then(|| json!({"filterMetadata": {"slotmesh.dev": {"callers": chain.callers}}}));
            json!({
                "name": chain.name, "metadata": callers, "filters": [filter(chain)],
                "filterChainMatch": chain.port.map(|port| json!({"destinationPort": port})),
            })
        });
        compact(json!({
            "@type": typed("config.listener.v3.Listener"), "name": self.name, "address": first,
            "additionalAddresses": more, "filterChains": chains.collect::<Vec<_>>(),
        }))
    }
}

impl ToEnvoy for RouteInForce {
    fn to_envoy(&self, _whole: &Value) -> Value {
        compact(json!({
            "@type": typed("config.route.v3.RouteConfiguration"), "name": self.name,
            "virtualHosts": self.virtual_hosts.iter().map(virtual_host).collect::<Vec<_>>(),
        }))
    }
}

/// Milliseconds as protobuf's JSON writes a duration.
fn duration(milliseconds: &Value) -> Option<String> {
    milliseconds.as_u64().map(|ms| format!("{}.{:03}s", ms / 1_000, ms % 1_000))
}

impl ToEnvoy for ClusterInForce {
    fn to_envoy(&self, whole: &Value) -> Value {
        let ty = match (&self.assignment, &self.endpoints) {
            (Some(_), _) => "EDS",
            (None, Some(_)) => "STATIC",
            (None, None) => "ORIGINAL_DST",
        };
        let policy = match self.balance.as_str() {
            "round robin" => "ROUND_ROBIN",
            "least connections" => "LEAST_REQUEST",
            balance if balance.starts_with("consistent hash") => "MAGLEV",
            _ if ty == "ORIGINAL_DST" => "CLUSTER_PROVIDED",
            _ => "RANDOM",
        };
        let outliers = &whole["outlierDetection"];
        let outliers = (!outliers.is_null()).then(|| {
            json!({
                "consecutiveLocalOriginFailure": outliers["consecutiveFailures"],
                "baseEjectionTime": duration(&outliers["baseEjectionMs"]),
                "maxEjectionTime": duration(&outliers["maxEjectionMs"]),
                "maxEjectionPercent": outliers["maxEjectionPercent"],
                "splitExternalLocalOriginErrors": true,
            })
        });
        let limits = compact(json!({
            "maxConnections": self.max_connections, "maxPendingRequests": whole["maxPendingRequests"],
            "maxRequests": whole["maxRequests"], "maxRetries": whole["maxRetries"],
        }));
        let thresholds = if is_set(&limits) { vec![limits] } else { Vec::new() };
        let eds = self.assignment.as_ref().map(|assignment| {
            json!({"serviceName": assignment, "edsConfig": {"ads": {}, "resourceApiVersion": "V3"}})
        });
        compact(json!({
            "@type": typed("config.cluster.v3.Cluster"), "name": self.name, "type": ty, "lbPolicy": policy,
            "connectTimeout": duration(&whole["connectTimeoutMs"]), "edsClusterConfig": eds,
            "circuitBreakers": {"thresholds": thresholds}, "outlierDetection": outliers,
            "loadAssignment": self.endpoints.as_ref().map(|members| assignment(&self.name, members)),
        }))
    }
}

fn assignment(name: &str, members: &MembersInForce) -> Value {
    let places = members.localities.len().max(1);
    let localities = (0..places).filter_map(|place| {
        let of_place = members.endpoints.iter().filter(|endpoint| endpoint.locality == place);
        let endpoints: Vec<Value> = of_place
            .map(|endpoint| {
                json!({"endpoint": {"address": address(&endpoint.address)}, "loadBalancingWeight": endpoint.weight})
            })
            .collect();
        let locality = members.localities.get(place).map(|at| {
            let part = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            json!({"region": part(&at.region), "zone": part(&at.zone), "subZone": part(&at.sub_zone)})
        });
        (!endpoints.is_empty()).then(|| json!({"locality": locality, "lbEndpoints": endpoints}))
    });
    json!({"clusterName": name, "endpoints": localities.collect::<Vec<_>>()})
}

impl ToEnvoy for AssignmentInForce {
    fn to_envoy(&self, _whole: &Value) -> Value {
        let mut shown = compact(assignment(&self.name, &self.members));
        shown["@type"] = typed("config.endpoint.v3.ClusterLoadAssignment").into();
        shown
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_proxy::bootstrap;

    use super::*;

    fn envoy<T: ToEnvoy + serde::de::DeserializeOwned>(json: &str) -> Value {
        let whole: Value = serde_json::from_str(json).unwrap();
        serde_json::from_value::<T>(whole.clone()).unwrap().to_envoy(&whole)
    }

    const CLUSTER: &str = r#"{"name": "web", "version": "1", "balance": "least connections", "connectTimeoutMs": 5000,
        "maxConnections": 7, "assignment": null, "endpoints": {"endpoints": [{"address": "10.0.0.1:80", "weight": 3},
        {"address": "[fd00::1]:80", "weight": 1, "locality": 1}], "localities": [{"region": "", "zone": "a", "subZone": ""},
        {"region": "eu", "zone": "b", "subZone": ""}]}}"#;

    #[test]
    fn the_proxy_that_reads_envoy_s_files_takes_it() {
        let listener = envoy::<ListenerInForce>(
            r#"{"name": "l", "version": "1", "addresses": ["127.0.0.1:8080"], "chains": [{"name": "all", "port": null,
            "to": {"virtualHosts": [{"name": "h", "domains": ["*"], "routes": [{"name": "r", "clusters":
            [{"cluster": "web", "weight": 1}]}]}]}}]}"#,
        );
        let config = json!({"staticResources": {"listeners": [listener], "clusters": [envoy::<ClusterInForce>(CLUSTER)]}});
        let mut config = config;
        for list in ["listeners", "clusters"] {
            config["staticResources"][list][0].as_object_mut().unwrap().remove("@type");
        }
        let read = bootstrap::parse(&config.to_string());
        assert!(read.is_ok(), "{:?}: {config:#}", read.err());
    }

    #[test]
    fn clusters_and_endpoints_are_envoy_s() {
        let cluster = envoy::<ClusterInForce>(CLUSTER);
        assert_eq!((&cluster["type"], &cluster["lbPolicy"]), (&json!("STATIC"), &json!("LEAST_REQUEST")));
        assert_eq!(cluster["circuitBreakers"]["thresholds"][0], json!({"maxConnections": 7}));
        assert_eq!(cluster["connectTimeout"], "5.000s");
        let endpoints = &cluster["loadAssignment"]["endpoints"];
        assert_eq!(endpoints[1]["locality"], json!({"region": "eu", "zone": "b"}));
        let at = &endpoints[1]["lbEndpoints"][0]["endpoint"]["address"]["socketAddress"];
        assert_eq!(at, &json!({"protocol": "TCP", "address": "fd00::1", "portValue": 80}));
    }

    #[test]
    fn a_chain_says_where_to_and_for_whom() {
        let listener = envoy::<ListenerInForce>(
            r#"{"name": "l", "version": "1", "addresses": ["10.0.0.1:53/UDP", "10.0.0.2:53/UDP"], "chains": [
            {"name": "some", "callers": ["shop"], "to": {"clusters": [{"cluster": "v1", "weight": 9}, {"cluster": "v2",
            "weight": 1}]}}, {"name": null, "port": 81, "to": {"route": "r"}}]}"#,
        );
        assert_eq!(listener["address"]["socketAddress"]["protocol"], "UDP");
        assert_eq!(listener["additionalAddresses"][0]["address"]["socketAddress"]["address"], "10.0.0.2");
        let chains = &listener["filterChains"];
        assert_eq!(chains[0]["metadata"]["filterMetadata"]["slotmesh.dev"]["callers"], json!(["shop"]));
        let tcp = &chains[0]["filters"][0]["typedConfig"];
        assert_eq!(tcp["weightedClusters"]["clusters"][1], json!({"name": "v2", "weight": 1}));
        assert_eq!(chains[1]["filterChainMatch"], json!({"destinationPort": 81}));
        assert_eq!(chains[1]["filters"][0]["typedConfig"]["rds"]["routeConfigName"], "r");
    }
}
