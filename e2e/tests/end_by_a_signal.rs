//! A user ends slotmesh, and it ends: whatever its clients do, and however long the tidying would take.

use std::{
    io::Write as _,
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use slotmesh_e2e::{Mesh, Up, bpf, isolated, mesh::reviews, wait};

/// Makes each removal of a pin take a minute.
struct Slow(Child);

impl Slow {
    fn down(up: &Up) -> Result<Self> {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-e", "trace=unlinkat", "-e", "inject=unlinkat:delay_enter=60000000", "-p"]);
        strace.arg(up.pid().to_string()).stdout(Stdio::null()).stderr(Stdio::null());
        let slow = Self(strace.spawn().context("strace can't be started; run `make setup`")?);
        let tasks = format!("/proc/{0}/task", up.pid());
        wait::until_true("strace to hold all threads", || {
            for task in std::fs::read_dir(&tasks)? {
                let status = std::fs::read_to_string(task?.path().join("status"))?;
                if status.lines().any(|line| line == "TracerPid:\t0") {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        Ok(slow)
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn while_a_client_holds_half_a_request() {
    isolated(|| {
        for signal in [Signal::SIGTERM, Signal::SIGHUP] {
            let mut mesh = Mesh::with(&reviews::objects())?;
            let up = mesh.up.take().context("it runs")?;
            let mut client = TcpStream::connect(up.spec().admin())?;
            client.write_all(b"GET /metrics HTTP/1.1\r\nhost: slot")?;
            let root = up.spec().pin_root.clone();
            up.signal(signal)?;
            let (status, said) = up.end()?;
            ensure!(status.success() && said.contains("the data path is removed"), "{status}: {said}");
            ensure!(!root.exists(), "{} stays", root.display());
        }
        Ok(())
    });
}

#[test]
fn at_once_by_a_second_one() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        let up = mesh.up.take().context("it runs")?;
        let _slow = Slow::down(&up)?;
        up.signal(Signal::SIGTERM)?;
        wait::until_true("the first signal to be noticed", || {
            Ok(up.said().contains("a second signal ends at once"))
        })?;
        let root = up.spec().pin_root.clone();
        up.signal(Signal::SIGTERM)?;
        let (status, said) = up.end()?;
        ensure!(status.code() == Some(143) && said.contains("what is pinned stays"), "{status}: {said}");
        // As after a kill.
        ensure!(!bpf::pins(&root)?.is_empty(), "the pins are gone");
        Ok(())
    });
}

#[test]
fn though_the_tidying_takes_too_long() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        let up = mesh.up.take().context("it runs")?;
        let slow = Slow::down(&up)?;
        up.signal(Signal::SIGTERM)?;
        wait::until_true("the limit to be reached", || {
            Ok(up.said().contains("before everything was tidied up"))
        })?;
        // What strace holds back can't even be killed.
        drop(slow);
        let (status, said) = up.end()?;
        ensure!(
            status.code() == Some(1) && said.contains("before everything was tidied up"),
            "{status}: {said}"
        );
        Ok(())
    });
}
