//! `slotmesh explain`: where the connections of a workload to an address go.
//!
//! ```text
//!  records:  listener -> chain of the caller -> route -> clusters by weight -> endpoints by weight   expected shares
//!  kernel:   the program itself, asked about 2,048 connections of this caller                        counted shares
//! ```
//!
//! Both have to say the same. Where they don't, the records may have changed in between, so both are asked once more;
//! what differs then is an error.

mod because;
mod expected;

use std::{fmt::Write as _, net::SocketAddr, process::ExitCode, str::FromStr};

use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::Serialize;
use slotmesh_admin::{AskedInForce, ListenerInForce, OriginsView, VerdictInForce, paths};

use self::expected::{Expected, expected};
use crate::{
    ask::{AdminSite, AskedAgent, encoded},
    flags::address,
    in_force::{InForce as _, is_meant},
    render::{Columns, OutputForm, Paint, or_dash, print},
};

/// Exit status where all connects are refused.
const REFUSED: u8 = 3;
/// Exit status where somebody else decides.
const NOT_OURS: u8 = 4;
/// Exit status where the kernel decides otherwise than its records say.
const DIFFERS: u8 = 5;

/// How often records and kernel are asked before a difference is told.
const TRIES: usize = 4;

/// The least share of connections, of which the kernel has to show some.
const NOTICEABLE: f64 = 0.02;

/// What `slotmesh explain --help` ends with.
const EXAMPLES: &str = "Examples:
  slotmesh explain --from shop/client --to 10.96.0.10:80
  slotmesh explain --from shop/client --to reviews:80
  slotmesh explain --from shop/client --to kube-dns.kube-system:53 --protocol udp -o json

Exit status: 0 connections are routed, 1 failure, 2 wrong usage, 3 they are refused, 4 slotmesh doesn't decide about
them, 5 the kernel decides otherwise than its records say";

/// The flags of `slotmesh explain`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Explain {
    /// Who connects: a workload of the node
    #[arg(long, env = "SLOTMESH_FROM", value_name = "NAMESPACE/NAME")]
    from: Caller,

    /// Where to: an address, or the host of a Service, seen from the caller's namespace
    #[arg(long, env = "SLOTMESH_TO", value_name = "HOST:PORT")]
    to: Destination,

    /// The protocol
    #[arg(long, env = "SLOTMESH_PROTOCOL", default_value = "tcp")]
    protocol: Protocol,

    #[command(flatten)]
    asked: AskedAgent,

    /// Whoever compiles the objects, to tell of them: address of its admin interface [default: the agent's own, where
    /// `slotmesh up` answers, else 127.0.0.1:15021; with --node an operator of the cluster]
    #[arg(long, env = "SLOTMESH_OPERATOR_ADMIN", value_name = "ADDRESS", value_parser = address)]
    served_by: Option<SocketAddr>,

    /// Form of the answer
    #[arg(long, short, env = "SLOTMESH_OUTPUT", default_value = "table")]
    output: OutputForm,
}

/// `NAMESPACE/NAME`
#[derive(Clone, Debug)]
struct Caller {
    namespace: String,
    name: String,
}

impl FromStr for Caller {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("expected NAMESPACE/NAME, such as shop/client".to_owned()),
        }
    }
}

/// `HOST:PORT`
#[derive(Clone, Debug)]
enum Destination {
    Address(SocketAddr),
    Host(String, u16),
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.contains(['/', ':']));
        let host = parts.and_then(|(host, port)| Some(Self::Host(host.to_owned(), port.parse().ok()?)));
        host.ok_or_else(|| {
            "expected ADDRESS:PORT or HOST:PORT, such as 10.96.0.10:80, [fd00::10]:80 or reviews.shop:80"
                .to_owned()
        })
    }
}

/// A protocol that is routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl Protocol {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// All that is told.
#[derive(Debug, Serialize)]
struct Explained {
    from: String,
    #[serde(flatten)]
    asked: AskedInForce,
    records: Option<Expected>,
    /// In what kernel and records differ.
    differences: Vec<String>,
    /// The objects behind it; none where nobody who compiles them answers.
    origins: Option<OriginsView>,
    /// The verdict in words.
    meaning: String,
}

impl Explain {
    /// Prints where the connections go.
    ///
    /// # Errors
    /// Where no agent answers, or nobody has the name.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self { from, to, protocol, asked, served_by, output } = self;
        let agent = asked.site()?;
        let to = match to {
            Destination::Address(address) => address,
            Destination::Host(host, port) => resolve(&agent, &from, &host, port, protocol)?,
        };
        let mut explained = explain(&agent, &from, to, protocol)?;
        for _ in 1..TRIES {
            if explained.differences.is_empty() {
                break;
            }
            explained = explain(&agent, &from, to, protocol)?;
        }
        if let Some(listener) = &explained.asked.listener {
            explained.origins = because::origins(&asked, served_by, listener);
        }
        let text = match output {
            OutputForm::Table | OutputForm::Wide => text(&explained, output == OutputForm::Wide),
            form => form.of(&explained, |_| Columns::new([]))?,
        };
        print(&text)?;
        Ok(ExitCode::from(match explained.asked.verdict {
            _ if !explained.differences.is_empty() => DIFFERS,
            VerdictInForce::Routed => 0,
            VerdictInForce::Refused => REFUSED,
            VerdictInForce::NotAttached | VerdictInForce::NotOurs => NOT_OURS,
        }))
    }
}

