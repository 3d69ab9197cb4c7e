//! Everything together: as a golden file, and before a stock Envoy.

use std::{collections::BTreeMap, path::Path};

use prost::{Message as _, Name as _};
use serde_json::json;
use slotmesh_builders::{backend, grpc_route, pod, rule, service, slice};
use slotmesh_compile::{Object, Severity};
use slotmesh_crds::gateway::HttpRoute;
use slotmesh_xds::{
    ResourceType,
    envoy::envoy::{
        config::{
            bootstrap::v3::{Bootstrap, bootstrap::StaticResources},
            cluster::v3::{
                Cluster as EnvoyCluster,
                cluster::{ClusterDiscoveryType, DiscoveryType},
            },
            core::v3::Node,
            endpoint::v3::ClusterLoadAssignment,
            listener::v3::{Listener, filter::ConfigType},
        },
        extensions::filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::RouteSpecifier,
        },
    },
};

use super::{WEB, configuration, grpc, istio, istio::hashing, proxied, shop};
use crate::{golden::compare, support::Cluster};

/// Everything that acts, in one shop.
pub(super) fn everything() -> Vec<Object> {
    let mut objects = shop();
    objects.extend([
        slice("web", "web").named_port("http", 8080).pod_endpoint("10.1.0.1", "web-1").build(),
        pod("web-1").label("version", "v1").build(),
        rule("web", "web").version("v1").build(),
        service("calls").ip("10.0.0.4").named_port("grpc", 90).build(),
        istio("web", json!({"hosts": ["web"], "http": [
            {
                "name": "canary",
                "match": [{
                    "uri": {"exact": "/A"}, "ignoreUriCase": true, "method": {"exact": "GET"},
                    "headers": {"end-user": {"regex": "t.*"}}, "withoutHeaders": {"x-bot": {}},
                    "queryParams": {"v": {"exact": "2"}}, "authority": {"prefix": "web"},
                }],
                "route": [{"destination": {"host": "web", "subset": "v1"}, "headers": {
                    "request": {"set": {"x-to": "v1"}}, "response": {"remove": ["server"]}}}],
                "timeout": "5s",
                "retries": {"attempts": 3, "perTryTimeout": "1500ms", "retryOn": "5xx,429"},
                "fault": {
                    "delay": {"percentage": {"value": 12.5}, "fixedDelay": "2s"},
                    "abort": {"percentage": {"value": 0.1}, "httpStatus": 503},
                },
                "corsPolicy": {"allowOrigins": [{"exact": "https://a.example"}], "allowMethods": ["GET", "POST"],
                    "maxAge": "24h", "allowCredentials": true},
                "mirror": {"host": "web-v2", "port": {"number": 80}}, "mirrorPercentage": {"value": 5},
                "rewrite": {"uri": "/b", "authority": "b.example"},
            },
            {"match": [{"uri": {"prefix": "/old"}}], "redirect": {"uri": "/new", "redirectCode": 308}},
            {"match": [{"uri": {"prefix": "/moved"}}], "redirect": {"prefixRewrite": "/here"}},
            {"match": [{"uri": {"prefix": "/teapot"}}], "directResponse": {"status": 418, "body": {"string": "tea"}}},
            {"match": [{"uri": {"regex": "/x/[0-9]+"}}], "rewrite": {"uriRegexRewrite": {"match": "/x/(.*)", "rewrite": "/y/\\1"}},
                "route": [{"destination": {"host": "web-v1", "port": {"number": 80}}, "weight": 70},
                    {"destination": {"host": "web-v2", "port": {"number": 80}}, "weight": 30}]},
            {"route": [{"destination": {"host": "web"}}]},
        ]})),
        grpc_route("calls", "calls").to([backend("calls:90", 1)]).build(),
        hashing("v2", "web-v2", json!({"httpCookie": {"name": "user", "ttl": "0s"}})),
        hashing("v1", "web-v1", json!({"httpHeaderName": "x-user"})),
    ]);
    objects
}

#[test]
fn everything_compiles_to_the_golden_file() {
    let cluster_ = proxied(everything());
    assert_eq!(cluster_.reports(), 0, "{:?}", cluster_.said(Severity::NotSupported));
    let mut message = configuration(&cluster_, WEB);
    let mut text = String::new();
    for route in &mut message.virtual_hosts[0].routes {
        // A map has no order.
        let filters: BTreeMap<_, _> = route.typed_per_filter_config.drain().collect();
        text.push_str(&format!("# filters of {}\n{filters:?}\n", route.name));
    }
    text.push_str(&format!("{message:#?}"));
    compare("requests.txt", &text);
}

