//! Kubernetes' own end-to-end tests, unmodified, of the version that the cluster is.
//!
//! ```text
//!   e2e.test (ginkgo) x n --kubeconfig--> API server     pods: cluster.test/agnhost, made here
//!          \--json report--> Outcome
//! ```
//!
//! The tests name their images by registries; these are told to be one that exists here only, so that each image is
//! one of [`Images`](crate::images::Images). Several processes share the tests; each test has a namespace of its own.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::{
    Cluster,
    images::{Images, Start},
    process::tail,
    programs::Program,
};

/// The registry that all images of the tests are said to be in.
const REGISTRY: &str = "cluster.test";
/// Programs, beside agnhost itself, that tests run in its image, and what they are made of: applets of busybox.
const APPLETS: [&str; 21] = [
    "cat", "cut", "date", "dd", "echo", "env", "grep", "hostname", "ls", "mkdir", "nslookup", "rm", "seq",
    "sleep", "sort", "tail", "test", "timeout", "touch", "true", "uniq",
];
/// Programs of this machine there: their names here and there, and their packages. (The shell isn't busybox's, which
/// takes its own `nc` and `wget` before all others.)
const PROGRAMS: [(&str, &str, &str); 4] = [
    ("curl", "/usr/bin/curl", "curl"),
    ("dash", "/bin/sh", "dash"),
    ("nc", "/usr/bin/nc", "netcat-openbsd"),
    ("wget", "/usr/bin/wget", "wget"),
];

/// The tests, for one cluster.
#[derive(Clone, Debug)]
pub struct Suite {
    program: PathBuf,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    registries: PathBuf,
    dir: PathBuf,
}

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// As it should.
    Passed,
    /// With this message.
    Failed(String),
    /// The test found that it can't run here, with this message.
    Skipped(String),
}

/// A test that ran.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its whole name, as ginkgo puts it together.
    pub name: String,
    /// How it ended.
    pub state: State,
    /// How long it took.
    pub took: Duration,
}

impl Suite {
    /// The tests of a cluster, whose nodes get the images that their pods need.
    ///
    /// # Errors
    /// When a program is missing.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        let dir = cluster.control_plane().dir().join("kubernetes-tests");
        fs::create_dir_all(&dir)?;
        let registries = dir.join("registries.yaml");
        let keys = ["promoterE2eRegistry", "buildImageRegistry", "gcRegistry", "dockerLibraryRegistry"];
        fs::write(&registries, keys.map(|key| format!("{key}: {REGISTRY}\n")).concat())?;
        let this = Self {
            program: Program::KubernetesTests.path()?,
            kubectl: Program::Kubectl.path()?,
            kubeconfig: cluster.control_plane().kubeconfig(),
            registries,
            dir,
        };
        this.make_images(cluster.images())?;
        Ok(this)
    }

    /// The images under the names and versions that the tests ask for.
    fn make_images(&self, images: &Images) -> Result<()> {
        let output = self.command().arg("--list-images").output().context("list the tests' images")?;
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        // Of some there are several versions.
        let named = |name: &str| -> Vec<&str> {
            let prefix = format!("{REGISTRY}/{name}:");
            listed.lines().map(str::trim).filter(|line| line.starts_with(&prefix)).collect()
        };
        let agnhost = Program::Agnhost.path()?;
        let busybox = Path::new("/bin/busybox");
        let mut files: Vec<(PathBuf, String)> = vec![(agnhost.clone(), "/agnhost".to_owned())];
        files.extend(APPLETS.map(|name| (busybox.to_owned(), format!("/bin/{name}"))));
        for (name, to, package) in PROGRAMS {
            let file = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(name));
            let file = file.into_iter().find(|file| file.is_file());
            let file = file
                .with_context(|| format!("{name} is missing (Debian package {package}): run `make setup`"))?;
            files.push((file, to.to_owned()));
        }
        // That of the tests' image asks once.
        let once = self.dir.join("wgetrc");
        fs::write(&once, "tries = 1\n")?;
        files.push((once, "/etc/wgetrc".to_owned()));
        let files: Vec<_> = files.iter().map(|(from, to)| (from.as_path(), to.as_str())).collect();
        let start = |cmd: &str| Start {
            entrypoint: vec!["/agnhost".to_owned()],
            cmd: vec![cmd.to_owned()],
            ..Start::default()
        };
        let (all, pauses) = (named("agnhost"), named("pause"));
        ensure!(!all.is_empty() && !pauses.is_empty(), "e2e.test has other images: {listed}");
        for image in all {
            images.make(image, &files, &start("pause"))?;
        }
        for image in pauses {
            images.make(image, &[(&agnhost, "/agnhost")], &start("pause"))?;
        }
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("KUBE_TEST_REPO_LIST", &self.registries).env("HOME", &self.dir).current_dir(&self.dir);
        command
    }

    fn begin(&self, focus: &str, report: &Path) -> Command {
        let mut command = self.command();
        command
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .arg(format!("--kubectl-path={}", self.kubectl.display()))
            .arg(format!("--ginkgo.focus={focus}"))
            .arg(format!("--ginkgo.json-report={}", report.display()))
            .args(["--provider=skeleton", "--disable-log-dump", "--dump-logs-on-failure=false"])
            .args(["--ginkgo.no-color", "--ginkgo.silence-skips", "--ginkgo.flake-attempts=1"]);
        command
    }

    /// The names of all tests that this regular expression finds. No test runs.
    ///
    /// # Errors
    /// When the program fails.
    pub fn names(&self, focus: &str) -> Result<Vec<String>> {
        let report = self.dir.join("names.json");
        let output = self.begin(focus, &report).arg("--ginkgo.dry-run").output().context("run e2e.test")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        Ok(read(&report)?.into_iter().map(|outcome| outcome.name).collect())
    }

    /// Runs these tests, shared by so many processes: how each ended.
    ///
    /// # Errors
    /// When a program can't be started, or leaves a test out.
    pub async fn run(&self, names: &[&str], processes: usize, limit: Duration) -> Result<Vec<Outcome>> {
        let mut running = Vec::new();
        for number in 0..processes.min(names.len()) {
            let own: Vec<&str> = names.iter().copied().skip(number).step_by(processes).collect();
            let report = self.dir.join(format!("report-{number}.json"));
            let log = self.dir.join(format!("log-{number}.txt"));
            let out = File::create(&log)?;
            let mut command = self.begin(&exactly(&own), &report);
            command
                .arg(format!("--ginkgo.timeout={}s", limit.as_secs()))
                .stdin(Stdio::null())
                .stdout(out.try_clone()?)
                .stderr(out);
            let count = own.len();
            running.push(tokio::task::spawn_blocking(move || -> Result<Vec<Outcome>> {
                // That a test failed is in the report.
                command.status().context("run e2e.test")?;
                let outcomes = read(&report).with_context(|| tail(&log))?;
                ensure!(outcomes.len() == count, "{} of {count} tests ran\n{}", outcomes.len(), tail(&log));
                Ok(outcomes)
            }));
        }
        let mut all = Vec::new();
        for process in running {
            all.extend(process.await??);
        }
        Ok(all)
    }

    /// Folder of the logs, `log-NUMBER.txt`, of the last run.
    pub fn logs(&self) -> &Path {
        &self.dir
    }
}

