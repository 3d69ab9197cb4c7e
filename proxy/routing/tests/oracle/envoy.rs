//! The Envoy that is asked.

use std::{
    fs::{self, File},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use prost::{Message, Name};
use slotmesh_routing::{EscapedSlashes, PathNormalization};
use slotmesh_xds::envoy::{
    envoy::{
        config::{
            bootstrap::v3::{Bootstrap, bootstrap::StaticResources},
            cluster::v3::{Cluster, cluster},
            core::v3::{Address, SocketAddress, address, socket_address},
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
            listener::v3::{Filter, FilterChain, Listener, filter},
        },
        extensions::filters::{
            http::{cors::v3::Cors, fault::v3::HttpFault, router::v3::Router},
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter,
                http_connection_manager::{
                    PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation,
                },
                http_filter,
            },
        },
    },
    google::protobuf::{Any, BoolValue},
};

use crate::{CLUSTERS, FIRST_CLUSTER, FIRST_LISTENER, Trial, predict};

/// Settings of a listener that aren't those of its routes.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub normalize: bool,
    pub merge_slashes: bool,
    pub escaped_slashes: PathWithEscapedSlashesAction,
}

impl Options {
    /// The same for the proxy.
    pub fn normalization(&self) -> PathNormalization {
        PathNormalization {
            resolve: self.normalize,
            merge_slashes: self.merge_slashes,
            escaped_slashes: match self.escaped_slashes {
                PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::Reject,
                PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::Unescape,
                PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::Redirect,
                PathWithEscapedSlashesAction::ImplementationSpecificDefault
                | PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::Keep,
            },
        }
    }
}

/// A process that ends with this, or with the thread that started it.
pub struct Envoy {
    child: Child,
    // Removed with this.
    _dir: tempfile::TempDir,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // Both fail only where it has ended by itself, which the test has seen by then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts an Envoy with a listener for each trial, and waits until all of them listen.
pub fn start(trials: &[Trial]) -> Envoy {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/envoy/envoy");
    assert!(program.is_file(), "there is no {}: `cargo xtask envoy` fetches it", program.display());
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("bootstrap.pb");
    fs::write(&config, bootstrap(trials).encode_to_vec()).expect("the bootstrap is written");
    let log = dir.path().join("log");
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(program)
        .arg("--config-path")
        .arg(&config)
        .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).expect("a log"))
        .spawn()
        .expect("Envoy starts");
    let deadline = Instant::now() + Duration::from_secs(120);
    for port in (FIRST_LISTENER..).take(trials.len()) {
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = child.try_wait().expect("its state");
            let log = || fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none(), "Envoy ended ({ended:?}):\n{}", log());
            assert!(Instant::now() < deadline, "Envoy doesn't listen on {port}:\n{}", log());
            thread::sleep(Duration::from_millis(20));
        }
    }
    Envoy { child, _dir: dir }
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn address(port: u16) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: "127.0.0.1".into(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}

fn bootstrap(trials: &[Trial]) -> Bootstrap {
    Bootstrap {
        static_resources: Some(StaticResources {
            listeners: (FIRST_LISTENER..).zip(trials).map(|(port, trial)| listener(port, trial)).collect(),
            clusters: (0..CLUSTERS).map(cluster).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn listener(port: u16, trial: &Trial) -> Listener {
    let filter = |name: &str, config: Any| HttpFilter {
        name: name.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: trial.name.into(),
        http_filters: vec![
            filter("envoy.filters.http.cors", any(&Cors {})),
            filter("envoy.filters.http.fault", any(&HttpFault::default())),
            filter(
                "envoy.filters.http.router",
                any(&Router { suppress_envoy_headers: true, ..Default::default() }),
            ),
        ],
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        generate_request_id: Some(BoolValue { value: false }),
        normalize_path: Some(BoolValue { value: trial.options.normalize }),
        merge_slashes: trial.options.merge_slashes,
        path_with_escaped_slashes_action: trial.options.escaped_slashes.into(),
        route_specifier: Some(RouteSpecifier::RouteConfig(trial.config.clone())),
        ..Default::default()
    };
    Listener {
        name: trial.name.into(),
        address: Some(address(port)),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "envoy.filters.network.http_connection_manager".into(),
                config_type: Some(filter::ConfigType::TypedConfig(any(&manager))),
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn cluster(number: u16) -> Cluster {
    let name = format!("c{number}");
    let endpoint = Endpoint {
        address: Some(address(FIRST_CLUSTER + number)),
        hostname: predict::endpoint(&name),
        ..Default::default()
    };
    Cluster {
        name: name.clone(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::Static.into(),
        )),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name,
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![LbEndpoint {
                    host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}
