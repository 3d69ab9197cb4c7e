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
use slotmesh_compile::Kind;
use slotmesh_operator::{
    CompileOptions, Metrics, Operator, OperatorOptions, Pulse, Scoped, Status, Tokens,
    certs::{Certificates, Keeper, Lifetimes, Names, tls_config},
    status::{self, Counters, Sources, StatusSettings, StatusUpdates},
};
use slotmesh_serve::{AdsServerConfig, tls_connections};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, Site},
    changes,
    cluster::reach,
    compile::CompileFlags,
    domain::DomainFlag,
    flags::{ADMIN, LogFlag, address},
    listen::listen,
    origins,
    process::{GRACE, LIMIT, Parts, raise_descriptor_limit, stop_on_signals},
    reports, served, version,
};

/// How long the compile thread may take for what it has begun. It takes milliseconds, and seconds for a first list.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// The flags of `slotmesh operator`. Which cluster it is for is told by KUBECONFIG, else by the pod that
/// it runs in.
#[derive(Debug, Args)]
pub struct OperatorCommand {
    /// Address on which agents are served (delta ADS over TLS)
    #[arg(long, env = "SLOTMESH_LISTEN", default_value = "[::]:15010", value_name = "ADDRESS",
        value_parser = address)]
    listen: SocketAddr,

    /// Address of the admin interface, whose page / lists the others. Beyond loopback it answers /metrics, /readyz and
    /// /livez only
    #[arg(long, env = "SLOTMESH_OPERATOR_ADMIN", default_value = "127.0.0.1:15021", value_name = "ADDRESS",
        help_heading = ADMIN, value_parser = address)]
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
    #[arg(long, env = "SLOTMESH_DRAIN_SECONDS", default_value_t = 3, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(0..=600))]
    drain_seconds: u32,

    #[command(flatten)]
    compile: CompileFlags,

    #[command(flatten)]
    domain: DomainFlag,

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
            compile,
            domain,
            log,
        } = self;
        log.init()?;
        raise_descriptor_limit();
        let domain = domain.in_a_pod();
        tracing::info!(%domain, "host names of Services end with this");
        domain.clone().set();
        let mut names: Vec<String> = [String::new(), format!(".{domain}")]
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
        let settings = StatusSettings { namespace: namespace.clone(), lease, replica };
        let running = Running {
            listen,
            admin,
            namespace,
            names,
            lifetimes,
            audience,
            agent_account,
            settings,
            compile: compile.options(),
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
    settings: StatusSettings,
    compile: CompileOptions,
    stagger: Duration,
}

/// A name for a process that was given none.
fn this_process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}

