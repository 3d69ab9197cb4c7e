//! A user upgrades to a build with another record layout, and back, while connections are made and held.
//!
//! The other build is slotmesh with one record type and one field more (e2e/next-layout). What it makes
//! anew are the records; links, and what sockets and clusters have of their own, stay the same maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slotmesh_e2e::{
    Build, Cgroup, Held, Mesh, Pinned, Up,
    bpf::Footprint,
    client::LEAST,
    isolated,
    manifests::{service, slice, traffic_policy},
    mesh::{at, reviews},
    net,
    pinned::{Definition, maps, maps_in_object, vips},
    wait,
};

/// Services that nobody connects to: records to build.
const FURTHER_SERVICES: u8 = 200;
/// Workloads that don't connect: links to switch, before those of the one that does.
const FURTHER_WORKLOADS: usize = 24;
/// Upgrades that are to be cut short between "new records built" and "links switched".
const CUTS: usize = 6;
/// In so many upgrades, that many must be.
const ROUNDS: usize = 10;

/// The service to which connections are held, as many as it may have at most.
mod db {
    use super::*;

    pub const LIMIT: u64 = 12;
    const PORT: u16 = 5432;
    const TARGET: u16 = 8080;
    const PODS: [&str; 2] = ["127.1.9.1", "fd00:1:9::1"];
    const VIPS: [&str; 2] = ["10.96.0.20", "fd00:96::20"];

    pub fn addresses() -> [SocketAddr; 3] {
        [at(VIPS[0], PORT), at(VIPS[1], PORT), at(&format!("::ffff:{}", VIPS[0]), PORT)]
    }

    pub fn objects() -> Vec<Value> {
        let [v4, v6] = PODS;
        vec![
            service("db").ip(VIPS[0]).ip(VIPS[1]).port(PORT).build(),
            slice("db-v4", "db").port(TARGET).endpoint(v4).build(),
            slice("db-v6", "db").port(TARGET).endpoint(v6).build(),
            traffic_policy("limit", "db", &json!({"maxConnections": LIMIT})),
        ]
    }

    /// Servers that leave their connections open.
    pub fn open() -> Result<[std::net::TcpListener; 2]> {
        net::add_loopback_v6(PODS[1])?;
        let [v4, v6] = PODS.map(|pod| std::net::TcpListener::bind(at(pod, TARGET)));
        Ok([v4?, v6?])
    }
}

fn further_services() -> impl Iterator<Item = Value> {
    (1..=FURTHER_SERVICES).flat_map(|i| {
        let name = format!("further-{i}");
        let slice = slice(&name, &name).port(8080).endpoint("127.1.8.1").build();
        [service(&name).ip(&format!("10.97.0.{i}")).port(80).build(), slice]
    })
}

/// What must be the same before and after.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    state: BTreeMap<PathBuf, (u32, Definition)>,
    links: BTreeMap<PathBuf, u32>,
}

impl Kept {
    fn of(pinned: &Pinned) -> Result<Self> {
        let links = pinned.links()?.into_iter().map(|(path, ids)| (path, ids.link)).collect();
        Ok(Self { state: pinned.state()?, links })
    }

    fn check(&self, pinned: &Pinned) -> Result<()> {
        let now = Self::of(pinned)?;
        ensure!(now == *self, "state and links were {self:#?}, and are {now:#?}");
        Ok(())
    }
}

/// The programs that run at links.
fn programs(pinned: &Pinned) -> Result<BTreeSet<u32>> {
    Ok(pinned.links()?.values().map(|ids| ids.program).collect())
}

/// How far an upgrade comes, at least, before it is cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// Some addresses lead to new records.
    SomeRecords,
    /// All do: what is left is to switch the links.
    AllRecords,
    /// Some links run new programs.
    SomeLinks,
}

/// A mesh that is upgraded, and the connections that are held meanwhile.
struct Upgrade {
    held: Held,
    /// By which the map of clusters knows that of the held connections.
    cluster: u64,
    pinned: Pinned,
    kept: Kept,
    mesh: Mesh,
    _workloads: Vec<Cgroup>,
    _servers: [std::net::TcpListener; 2],
}

impl Upgrade {
    fn start() -> Result<Self> {
        let mut mesh = Mesh::new()?;
        let objects: Vec<Value> =
            reviews::objects().into_iter().chain(db::objects()).chain(further_services()).collect();
        mesh.manifests.write("mesh.yaml", &objects)?;
        let workloads = (0..FURTHER_WORKLOADS).map(|_| Cgroup::new()).collect::<Result<Vec<_>>>()?;
        let named =
            |(i, cgroup): (usize, &Cgroup)| (format!("default/further-{i}"), cgroup.path().to_owned());
        mesh.spec().workloads.splice(0..0, workloads.iter().enumerate().map(named));
        mesh.start()?;
        reviews::open(&mut mesh.backends)?;
        let servers = db::open()?;
        let mut held = Held::new(&mesh.cgroup)?;
        for to in db::addresses().into_iter().cycle().take(db::LIMIT as usize) {
            held.open(to)?;
        }
        let pinned = Pinned::below(&mesh.spec().pin_root);
        let active = pinned.active()?;
        let cluster = active.iter().find(|&(_, &active)| active == db::LIMIT);
        let (&cluster, _) =
            cluster.with_context(|| format!("{} connections don't count: {active:?}", db::LIMIT))?;
        let kept = Kept::of(&pinned)?;
        Ok(Self { held, cluster, pinned, kept, mesh, _workloads: workloads, _servers: servers })
    }

