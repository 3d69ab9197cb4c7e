//! `slotmesh get`: what a node has in force, and in what that differs from what is served.

use std::{collections::BTreeMap, net::SocketAddr, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use slotmesh_admin::{
    AssignmentInForce, ClusterInForce, ListenerInForce, RouteInForce, ServedView, WorkloadInForce, paths,
};

use crate::{
    ask::AskedAgent,
    envoy_json::ToEnvoy,
    flags::address,
    in_force::{InForce, is_meant},
    render::{Columns, OutputForm, or_dash, print},
};

/// Exit status of `--diff` where something differs.
const DIFFERS: u8 = 1;
/// And where that can't be told.
const UNKNOWN: u8 = 2;

/// The end of `slotmesh get --help`.
const EXAMPLES: &str = "Examples:
  slotmesh get listeners
  slotmesh get endpoints shop/reviews
  slotmesh get clusters 'outbound|80|v1|reviews.shop.svc.cluster.local' -o json
  slotmesh get routes -o envoy
  slotmesh get routes --diff

Exit status: 0; 1 on failure. With --diff: 0 nothing differs, 1 something does, 2 it can't be told";

/// The flags of `slotmesh get`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Get {
    /// The type of resources
    #[arg(value_name = "TYPE")]
    kind: GetKind,

    /// Only those of this name; or of a Service or host: reviews, shop/reviews, reviews.shop.svc.cluster.local
    name: Option<String>,

    #[command(flatten)]
    asked: AskedAgent,

    /// Form of the answer
    #[arg(long, short, env = "SLOTMESH_OUTPUT", default_value = "table")]
    output: GetForm,

    /// List only in what the node differs from what is served: what it lacks, has in another version, or has still
    #[arg(long)]
    diff: bool,

    /// Whoever serves, for --diff: address of its admin interface [default: the agent's own, where `slotmesh up`
    /// answers, else 127.0.0.1:15021; with --node an operator of the cluster]
    #[arg(long, env = "SLOTMESH_OPERATOR_ADMIN", value_name = "ADDRESS", value_parser = address)]
    served_by: Option<SocketAddr>,
}

/// Form of what is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GetForm {
    /// Columns for people
    Table,
    /// More columns
    Wide,
    /// JSON, with all that there is
    Json,
    /// YAML, with all that there is
    Yaml,
    /// Envoy's JSON
    Envoy,
}

impl GetForm {
    /// The form that other commands have, too; `None` for Envoy's.
    const fn common(self) -> Option<OutputForm> {
        match self {
            Self::Table => Some(OutputForm::Table),
            Self::Wide => Some(OutputForm::Wide),
            Self::Json => Some(OutputForm::Json),
            Self::Yaml => Some(OutputForm::Yaml),
            Self::Envoy => None,
        }
    }
}

/// Type of what is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GetKind {
    /// Addresses, and where connections to them go
    #[value(alias = "listener")]
    Listeners,
    /// Virtual hosts, and the clusters that they lead to
    #[value(alias = "route")]
    Routes,
    /// How endpoints are chosen, and limits
    #[value(alias = "cluster")]
    Clusters,
    /// Addresses of endpoints, with their weights
    #[value(alias = "endpoint")]
    Endpoints,
    /// Pods and cgroups whose connections are routed
    #[value(alias = "workload")]
    Workloads,
}

impl GetKind {
    /// The type of resources by which the agent knows it.
    const fn resource(self) -> Option<&'static str> {
        match self {
            Self::Listeners => Some("listener"),
            Self::Routes => Some("route"),
            Self::Clusters => Some("cluster"),
            Self::Endpoints => Some("endpoints"),
            Self::Workloads => None,
        }
    }
}

