//! A user's agent is killed at any instant of its life, again and again, while everything changes and
//! connections are made: first start, take-over, growth, first sync, upgrade of the links, churn.
//!
//! After each kill the next agent is ready soon, every slot is accounted for, and every connection went to
//! a pod that its Service had then. `SLOTMESH_KILLS` sets how often, `SLOTMESH_KILL_SEED` the random
//! numbers (the instants are drawn from them; what the agent does then is the machine's).

mod shop;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use slotmesh_e2e::{
    Backends, Cgroup, Client, ClientSpec, ManifestDir, Up, UpSpec, bpf::Footprint, connect::now, isolated,
    names::PinRoot, wait,
};

use shop::Shop;

/// Kills in a usual run of the tests.
const KILLS: u64 = 50;
/// After so many kills all slots are counted, and the connections until then are looked at.
const STRETCH: u64 = 25;
/// How often progress is told.
const TOLD: Duration = Duration::from_secs(5);

/// Few slabs at first and small batches, so that it grows and shrinks all the time.
const SLABS: [&str; 10] = [
    "--slab-initial",
    "1",
    "--slab-cap",
    "64",
    "--slab-low-watermark",
    "2",
    "--slab-high-watermark",
    "4",
    "--slab-batch",
    "2",
];

fn setting(name: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("{name}={text}"))
}

#[test]
fn every_restart_finds_all_slots_and_no_connection_goes_astray() {
    isolated(|| {
        let kills = setting("SLOTMESH_KILLS")?.unwrap_or(KILLS);
        let seed = setting("SLOTMESH_KILL_SEED")?.unwrap_or_else(rand::random);
        println!("{kills} kills, SLOTMESH_KILL_SEED={seed}");
        Scenario::new(seed)?.run(kills)
    });
}

/// What must be the same after any number of kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slots {
    used: u64,
    handles: u64,
    /// What waits for a grace period: nothing, once all is done.
    waiting: u64,
}

/// All that it needs; its parts go in the order in which they stand here.
struct Scenario {
    spec: UpSpec,
    random: StdRng,
    shop: Arc<Mutex<Shop>>,
    _backends: Backends,
    cgroup: Cgroup,
    _pin_root: PinRoot,
    began: Instant,
    told: Instant,
    /// How long a start takes, about.
    start: Duration,
    killed: u64,
    /// Of these, before the agent was ready.
    killed_starting: u64,
}

impl Scenario {
    fn new(seed: u64) -> Result<Self> {
        let (cgroup, pin_root, manifests) = (Cgroup::new()?, PinRoot::new(), ManifestDir::new()?);
        let mut spec = UpSpec::new(manifests.path(), pin_root.path(), &cgroup);
        spec.args = SLABS.map(str::to_owned).into();
        let mut backends = Backends::new();
        let shop = Shop::open(manifests, &mut backends)?;
        Ok(Self {
            spec,
            random: StdRng::seed_from_u64(seed),
            shop: Arc::new(Mutex::new(shop)),
            _backends: backends,
            cgroup,
            _pin_root: pin_root,
            began: Instant::now(),
            told: Instant::now(),
            start: Duration::ZERO,
            killed: 0,
            killed_starting: 0,
        })
    }

    fn run(mut self, kills: u64) -> Result<()> {
        let up = self.spec.start_ready()?;
        self.start = self.began.elapsed();
        let fresh = settled(&up)?;
        println!("a start takes {} ms; {fresh:?}", self.start.as_millis());
        up.stop()?;
        self.first_starts(kills / 10, fresh)?;

        let (mut up, mut connects) = (self.start()?, 0);
        while self.killed < kills {
            let load = self.load()?;
            up = self.stretch(up, kills.min(self.killed + STRETCH), kills)?;
            let log = load.stop()?;
            ensure!(!log.is_empty(), "no connect was made");
            connects += log.len();
            self.shop().check(&log)?;
            self.shop().reset()?;
            wait::until_true("all slots to be as if no agent had been killed", || Ok(slots(&up)? == fresh))
                .with_context(|| format!("{:?} instead of {fresh:?}", slots(&up)))?;
        }
        println!(
            "{} kills, {} of them before the agent was ready; {connects} connects, none astray; {} s",
            self.killed,
            self.killed_starting,
            self.began.elapsed().as_secs()
        );
        let footprint = Footprint::of(&up)?;
        up.stop()?;
        footprint.expect_gone()
    }

