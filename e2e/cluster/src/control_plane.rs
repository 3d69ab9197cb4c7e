//! etcd, API server, controllers and scheduler, as processes.
//!
//! ```text
//!   kube-controller-manager  kube-scheduler  kubectl, helm, kube::Client
//!               \                  |                  /
//!                +------- kube-apiserver (TLS) ------+
//!                                  |
//!                         etcd (plain, loopback)
//! ```
//!
//! Ready means: the API server says so, and the controllers have made the service account without which no
//! pod is admitted.

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    pki::{self, Authority, Identity},
    ports,
    process::{Keeper, Process, tail},
    programs::Program,
    wait,
};

/// Prefix of the folders of all control planes; then comes the number of the process.
const PREFIX: &str = "slotmesh-cluster-";
/// The cluster's Service addresses of both families, and the first of them, which is the API server's.
const SERVICES: (&str, Ipv4Addr) = ("10.96.0.0/16,fd00:10:96::/112", Ipv4Addr::new(10, 96, 0, 1));
/// Who signs tokens.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The file of their key.
const SERVICE_ACCOUNTS: &str = "service-accounts";

/// As whom the API server asks a node's kubelet.
pub const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// The controllers of an installed application: its workloads, endpoints, accounts and their removal.
/// (All of them take seconds longer to start.)
pub const CONTROLLERS: [&str; 15] = [
    "clusterrole-aggregation-controller",
    "daemonset-controller",
    "deployment-controller",
    "disruption-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "node-lifecycle-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "statefulset-controller",
];

/// How a control plane is started.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The address by which nodes reach the API server, beside loopback; none where there are no nodes.
    pub address: Option<Ipv4Addr>,
    /// Which controllers run.
    pub controllers: Vec<&'static str>,
    /// Set where pods are to be given nodes.
    pub scheduler: bool,
}

impl Default for Spec {
    /// On loopback, with [`CONTROLLERS`], without a scheduler.
    fn default() -> Self {
        Self { address: None, controllers: CONTROLLERS.to_vec(), scheduler: false }
    }
}

/// A running control plane. It ends when this is dropped.
pub struct ControlPlane {
    // Dropped in this order: what writes to another goes first.
    scheduler: Option<Process>,
    controllers: Option<Process>,
    api_server: Option<Process>,
    etcd: Option<Process>,
    keeper: Keeper,
    ports: Ports,
    spec: Spec,
    authority: Authority,
    dir: TempDir,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    etcd: u16,
    peer: u16,
    api_server: u16,
}

impl ControlPlane {
    /// Starts one on loopback, and waits until it is ready.
    ///
    /// # Errors
    /// When a program is missing or ends (with what it said), or it isn't ready in time.
    pub async fn start() -> Result<Self> {
        Self::start_with(Spec::default()).await
    }

