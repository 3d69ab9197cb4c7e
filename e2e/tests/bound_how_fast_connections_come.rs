//! A user bounds how fast new connections to a service come, all together or of each caller by itself. IPv4 and IPv6.

use std::time::Instant;

use anyhow::{Result, ensure};
use nix::errno::Errno;
use serde_json::json;
use slotmesh_e2e::{Cgroup, ClientSpec, Mesh, isolated, manifests::traffic_policy, mesh::reviews};

const CLUSTER: &str = "outbound|80||reviews.default.svc.cluster.local";
/// So many connections at once; one more flows in each second.
const BURST: u64 = 40;

/// How many connections of a workload were made, and how many were refused.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    made: u64,
    refused: u64,
}

impl Counts {
    /// Connects to all addresses of the service in turn; each connection is made, or refused.
    fn connect(&mut self, cgroup: &Cgroup, count: u64) -> Result<()> {
        let [four, six, mapped] = reviews::addresses();
        let log = ClientSpec::to(four).and(six).and(mapped).count(count).run(Some(cgroup))?;
        let other = log.connects.iter().find(|c| c.errno != 0 && c.errno != Errno::ECONNREFUSED as i32);
        ensure!(other.is_none(), "neither made nor refused: {other:?}");
        let made = log.connects.iter().filter(|c| c.errno == 0).count() as u64;
        self.made += made;
        self.refused += log.len() as u64 - made;
        Ok(())
    }
}

fn policy(mesh: &Mesh, per: &str) -> Result<()> {
    let rate = json!({"newConnections": {"perSecond": 1, "burst": BURST, "per": per}});
    let policy = traffic_policy("p", "reviews", &rate);
    mesh.agent()?.published("cluster", || mesh.manifests.write("policy.yaml", &[policy]))
}

/// The bucket was full, and so much has flowed in since, whole seconds or more.
fn most(since: Instant) -> u64 {
    BURST + since.elapsed().as_secs() + 1
}

fn too_fast(mesh: &Mesh) -> Result<u64> {
    Ok(mesh.agent()?.metrics()?.connections("too_fast_total", CLUSTER))
}

#[test]
fn of_all_callers_together_or_of_each() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        mesh.manifests.write("mesh.yaml", &reviews::objects())?;
        let second = Cgroup::new()?;
        let workload = ("default/second".to_owned(), second.path().to_owned());
        mesh.spec().workloads.push(workload);
        mesh.start()?;
        reviews::open(&mut mesh.backends)?;
        policy(&mesh, "Service")?;
        let began = Instant::now();
        // One bucket, whatever the family, and whoever connects.
        let (mut one, mut other) = (Counts::default(), Counts::default());
        one.connect(&mesh.cgroup, 3 * BURST)?;
        other.connect(&second, 3 * BURST)?;
        let (made, most) = (one.made + other.made, most(began));
        ensure!(one.made >= BURST && made <= most, "{made} of {most}");
        let refused = one.refused + other.refused;
        ensure!(too_fast(&mesh)? == refused, "{refused} were refused");

        // Another agent finds the bucket as it is.
        mesh.kill()?;
        mesh.start()?;
        one.connect(&mesh.cgroup, BURST)?;
        ensure!(one.made + other.made <= self::most(began), "{} and {}", one.made, other.made);

        mesh.agent()?.published("cluster", || mesh.manifests.remove("policy.yaml"))?;
        for cgroup in [&mesh.cgroup, &second] {
            let mut free = Counts::default();
            free.connect(cgroup, 3 * BURST)?;
            ensure!(free.refused == 0, "nobody bounds them");
        }
        policy(&mesh, "Caller")?;
        let began = Instant::now();
        for cgroup in [&mesh.cgroup, &second] {
            let mut caller = Counts::default();
            caller.connect(cgroup, 3 * BURST)?;
            let most = self::most(began);
            ensure!(caller.made >= BURST && caller.made <= most, "{} of {most}", caller.made);
        }
        mesh.stop()
    });
}
