//! Questions to an admin interface.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::Value;
use slotmesh_admin::paths;
use ureq::{Body, http::Response};

use crate::{
    flags::address,
    is_plugin,
    port_forward::{AskedPod, Forward, agents_nodes},
    progress::ProgressSign,
};

/// Address of the admin interface of agents and of `slotmesh up`, where nobody says another.
const AGENT: &str = "127.0.0.1:15020";
/// That of operators.
const OPERATOR: &str = "127.0.0.1:15021";

/// Heading of these flags in `--help`.
const ASKED: &str = "Asked";

/// How long an answer may take. A server gives up after half a minute, too.
const ANSWER: Duration = Duration::from_secs(30);

/// The most bytes of a page.
const LONGEST: u64 = 256 << 20;

/// What to do where nobody answers.
const REMEDY: &str = "; name its address with --admin. That of a pod is reached by --node, or --cluster for an operator, or \
                      by `kubectl port-forward`";

/// Where slotmesh is installed in a cluster.
#[derive(Debug, Args)]
struct Installed {
    /// The namespace in which slotmesh is installed, where a pod is asked
    #[arg(long, env = "SLOTMESH_NAMESPACE", default_value = "slotmesh-system", help_heading = ASKED)]
    namespace: String,
}

/// The agent, or `slotmesh up`, that is asked.
#[derive(Debug, Args)]
pub struct AskedAgent {
    /// Address of the agent's admin interface
    #[arg(long, env = "SLOTMESH_ADMIN", default_value = AGENT, value_name = "ADDRESS", help_heading = ASKED,
        value_parser = address)]
    admin: SocketAddr,

    /// The agent of this node of a cluster instead, by `kubectl port-forward`
    #[arg(long, env = "SLOTMESH_ASKED_NODE", value_name = "NODE", help_heading = ASKED)]
    node: Option<String>,

    #[command(flatten)]
    installed: Installed,
}

impl AskedAgent {
    /// The node whose agent is asked, where one is named.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// Asks the agent of this node of a cluster instead.
    #[must_use]
    pub fn of_node(self, node: String) -> Self {
        Self { node: Some(node), ..self }
    }

    /// True where it is said, or goes without saying, which agent is asked: in a cluster there are many.
    pub fn names_an_agent(&self) -> bool {
        !is_plugin() || self.node.is_some()
    }

    /// The interface of the agent.
    ///
    /// # Errors
    /// Where there is no way to a node's agent.
    pub fn site(&self) -> anyhow::Result<AdminSite> {
        self.site_at(self.node())
    }

    /// The interface of the agent of a node of the cluster; where none is named that at the address.
    ///
    /// # Errors
    /// Where there is no way to a node's agent.
    pub fn site_at(&self, node: Option<&str>) -> anyhow::Result<AdminSite> {
        let Self { admin, node: _, installed: Installed { namespace } } = self;
        Ok(match node {
            Some(node) => AdminSite::of_pod(AskedPod::Agent(node), namespace)?,
            None => AdminSite { address: *admin, of: "agent", forward: None },
        })
    }

    /// The nodes whose agents are asked: that which is named; in a cluster all, else the one at the address, which isn't
    /// named.
    ///
    /// # Errors
    /// Where the cluster's agents can't be listed.
    pub fn nodes(&self) -> anyhow::Result<Vec<Option<String>>> {
        match &self.node {
            Some(node) => Ok(vec![Some(node.clone())]),
            None if is_plugin() => Ok(agents_nodes(self.namespace())?.into_iter().map(Some).collect()),
            None => Ok(vec![None]),
        }
    }

    /// The namespace in which slotmesh is installed.
    pub fn namespace(&self) -> &str {
        &self.installed.namespace
    }

    /// The interfaces at which whoever serves the agent may answer: at the address that is given; else an operator of the
    /// cluster, if a node of it is asked; else the agent's own, if that is `slotmesh up`'s, and where operators mostly are.
    ///
    /// # Errors
    /// Where there is no way to a cluster's operator.
    pub fn servers(&self, given: Option<SocketAddr>) -> anyhow::Result<Vec<AdminSite>> {
        let Self { admin, node, installed: Installed { namespace } } = self;
        Ok(match (given, node) {
            (Some(given), _) => vec![operator(given)],
            (None, Some(_)) => vec![AdminSite::of_pod(AskedPod::Operator, namespace)?],
            (None, None) if is_plugin() => vec![AdminSite::of_pod(AskedPod::Operator, namespace)?],
            (None, None) => [Ok(*admin), OPERATOR.parse()].into_iter().flatten().map(operator).collect(),
        })
    }
}

/// Whoever compiles objects: an operator, or `slotmesh up`.
#[derive(Debug, Args)]
pub struct AskedOperator {
    /// Address of the admin interface of an operator or of `slotmesh up` [default: 127.0.0.1:15020, where `up` answers,
    /// else 127.0.0.1:15021, where an operator does]
    #[arg(long, env = "SLOTMESH_OPERATOR_ADMIN", value_name = "ADDRESS", help_heading = ASKED, value_parser = address)]
    admin: Option<SocketAddr>,

    /// The operator of the cluster that KUBECONFIG says instead, by `kubectl port-forward`; as `kubectl slotmesh` by itself
    #[arg(long, env = "SLOTMESH_ASK_CLUSTER", help_heading = ASKED, conflicts_with = "admin")]
    cluster: bool,

    #[command(flatten)]
    installed: Installed,
}

