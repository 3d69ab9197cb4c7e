//! The product under test: a `slotmesh up` process and its admin interface.

use std::{
    cell::RefCell,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{Cgroup, metrics::Scrape, names, wait};

/// What an agent said on its standard error.
#[derive(Clone, Debug, Default)]
struct Said(Arc<Mutex<String>>);

impl Said {
    fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn push(&self, line: &str) {
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        text.push_str(line);
        text.push('\n');
    }
}

thread_local! {
    /// All agents that this thread started, to be shown when its scenario fails.
    static LOGS: RefCell<Vec<Said>> = const { RefCell::new(Vec::new()) };
}

/// How long no flush is published when all that belong to a change are: many times what one takes.
const QUIET: Duration = Duration::from_millis(100);

/// How many lines of an agent are shown.
const SHOWN_LINES: usize = 200;

/// Prints the last lines of what the agents said that this thread started.
pub fn print_logs() {
    LOGS.with_borrow(|logs| {
        for (i, said) in logs.iter().enumerate() {
            let said = said.text();
            let lines: Vec<_> = said.lines().collect();
            let skipped = lines.len().saturating_sub(SHOWN_LINES);
            println!("--- slotmesh up, number {} of this scenario, said (after {skipped} lines):", i + 1);
            println!("{}\n---", lines[skipped..].join("\n"));
        }
    });
}

/// Which build of slotmesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// The product.
    Slotmesh,
    /// The product with one record type and one field more, and so another layout (e2e/next-layout).
    Next,
}

impl Build {
    fn binary(self) -> Result<PathBuf> {
        match self {
            Self::Slotmesh => names::binary("slotmesh", "slotmesh"),
            Self::Next => names::binary("slotmesh-next", "slotmesh-next"),
        }
    }
}

/// How `slotmesh up` is called.
#[derive(Clone, Debug)]
pub struct UpSpec {
    /// The build that is called.
    pub build: Build,
    /// The directory of manifests.
    pub manifests: PathBuf,
    /// The workloads: `namespace/name` and cgroup directory.
    pub workloads: Vec<(String, PathBuf)>,
    /// Where it pins.
    pub pin_root: PathBuf,
    /// The port of its admin interface.
    pub admin: u16,
    /// The address on which its admin interface listens; 127.0.0.1 is one of it.
    pub admin_on: &'static str,
    /// Whether the data path stays when it ends.
    pub keep: bool,
    /// Further arguments.
    pub args: Vec<String>,
    /// The only capabilities that it has, as setpriv(1) names them; all where it is empty.
    pub capabilities: Vec<&'static str>,
}

impl UpSpec {
    /// For one workload, `default/client`.
    pub fn new(manifests: &Path, pin_root: &Path, cgroup: &Cgroup) -> Self {
        Self {
            build: Build::Slotmesh,
            manifests: manifests.to_owned(),
            workloads: vec![("default/client".to_owned(), cgroup.path().to_owned())],
            pin_root: pin_root.to_owned(),
            admin: names::admin_port(),
            admin_on: "127.0.0.1",
            keep: false,
            args: Vec::new(),
            capabilities: Vec::new(),
        }
    }

    /// One workload more.
    #[must_use]
    pub fn workload(mut self, name: &str, cgroup: &Path) -> Self {
        self.workloads.push((name.to_owned(), cgroup.to_owned()));
        self
    }

    /// Behind other arguments, a call of `binary`.
    fn command(&self, mut command: Command, binary: &Path) -> Command {
        command.arg(binary).arg("up").arg("--manifests").arg(&self.manifests);
        for (name, cgroup) in &self.workloads {
            let mut workload = std::ffi::OsString::from(format!("{name}="));
            workload.push(cgroup);
            command.arg("--workload").arg(workload);
        }
        command.arg("--pin-root").arg(&self.pin_root);
        command.arg("--admin").arg(format!("{}:{}", self.admin_on, self.admin));
        if self.keep {
            command.arg("--keep");
        }
        command.args(&self.args);
        command.env("NO_COLOR", "1").stdin(Stdio::null());
        // Ctrl-C is for whoever started it, who then ends it.
        command.process_group(0);
        command
    }

