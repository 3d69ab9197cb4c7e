//! `slotmesh explain`: where the connections of a workload to an address go.
//!
//! ```text
//!  records:  listener -> chain of the caller -> route -> clusters by weight -> endpoints by weight   expected shares
//!  kernel:   the program itself, asked about 2,048 connections of this caller                        counted shares
//!  operator: the content hash of each of these resources, as it is served now                        the same, or not
//!  proxy:    its own decision about a request, on the route configuration that it has                the HTTP rule
//! ```
//!
//! All have to say the same. Where they don't, something may have changed in between, so they are asked once more; what
//! differs then is an error. With `--manifests` nobody is asked: the objects are compiled here.

mod args;
mod because;
mod caller;
mod compare;
mod expected;
mod offline;
mod request;
mod source;
mod text;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;
use slotmesh_admin::{AskedInForce, ListenerInForce, NodeInForce, OriginsView, VerdictInForce, paths};

use self::{
    args::{AskedHost, Caller, Protocol},
    caller::ClusterPod,
    compare::{LeftOut, left_out},
    expected::{Expected, expected},
    offline::CompiledManifests,
    request::{DecidedRequest, RequestArgs},
    source::InForceSource,
};
use crate::{
    ask::{AdminSite, AskedAgent, encoded},
    compile::CompileFlags,
    domain::DomainFlag,
    flags::address,
    in_force::{InForce as _, is_meant},
    is_plugin,
    render::{OutputForm, print},
};

/// Exit status where all connects are refused.
const REFUSED: u8 = 3;
/// Exit status where somebody else decides.
const NOT_OURS: u8 = 4;
/// Exit status where the kernel, its records and the operator don't say the same.
const DIFFERS: u8 = 5;

/// How often all are asked before a difference is told.
const TRIES: usize = 4;

/// The end of `slotmesh explain --help`.
const EXAMPLES: &str = "Examples:
  slotmesh explain --from shop/client --to 10.96.0.10:80
  slotmesh explain --from shop/client --to reviews:80 --path /api --header 'x-beta: 1'
  slotmesh explain --from shop/client --to kube-dns.kube-system:53 --protocol udp -o json
  slotmesh explain --manifests ./shop --from shop/client --to reviews:80
  kubectl slotmesh explain --from shop/client --to reviews:80

Exit status: 0 connections are routed, 1 failure, 2 wrong usage, 3 they are refused, 4 slotmesh doesn't decide about
them, 5 the kernel decides otherwise than its records say, or these aren't what the operator serves";

/// The flags of `slotmesh explain`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Explain {
    /// Who connects: a workload of the node
    #[arg(long, env = "SLOTMESH_FROM", value_name = "NAMESPACE/NAME")]
    from: Caller,

    /// Where to: an address, or the host of a Service, seen from the caller's namespace
    #[arg(long, env = "SLOTMESH_TO", value_name = "HOST:PORT")]
    to: AskedHost,

    /// The protocol
    #[arg(long, env = "SLOTMESH_PROTOCOL", default_value = "tcp")]
    protocol: Protocol,

    #[command(flatten)]
    request: RequestArgs,

    /// Look for the caller's node in the cluster that KUBECONFIG says; as `kubectl slotmesh` by itself
    #[arg(long, env = "SLOTMESH_ASK_CLUSTER", conflicts_with_all = ["node", "manifests"])]
    cluster: bool,

    /// Ask nobody: compile the manifests of this directory or file, and say what a node would have of them
    #[arg(long, env = "SLOTMESH_EXPLAIN_MANIFESTS", value_name = "DIR", conflicts_with = "node")]
    manifests: Option<PathBuf>,

    #[command(flatten)]
    asked: AskedAgent,

    /// Whoever compiles the objects, to tell of them: address of its admin interface [default: the agent's own, where
    /// `slotmesh up` answers, else 127.0.0.1:15021; with --node an operator of the cluster]
    #[arg(long, env = "SLOTMESH_OPERATOR_ADMIN", value_name = "ADDRESS", value_parser = address)]
    served_by: Option<SocketAddr>,

    #[command(flatten)]
    compile: CompileFlags,

    #[command(flatten)]
    domain: DomainFlag,

    /// Form of the answer
    #[arg(long, short, env = "SLOTMESH_OUTPUT", default_value = "table")]
    output: OutputForm,
}

/// All that is told.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explained {
    from: String,
    #[serde(flatten)]
    asked: AskedInForce,
    /// The node of the caller, where it is known.
    node: Option<NodeInForce>,
    records: Option<Expected>,
    /// In what kernel, records and operator differ.
    differences: Vec<String>,
    /// The objects behind it; none where nobody who compiles them answers.
    origins: Option<OriginsView>,
    /// Endpoints that these connections don't go to, and why.
    left_out: Vec<LeftOut>,
    /// Where the request goes that is asked about.
    request: Option<DecidedRequest>,
    /// The verdict in words.
    meaning: String,
}