/// The address of a Service's port, of those that the node has in force.
fn resolve(
    agent: &AdminSite,
    from: &Caller,
    host: &str,
    port: u16,
    protocol: Protocol,
) -> anyhow::Result<SocketAddr> {
    let wanted = if host.contains('.') { host.to_owned() } else { format!("{}/{host}", from.namespace) };
    let mut found: Vec<(bool, bool, SocketAddr)> = Vec::new();
    for listener in agent.records("listener")? {
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
            let is_it = udp == (protocol == Protocol::Udp);
            address
                .parse::<SocketAddr>()
                .ok()
                .filter(|at| is_it && at.port() == port && !at.ip().is_unspecified())
        });
        found.extend(addresses.map(|at| (!alone, at.is_ipv6(), at)));
    }
    found.sort();
    match found.first() {
        Some((.., address)) => Ok(*address),
        None => bail!(
            "--to {host}:{port}: no address in force on this node leads there ({}); `slotmesh get listeners` lists all. \
             Name an address if connections to it are somebody else's",
            protocol.as_str()
        ),
    }
}

fn explain(
    agent: &AdminSite,
    from: &Caller,
    to: SocketAddr,
    protocol: Protocol,
) -> anyhow::Result<Explained> {
    let Caller { namespace, name } = from;
    let parts = [namespace.as_str(), name, protocol.as_str(), &to.to_string()].map(encoded).join("/");
    let asked: AskedInForce = agent.get(&format!("{}/{parts}", paths::ASK))?;
    let records = match &asked.listener {
        Some(listener) => expected(agent, listener, &asked, namespace, to)?,
        None => None,
    };
    let differences = match (&records, asked.verdict) {
        (Some(records), VerdictInForce::Routed | VerdictInForce::Refused) => differences(&asked, records),
        _ => Vec::new(),
    };
    let meaning = meaning(&asked, from);
    let from = format!("{namespace}/{name}");
    Ok(Explained { from, asked, records, differences, origins: None, meaning })
}

fn meaning(asked: &AskedInForce, from: &Caller) -> String {
    let (to, Caller { namespace, name }) = (&asked.to, from);
    let other = "kube-proxy, or whatever routes Services here in its place";
    match (asked.verdict, &asked.listener) {
        (VerdictInForce::NotAttached, _) => format!(
            "{namespace}/{name} isn't attached on this node: its connections are decided by {other}; `slotmesh get \
             workloads` lists the workloads that are attached"
        ),
        (VerdictInForce::NotOurs, None) => {
            format!("{to} is no address of slotmesh's: connections to it are decided by {other}")
        }
        (VerdictInForce::NotOurs, Some(listener)) => format!(
            "listener {listener} has {to}, but leaves it alone, or leads to what has never been in force: connections \
             to it are decided by {other}"
        ),
        (VerdictInForce::Refused, _) => {
            "connects are refused at once (ECONNREFUSED): there is no endpoint to choose".to_owned()
        }
        (VerdictInForce::Routed, _) if asked.refused > 0 => {
            let share = f64::from(asked.refused) / f64::from(asked.asked) * 100.0;
            format!(
                "connects are routed, but for {share:.1}% that are refused: their cluster has no endpoint"
            )
        }
        (VerdictInForce::Routed, _) => "connects are routed".to_owned(),
    }
}

/// In what the kernel decides otherwise than its records say.
fn differences(asked: &AskedInForce, records: &Expected) -> Vec<String> {
    let mut differing = Vec::new();
    for share in &asked.routed {
        let cluster = share.cluster.as_deref().unwrap_or("a cluster that has gone");
        let known = records.clusters.iter().any(|one| {
            one.name == cluster && one.endpoints.iter().any(|endpoint| endpoint.address == share.address)
        });
        if !known {
            let address = &share.address;
            differing
                .push(format!("the kernel chooses {address} of {cluster}, to which the records don't lead"));
        }
    }
    for cluster in &records.clusters {
        for endpoint in cluster.endpoints.iter().filter(|endpoint| endpoint.left_out_seconds.is_none()) {
            let counted = count(asked, &cluster.name, &endpoint.address);
            if counted == 0 && endpoint.share > NOTICEABLE {
                differing.push(format!(
                    "the records lead to {} of {} with a share of {:.1}%, and the kernel never chooses it",
                    endpoint.address,
                    cluster.name,
                    endpoint.share * 100.0
                ));
            }
        }
    }
    differing
}