    /// Upgrades to this build; how many upgrades were cut short after the new records were built, and
    /// before all links were switched.
    fn to(&mut self, build: Build) -> Result<usize> {
        let old = self.pinned.layout()?;
        let (all, before) = (vips(&old)?, programs(&self.pinned)?);
        self.mesh.kill()?;
        self.mesh.spec().build = build;
        let mut cuts = 0;
        for until in [Until::SomeRecords, Until::AllRecords, Until::AllRecords, Until::SomeLinks] {
            let earlier = programs(&self.pinned)?;
            let up = self.mesh.spec().start()?;
            wait::until_true("an upgrade to be on its way", || match until {
                Until::SomeRecords => Ok(self.built(&old)? > 0),
                Until::AllRecords => Ok(self.built(&old)? >= all),
                Until::SomeLinks => Ok(!programs(&self.pinned)?.is_subset(&earlier)),
            })?;
            up.kill()?;
            let (built, links) = (self.built(&old)?, self.pinned.links()?);
            let switched = links.values().filter(|ids| !before.contains(&ids.program)).count();
            println!(
                "  killed at {until:?}: {built} of {all} addresses, {switched} of {} links",
                links.len()
            );
            cuts += usize::from(built >= all && switched < links.len());
            let both = self.pinned.layouts()?.len() == 2;
            ensure!(both || switched == links.len(), "the old records are gone, and programs use them");
            self.check()?;
        }
        self.mesh.start()?;
        let new = self.pinned.layout()?;
        ensure!(new != old, "{} is still there", old.display());
        let after = programs(&self.pinned)?;
        ensure!(after.is_disjoint(&before), "programs stay: {before:?}, {after:?}");
        self.check()?;
        Ok(cuts)
    }

    /// How many addresses lead to records of another layout than this one.
    fn built(&self, old: &Path) -> Result<usize> {
        let new = self.pinned.layouts()?.into_iter().find(|layout| layout != old);
        // Where it has just been made, its map isn't there yet.
        Ok(new.and_then(|new| vips(&new).ok()).unwrap_or(0))
    }

    fn check(&mut self) -> Result<()> {
        self.kept.check(&self.pinned)?;
        self.held.expect_peers()?;
        let active = self.active()?;
        ensure!(active == self.held.count(), "{active} connections count, {} are held", self.held.count());
        Ok(())
    }

    fn active(&self) -> Result<u64> {
        Ok(self.pinned.active()?.get(&self.cluster).copied().unwrap_or(0))
    }

    /// Closes the oldest connection, and waits until it doesn't count any more.
    fn close(&mut self) -> Result<()> {
        self.held.close()?;
        let left = self.held.count();
        wait::until_true("a closed connection not to count", || Ok(self.active()? == left))
            .with_context(|| format!("{:?} count, {left} are held", self.active()))
    }

    /// No connection counts that isn't held.
    fn expect_no_other(&self) -> Result<()> {
        let others = || -> Result<Vec<(u64, u64)>> {
            let all = self.pinned.active()?.into_iter();
            Ok(all.filter(|&(cluster, active)| cluster != self.cluster && active != 0).collect())
        };
        wait::until_true("no connection to count that isn't held", || Ok(others()?.is_empty()))
            .with_context(|| format!("{:?} (cluster, connections)", others()))
    }
}

#[test]
fn held_connections_keep_their_address_and_their_count_and_none_fails() {
    isolated(|| {
        let mut upgrade = Upgrade::start()?;
        let first = upgrade.pinned.layout()?;
        let (mut cuts, mut connects) = (0, 0);
        for (round, build) in [Build::Next, Build::Slotmesh].into_iter().cycle().take(ROUNDS).enumerate() {
            println!("to {build:?}");
            let load = upgrade.mesh.load(&reviews::addresses())?;
            thread::sleep(Duration::from_millis(200));
            cuts += upgrade.to(build)?;
            thread::sleep(Duration::from_millis(200));
            let log = load.stop()?;
            log.expect_all(LEAST)?;
            let astray = log.connects.iter().find(|c| c.peer != Some(c.to));
            ensure!(astray.is_none(), "getpeername doesn't show what was connected to: {astray:?}");
            connects += log.len();
            upgrade.expect_no_other()?;

            // One from before the upgrade gives its place up to one by the new records.
            let [to, ..] = db::addresses();
            upgrade.held.expect_refused(to)?;
            upgrade.close()?;
            upgrade.held.open(to)?;
            upgrade.held.expect_refused(to)?;
            upgrade.check()?;
            if cuts >= CUTS && build == Build::Slotmesh {
                println!("{} upgrades, {cuts} cut short, {connects} connects", round + 1);
                break;
            }
        }
        ensure!(cuts >= CUTS, "only {cuts} were cut short before the links were switched");
        ensure!(upgrade.pinned.layout()? == first, "the layout isn't that of the beginning");
        while upgrade.held.count() > 0 {
            upgrade.close()?;
        }
        let footprint = Footprint::of(upgrade.mesh.agent()?)?;
        upgrade.mesh.stop()?;
        footprint.expect_gone()
    });
}