    /// Starts one, and waits until it is ready.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub async fn start_with(spec: Spec) -> Result<Self> {
        let dir = own_dir()?;
        let pki = dir.path().join("pki");
        let authority = Authority::new(&pki)?;
        let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), SERVICES.1.into()];
        addresses.extend(spec.address.map(IpAddr::from));
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        authority.server("kube-apiserver", &names, &addresses)?;
        authority.client(KUBELET_CLIENT, KUBELET_CLIENT, None)?;
        authority.key(SERVICE_ACCOUNTS)?;
        fs::create_dir(dir.path().join("logs"))?;
        let ports = Ports { etcd: ports::free()?, peer: ports::free()?, api_server: ports::free()? };
        let mut this = Self {
            scheduler: None,
            controllers: None,
            api_server: None,
            etcd: None,
            keeper: Keeper::new()?,
            ports,
            spec,
            authority,
            dir,
        };
        this.write_kubeconfig("admin", "admin", Some("system:masters"))?;
        this.start_etcd()?;
        this.start_api_server().await?;
        this.start_controllers()?;
        this.start_scheduler()?;
        this.wait_for_controllers().await?;
        Ok(this)
    }

    /// The folder of its files, which goes with it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Who signs its certificates.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The API server's URL on loopback.
    pub fn url(&self) -> String {
        self.url_at(Ipv4Addr::LOCALHOST)
    }

    /// The API server's URL at an address.
    pub fn url_at(&self, address: Ipv4Addr) -> String {
        format!("https://{address}:{}", self.ports.api_server)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }

    /// Writes the kubeconfig of a user, perhaps in a group, under a new certificate.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_kubeconfig(&self, file: &str, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let identity = self.authority.client(file, user, group)?;
        let server = self.spec.address.map_or_else(|| self.url(), |address| self.url_at(address));
        let path = self.dir.path().join(format!("{file}.kubeconfig"));
        let text = serde_json::to_string_pretty(&self.kubeconfig_of(&server, &identity)?)?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// JSON, which is YAML; with what it needs within, so that it can be read anywhere.
    fn kubeconfig_of(&self, server: &str, identity: &Identity) -> Result<Value> {
        let data = |file: &Path| -> Result<String> {
            let bytes = fs::read(file).with_context(|| file.display().to_string())?;
            Ok(BASE64_STANDARD.encode(bytes))
        };
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "e2e", "cluster": {
                "server": server,
                "certificate-authority-data": data(&self.authority.certificate())?,
            }}],
            "users": [{"name": "user", "user": {
                "client-certificate-data": data(&identity.certificate)?,
                "client-key-data": data(&identity.key)?,
            }}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "user"}}],
            "current-context": "e2e",
        }))
    }

    /// A client of the administrator, for the runtime that this is called in.
    ///
    /// # Errors
    /// When its certificate can't be read.
    pub async fn client(&self) -> Result<Client> {
        client_of(&self.kubeconfig()).await
    }

    /// `kubectl` for the administrator.
    ///
    /// # Errors
    /// When it isn't there.
    pub fn kubectl(&self) -> Result<Command> {
        self.command(Program::Kubectl)
    }

    /// `helm` for the administrator, with folders of its own.
    ///
    /// # Errors
    /// When it isn't there.
    pub fn helm(&self) -> Result<Command> {
        let mut helm = self.command(Program::Helm)?;
        for (name, dir) in
            [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            helm.env(name, self.dir.path().join("helm").join(dir));
        }
        Ok(helm)
    }

    fn command(&self, program: Program) -> Result<Command> {
        let mut command = Command::new(program.path()?);
        // kubectl caches what the API server offers: each cluster's own.
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.dir.path());
        Ok(command)
    }

    /// Kills the API server. What is stored stays.
    ///
    /// # Errors
    /// When it isn't running.
    pub fn stop_api_server(&mut self) -> Result<()> {
        kill("the API server", self.api_server.take())
    }

    /// Starts the API server, at the address that it had, and waits until it is ready.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub async fn start_api_server(&mut self) -> Result<()> {
        ensure!(self.api_server.is_none(), "the API server is running");
        let pki = |file: &str| self.dir.path().join("pki").join(file).display().to_string();
        let mut args = vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd),
            format!("--secure-port={}", self.ports.api_server),
            format!("--cert-dir={}", self.dir.path().display()),
            format!("--client-ca-file={}", pki("ca.crt")),
            format!("--tls-cert-file={}", pki("kube-apiserver.crt")),
            format!("--tls-private-key-file={}", pki("kube-apiserver.key")),
            format!("--service-cluster-ip-range={}", SERVICES.0),
            format!("--service-account-issuer={ISSUER}"),
            format!("--service-account-key-file={}", pki("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", pki("service-accounts.key")),
            format!("--kubelet-certificate-authority={}", pki("ca.crt")),
            format!("--kubelet-client-certificate={}", pki(&format!("{KUBELET_CLIENT}.crt"))),
            format!("--kubelet-client-key={}", pki(&format!("{KUBELET_CLIENT}.key"))),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            // As kubeadm sets it: a node may touch what is its own.
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--anonymous-auth=false".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--profiling=false".to_owned(),
        ];
        args.extend(match self.spec.address {
            Some(address) => ["--bind-address=0.0.0.0".to_owned(), format!("--advertise-address={address}")],
            None => ["--bind-address=127.0.0.1".to_owned(), "--advertise-address=127.0.0.1".to_owned()],
        });
        // Endpoints on loopback are refused by the API itself.
        if self.spec.address.is_none() {
            args.push("--endpoint-reconciler-type=none".to_owned());
        }
        self.api_server = Some(self.run(Program::ApiServer, &args)?);
        let client = self.client().await?;
        let running =
            |process: &mut Option<Process>| process.as_mut().map_or(Ok(()), Process::expect_running);
        wait::until_true("the API server to be ready", async || {
            running(&mut self.etcd)?;
            running(&mut self.api_server)?;
            let request = http::Request::get("/readyz").body(Vec::new())?;
            Ok(client.request_text(request).await.is_ok())
        })
        .await
        .with_context(|| self.logs())
    }

    /// Kills etcd. What is stored stays.
    ///
    /// # Errors
    /// When it isn't running.
    pub fn stop_etcd(&mut self) -> Result<()> {
        kill("etcd", self.etcd.take())
    }

    /// Starts etcd with what it stored before.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_etcd(&mut self) -> Result<()> {
        ensure!(self.etcd.is_none(), "etcd is running");
        let clients = format!("http://127.0.0.1:{}", self.ports.etcd);
        let peers = format!("http://127.0.0.1:{}", self.ports.peer);
        let args = [
            "--name=e2e".to_owned(),
            format!("--data-dir={}", self.dir.path().join("etcd").display()),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=e2e={peers}"),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        self.etcd = Some(self.run(Program::Etcd, &args)?);
        Ok(())
    }

    /// A service account's token like this one, but for its end: the API server lets nobody ask for one that ends soon.
    ///
    /// # Errors
    /// When that isn't one.
    pub fn token_like(&self, token: &str, end: SystemTime) -> Result<String> {
        let (header, rest) = token.split_once('.').context("a token has three parts")?;
        let (claims, _) = rest.split_once('.').context("a token has three parts")?;
        let mut claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims)?)?;
        claims["exp"] = end.duration_since(UNIX_EPOCH)?.as_secs().into();
        let signed = format!("{header}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
        let key = self.authority.key_file(SERVICE_ACCOUNTS);
        Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(pki::sign(&key, signed.as_bytes())?)))
    }

    /// Lets etcd forget its history: who watches from an older revision is told that it is gone (410).
    ///
    /// # Errors
    /// When etcd isn't running.
    pub fn compact(&self) -> Result<()> {
        let ask = |path: &str, body: Value| -> Result<Value> {
            let url = format!("http://127.0.0.1:{}/v3/kv/{path}", self.ports.etcd);
            let answer = ureq::post(&url).send_json(body).with_context(|| url.clone())?;
            Ok(answer.into_body().read_json()?)
        };
        let now = ask("range", json!({"key": "AA=="}))?;
        let revision = &now["header"]["revision"];
        ensure!(revision.is_string(), "etcd told no revision: {now}");
        ask("compaction", json!({"revision": revision, "physical": true}))?;
        Ok(())
    }

    /// Kills the controllers.
    ///
    /// # Errors
    /// When they aren't running.
    pub fn stop_controllers(&mut self) -> Result<()> {
        kill("the controllers", self.controllers.take())
    }

    /// Starts the controllers.
    ///
    /// # Errors
    /// When they can't be started.
    pub fn start_controllers(&mut self) -> Result<()> {
        ensure!(self.controllers.is_none(), "the controllers are running");
        let pki = self.dir.path().join("pki");
        let args = [
            format!("--kubeconfig={}", self.kubeconfig().display()),
            format!("--controllers={}", self.spec.controllers.join(",")),
            format!("--service-account-private-key-file={}", pki.join("service-accounts.key").display()),
            format!("--root-ca-file={}", pki.join("ca.crt").display()),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
            "--profiling=false".to_owned(),
        ];
        self.controllers = Some(self.run(Program::ControllerManager, &args)?);
        Ok(())
    }

    fn start_scheduler(&mut self) -> Result<()> {
        if self.spec.scheduler {
            let args = [
                format!("--kubeconfig={}", self.kubeconfig().display()),
                "--leader-elect=false".to_owned(),
                "--secure-port=0".to_owned(),
                "--profiling=false".to_owned(),
            ];
            self.scheduler = Some(self.run(Program::Scheduler, &args)?);
        }
        Ok(())
    }

    async fn wait_for_controllers(&mut self) -> Result<()> {
        if !self.spec.controllers.contains(&"serviceaccount-controller") {
            return Ok(());
        }
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, "default");
        wait::until_true("the controllers to make a service account", async || {
            for process in [&mut self.controllers, &mut self.scheduler].into_iter().flatten() {
                process.expect_running()?;
            }
            Ok(accounts.get_opt("default").await?.is_some())
        })
        .await
        .with_context(|| self.logs())
    }

    fn run(&self, program: Program, args: &[String]) -> Result<Process> {
        let log = self.dir.path().join("logs").join(format!("{program}.log"));
        self.keeper.start(&program.path()?, args, &log)
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        let mut logs: Vec<_> = fs::read_dir(self.dir.path().join("logs"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect();
        logs.sort();
        logs.iter().map(|log| tail(log)).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

fn kill(what: &str, process: Option<Process>) -> Result<()> {
    let Some(process) = process else { bail!("{what} isn't running") };
    process.stop(Signal::SIGKILL, Duration::from_secs(20))?;
    Ok(())
}

/// A client by a kubeconfig, for the runtime that this is called in.
///
/// # Errors
/// When the file or what it names can't be read.
pub async fn client_of(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| kubeconfig.display().to_string())?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// A folder of one's own, after removing those of processes that are no more.
fn own_dir() -> Result<TempDir> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    for entry in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
    let prefix = format!("{PREFIX}{}-{}-", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    tempfile::Builder::new().prefix(&prefix).tempdir().context("create a temporary folder")
}