impl Running {
    async fn run(self) -> anyhow::Result<()> {
        let stop = stop_on_signals(LIMIT.max(self.stagger + 2 * GRACE))?;
        let client = reach().await?;
        let listener =
            listen(self.listen).await.with_context(|| format!("--listen {} can't be used", self.listen))?;
        let socket =
            listen(self.admin).await.with_context(|| format!("--admin {} can't be used", self.admin))?;
        let (address, admin) = (listener.local_addr()?, socket.local_addr()?);
        let mut parts = Parts::new(stop.clone());

        let scoped = Scoped::default();
        let store = scoped.store();
        let updates = StatusUpdates::new(scoped.due());
        let options = OperatorOptions {
            compile: self.compile,
            updates: Some(updates.clone()),
            ..OperatorOptions::default()
        };
        let operator = Operator::from_cluster(client.clone(), options, scoped)?;
        parts.add("the compile thread", reports::compile_thread_ended(operator.status(), stop.clone()));
        let counters = Counters::default();
        let sources = Sources { events: store.follow(), updates };
        // Ends before the streams: their agents go to other replicas, which say so.
        let statuses = status::write(client.clone(), self.settings, sources, counters.clone(), stop.clone());
        parts.add("the writer of statuses", async move {
            statuses.await;
            Ok(())
        });

        let certificates = Certificates::default();
        let certified = CancellationToken::new();
        let keeper = Keeper::new(&client, self.names, self.lifetimes, certificates.clone());
        let keeping = keeper.run(certified.clone(), stop.clone());
        parts.add("the keeper of certificates", async move {
            keeping.await;
            Ok(())
        });

        let tokens = Tokens::new(client, &self.audience, &self.namespace, &self.agent_account);
        let config = AdsServerConfig {
            authenticator: Some(Arc::new(tokens)),
            stagger: self.stagger,
            ..AdsServerConfig::default()
        };
        let metrics = Arc::new(Metrics::new(store.clone(), operator.status(), &config, counters));
        let state = Admin {
            metrics,
            status: operator.status(),
            certified: certified.clone(),
            pulse: operator.pulse(),
        };
        let local = reports::router(operator.status())
            .merge(served::router(store.clone()))
            .merge(origins::router(operator.inquiry(), operator.history()))
            .merge(changes::router(operator.history()))
            .merge(version::router());
        let site = Site::new(routes(state), local, &PAGES);
        // Outlives the streams, which are served for a while after the signal.
        parts.add_last("the admin server", admin::serve(socket, site, CancellationToken::new()));

        let connections = tls_connections(listener, tls_config(&certificates)?, &config.gate);
        parts.add("the delta ADS server", {
            let serving = slotmesh_serve::serve(store, config, connections, stop.clone());
            async move { Ok(serving.await?) }
        });
        tracing::info!(%address, %admin, "running");
        let ready = async {
            certified.cancelled().await;
            if operator.synced().await.is_ok() {
                let summary = reports::summary(&operator.status().borrow());
                tracing::info!("ready: {summary}");
            }
            std::future::pending().await
        };
        let outcome = tokio::select! {
            biased;
            outcome = parts.run() => outcome,
            () = ready => Ok(()),
        };
        tracing::info!(over = ?self.stagger, "stopping: streams end one after the other");
        stop.cancel();
        let ended = parts.end(self.stagger + GRACE).await;
        // The compile thread may be handing changes over.
        tokio::task::block_in_place(|| drop(operator));
        outcome.and(ended)
    }
}

/// The pages of the admin interface, and what each shows.
const PAGES: [(&str, &str); 8] = [
    ("/metrics", "OpenMetrics"),
    ("/readyz", "200 once all that the cluster had at start is compiled, and there is a certificate"),
    ("/livez", "200 while the compile thread gets on"),
    reports::PAGE,
    served::PAGE,
    origins::PAGE,
    changes::PAGE,
    version::PAGE,
];

/// What the admin interface answers from.
#[derive(Clone)]
struct Admin {
    metrics: Arc<Metrics>,
    status: watch::Receiver<Status>,
    certified: CancellationToken,
    pulse: Pulse,
}

fn routes(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

async fn live(State(admin): State<Admin>) -> Response {
    match admin.pulse.busy_for() {
        Some(busy) if busy > HEARTBEAT => {
            let text = format!("the compile thread has been at one thing for {busy:?}\n");
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
        _ => "live\n".into_response(),
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    let status = admin.status.borrow();
    let waiting = match (status.synced, admin.certified.is_cancelled()) {
        (true, true) if status.left_out.is_empty() => return (StatusCode::OK, "ready\n").into_response(),
        (true, true) => {
            let left_out = names(&status.left_out);
            return (StatusCode::OK, format!("ready, without {left_out}: can't be listed\n")).into_response();
        }
        (true, false) => "a certificate".to_owned(),
        (false, _) if status.outstanding.is_empty() => "the first lists".to_owned(),
        (false, _) => format!("the first list of {}", names(&status.outstanding)),
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: waiting for {waiting}\n")).into_response()
}

fn names(kinds: &[Kind]) -> String {
    kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ")
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let content = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content)], admin.metrics.render()).into_response()
}