/// How maps are defined, by the names that the programs have for them; all slabs are the one in `OUTER`.
fn definitions(maps: BTreeMap<PathBuf, (u32, Definition)>) -> BTreeSet<(String, Definition)> {
    let name = |pin: &Path| match pin.parent() {
        Some(parent) if parent == Path::new("slabs") => "OUTER/inner".to_owned(),
        _ => pin.to_string_lossy().to_uppercase(),
    };
    maps.into_iter().map(|(pin, (_, definition))| (name(&pin), definition)).collect()
}

/// Slots in use, when nothing waits for a grace period.
fn used(up: &Up) -> Result<u64> {
    wait::until("nothing to wait for a grace period", || {
        let slots = up.slots()?;
        let classes = slots["classes"].as_array().context("/slots has classes")?;
        let used = classes.iter().map(|class| class["used"].as_u64()).sum::<Option<u64>>();
        Ok(used.filter(|_| slots["quarantined"] == 0))
    })
}

#[test]
fn a_record_type_and_a_field_more_change_no_map_and_those_that_run_are_kept() {
    const NAME: &str = "outbound|80||reviews.default.svc.cluster.local";
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        let pinned = Pinned::below(&mesh.spec().pin_root);
        let (old, kept) = (pinned.layout()?, Kept::of(&pinned)?);
        let ids = |layout: &Path| -> Result<BTreeSet<u32>> {
            Ok(maps(layout)?.values().map(|(id, _)| *id).collect())
        };
        let (before, old_ids) = (definitions(maps(&old)?), ids(&old)?);
        let state: BTreeSet<u32> = kept.state.values().map(|(id, _)| *id).collect();
        ensure!(!state.is_empty() && pinned.maps_of_programs()?.is_superset(&state));
        let used_before = used(mesh.agent()?)?;
        ensure!(shown(mesh.agent()?, NAME)?["added"].is_null(), "the first build has it already");

        mesh.kill()?;
        mesh.spec().build = Build::Next;
        mesh.start()?;
        let new = pinned.layout()?;
        kept.check(&pinned)?;
        ensure!(new != old && ids(&new)?.is_disjoint(&old_ids), "the records are the same maps");
        let after = definitions(maps(&new)?);
        ensure!(before == after, "maps of records were {before:#?}, and are {after:#?}");
        ensure!(pinned.maps_of_programs()?.is_superset(&state), "other state than before is in use");

        // What is new is there, and found again by the next agent of this build.
        let added = json!({"source": NAME, "assignments": [NAME]});
        let used_after = used(mesh.agent()?)?;
        ensure!(used_after > used_before, "{used_before} slots before, {used_after} with more records");
        for _ in 0..2 {
            let shown = shown(mesh.agent()?, NAME)?;
            ensure!(shown["added"] == added, "{shown}");
            ensure!(used(mesh.agent()?)? == used_after, "slots are lost, or found twice");
            mesh.kill()?;
            mesh.start()?;
        }
        kept.check(&pinned)?;
        mesh.stop()
    });
}

fn shown(up: &Up, cluster: &str) -> Result<Value> {
    let (status, body) = up.get(&format!("/resources/cluster/{cluster}"))?;
    ensure!(status == 200, "{status}: {body}");
    Ok(serde_json::from_str(&body)?)
}

/// The objects define the same maps, and these are those that an agent made: programs of either layout
/// would fit over the maps of the other.
#[test]
fn programs_of_both_layouts_define_the_maps_that_run() {
    isolated(|| {
        let objects = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf");
        let defined = maps_in_object(&objects.join("slotmesh.bpf.o"))?;
        let next = maps_in_object(&objects.join("next.bpf.o"))?;
        ensure!(defined == next, "{defined:#?} and {next:#?}");

        let mut mesh = Mesh::with(&reviews::objects())?;
        let pinned = Pinned::below(&mesh.spec().pin_root);
        let mut running = definitions(maps(&pinned.layout()?)?);
        running.extend(definitions(pinned.state()?));
        // The ring buffer of ended connections belongs to the programs that run, and isn't pinned.
        let defined: BTreeSet<(String, Definition)> =
            defined.into_iter().filter(|(name, _)| name != "ENDS").collect();
        ensure!(running == defined, "{running:#?} run, {defined:#?} are defined");
        mesh.stop()
    });
}
