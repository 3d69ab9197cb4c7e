//! `slotmesh operator`: the operator of a cluster.
//!
//! ```text
//!  API server -> pipeline -> store -> delta ADS over TLS -> agents
//!             -> Secret -> certificates ----^   ^---- tokens <- API server
//!             <- MeshNodes, conditions, events <- status
//! ```

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use clap::Args;
use slotmesh_operator::{
    Metrics, Operator, Scoped, Status, Tokens,
    certs::{Certificates, Keeper, Lifetimes, Names, tls_config},
    status::{self, Counters, Notices, Settings, Sources},
};
use slotmesh_serve::{Config, tls_connections};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::{cluster::reach, flags::LogFlag, listen::listen, reports};

/// The flags of `slotmesh operator`. Which cluster it is for is told by KUBECONFIG, else by the pod that
/// it runs in.
#[derive(Debug, Args)]
pub struct OperatorCommand {
    /// Address on which agents are served (delta ADS over TLS)
    #[arg(long, env = "SLOTMESH_LISTEN", default_value = "[::]:15010", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// Address of the admin interface: /metrics, /readyz, /livez, /reports. It asks nobody who they are
    #[arg(long, env = "SLOTMESH_OPERATOR_ADMIN", default_value = "127.0.0.1:15021", value_name = "ADDRESS")]
    admin: SocketAddr,

    /// The namespace in which slotmesh is installed
    #[arg(long, env = "SLOTMESH_NAMESPACE", default_value = "slotmesh-system")]
    namespace: String,

    /// The Service by which agents reach the operator: its host names stand in the certificate
    #[arg(long, env = "SLOTMESH_SERVICE", default_value = "slotmesh-operator")]
    service: String,

    /// Further host names or addresses for the certificate
    #[arg(long = "host", env = "SLOTMESH_HOSTS", value_delimiter = ',', value_name = "HOST")]
    hosts: Vec<String>,

    /// The Secret that holds the certificate authority; made when it is missing
    #[arg(
        long,
        env = "SLOTMESH_AUTHORITY_SECRET",
        default_value = "slotmesh-authority",
        value_name = "NAME"
    )]
    authority_secret: String,

    /// The ConfigMap in which the certificates are published that agents have to know (ca.crt)
    #[arg(long, env = "SLOTMESH_CA_CONFIG_MAP", default_value = "slotmesh-ca", value_name = "NAME")]
    ca_config_map: String,

    /// The audience of the tokens that agents present
    #[arg(long, env = "SLOTMESH_AUDIENCE", default_value = "slotmesh-operator")]
    audience: String,

    /// The service account as which agents run, in the namespace of slotmesh
    #[arg(long, env = "SLOTMESH_AGENT_ACCOUNT", default_value = "slotmesh-agent", value_name = "NAME")]
    agent_account: String,

    /// Days that a certificate authority lasts; the next is made after two thirds of them
    #[arg(long, env = "SLOTMESH_AUTHORITY_DAYS", default_value_t = 365, value_name = "DAYS",
        value_parser = clap::value_parser!(u32).range(1..=3_650))]
    authority_days: u32,

    /// Hours that a certificate lasts; it is renewed after two thirds of them
    #[arg(long, env = "SLOTMESH_CERTIFICATE_HOURS", default_value_t = 168, value_name = "HOURS",
        value_parser = clap::value_parser!(u32).range(1..=8_760))]
    certificate_hours: u32,

    /// The Lease whose holder, of all replicas, writes the conditions of objects
    #[arg(long, env = "SLOTMESH_LEASE", default_value = "slotmesh-operator", value_name = "NAME")]
    lease: String,

    /// What this replica is called, unlike all others; in a pod, its name
    /// [default: the host's name and the process]
    #[arg(long, env = "SLOTMESH_REPLICA", value_name = "NAME")]
    replica: Option<String>,

    /// Seconds over which the ends of the streams are spread at a shutdown, so that agents don't all come
    /// back at once
    #[arg(long, env = "SLOTMESH_DRAIN_SECONDS", default_value_t = 10, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(0..=600))]
    drain_seconds: u32,

    #[command(flatten)]
    log: LogFlag,
}