    /// The address of its admin interface.
    pub fn admin(&self) -> String {
        format!("127.0.0.1:{}", self.admin)
    }

    /// Starts it; it isn't ready yet.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&self) -> Result<Up> {
        let mut setpriv = Command::new("setpriv");
        // It ends gracefully when the thread that started it does, however that ends.
        setpriv.args(["--pdeathsig", "TERM"]);
        if !self.capabilities.is_empty() {
            let only: String = self.capabilities.iter().map(|name| format!(",+{name}")).collect();
            setpriv.arg(format!("--bounding-set=-all{only}"));
        }
        let mut command = self.command(setpriv, &self.build.binary()?);
        let mut child = command.stderr(Stdio::piped()).spawn().context("start slotmesh up by setpriv")?;
        let stderr = child.stderr.take().context("its errors are piped")?;
        let said = Said::default();
        let log = said.clone();
        let reader = thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).for_each(|l| log.push(&l))
        });
        LOGS.with_borrow_mut(|logs| logs.push(said.clone()));
        Ok(Up { spec: self.clone(), child, said, reader: Some(reader) })
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it ends, or isn't ready soon.
    pub fn start_ready(&self) -> Result<Up> {
        let mut up = self.start()?;
        up.wait_ready()?;
        Ok(up)
    }

    /// Calls it and waits for its end: exit status and what it said. It is killed, and that is an
    /// error, when it doesn't end soon.
    ///
    /// # Errors
    /// As said.
    pub fn run_to_end(&self) -> Result<(ExitStatus, String)> {
        let up = self.start()?;
        up.end()
    }

    /// As [`UpSpec::run_to_end`], without any privilege.
    ///
    /// # Errors
    /// As [`UpSpec::run_to_end`].
    pub fn run_to_end_as_nobody(&self) -> Result<(ExitStatus, String)> {
        // The build's folder may be closed to others.
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let copy = dir.path().join("slotmesh");
        fs::copy(self.build.binary()?, &copy)?;
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--pdeathsig", "TERM"]);
        let child = self.command(setpriv, &copy).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        Up { spec: self.clone(), child, said: Said::default(), reader: None }.end()
    }
}

/// A `slotmesh up` process. Dropping it ends it gracefully.
#[derive(Debug)]
pub struct Up {
    spec: UpSpec,
    child: Child,
    said: Said,
    /// Collects its errors until it ends.
    reader: Option<thread::JoinHandle<()>>,
}

/// One report about a manifest, as `/reports` has it.
#[derive(Clone, Debug)]
pub struct Report(Value);

impl Report {
    /// Whether all of these are in it.
    pub fn says(&self, words: &[&str]) -> bool {
        let Value::Object(fields) = &self.0 else { return false };
        let text: Vec<_> =
            fields.values().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
        words.iter().all(|word| text.iter().any(|text| text.contains(word)))
    }
}

impl Up {
    /// How it was called.
    pub fn spec(&self) -> &UpSpec {
        &self.spec
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said on its standard error so far.
    pub fn said(&self) -> String {
        self.said.text()
    }

    /// Waits until the first sync is over.
    ///
    /// # Errors
    /// When it ends, or isn't ready soon.
    pub fn wait_ready(&mut self) -> Result<()> {
        wait::until_true("slotmesh up to be ready (/readyz)", || {
            if let Some(status) = self.child.try_wait()? {
                // What it said last may still be in the pipe.
                thread::sleep(Duration::from_millis(50));
                bail!("slotmesh up ended with {status}: {}", self.said());
            }
            // Before it listens, nobody answers.
            Ok(self.get("/readyz").is_ok_and(|(status, _)| status == 200))
        })
    }

    /// A request to its admin interface: status and body.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let url = format!("http://{}{path}", self.spec.admin());
        let request = ureq::get(&url).config().http_status_as_error(false);
        let mut response = request.timeout_global(Some(wait::SOON)).build().call().context(url)?;
        Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
    }

