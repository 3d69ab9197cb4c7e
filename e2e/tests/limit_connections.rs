//! A user limits the connections to a service, raises the limit and takes it back.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use serde_json::json;
use slotmesh_e2e::{
    Mesh, isolated,
    manifests::traffic_policy,
    mesh::{at, reviews},
    wait,
};

const CLUSTER: &str = "outbound|80||reviews.default.svc.cluster.local";

/// A process of the workload that holds a connection to the service until it is dropped.
struct Holder(Child);

impl Holder {
    fn new(mesh: &Mesh) -> Result<Self> {
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec 3<>/dev/tcp/{}/{} || exit; echo up; read -r line",
            mesh.cgroup.path().display(),
            reviews::V4,
            reviews::PORT
        );
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut this = Self(bash.spawn().context("run bash")?);
        let mut line = String::new();
        BufReader::new(this.0.stdout.take().context("piped")?).read_line(&mut line)?;
        ensure!(line == "up\n", "the holder isn't connected: {line:?}");
        Ok(this)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn limit(mesh: &Mesh, most: u32) -> Result<()> {
    let policy = traffic_policy("p", "reviews", &json!({"maxConnections": most}));
    mesh.agent()?.published("cluster", || mesh.manifests.write("policy.yaml", &[policy]))
}

/// A process that was killed has closed its sockets a moment later.
fn expect_active(mesh: &Mesh, expected: u64) -> Result<()> {
    let what = format!("{expected} connections to be open");
    wait::until_true(&what, || Ok(count(mesh, "active")? == expected))
}

fn count(mesh: &Mesh, what: &str) -> Result<u64> {
    Ok(mesh.agent()?.metrics()?.connections(what, CLUSTER))
}

#[test]
fn as_many_as_the_policy_says() {
    isolated(|| {
        let to = at(reviews::V4, reviews::PORT);
        let mut mesh = Mesh::with(&reviews::objects())?;
        reviews::open(&mut mesh.backends)?;
        mesh.connect(to, 10)?.expect_all(10)?;
        limit(&mesh, 2)?;
        let first = Holder::new(&mesh)?;
        let _second = Holder::new(&mesh)?;
        expect_active(&mesh, 2)?;
        let before = count(&mesh, "refused_total")?;
        mesh.connect(to, 5)?.expect_errno(Errno::ECONNREFUSED)?;
        ensure!(count(&mesh, "refused_total")? == before + 5);
        ensure!(count(&mesh, "total")? == 12, "ten and the two that are held");

        // What is open when the limit sinks stays open; it counts.
        limit(&mesh, 1)?;
        ensure!(count(&mesh, "active")? == 2);
        drop(first);
        expect_active(&mesh, 1)?;
        mesh.connect(to, 1)?.expect_errno(Errno::ECONNREFUSED)?;
        limit(&mesh, 2)?;
        mesh.connect(to, 1)?.expect_all(1)?;

        mesh.agent()?.published("cluster", || mesh.manifests.remove("policy.yaml"))?;
        let _more = (0..3).map(|_| Holder::new(&mesh)).collect::<Result<Vec<_>>>()?;
        expect_active(&mesh, 4)?;
        mesh.stop()
    });
}