impl Explain {
    /// Prints where the connections go.
    ///
    /// # Errors
    /// Where no agent answers, or nobody has the name.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self {
            from,
            to,
            protocol,
            request,
            cluster,
            manifests,
            asked,
            served_by,
            compile,
            domain,
            output,
        } = self;
        let question = Question { from, to, protocol, request };
        let explained = match manifests {
            Some(path) => {
                domain.on_a_machine().set();
                question.by_manifests(&CompiledManifests::read(&path, compile.options())?)?
            }
            None => {
                let in_cluster = cluster || asked.node().is_some() || is_plugin();
                let pod = if in_cluster { Some(caller::pod(&question.from)) } else { None };
                // Who may not read pods can name the node.
                let (asked, pod) = match pod {
                    Some(Ok(pod)) if asked.node().is_none() => (asked.of_node(pod.node.clone()), Some(pod)),
                    Some(Err(error)) if asked.node().is_none() => return Err(error),
                    pod => (asked, pod.and_then(Result::ok)),
                };
                question.by_agent(&asked, served_by, pod.as_ref())?
            }
        };
        print(&output.of_text(&explained, |wide| text::text(&explained, wide))?)?;
        Ok(ExitCode::from(match explained.asked.verdict {
            _ if !explained.differences.is_empty() => DIFFERS,
            VerdictInForce::Routed => 0,
            VerdictInForce::Refused => REFUSED,
            VerdictInForce::NotAttached | VerdictInForce::NotOurs => NOT_OURS,
        }))
    }
}

/// A question.
struct Question {
    from: Caller,
    to: AskedHost,
    protocol: Protocol,
    request: RequestArgs,
}

impl Question {
    /// The answer of manifests.
    fn by_manifests(&self, compiled: &CompiledManifests) -> anyhow::Result<Explained> {
        let Self { from, protocol, .. } = self;
        let to = self.address(&compiled.resources)?.context(self.unknown("of these manifests"))?;
        let mut asked = compiled.ask(from, &to.to_string(), *protocol)?;
        let mut records = self.expected(&compiled.resources, &asked, to)?;
        if let Some(proxy) = records.as_mut().and_then(|records| records.proxy.as_mut()) {
            // A node's agent says where.
            proxy.clear();
        }
        asked.verdict = offline::verdict(records.as_ref());
        let origins =
            asked.listener.as_deref().map(|listener| compiled.origins(listener)).transpose()?.flatten();
        let request = match records.as_ref().and_then(|records| records.route.as_deref()) {
            Some(route) if self.request.is_asked() => {
                let content = compiled.resources.content(slotmesh_xds::ResourceType::Route, route);
                content.map(|content| self.decide(content)).transpose()?
            }
            _ => None,
        };
        self.checked(records.as_ref())?;
        let served: &dyn InForceSource = &compiled.resources;
        let left_out = left_out(origins.as_ref(), records.as_ref(), Some(served));
        let meaning = text::meaning(&asked, from, records.as_ref(), None);
        let differences = Vec::new();
        let from = format!("{}/{}", from.namespace, from.name);
        Ok(Explained { from, asked, node: None, records, differences, origins, left_out, request, meaning })
    }

    /// The answer of an agent, its kernel, its proxy, and whoever serves it.
    fn by_agent(
        &self,
        asked: &AskedAgent,
        served_by: Option<SocketAddr>,
        pod: Option<&ClusterPod>,
    ) -> anyhow::Result<Explained> {
        let agent = asked.site()?;
        let Self { from, to, protocol, request } = self;
        let of_cluster = || match to {
            AskedHost::Host(host, port) if pod.is_some() => {
                caller::service_address(from, host, *port, *protocol)
            }
            _ => None,
        };
        let address = self.address(&agent)?.or_else(of_cluster);
        let to = address.with_context(|| self.unknown("in force on this node"))?;
        // Without whoever compiles the objects there is an answer, too.
        let sites = asked.servers(served_by).unwrap_or_default();
        let server = sites
            .iter()
            .find(|site| matches!(site.find::<Vec<serde_json::Value>>(paths::REPORTS), Ok(Some(_))));
        let mut tries = 0;
        let (answer, records, differences) = loop {
            let answer: AskedInForce = self.ask(&agent, to)?;
            let records = match answer.listener {
                Some(_) => self.expected(&agent, &answer, to)?,
                None => None,
            };
            let mut differences = match (&records, answer.verdict) {
                (Some(records), VerdictInForce::Routed | VerdictInForce::Refused) => {
                    compare::kernel_and_records(&answer, records)
                }
                _ => Vec::new(),
            };
            if let (Some(records), Some(server)) = (&records, server) {
                differences.extend(compare::records_and_operator(records, server)?);
            }
            tries += 1;
            if differences.is_empty() || tries == TRIES {
                break (answer, records, differences);
            }
            std::thread::sleep(std::time::Duration::from_millis(50 << tries));
        };
        let origins = server.zip(answer.listener.as_deref());
        let origins = origins.and_then(|(server, listener)| because::origins(server, listener));
        let served = server.map(|server| Served(server.clone()));
        let served = served.as_ref().map(|served| served as &dyn InForceSource);
        let left_out = left_out(origins.as_ref(), records.as_ref(), served);
        let decided = match records.as_ref().and_then(|records| records.route.as_deref()) {
            Some(route) if request.is_asked() => {
                let bytes = agent.bytes(&format!("{}/{}", paths::PROXIED, encoded(route)))?;
                bytes.map(|bytes| self.decide(&bytes)).transpose()?
            }
            _ => None,
        };
        self.checked(records.as_ref())?;
        let node = agent.find(paths::NODE)?;
        let absent = pod.and_then(|pod| pod.absent.as_deref());
        let meaning = text::meaning(&answer, from, records.as_ref(), absent);
        let from = format!("{}/{}", from.namespace, from.name);
        let (asked, request) = (answer, decided);
        Ok(Explained { from, asked, node, records, differences, origins, left_out, request, meaning })
    }