impl Get {
    /// Prints what is in force, or in what it differs.
    ///
    /// # Errors
    /// Where nobody answers, or there is nothing of the name.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self { kind, name, asked, output, diff, served_by } = self;
        if diff {
            let Some(output) = output.common() else { bail!("what differs isn't Envoy's: -o json") };
            return match differences(kind, name.as_deref(), &asked, served_by) {
                Ok(differing) => {
                    print(&output.of(&differing, |_| table_of_differences(&differing))?)?;
                    Ok(ExitCode::from(if differing.is_empty() { 0 } else { DIFFERS }))
                }
                Err(error) => {
                    eprintln!("Error: {error:?}");
                    Ok(ExitCode::from(UNKNOWN))
                }
            };
        }
        let agent = asked.site()?;
        let found = match kind.resource() {
            Some(ty) => agent.records(ty)?,
            None => agent.get(paths::WORKLOADS)?,
        };
        let name = name.as_deref();
        let text = match (kind, output.common()) {
            (GetKind::Listeners, Some(output)) => list::<ListenerInForce>(found, name, output),
            (GetKind::Routes, Some(output)) => list::<RouteInForce>(found, name, output),
            (GetKind::Clusters, Some(output)) => list::<ClusterInForce>(found, name, output),
            (GetKind::Endpoints, Some(output)) => list::<AssignmentInForce>(found, name, output),
            (GetKind::Workloads, Some(output)) => list::<WorkloadInForce>(found, name, output),
            (GetKind::Listeners, None) => envoy::<ListenerInForce>(found, name),
            (GetKind::Routes, None) => envoy::<RouteInForce>(found, name),
            (GetKind::Clusters, None) => envoy::<ClusterInForce>(found, name),
            (GetKind::Endpoints, None) => envoy::<AssignmentInForce>(found, name),
            (GetKind::Workloads, None) => bail!("Envoy has no workloads; -o json"),
        }?;
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Those of a name, and all that the agent tells of each.
fn kept<T: InForce + DeserializeOwned>(
    found: Vec<Value>,
    wanted: Option<&str>,
) -> anyhow::Result<Vec<(Value, T)>> {
    let all = found.len();
    let mut kept = Vec::new();
    for value in found {
        let one: T = serde_json::from_value(value.clone())
            .with_context(|| format!("the agent tells what this build can't read; is it newer? {value}"))?;
        if wanted.is_none_or(|wanted| one.names().iter().any(|name| is_meant(name, wanted))) {
            kept.push((value, one));
        }
    }
    if let (Some(wanted), true) = (wanted, kept.is_empty()) {
        bail!("of {all} in force, none is of {wanted:?}; without a name all are listed");
    }
    Ok(kept)
}

/// Those of a name in this form; JSON and YAML have all that the agent tells of them.
fn list<T: InForce + DeserializeOwned>(
    found: Vec<Value>,
    wanted: Option<&str>,
    output: OutputForm,
) -> anyhow::Result<String> {
    let kept = kept::<T>(found, wanted)?;
    let values: Vec<&Value> = kept.iter().map(|(value, _)| value).collect();
    output.of(&values, |wide| {
        let mut table = T::columns(wide);
        kept.iter().for_each(|(_, one)| one.rows(&mut table, wide));
        table
    })
}

/// Those of a name as Envoy's JSON.
fn envoy<T: InForce + ToEnvoy + DeserializeOwned>(
    found: Vec<Value>,
    wanted: Option<&str>,
) -> anyhow::Result<String> {
    let kept = kept::<T>(found, wanted)?;
    let all: Vec<Value> = kept.iter().map(|(whole, one)| one.to_envoy(whole)).collect();
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

/// A resource of which a node has not the version that is served.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Differing {
    name: String,
    /// The version in force on the node.
    node: Option<String>,
    /// The version that is served.
    served: Option<String>,
}

impl Differing {
    const fn meaning(&self) -> &'static str {
        match (&self.node, &self.served) {
            (None, _) => "not on the node: refused, not for it, or on its way",
            (Some(_), None) => "no longer served",
            (Some(_), Some(_)) => "another version: refused, or on its way",
        }
    }
}

fn differences(
    kind: GetKind,
    wanted: Option<&str>,
    asked: &AskedAgent,
    served_by: Option<SocketAddr>,
) -> anyhow::Result<Vec<Differing>> {
    let Some(ty) = kind.resource() else { bail!("workloads aren't served; --diff is about resources") };
    // Of a node whose name isn't known, it can't be told what is for it.
    let of_node = asked.node().map(|node| format!("?node={node}")).unwrap_or_default();
    let page = format!("{}/{ty}{of_node}", paths::SERVED);
    let sites = asked.servers(served_by)?;
    let mut served = None;
    for site in &sites {
        served = site.find::<Vec<ServedView>>(&page).ok().flatten();
        if served.is_some() {
            break;
        }
    }
    let served = served.with_context(|| {
        let addresses: Vec<_> = sites.iter().map(|site| site.address().to_string()).collect();
        format!(
            "nobody who serves answers at {}; name the operator's address with --served-by",
            addresses.join(" or ")
        )
    })?;
    let held: Vec<ServedView> =
        asked.site()?.records(ty)?.into_iter().map(serde_json::from_value).collect::<Result<_, _>>()?;
    Ok(compare(held, served, wanted))
}

fn compare(held: Vec<ServedView>, served: Vec<ServedView>, wanted: Option<&str>) -> Vec<Differing> {
    let mut both: BTreeMap<String, [Option<String>; 2]> = BTreeMap::new();
    for (at, list) in [held, served].into_iter().enumerate() {
        for ServedView { name, version } in list {
            both.entry(name).or_default()[at] = Some(version);
        }
    }
    both.into_iter()
        .filter(|(name, [node, served])| node != served && wanted.is_none_or(|wanted| is_meant(name, wanted)))
        .map(|(name, [node, served])| Differing { name, node, served })
        .collect()
}

fn table_of_differences(differing: &[Differing]) -> Columns {
    let mut table = Columns::new(["NAME", "NODE", "SERVED", "MEANING"]);
    for one in differing {
        let meaning = one.meaning().to_owned();
        table.row([one.name.clone(), or_dash(one.node.as_ref()), or_dash(one.served.as_ref()), meaning]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_listed() {
        let of = |list: &[(&str, &str)]| {
            let one = |(name, version): &(&str, &str)| ServedView {
                name: (*name).to_owned(),
                version: (*version).to_owned(),
            };
            list.iter().map(one).collect::<Vec<_>>()
        };
        let held = of(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let served = of(&[("a", "1"), ("b", "2"), ("d", "1")]);
        let differing = compare(held.clone(), served.clone(), None);
        let names: Vec<_> = differing.iter().map(|one| (one.name.as_str(), &one.meaning()[..3])).collect();
        assert_eq!(names, [("b", "ano"), ("c", "no "), ("d", "not")]);
        assert_eq!(compare(held, served, Some("d")).len(), 1);
    }
}
