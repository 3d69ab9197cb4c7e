//! A Prometheus that scrapes pods of a cluster as PodMonitors say, which the Prometheus operator would do.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::{
    ControlPlane, ports,
    process::{Keeper, Process},
    programs::Program,
    wait,
};

/// Prefix of a target's labels that are there for rules only.
const META: &str = "__meta_kubernetes_";

/// A running Prometheus. It ends when this is dropped.
#[derive(Debug)]
pub struct Prometheus {
    // Dropped in this order.
    process: Process,
    _keeper: Keeper,
    port: u16,
    _dir: TempDir,
}

/// A value of a query's answer, with its labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value now.
    pub value: f64,
}

impl Prometheus {
    /// Starts one that scrapes what these PodMonitors choose of these pods, and waits until it answers.
    ///
    /// # Errors
    /// When a monitor says something that isn't understood here, or Prometheus is missing or ends (with what
    /// it said).
    pub async fn start(plane: &ControlPlane, pods: &[Pod], monitors: &[Value]) -> Result<Self> {
        let dir = tempfile::tempdir_in(plane.dir())?;
        let file = dir.path().join("targets.json");
        fs::write(&file, serde_json::to_vec(&targets(pods))?)?;
        let jobs: Vec<Value> =
            monitors.iter().map(|monitor| jobs(&file, monitor)).collect::<Result<Vec<_>>>()?.concat();
        ensure!(!jobs.is_empty(), "no PodMonitor says what to scrape");
        let config = dir.path().join("prometheus.yml");
        // JSON is YAML.
        fs::write(&config, json!({"scrape_configs": jobs}).to_string())?;
        let port = ports::free()?;
        let args = [
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", dir.path().join("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        let keeper = Keeper::new()?;
        let log = plane.dir().join("logs/prometheus.log");
        let process = keeper.start(&Program::Prometheus.path()?, &args, &log)?;
        let mut this = Self { process, _keeper: keeper, port, _dir: dir };
        wait::until_true("Prometheus to be ready", async || {
            this.process.expect_running()?;
            Ok(ureq::get(this.url("-/ready")).call().is_ok())
        })
        .await?;
        Ok(this)
    }

    /// Checks what an address answers to a scrape, in the text format, with promtool.
    ///
    /// # Errors
    /// When it can't be scraped, or promtool finds something, with what it says.
    pub fn check(url: &str) -> Result<()> {
        let mut answer = ureq::get(url).header("Accept", "text/plain;version=0.0.4").call()?;
        let text = answer.body_mut().read_to_string()?;
        ensure!(text.lines().count() > 10 && !text.contains("# EOF"), "{url} answers {text:?}");
        let mut promtool = Command::new(Program::Promtool.path()?)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut input = promtool.stdin.take().context("it is piped")?;
        let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
        let output = promtool.wait_with_output()?;
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        let said = [output.stdout, output.stderr].concat();
        ensure!(output.status.success(), "{url}: promtool says {}", String::from_utf8_lossy(&said));
        Ok(())
    }

    /// Samples that a query yields now.
    ///
    /// # Errors
    /// When Prometheus refuses it.
    pub fn query(&self, expression: &str) -> Result<Vec<Sample>> {
        let found: Found = self.ask("api/v1/query", &[("query", expression)])?;
        let sample = |series: Series| {
            let value = series.value.1.parse().with_context(|| format!("{:?} is no number", series.value))?;
            Ok(Sample { labels: series.metric, value })
        };
        found.result.into_iter().map(sample).collect()
    }

    /// The values that a label has in a metric.
    ///
    /// # Errors
    /// When Prometheus refuses to tell.
    pub fn label_values(&self, metric: &str, label: &str) -> Result<Vec<String>> {
        self.ask(&format!("api/v1/label/{label}/values"), &[("match[]", metric)])
    }

    fn ask<T: for<'de> Deserialize<'de>>(&self, path: &str, parameters: &[(&str, &str)]) -> Result<T> {
        let request = ureq::get(self.url(path)).query_pairs(parameters.iter().copied());
        let mut answer = request
            .config()
            .http_status_as_error(false)
            .build()
            .call()
            .with_context(|| format!("ask Prometheus {parameters:?}"))?;
        let answer: Value = answer.body_mut().read_json()?;
        ensure!(answer["status"] == "success", "Prometheus says to {parameters:?}: {answer}");
        Ok(T::deserialize(&answer["data"])?)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }
}

/// The answer to an instant query.
#[derive(Deserialize)]
struct Found {
    result: Vec<Series>,
}

#[derive(Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    /// When, and what.
    value: (f64, String),
}