impl OperatorCommand {
    /// Runs until SIGINT or SIGTERM.
    ///
    /// # Errors
    /// Says what is missing and what to do.
    pub fn run(self) -> anyhow::Result<()> {
        let Self {
            listen,
            admin,
            namespace,
            service,
            hosts,
            authority_secret,
            ca_config_map,
            audience,
            agent_account,
            authority_days,
            certificate_hours,
            lease,
            replica,
            drain_seconds,
            log,
        } = self;
        log.init()?;
        let mut names: Vec<String> = ["", ".cluster.local"]
            .map(|domain| format!("{service}.{namespace}.svc{domain}"))
            .into_iter()
            .chain([service.clone(), format!("{service}.{namespace}")])
            .collect();
        names.extend(hosts);
        let lifetimes = Lifetimes {
            authority: Duration::from_secs(u64::from(authority_days) * 24 * 3_600),
            certificate: Duration::from_secs(u64::from(certificate_hours) * 3_600),
            ..Lifetimes::default()
        };
        let names = Names {
            namespace: namespace.clone(),
            secret: authority_secret,
            config_map: ca_config_map,
            hosts: names,
        };
        let stagger = Duration::from_secs(u64::from(drain_seconds));
        let replica = replica.unwrap_or_else(this_process);
        let settings = Settings { namespace: namespace.clone(), lease, replica };
        let running = Running {
            listen,
            admin,
            namespace,
            names,
            lifetimes,
            audience,
            agent_account,
            settings,
            stagger,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(running.run())
    }
}

struct Running {
    listen: SocketAddr,
    admin: SocketAddr,
    namespace: String,
    names: Names,
    lifetimes: Lifetimes,
    audience: String,
    agent_account: String,
    settings: Settings,
    stagger: Duration,
}

/// A name for a process that was given none.
fn this_process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}

impl Running {
    async fn run(self) -> anyhow::Result<()> {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let client = reach().await?;
        let listener =
            listen(self.listen).await.with_context(|| format!("--listen {} can't be used", self.listen))?;
        let socket =
            listen(self.admin).await.with_context(|| format!("--admin {} can't be used", self.admin))?;
        let (address, admin) = (listener.local_addr()?, socket.local_addr()?);
        let stop = CancellationToken::new();

        let scoped = Scoped::default();
        let store = scoped.store();
        let notices = Notices::new(scoped.due());
        let operator = Operator::from_cluster_telling(client.clone(), scoped, notices.clone())?;
        let counters = Counters::default();
        let sources = Sources { feed: store.follow(), notices };
        // Ends before the streams: their agents go to other replicas, which say so.
        let statuses = status::write(client.clone(), self.settings, sources, counters.clone(), stop.clone());
        let statuses = tokio::spawn(statuses);

        let certificates = Certificates::default();
        let certified = CancellationToken::new();
        let keeper = Keeper::new(&client, self.names, self.lifetimes, certificates.clone());
        let keeper = tokio::spawn(keeper.run(certified.clone(), stop.clone()));

        let tokens = Tokens::new(client, &self.audience, &self.namespace, &self.agent_account);
        let config = Config { admission: Some(Arc::new(tokens)), stagger: self.stagger, ..Config::default() };
        let metrics = Arc::new(Metrics::new(store.clone(), operator.status(), &config, counters));
        let state = Admin { metrics, status: operator.status(), certified: certified.clone() };
        // Outlives the streams, which are served for a while after the signal.
        let admin_stop = CancellationToken::new();
        let _end_admin = admin_stop.clone().drop_guard();
        let router = routes(state).merge(reports::router(operator.status()));
        let admin_server = axum::serve(socket, router).with_graceful_shutdown(admin_stop.cancelled_owned());
        let admin_server = tokio::spawn(admin_server.into_future());

        let connections = tls_connections(listener, tls_config(&certificates)?);
        let serving = tokio::spawn({
            let serving = slotmesh_serve::serve(store, config, connections, stop.clone());
            async move { serving.await.map_err(|error| anyhow::anyhow!("delta ADS server: {error}")) }
        });
        tracing::info!(%address, %admin, "running");
        let ready = async {
            certified.cancelled().await;
            if operator.synced().await.is_ok() {
                tracing::info!("ready");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = ready => {}
        }
        tracing::info!(over = ?self.stagger, "stopping: streams end one after the other");
        stop.cancel();
        statuses.await?;
        let served = serving.await;
        keeper.await?;
        // The compile thread may be handing changes over.
        tokio::task::block_in_place(|| drop(operator));
        admin_server.abort();
        served?
    }
}

/// What the admin interface answers from.
#[derive(Clone)]
struct Admin {
    metrics: Arc<Metrics>,
    status: watch::Receiver<Status>,
    certified: CancellationToken,
}

fn routes(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

async fn ready(State(admin): State<Admin>) -> Response {
    let status = admin.status.borrow();
    let waiting = match (status.synced, admin.certified.is_cancelled()) {
        (true, true) => return (StatusCode::OK, "ready\n").into_response(),
        (true, false) => "a certificate".to_owned(),
        (false, _) if status.outstanding.is_empty() => "the first lists".to_owned(),
        (false, _) => {
            let kinds: Vec<&str> = status.outstanding.iter().map(|kind| kind.as_str()).collect();
            format!("the first list of {}", kinds.join(", "))
        }
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: waiting for {waiting}\n")).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let content = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content)], admin.metrics.render()).into_response()
}