#[test]
fn the_same_objects_give_the_same_bytes() {
    let first = proxied(everything());
    for _ in 0..20 {
        assert_eq!(proxied(everything()).served(), first.served());
    }
}

/// The compiled resources as the configuration file of an Envoy that gets nothing else.
fn bootstrap(cluster: &Cluster) -> Bootstrap {
    let mut statics = StaticResources::default();
    for ((ty, name), content) in cluster.served() {
        match ty {
            ResourceType::Listener => {
                let mut listener = Listener::decode(content.as_slice()).unwrap();
                for filter in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
                    let Some(ConfigType::TypedConfig(any)) = &mut filter.config_type else { continue };
                    if any.type_url != HttpConnectionManager::type_url() {
                        continue;
                    }
                    let mut manager = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
                    let Some(RouteSpecifier::Rds(rds)) = &manager.route_specifier else { panic!("by rds") };
                    let routes = configuration(cluster, &rds.route_config_name);
                    manager.route_specifier = Some(RouteSpecifier::RouteConfig(routes));
                    any.value = manager.encode_to_vec();
                }
                statics.listeners.push(listener);
            }
            ResourceType::Cluster => {
                let mut of = EnvoyCluster::decode(content.as_slice()).unwrap();
                if of.eds_cluster_config.take().is_some() {
                    of.cluster_discovery_type =
                        Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into()));
                    let cluster_name = name.clone();
                    of.load_assignment = Some(ClusterLoadAssignment { cluster_name, ..Default::default() });
                }
                statics.clusters.push(of);
            }
            _ => {}
        }
    }
    let node = Node { id: "test".to_owned(), cluster: "test".to_owned(), ..Default::default() };
    Bootstrap { node: Some(node), static_resources: Some(statics), ..Default::default() }
}

#[test]
fn a_stock_envoy_takes_what_is_compiled() {
    let envoy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/envoy/envoy");
    assert!(envoy.is_file(), "there is no {}: `cargo xtask envoy` fetches it", envoy.display());
    let mut objects = everything();
    objects.push(grpc(
        json!([{"matches": [{"method": {"method": "Health"}}, {"headers": [{"name": "x", "value": "y"}]}]}]),
    ));
    // One object a Service: of several the VirtualService goes before.
    for (name, ip) in [("other", "10.0.0.7"), ("more", "10.0.0.8")] {
        objects.push(service(name).ip(ip).named_port("http", 80).build());
    }
    let rules = json!([
        {"matches": [{"path": {"value": "/api"}, "headers": [{"name": "a", "value": "b", "type": "RegularExpression"}]}],
            "filters": [
                {"type": "URLRewrite", "urlRewrite": {"hostname": "x.example", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}},
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "h", "value": "50%"}], "remove": ["q"]}},
                {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "web-v1", "port": 80}, "fraction": {"numerator": 1, "denominator": 3}}},
                {"type": "CORS", "cors": {"allowOrigins": ["https://*.example"], "maxAge": 5}},
            ],
            "backendRefs": [{"name": "web-v1", "port": 80, "filters": [
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {"add": [{"name": "to", "value": "v1"}]}}]},
                {"name": "gone", "port": 80}],
            "timeouts": {"request": "10s", "backendRequest": "2s"}, "retry": {"attempts": 2, "codes": [503], "backoff": "100ms"}},
        {"matches": [{"path": {"type": "Exact", "value": "/r"}}], "filters": [
            {"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "port": 8443, "path": {"type": "ReplaceFullPath", "replaceFullPath": "/f"}}}]},
    ]);
    let mut route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "other", "namespace": "default"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "other"}], "rules": rules},
    });
    objects.push(serde_json::from_value::<HttpRoute>(route.clone()).unwrap().into());
    route["metadata"]["name"] = json!("more");
    route["spec"]["parentRefs"][0]["name"] = json!("more");
    objects.push(serde_json::from_value::<HttpRoute>(route).unwrap().into());
    let cluster_ = proxied(objects);
    let notes = cluster_.said(Severity::NotSupported);
    assert!(notes.is_empty(), "{notes:?}");
    let folder = std::env::temp_dir().join(format!("slotmesh-requests-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("bootstrap.pb");
    std::fs::write(&file, bootstrap(&cluster_).encode_to_vec()).unwrap();
    let output = std::process::Command::new(envoy)
        .args(["--mode", "validate", "--config-path"])
        .arg(&file)
        .output()
        .expect("Envoy starts");
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