impl AskedOperator {
    /// The answer of the first that has such a page.
    ///
    /// # Errors
    /// Where nobody has.
    pub fn ask<T: DeserializeOwned>(self, path: &str) -> anyhow::Result<T> {
        let sites = self.sites()?;
        let mut failure = None;
        for site in &sites {
            match site.find(path) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let addresses: Vec<String> = sites.iter().map(|site| site.address.to_string()).collect();
        let addresses = addresses.join(" or ");
        match failure {
            Some(failure) if sites.len() == 1 => Err(failure),
            Some(_) => bail!("neither `slotmesh up` nor an operator answers at {addresses}{REMEDY}"),
            None => bail!("{addresses} has no page {path}; is it an operator's? Its page / lists the others"),
        }
    }

    /// The interfaces to try, in this order.
    ///
    /// # Errors
    /// Where there is no way to a cluster's operator.
    pub fn sites(self) -> anyhow::Result<Vec<AdminSite>> {
        let Self { admin, cluster, installed: Installed { namespace } } = self;
        Ok(match admin {
            Some(address) => vec![operator(address)],
            None if cluster || is_plugin() => vec![AdminSite::of_pod(AskedPod::Operator, &namespace)?],
            None => [AGENT, OPERATOR].iter().filter_map(|text| text.parse().ok()).map(operator).collect(),
        })
    }
}

fn operator(address: SocketAddr) -> AdminSite {
    AdminSite { address, of: "operator", forward: None }
}

/// The admin interface of a process.
#[derive(Clone, Debug)]
pub struct AdminSite {
    address: SocketAddr,
    of: &'static str,
    /// The way to it, where it is in a pod.
    #[expect(dead_code, reason = "held as long as somebody asks")]
    forward: Option<Arc<Forward>>,
}

impl AdminSite {
    /// The interface of a pod.
    fn of_pod(asked: AskedPod<'_>, namespace: &str) -> anyhow::Result<Self> {
        let progress = match asked {
            AskedPod::Agent(node) => ProgressSign::of(&format!("reaching the agent of {node}")),
            AskedPod::Operator => ProgressSign::of("reaching the operator"),
        };
        let forward = Forward::to(asked, namespace)?;
        drop(progress);
        let of = match asked {
            AskedPod::Agent(_) => "agent",
            AskedPod::Operator => "operator",
        };
        Ok(Self { address: forward.address(), of, forward: Some(Arc::new(forward)) })
    }

    /// Address and port, on this machine where it is in a pod.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The answer to a question; `None` where this process doesn't have such a page.
    ///
    /// # Errors
    /// Where nobody answers, or another program does.
    pub fn find<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Option<T>> {
        let Some(mut answer) = self.answer(path)? else { return Ok(None) };
        let url = self.url(path);
        let found =
            answer.body_mut().read_json().with_context(|| format!("{url} is no admin interface of slotmesh"));
        found.map(Some)
    }

    /// The bytes of a page; `None` where this process doesn't have it.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn bytes(&self, path: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let Some(mut answer) = self.answer(path)? else { return Ok(None) };
        let url = self.url(path);
        let body = answer.body_mut().with_config().limit(LONGEST);
        body.read_to_vec().with_context(|| format!("{url} can't be read")).map(Some)
    }

    /// The text of a page that there must be.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn text(&self, path: &str) -> anyhow::Result<String> {
        let bytes = self.bytes(path)?.ok_or_else(|| self.without(path))?;
        String::from_utf8(bytes).with_context(|| format!("{} is no text", self.url(path)))
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// `None` where there is no such page.
    fn answer(&self, path: &str) -> anyhow::Result<Option<Response<Body>>> {
        let Self { address, of, .. } = self;
        let url = self.url(path);
        let config =
            ureq::Agent::config_builder().timeout_global(Some(ANSWER)).http_status_as_error(false).build();
        let mut answer = ureq::Agent::new_with_config(config)
            .get(&url)
            .call()
            .with_context(|| format!("no {of} answers at {address}{REMEDY}"))?;
        let status = answer.status().as_u16();
        if status == 404 {
            return Ok(None);
        }
        if status != 200 {
            let said = answer.body_mut().read_to_string().unwrap_or_default();
            bail!("{url} answers with status {status}: {}", said.trim_end());
        }
        Ok(Some(answer))
    }

    /// All resources of a type that a node has in force, in the order of their names.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn records(&self, ty: &str) -> anyhow::Result<Vec<Value>> {
        let mut found: Vec<Value> = self.get(&format!("{}/{ty}", paths::RECORDS))?;
        let mut more = !found.is_empty();
        while more {
            let last =
                found.last().and_then(|last| last["name"].as_str()).context("a resource has no name")?;
            let next: Vec<Value> = self.get(&format!("{}/{ty}/{}", paths::RECORDS, encoded(last)))?;
            more = !next.is_empty();
            found.extend(next);
        }
        Ok(found)
    }

    /// One resource that a node has in force; `None` where it hasn't.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn record<T: DeserializeOwned>(&self, ty: &str, name: &str) -> anyhow::Result<Option<T>> {
        self.find(&format!("/resources/{ty}/{}", encoded(name)))
    }

    /// The same of a page that there must be.
    ///
    /// # Errors
    /// As [`find`](Self::find), and where there is no such page.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.find(path)?.ok_or_else(|| self.without(path))
    }

    fn without(&self, path: &str) -> anyhow::Error {
        let Self { address, of, .. } = self;
        anyhow!("{address} has no page {path}; is it an {of}'s, of this version? Its page / lists the others")
    }
}

/// A name as a part of a path.
pub fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let one = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    name.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_part_of_a_path() {
        assert_eq!(encoded("outbound|80||a.b"), "outbound%7C80%7C%7Ca.b");
        assert_eq!(encoded("[fd00::10]:80/ü"), "%5Bfd00%3A%3A10%5D%3A80%2F%C3%BC");
    }
}