    fn ask(&self, agent: &AdminSite, to: SocketAddr) -> anyhow::Result<AskedInForce> {
        let Caller { namespace, name } = &self.from;
        let parts =
            [namespace.as_str(), name, self.protocol.as_str(), &to.to_string()].map(encoded).join("/");
        agent.get(&format!("{}/{parts}", paths::ASK))
    }

    fn expected(
        &self,
        source: &dyn InForceSource,
        asked: &AskedInForce,
        to: SocketAddr,
    ) -> anyhow::Result<Option<Expected>> {
        match &asked.listener {
            Some(listener) => expected(source, listener, asked.class.as_deref(), &self.from.namespace, to),
            None => Ok(None),
        }
    }

    fn decide(&self, config: &[u8]) -> anyhow::Result<DecidedRequest> {
        request::decide(config, &self.request, &self.to.authority())
    }

    /// A request is asked about only where requests are looked at.
    fn checked(&self, records: Option<&Expected>) -> anyhow::Result<()> {
        if self.request.is_asked() && records.is_some_and(|records| records.proxy.is_none()) {
            bail!(
                "nobody looks at requests to {}: all rules in force there decide about connections; leave out --path, \
                 --header and --method",
                self.to.authority()
            );
        }
        Ok(())
    }

    fn unknown(&self, place: &str) -> String {
        format!(
            "--to {}: no address {place} leads there ({}); `slotmesh get listeners` lists all. Name an address if connections to \
             it are somebody else's",
            self.to,
            self.protocol.as_str()
        )
    }

    /// The address that is meant; of a host, that of a Service's port; `None` where no resource leads there.
    fn address(&self, source: &dyn InForceSource) -> anyhow::Result<Option<SocketAddr>> {
        let Self { from, to, protocol, .. } = self;
        let (host, port) = match to {
            AskedHost::Address(address) => return Ok(Some(*address)),
            AskedHost::Host(host, port) => (host, *port),
        };
        let wanted = if host.contains('.') { host.clone() } else { format!("{}/{host}", from.namespace) };
        let mut found: Vec<(bool, bool, SocketAddr)> = Vec::new();
        for listener in source.all("listener")? {
            let listener: ListenerInForce = serde_json::from_value(listener)?;
            if !listener.names().iter().any(|name| is_meant(name, &wanted)) {
                continue;
            }
            // A Service may lead to others, too: one that leads to nothing else is meant first.
            let alone = listener.chains.iter().any(|chain| {
                [&chain.to.route, &chain.to.cluster].into_iter().flatten().any(|name| is_meant(name, &wanted))
            });
            let addresses = listener.addresses.iter().filter_map(|at| {
                let (address, udp) = at.strip_suffix("/UDP").map_or((at.as_str(), false), |at| (at, true));
                let is_it = udp == (*protocol == Protocol::Udp);
                address
                    .parse::<SocketAddr>()
                    .ok()
                    .filter(|at| is_it && at.port() == port && !at.ip().is_unspecified())
            });
            found.extend(addresses.map(|at| (!alone, at.is_ipv6(), at)));
        }
        found.sort();
        Ok(found.first().map(|(.., address)| *address))
    }
}

/// Resources as whoever serves them has them.
struct Served(AdminSite);

impl InForceSource for Served {
    fn shown(&self, ty: &str, name: &str) -> anyhow::Result<Option<serde_json::Value>> {
        self.0.find(&format!("{}/{ty}/{}", paths::SERVED, encoded(name)))
    }

    fn all(&self, ty: &str) -> anyhow::Result<Vec<serde_json::Value>> {
        self.0.get(&format!("{}/{ty}", paths::SERVED))
    }
}