    fn shop(&self) -> MutexGuard<'_, Shop> {
        lock(&self.shop)
    }

    fn load(&self) -> Result<Client> {
        let addresses = self.shop().addresses();
        let (first, others) = addresses.split_first().context("the shop has services")?;
        let to = others.iter().fold(ClientSpec::to(*first), |spec, &to| spec.and(to));
        to.count(u64::MAX).least(1000).threads(2).gap(500).limit(600).start(Some(&self.cgroup))
    }

    /// Kills the very first agent of a pin root while it starts.
    fn first_starts(&mut self, kills: u64, fresh: Slots) -> Result<()> {
        for _ in 0..kills {
            self.kill_a_start()?;
            let up = self.spec.start_ready()?;
            let found = settled(&up)?;
            ensure!(found == fresh, "{found:?} instead of {fresh:?} after a first start that was killed");
            up.stop()?;
            ensure!(!self.spec.pin_root.exists(), "{} stays", self.spec.pin_root.display());
        }
        Ok(())
    }

    /// Starts an agent and kills it before it is ready, or not long after.
    fn kill_a_start(&mut self) -> Result<()> {
        let up = self.spec.start()?;
        thread::sleep(self.random.random_range(Duration::ZERO..self.start * 5 / 4));
        self.killed += 1;
        self.killed_starting += u64::from(!up.said().contains("first sync is over"));
        up.kill()
    }

    /// Starts an agent that is to live: it is ready soon, and its slots add up.
    fn start(&self) -> Result<Up> {
        let places = self.shop().places();
        let up = self.spec.start_ready()?;
        self.shop().settled(&places, now());
        add_up(&up.slots()?)?;
        Ok(up)
    }

    /// Kills and starts, up to so many kills in all, while the shop changes; the agent that runs then.
    fn stretch(&mut self, up: Up, until: u64, kills: u64) -> Result<Up> {
        let (shop, stop) = (self.shop.clone(), AtomicBool::new(false));
        let random = StdRng::seed_from_u64(self.random.random());
        thread::scope(|scope| {
            let changing = scope.spawn(|| change(&shop, random, &stop));
            let killed = self.kill_until(up, until, kills);
            stop.store(true, Ordering::Relaxed);
            changing.join().map_err(|_| anyhow!("what changes the shop panicked"))??;
            killed
        })
    }

    fn kill_until(&mut self, mut up: Up, until: u64, kills: u64) -> Result<Up> {
        while self.killed < until {
            thread::sleep(self.random.random_range(Duration::ZERO..Duration::from_millis(150)));
            self.killed += 1;
            up.kill()?;
            while self.killed < until && self.random.random_bool(0.4) {
                self.kill_a_start()?;
            }
            up = self.start().with_context(|| format!("after {} kills", self.killed))?;
            if self.told.elapsed() > TOLD {
                self.told = Instant::now();
                let (killed, seconds) = (self.killed, self.began.elapsed().as_secs());
                println!("{killed} of {kills} kills after {seconds} s");
            }
        }
        Ok(up)
    }
}

fn lock(shop: &Mutex<Shop>) -> MutexGuard<'_, Shop> {
    shop.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Changes the shop all the time.
fn change(shop: &Mutex<Shop>, mut random: StdRng, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        lock(shop).change(&mut random)?;
        thread::sleep(random.random_range(Duration::from_millis(1)..Duration::from_millis(15)));
    }
    Ok(())
}

fn number(value: &Value, field: &str) -> Result<u64> {
    value[field].as_u64().with_context(|| format!("/slots has no number {field}: {value}"))
}

/// Used, idle and retired slots are all there are: each slab is cut up wholly, or empty.
fn add_up(slots: &Value) -> Result<()> {
    const SLAB: u64 = 64 * 1024;
    let mut slabs = number(slots, "outer_records_empty")?;
    for class in slots["classes"].as_array().context("/slots has classes")? {
        let all = number(class, "used")? + number(class, "idle")? + number(class, "retired")?;
        let in_a_slab = SLAB / number(class, "bytes")?;
        ensure!(all % in_a_slab == 0, "slots are missing: {class}");
        slabs += all / in_a_slab;
    }
    ensure!(slabs == number(slots, "outer_records")?, "slabs are missing: {slots}");
    Ok(())
}

fn slots(up: &Up) -> Result<Slots> {
    let slots = up.slots()?;
    add_up(&slots)?;
    let used = |class| number(class, "used");
    let classes = slots["classes"].as_array().context("/slots has classes")?;
    Ok(Slots {
        used: classes.iter().map(used).sum::<Result<u64>>()?,
        handles: number(&slots, "handles")?,
        waiting: number(&slots, "quarantined")?,
    })
}

/// The slots when nothing waits for a grace period any more.
fn settled(up: &Up) -> Result<Slots> {
    wait::until("nothing to wait for a grace period", || {
        Ok(Some(slots(up)?).filter(|found| found.waiting == 0))
    })
}
