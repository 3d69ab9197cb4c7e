//! The compiled resources of a small shop, as text. `UPDATE_GOLDEN=1 cargo test` writes them anew.

use std::{env, fmt::Write as _, fs, path::Path};

use prost::Message as _;
use slotmesh_builders::{pod, rule, service, slice, to, virtual_service};
use slotmesh_xds::{
    ResourceType, SlotSettings,
    envoy::envoy::config::{
        cluster::v3::Cluster as EnvoyCluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
        route::v3::RouteConfiguration,
    },
};

use crate::support::Cluster;

/// Debug text without what is unset; the filters' configurations stay bytes.
fn text(debug: &str) -> String {
    let mut out = String::new();
    for line in debug.lines().map(str::trim_end) {
        let value = line.trim().split_once(": ").map_or("", |(_, value)| value);
        if !matches!(value, "None," | "[]," | "{}," | "\"\"," | "false,") {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[test]
fn the_shop_compiles_to_the_golden_file() {
    let cluster = Cluster::with([
        service("web").ip("10.96.0.10").ip("fd00::10").named_port("http", 80).build(),
        service("db").ip("10.96.0.11").named_port("tcp", 5432).build(),
        slice("web", "web").named_port("http", 8080).pod_endpoint("10.1.0.1", "web-1").build(),
        pod("web-1").label("version", "v1").build(),
        rule("web", "web").version("v1").version("v2").build(),
        virtual_service("web", "web").http([to("web/v1", 80), to("web/v2", 20)]).build(),
    ]);
    let mut all = String::new();
    for ((ty, name), content) in cluster.served() {
        let content = content.as_slice();
        let debug = match ty {
            ResourceType::Settings => format!("{:#?}", SlotSettings::decode(content).unwrap()),
            ResourceType::Workload => unreachable!("compiled from no object"),
            ResourceType::Cluster => format!("{:#?}", EnvoyCluster::decode(content).unwrap()),
            ResourceType::Endpoints => format!("{:#?}", ClusterLoadAssignment::decode(content).unwrap()),
            ResourceType::Route => format!("{:#?}", RouteConfiguration::decode(content).unwrap()),
            ResourceType::Listener => {
                let goes = cluster.goes(name);
                let mut listener = Listener::decode(content).unwrap();
                for filter in listener.filter_chains.iter_mut().flat_map(|c| &mut c.filters) {
                    filter.config_type = None;
                }
                format!("goes to {goes}\n{listener:#?}")
            }
        };
        writeln!(all, "# {ty} {name}\n{debug}\n").unwrap();
    }
    compare("shop.txt", &all);
}

/// Compares text with a golden file, or writes it.
pub fn compare(file: &str, all: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    let all = text(all);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &all).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == all, "the compiled resources differ from {}:\n{all}", path.display());
}