    fn get_ok(&self, path: &str) -> Result<String> {
        let (status, body) = self.get(path)?;
        ensure!(status == 200, "{path} answers {status}: {body}");
        Ok(body)
    }

    /// Its metrics.
    ///
    /// # Errors
    /// When they can't be had.
    pub fn metrics(&self) -> Result<Scrape> {
        Ok(Scrape::parse(&self.get_ok("/metrics")?))
    }

    /// Its slot table.
    ///
    /// # Errors
    /// When it can't be had.
    pub fn slots(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.get_ok("/slots")?)?)
    }

    /// What it has to say about the manifests now.
    ///
    /// # Errors
    /// When it can't be had.
    pub fn reports(&self) -> Result<Vec<Report>> {
        let reports: Vec<Value> = serde_json::from_str(&self.get_ok("/reports")?)?;
        Ok(reports.into_iter().map(Report).collect())
    }

    /// Waits for a report that has all of these words in it.
    ///
    /// # Errors
    /// When none comes soon; with those that are there.
    pub fn expect_report(&self, words: &[&str]) -> Result<()> {
        let found = wait::until_true("the report", || Ok(self.reports()?.iter().any(|r| r.says(words))));
        found.with_context(|| format!("no report says {words:?}; there are: {:#?}", self.reports()))
    }

    /// Waits until no report has all of these words in it.
    ///
    /// # Errors
    /// When one stays.
    pub fn expect_no_report(&self, words: &[&str]) -> Result<()> {
        let gone = wait::until_true("a report to go", || Ok(!self.reports()?.iter().any(|r| r.says(words))));
        gone.with_context(|| format!("a report says {words:?}: {:#?}", self.reports()))
    }

    /// Makes a change and waits until the flushes of this type that it leads to are published: one has to be, and
    /// the change may lead to more, so it also waits until no more come.
    ///
    /// # Errors
    /// When the change fails or none is published soon.
    pub fn published(&self, of: &str, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.metrics()?.flushes(of);
        change()?;
        wait::until_true(&format!("a flush of a {of} to be published"), || {
            Ok(self.metrics()?.flushes(of) > before)
        })?;
        let mut last = 0;
        wait::until_true(&format!("no more flushes of a {of}"), || {
            let before = std::mem::replace(&mut last, self.metrics()?.flushes(of));
            thread::sleep(QUIET);
            Ok(last == before)
        })
    }

    /// Ends it as the kernel would: no clean-up, the data path stays.
    ///
    /// # Errors
    /// When it has ended.
    pub fn kill(mut self) -> Result<()> {
        ensure!(self.child.try_wait()?.is_none(), "slotmesh up has ended: {}", self.said());
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends it gracefully and waits.
    ///
    /// # Errors
    /// When it doesn't end soon or says that it failed.
    pub fn stop(mut self) -> Result<()> {
        let status = self.interrupt()?;
        ensure!(status.success(), "slotmesh up ended with {status}: {}", self.said());
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().try_into()?), signal)?)
    }

    fn interrupt(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGINT)?;
        self.wait("slotmesh up to end after SIGINT")
    }

    fn wait(&mut self, what: &str) -> Result<ExitStatus> {
        wait::until(what, || Ok(self.child.try_wait()?))
    }

    /// Waits until it ends by itself: exit status and what it said.
    ///
    /// # Errors
    /// When it doesn't end soon.
    pub fn end(mut self) -> Result<(ExitStatus, String)> {
        // Where its errors aren't collected already.
        let stderr = self.child.stderr.take();
        let said = stderr.map(|stderr| thread::spawn(move || std::io::read_to_string(stderr)));
        let status = self.wait("slotmesh up to refuse")?;
        if let Some(reader) = self.reader.take() {
            reader.join().ok().context("reading what it said")?;
        }
        let text = match said {
            Some(said) => said.join().ok().context("reading what it said")??,
            None => self.said(),
        };
        Ok((status, text))
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if let Err(error) = self.interrupt() {
            eprintln!("slotmesh up had to be killed: {error}");
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}
