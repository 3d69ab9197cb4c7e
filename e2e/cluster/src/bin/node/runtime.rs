//! The container runtime: crun, and waiting for what it started.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::{
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use slotmesh_cluster::node::{beside, bundle};
use tempfile::NamedTempFile;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// As a shell counts: 128 and the signal when a signal ended it.
    pub code: i32,
    /// The signal.
    pub signal: Option<i32>,
}

/// A container that was created and perhaps started.
#[derive(Clone, Debug)]
pub struct Created {
    id: String,
    pid: Pid,
}

fn crun() -> Command {
    let mut crun = Command::new("crun");
    crun.args(["--cgroup-manager", "cgroupfs"]).stdin(Stdio::null());
    crun
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

impl Created {
    /// Creates a container of a bundle; its output goes to `log`, its input comes from `input`.
    pub fn new(id: &str, bundle: &Path, log: &Path, input: Stdio) -> Result<Self> {
        let out = File::options().create(true).append(true).open(log).context("open the log")?;
        let pid_file = bundle.join("pid");
        let crun_log = bundle.join("crun.log");
        let status = crun()
            .arg("--log")
            .arg(&crun_log)
            .arg("create")
            .arg("--bundle")
            .arg(bundle)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(id)
            .stdin(input)
            .stdout(out.try_clone()?)
            .stderr(out)
            .status()
            .context("run crun (Debian package crun)")?;
        if !status.success() {
            bail!("crun create: {}", fs::read_to_string(&crun_log).unwrap_or_default().trim());
        }
        let pid = fs::read_to_string(&pid_file)?.trim().parse().context("a process number")?;
        Ok(Self { id: id.to_owned(), pid: Pid::from_raw(pid) })
    }

    /// The first process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Starts it.
    pub fn start(&self) -> Result<()> {
        let output = crun().args(["start", &self.id]).output()?;
        ensure!(output.status.success(), "crun start: {}", said(&output));
        Ok(())
    }

    /// Runs a command in it: its output, and whether it succeeded.
    pub fn exec(&self, command: &[String]) -> Result<Output> {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let mut file = NamedTempFile::new()?;
        file.write_all(&serde_json::to_vec(&beside(&bundle(&self.id), &words)?)?)?;
        Ok(crun().args(["exec", "--process"]).arg(file.path()).arg(&self.id).output()?)
    }

    /// Sends its first process a signal. That it has ended is no error.
    pub fn kill(&self, by: Signal) -> Result<()> {
        match nix::sys::signal::kill(self.pid, by) {
            Err(Errno::ESRCH) | Ok(()) => Ok(()),
            Err(errno) => Err(errno).with_context(|| format!("send {by}")),
        }
    }

    /// Removes what the runtime keeps of it, and its cgroup.
    pub fn delete(&self) -> Result<()> {
        let output = crun().args(["delete", "--force", &self.id]).output()?;
        ensure!(output.status.success(), "crun delete: {}", said(&output));
        Ok(())
    }

    /// Waits for its end. (crun has ended, so its children are those of this process, the first of its
    /// PID namespace.)
    pub async fn wait(&self) -> Result<Exit> {
        let mut ended = signal(SignalKind::child())?;
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::Exited(_, code) => return Ok(Exit { code, signal: None }),
                WaitStatus::Signaled(_, by, _) => {
                    return Ok(Exit { code: 128 + by as i32, signal: Some(by as i32) });
                }
                _ => {}
            }
            // Signals can be merged, so now and then without one.
            drop(timeout(Duration::from_secs(1), ended.recv()).await);
        }
    }
}
