//! Probes and hooks: questions to a container, from the node.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::{
    api::core::v1::{Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{task::spawn_blocking, time::sleep};

use crate::runtime::Created;

/// Whom a probe asks.
#[derive(Clone, Debug)]
pub struct Target {
    pub container: Container,
    pub created: Created,
    pub address: IpAddr,
}

impl Target {
    /// Asks once.
    pub async fn ask(&self, probe: &Probe) -> Result<()> {
        let wait = seconds(probe.timeout_seconds, 1);
        let (this, probe) = (self.clone(), probe.clone());
        let asked = spawn_blocking(move || {
            if let Some(action) = &probe.exec {
                this.exec(action)
            } else if let Some(action) = &probe.http_get {
                this.http(action, wait)
            } else if let Some(action) = &probe.tcp_socket {
                let to = this.socket(action.host.as_deref(), &action.port)?;
                TcpStream::connect_timeout(&to, wait).with_context(|| format!("connect to {to}")).map(drop)
            } else {
                bail!("this kind of probe isn't known here")
            }
        });
        tokio::time::timeout(wait + Duration::from_secs(1), asked)
            .await
            .with_context(|| format!("no answer within {wait:?}"))??
    }

    /// Runs a hook.
    pub async fn hook(&self, hook: &LifecycleHandler) -> Result<()> {
        const LONG: Duration = Duration::from_secs(60);
        if let Some(pause) = &hook.sleep {
            sleep(Duration::from_secs(u64::try_from(pause.seconds).unwrap_or_default())).await;
            return Ok(());
        }
        let (this, hook) = (self.clone(), hook.clone());
        spawn_blocking(move || match (&hook.exec, &hook.http_get) {
            (Some(action), _) => this.exec(action),
            (_, Some(action)) => this.http(action, LONG),
            _ => bail!("this kind of hook isn't known here"),
        })
        .await?
    }

    fn exec(&self, action: &ExecAction) -> Result<()> {
        let command = action.command.clone().unwrap_or_default();
        let output = self.created.exec(&command)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {}: {}", output.status, said.trim());
        Ok(())
    }

    fn http(&self, action: &HTTPGetAction, wait: Duration) -> Result<()> {
        ensure!(action.scheme.as_deref() != Some("HTTPS"), "probes by HTTPS aren't known here");
        let to = self.socket(action.host.as_deref(), &action.port)?;
        let path = action.path.as_deref().unwrap_or_default().trim_start_matches('/');
        let config = ureq::Agent::config_builder().timeout_global(Some(wait)).build();
        let mut request = ureq::Agent::new_with_config(config).get(format!("http://{to}/{path}"));
        for header in action.http_headers.iter().flatten() {
            request = request.header(&header.name, &header.value);
        }
        // From 400 on it is an error.
        request.call().with_context(|| format!("GET http://{to}/{path}")).map(drop)
    }

    fn socket(&self, host: Option<&str>, port: &IntOrString) -> Result<SocketAddr> {
        let address = host.map(str::parse).transpose().context("a probe's host is an address")?;
        let number = match port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => {
                let mut ports = self.container.ports.iter().flatten();
                let found = ports.find(|port| port.name.as_ref() == Some(name));
                found.with_context(|| format!("no port {name}"))?.container_port
            }
        };
        Ok(SocketAddr::new(address.unwrap_or(self.address), u16::try_from(number)?))
    }
}

/// Seconds of a probe's field, or else its default.
pub fn seconds(field: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(field.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default))
}

/// Finding of a probe, after as many answers of a kind as it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Success,
    Failure,
}

/// Asks for ever, and tells each verdict (not only changes). The last reason of a failure goes along.
pub async fn run(target: Target, probe: Probe, mut tell: impl FnMut(Verdict, Option<String>)) {
    sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let (wanted, tolerated) = (probe.success_threshold.unwrap_or(1), probe.failure_threshold.unwrap_or(3));
    let (mut good, mut bad) = (0, 0);
    loop {
        match target.ask(&probe).await {
            Ok(()) => (good, bad) = (good + 1, 0),
            Err(error) => {
                (good, bad) = (0, bad + 1);
                if bad >= tolerated {
                    tell(Verdict::Failure, Some(format!("{error:#}")));
                }
            }
        }
        if good >= wanted {
            tell(Verdict::Success, None);
        }
        sleep(seconds(probe.period_seconds, 10)).await;
    }
}