/// How many of the connections that were asked about go to an endpoint of a cluster.
fn count(asked: &AskedInForce, cluster: &str, address: &str) -> u32 {
    let of = |share: &&slotmesh_admin::ShareInForce| {
        share.cluster.as_deref() == Some(cluster) && share.address == address
    };
    asked.routed.iter().filter(of).map(|share| share.count).sum()
}

fn text(explained: &Explained, wide: bool) -> String {
    let Explained { from, asked, records, differences, origins, meaning } = explained;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| _ = writeln!(text, "{name:<9} {value}");
    let class = asked.class.as_ref().map_or(String::new(), |class| format!(" (class {class})"));
    line("From", &format!("{from}{class}"));
    line("To", &format!("{}/{}", asked.to, asked.protocol));
    if let Some(records) = records {
        line("Listener", &format!("{}, chain {}", records.listener, or_dash(records.chain.as_ref())));
        if let Some(route) = &records.route {
            line("Route", &format!("{route}, virtual host {}", or_dash(records.virtual_host.as_ref())));
        }
        if let Some(proxy) = &records.proxy {
            let below = "what stands below is for callers without one";
            line(
                "Proxy",
                &format!("the caller's takes the connection at {proxy} and decides by request; {below}"),
            );
        }
    }
    let paint = match asked.verdict {
        VerdictInForce::Routed if asked.refused == 0 => Paint::Green,
        VerdictInForce::Refused => Paint::Red,
        _ => Paint::Yellow,
    };
    line("Verdict", &paint.on(meaning));
    if let Some(records) = records {
        text.push('\n');
        text += &shares(asked, records, wide).to_string();
    }
    match origins {
        Some(origins) => text += &because::text(origins, records.as_ref()),
        None if asked.listener.is_some() => {
            let why =
                "Nobody who compiles the objects answers; --served-by names an operator's admin interface.";
            _ = writeln!(text, "\n{}", Paint::Faint.on(why));
        }
        None => {}
    }
    for difference in differences {
        _ = writeln!(text, "{}", Paint::Red.on(&format!("error: {difference}")));
    }
    text
}

/// A row for each endpoint, and for each cluster without one.
fn shares(asked: &AskedInForce, records: &Expected, wide: bool) -> Columns {
    let mut header = vec!["CLUSTER", "WEIGHT", "ENDPOINT", "WEIGHT", "RECORDS", "KERNEL", "STATE"];
    if wide {
        header.extend(["LOCALITY", "BALANCE"]);
    }
    let percent = |share: f64| format!("{:.1}%", share * 100.0);
    let mut table = Columns::new(header).paint("STATE", |state| (state != "in").then_some(Paint::Yellow));
    for cluster in &records.clusters {
        let (name, weight, balance) = (&cluster.name, cluster.weight.to_string(), &cluster.balance);
        if cluster.endpoints.is_empty() {
            let state = if cluster.in_force { "no endpoint of this family" } else { "not in force" };
            let refused = percent(cluster.share);
            let mut row =
                [name.clone(), weight.clone(), "-".into(), "-".into(), refused, "-".into(), state.into()]
                    .to_vec();
            if wide {
                row.extend(["-".to_owned(), balance.clone()]);
            }
            table.row(row);
        }
        for endpoint in &cluster.endpoints {
            let counted = count(asked, name, &endpoint.address);
            let counted = (asked.asked > 0).then(|| percent(f64::from(counted) / f64::from(asked.asked)));
            let state = endpoint.left_out_seconds.map_or_else(
                || "in".to_owned(),
                |seconds| format!("left out for {seconds} s: connects to it failed"),
            );
            let mut row = vec![
                name.clone(),
                weight.clone(),
                endpoint.address.clone(),
                endpoint.weight.to_string(),
                percent(endpoint.share),
                or_dash(counted),
                state,
            ];
            if wide {
                row.extend([or_dash(endpoint.locality.as_ref()), balance.clone()]);
            }
            table.row(row);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_addresses_or_hosts() {
        for address in ["10.96.0.10:80", "[fd00::10]:80"] {
            assert!(matches!(address.parse(), Ok(Destination::Address(_))), "{address}");
        }
        assert!(
            matches!("reviews.shop:80".parse(), Ok(Destination::Host(host, 80)) if host == "reviews.shop")
        );
        for bad in
            ["reviews", "reviews:", "reviews:http", ":80", "http://reviews:80", "fd00::10:80", "a:70000"]
        {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
        assert!("shop/client".parse::<Caller>().is_ok());
        for bad in ["client", "/client", "shop/", "a/b/c"] {
            assert!(bad.parse::<Caller>().is_err(), "{bad}");
        }
    }
}
