//! A file in the form of Envoy's bootstrap: the static resources that a stock Envoy would take from it.
//!
//! Read are `static_resources`' listeners and clusters, and routes that listeners contain. What only concerns an Envoy
//! process (node, admin, statistics, watchdogs, overload manager) is left to Envoy. Everything else that isn't supported
//! is refused by its field.

mod json;

use prost::Message as _;
use serde_json::Value;
use slotmesh_routing::InvalidField;
use slotmesh_xds::envoy::envoy::config::bootstrap::v3::{Bootstrap, bootstrap::StaticResources};

use crate::resource::ProxyResource;

/// Fields of a bootstrap that concern an Envoy process and nothing that it serves.
const OF_THE_PROCESS: [&str; 12] = [
    "node",
    "admin",
    "stats_config",
    "stats_flush_interval",
    "statsConfig",
    "statsFlushInterval",
    "watchdog",
    "watchdogs",
    "overload_manager",
    "overloadManager",
    "application_log_config",
    "applicationLogConfig",
];

/// A file that can't be served.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// Neither YAML nor JSON.
    #[error("neither YAML nor JSON: {0}")]
    Syntax(#[from] serde_yaml::Error),
    /// A field that isn't supported, or has a value that it can't have.
    #[error(transparent)]
    Field(#[from] InvalidField),
}

/// Reads a bootstrap, in YAML or JSON, and returns its resources: clusters before the listeners that name them.
///
/// # Errors
/// Names the first field that can't be served.
pub fn parse(text: &str) -> Result<Vec<ProxyResource>, BootstrapError> {
    // JSON is YAML, too.
    let mut file: Value = serde_yaml::from_str(text)?;
    if let Value::Object(fields) = &mut file {
        fields.retain(|name, _| !OF_THE_PROCESS.contains(&name.as_str()));
    }
    let bytes = json::encode("envoy.config.bootstrap.v3.Bootstrap", "", &file)?;
    let invalid = |reason: String| InvalidField { field: "static_resources".to_owned(), reason };
    let bootstrap = Bootstrap::decode(bytes.as_slice()).map_err(|error| invalid(error.to_string()))?;
    let resources = bootstrap.static_resources.ok_or_else(|| invalid("there is none".to_owned()))?;
    let StaticResources { listeners, clusters, secrets: _ } = resources;
    if listeners.is_empty() {
        return Err(InvalidField {
            field: "static_resources.listeners".to_owned(),
            reason: "there is none".to_owned(),
        }
        .into());
    }
    let clusters = clusters.into_iter().map(ProxyResource::Cluster);
    Ok(clusters.chain(listeners.into_iter().map(ProxyResource::Listener)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
node: {id: a}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: 127.0.0.1, port_value: 8080}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{match: {prefix: /}, route: {cluster: web}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: web
    type: STATIC
    load_assignment:
      cluster_name: web
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 80}}}}]}]
"#;

    #[test]
    fn yaml_and_json_give_the_same_resources() {
        let resources = parse(FILE).unwrap();
        let names: Vec<_> = resources.iter().map(ProxyResource::name).collect();
        assert_eq!(names, ["web", "web"]);
        assert!(matches!(resources[..], [ProxyResource::Cluster(_), ProxyResource::Listener(_)]));
        let json: Value = serde_yaml::from_str(FILE).unwrap();
        assert_eq!(parse(&json.to_string()).unwrap(), resources);
    }

    #[test]
    fn what_cannot_be_served_is_named() {
        let fault = |from: &str, to: &str| parse(&FILE.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(fault("static_resources:", "dynamic_resources:").starts_with("dynamic_resources: "));
        assert!(fault("stat_prefix: web", "tracing: {}").contains("typed_config.tracing: not supported"));
        assert!(fault("type: STATIC", "type: SOMETIMES").starts_with("static_resources.clusters[0].type: "));
        assert!(parse("a: [").unwrap_err().to_string().starts_with("neither YAML nor JSON"));
        assert!(parse("static_resources: {}").unwrap_err().to_string().contains("listeners: there is none"));
    }
}
