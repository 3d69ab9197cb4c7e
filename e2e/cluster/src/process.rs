//! Processes that end with their owner, however that ends.
//!
//! A process is told by the kernel when the *thread* that started it ends (`PR_SET_PDEATHSIG`, set by
//! setpriv(1)). So a [`Keeper`] has a thread of its own, which starts the processes and does nothing
//! else: they outlive the thread that asked for them, and not the process, even when it is killed.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

type Start = (Command, mpsc::Sender<io::Result<Child>>);

/// A thread that starts processes, in the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Keeper {
    starts: Option<mpsc::Sender<Start>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// A new one.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn new() -> Result<Self> {
        let (starts, todo) = mpsc::channel::<Start>();
        let run = move || {
            for (mut command, reply) in todo {
                // Whoever asked has gone: then the child goes, too.
                if let Err(mpsc::SendError(Ok(mut child))) = reply.send(command.spawn()) {
                    drop(child.kill());
                    drop(child.wait());
                }
            }
        };
        let thread = thread::Builder::new().name("keeper".to_owned()).spawn(run).context("start a thread")?;
        Ok(Self { starts: Some(starts), thread: Some(thread) })
    }

    /// Starts a process whose output goes to a file.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&self, program: &Path, args: &[String], log: &Path) -> Result<Process> {
        self.start_with(program, args, &[], log)
    }

    /// Starts a process with further environment variables.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_with(
        &self,
        program: &Path,
        args: &[String],
        env: &[(&str, &OsStr)],
        log: &Path,
    ) -> Result<Process> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("write {}", log.display()))?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("open a log twice")?)
            .stderr(out);
        let (reply, started) = mpsc::channel();
        let starts = self.starts.as_ref().context("a keeper keeps until it is dropped")?;
        starts.send((command, reply)).ok().context("the keeper's thread has ended")?;
        let child = started
            .recv()
            .context("the keeper's thread has ended")?
            .with_context(|| format!("start {name} by setpriv (Debian package util-linux)"))?;
        Ok(Process { name, child, log: log.to_owned() })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.starts = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// File with its output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Fails when it has ended.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn expect_running(&mut self) -> Result<()> {
        let ended = self.child.try_wait().with_context(|| format!("wait for {}", self.name))?;
        match ended {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended: {status}\n{}", self.name, tail(&self.log)),
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid()).context("a process number")?);
        kill(pid, signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Ends it with a signal and waits until it has ended.
    ///
    /// # Errors
    /// When it doesn't end by this signal within `grace`; it is killed then.
    pub fn stop(mut self, signal: Signal, grace: Duration) -> Result<ExitStatus> {
        self.signal(signal)?;
        let deadline = Instant::now() + grace;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(
                    status.signal().is_none_or(|by| by == signal as i32),
                    "{} ended by another signal: {status}",
                    self.name
                );
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "{} didn't end within {grace:?} of {signal}\n{}",
                self.name,
                tail(&self.log)
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The last lines of a log, with its name.
pub fn tail(log: &Path) -> String {
    const LINES: usize = 15;
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    let mut shown = format!("--- the end of {}:\n", log.display());
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        shown.push_str(line);
        shown.push('\n');
    }
    shown + "---"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleep(keeper: &Keeper, log: &Path) -> Process {
        keeper.start(Path::new("sleep"), &["1000".to_owned()], log).unwrap()
    }

    fn exists(pid: u32) -> bool {
        Path::new("/proc").join(pid.to_string()).exists()
    }

    #[test]
    fn a_process_outlives_the_thread_that_asked_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new().unwrap();
        let mut process =
            thread::scope(|scope| scope.spawn(|| sleep(&keeper, &dir.path().join("log"))).join().unwrap());
        process.expect_running().unwrap();
        let status = process.stop(Signal::SIGTERM, Duration::from_secs(20)).unwrap();
        assert_eq!(status.signal(), Some(Signal::SIGTERM as i32));
    }

    #[test]
    fn a_process_ends_with_its_owner_and_with_its_keeper() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new().unwrap();
        let process = sleep(&keeper, &dir.path().join("log"));
        let pid = process.pid();
        drop(process);
        assert!(!exists(pid));

        let mut process = sleep(&keeper, &dir.path().join("log"));
        // setpriv must have set the signal before the thread ends.
        let comm = format!("/proc/{}/comm", process.pid());
        let deadline = Instant::now() + Duration::from_secs(20);
        while fs::read_to_string(&comm).unwrap().trim() != "sleep" {
            assert!(Instant::now() < deadline, "setpriv starts no sleep");
            thread::sleep(Duration::from_millis(1));
        }
        drop(keeper);
        assert_eq!(process.child.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
    }

    #[test]
    fn what_a_process_said_is_told_when_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new().unwrap();
        let args = ["-c".to_owned(), "echo no such thing >&2; exit 3".to_owned()];
        let mut process = keeper.start(Path::new("sh"), &args, &dir.path().join("log")).unwrap();
        process.child.wait().unwrap();
        let said = process.expect_running().unwrap_err().to_string();
        assert!(said.contains("exit status: 3") && said.contains("no such thing"), "{said}");
    }
}