/// A regular expression (Go's) that finds exactly these names. Before a test's name stands that of the suite.
fn exactly(names: &[&str]) -> String {
    let escape = |name: &&str| -> String {
        name.chars()
            .flat_map(|c| [(!c.is_alphanumeric() && c.is_ascii() && c != ' ').then_some('\\'), Some(c)])
            .flatten()
            .collect()
    };
    format!("^Kubernetes e2e suite ({})$", names.iter().map(escape).collect::<Vec<_>>().join("|"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    /// Nanoseconds.
    #[serde(default)]
    run_time: u64,
    #[serde(default)]
    failure: Option<Failure>,
    #[serde(default)]
    num_attempts: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

/// The tests of a report that were in its focus.
fn read(report: &Path) -> Result<Vec<Outcome>> {
    let text = fs::read(report).with_context(|| report.display().to_string())?;
    let reports: Vec<Report> = serde_json::from_slice(&text).context("read a report of ginkgo")?;
    let mut all = Vec::new();
    for spec in reports.into_iter().flat_map(|report| report.spec_reports.unwrap_or_default()) {
        let message = spec.failure.map(|failure| failure.message).unwrap_or_default();
        let state = match (spec.leaf_node_type.as_str(), spec.state.as_str()) {
            ("It", "passed") => State::Passed,
            // What wasn't in the focus has no attempt and no word.
            ("It", "skipped") if spec.num_attempts == 0 && message.is_empty() => continue,
            ("It", "pending") => continue,
            ("It", "skipped") => State::Skipped(message),
            ("It", _) => State::Failed(message),
            (_, "passed" | "skipped") => continue,
            // Before or after all of them: nothing is known of any.
            (kind, state) => anyhow::bail!("{kind} {state}: {message}"),
        };
        let mut texts = spec.container_hierarchy_texts.unwrap_or_default();
        texts.push(spec.leaf_node_text);
        all.push(Outcome { name: texts.join(" "), state, took: Duration::from_nanos(spec.run_time) });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_as_they_are() {
        assert_eq!(exactly(&["[a] b: c-d.e", "f"]), "^Kubernetes e2e suite (\\[a\\] b\\: c\\-d\\.e|f)$");
    }

    #[test]
    fn a_report_tells_how_each_test_in_focus_ended() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let spec = |kind: &str, name: &str, state: &str, attempts: u32, message: &str| {
            serde_json::json!({"ContainerHierarchyTexts": ["[sig]"], "LeafNodeType": kind, "LeafNodeText": name,
                "State": state, "NumAttempts": attempts, "RunTime": 2_000_000_000_u64,
                "Failure": {"Message": message}})
        };
        let write = |specs: &[serde_json::Value]| {
            fs::write(file.path(), serde_json::json!([{"SpecReports": specs}]).to_string()).unwrap();
        };
        write(&[
            spec("BeforeSuite", "", "passed", 1, ""),
            spec("It", "good", "passed", 1, ""),
            spec("It", "bad", "timedout", 1, "too long"),
            spec("It", "elsewhere", "skipped", 1, "needs three nodes"),
            spec("It", "other", "skipped", 0, ""),
        ]);
        let found = read(file.path()).unwrap();
        let states: Vec<_> = found.iter().map(|outcome| (outcome.name.as_str(), &outcome.state)).collect();
        let (failed, skipped) =
            (State::Failed("too long".to_owned()), State::Skipped("needs three nodes".to_owned()));
        assert_eq!(
            states,
            [("[sig] good", &State::Passed), ("[sig] bad", &failed), ("[sig] elsewhere", &skipped)]
        );
        assert_eq!(found[0].took, Duration::from_secs(2));
        write(&[spec("SynchronizedBeforeSuite", "", "failed", 1, "no nodes")]);
        assert!(read(file.path()).unwrap_err().to_string().contains("no nodes"));
    }
}
