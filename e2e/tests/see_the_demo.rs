//! A newcomer sees the example shop: its manifests are good, the demo tells the truth and cleans up,
//! also when it is interrupted.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use slotmesh_e2e::{Mesh, isolated, names, wait};

fn shop() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/shop"))
}

/// A demo that is killed with the test.
struct Demo(Child);

impl Demo {
    fn start(connections: u64) -> Result<Self> {
        let mut command = Command::new(names::binary("slotmesh-e2e", "demo")?);
        command.args(["--connections", &connections.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).spawn().map(Self).context("start the demo")
    }

    /// Its exit code, and what it says from here on.
    fn finish(mut self, mut out: impl std::io::Read) -> Result<(Option<i32>, String)> {
        let mut text = String::new();
        out.read_to_string(&mut text)?;
        self.0.stderr.take().context("it is piped")?.read_to_string(&mut text)?;
        let status = wait::until("the demo to end", || Ok(self.0.try_wait()?))?;
        Ok((status.code(), text))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn whose_manifests_are_all_in_force() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        mesh.spec().manifests = shop().to_owned();
        mesh.start()?;
        let agent = mesh.agent()?;
        ensure!(agent.reports()?.is_empty(), "{:?}", agent.reports()?);
        ensure!(agent.metrics()?.flushes("listener") == 5, "4 services have 5 ports");
        mesh.stop()
    });
}

#[test]
fn to_its_end() {
    isolated(|| {
        let mut demo = Demo::start(4_000)?;
        let out = demo.0.stdout.take().context("it is piped")?;
        let (code, text) = demo.finish(out)?;
        println!("{text}");
        ensure!(code == Some(0), "the demo ended with {code:?}");
        for said in [
            "80 %",
            "50 %",
            "4,000  100.0 %",
            "getpeername says 10.96.0.13:80",
            "800  100.0 %",
            "SLOT BYTES",
            "Nothing is left behind",
        ] {
            ensure!(text.contains(said), "the demo doesn't say {said:?}");
        }
        ensure!(!text.contains("DOESN'T FIT") && !text.contains("Something is left"), "see above");
        Ok(())
    });
}

#[test]
fn and_leaves_by_ctrl_c() {
    isolated(|| {
        for after in ["1. The shop", "ready after", "50/50", "remove reviews-v2.yaml", "add testers.yaml"] {
            let mut demo = Demo::start(20_000)?;
            let mut lines = BufReader::new(demo.0.stdout.take().context("it is piped")?);
            let mut line = String::new();
            while !line.contains(after) {
                line.clear();
                ensure!(lines.read_line(&mut line)? > 0, "the demo ended before {after:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
            kill(Pid::from_raw(demo.0.id().try_into()?), Signal::SIGINT)?;
            let (code, text) = demo.finish(lines)?;
            ensure!(
                code == Some(130) && text.contains("Nothing is left behind"),
                "{code:?} after {after:?}: {text}"
            );
        }
        Ok(())
    });
}