/// Of a PodMonitor's `spec`, what is understood here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    selector: Selector,
    pod_metrics_endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Endpoint {
    port: String,
    path: String,
    interval: String,
    #[serde(default)]
    relabelings: Vec<Map<String, Value>>,
}

fn jobs(targets: &Path, monitor: &Value) -> Result<Vec<Value>> {
    let (namespace, name) = (&monitor["metadata"]["namespace"], &monitor["metadata"]["name"]);
    let Spec { selector, pod_metrics_endpoints } =
        Spec::deserialize(&monitor["spec"]).with_context(|| format!("the PodMonitor {namespace}/{name}"))?;
    let keep = |label: &str, value: &Value| json!({"source_labels": [format!("{META}{label}")], "regex": value, "action": "keep"});
    let mut chosen = vec![keep("namespace", namespace)];
    for (label, value) in selector.match_labels {
        chosen.push(keep(&format!("pod_label_{}", sanitized(&label)), &value.into()));
    }
    let job = |(at, endpoint): (usize, Endpoint)| {
        let mut rules = chosen.clone();
        rules.push(keep("pod_container_port_name", &endpoint.port.into()));
        for (from, to) in
            [("namespace", "namespace"), ("pod_name", "pod"), ("pod_container_name", "container")]
        {
            rules.push(json!({"source_labels": [format!("{META}{from}")], "target_label": to}));
        }
        // The names of the fields are Prometheus', but for their form.
        rules.extend(endpoint.relabelings.into_iter().map(|rule| {
            rule.into_iter().map(|(name, value)| (snake_case(&name), value)).collect::<Map<_, _>>().into()
        }));
        json!({
            "job_name": format!("{namespace}/{name}/{at}"),
            "scrape_interval": endpoint.interval,
            "scrape_timeout": endpoint.interval,
            "metrics_path": endpoint.path,
            "relabel_configs": rules,
            "file_sd_configs": [{"files": [targets]}],
        })
    };
    Ok(pod_metrics_endpoints.into_iter().enumerate().map(job).collect())
}

/// The ports of pods as Prometheus' own service discovery tells of them (which Debian's is built without).
fn targets(pods: &[Pod]) -> Vec<Value> {
    let mut targets = Vec::new();
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        let Some(ip) = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()) else { continue };
        for container in &spec.containers {
            for port in container.ports.iter().flatten() {
                let mut labels: BTreeMap<String, String> = pod
                    .labels()
                    .iter()
                    .map(|(label, value)| (format!("{META}pod_label_{}", sanitized(label)), value.clone()))
                    .collect();
                for (label, value) in [
                    ("namespace", pod.namespace().unwrap_or_default()),
                    ("pod_name", pod.name_any()),
                    ("pod_node_name", spec.node_name.clone().unwrap_or_default()),
                    ("pod_container_name", container.name.clone()),
                    ("pod_container_port_name", port.name.clone().unwrap_or_default()),
                ] {
                    labels.insert(format!("{META}{label}"), value);
                }
                targets.push(json!({"targets": [format!("{ip}:{}", port.container_port)], "labels": labels}));
            }
        }
    }
    targets
}

/// A label's name as service discovery writes it.
fn sanitized(label: &str) -> String {
    label.replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

fn snake_case(name: &str) -> String {
    let part =
        |c: char| if c.is_ascii_uppercase() { format!("_{}", c.to_ascii_lowercase()) } else { c.into() };
    name.chars().map(part).collect()
}
