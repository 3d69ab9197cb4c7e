//! The engine with too few slabs, a cap that moves, and a kernel that refuses: what is refused changes
//! nothing, and what was refused is accepted once there is room.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Fills a slot of 4 KiB.
const MANY: usize = 120;

/// Files, as long as the kernel creates any.
struct Refusing {
    files: Files,
    refuses: Arc<AtomicBool>,
}

impl Backing for Refusing {
    fn create(&self, slabs: &[SlabIndex]) -> Result<Vec<MappedSlab>, BackingError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err("no memory".into());
        }
        self.files.create(slabs)
    }

    fn remove(&self, slabs: Vec<MappedSlab>) -> Result<(), BackingError> {
        self.files.remove(slabs)
    }

    fn barrier(&self) -> Result<(), BackingError> {
        self.files.barrier()
    }

    fn existing(&self) -> Result<Vec<MappedSlab>, BackingError> {
        self.files.existing()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Assign(u8, usize),
    Remove(u8),
    /// In two steps, as a listener goes.
    Retire(u8),
    Configure(Growth, u32),
    Refuse(bool),
    Poll,
    Settle,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let growth = prop_oneof![Just(Growth::Background), Just(Growth::OnDemand), Just(Growth::Eager)];
    prop_oneof![
        12 => (0..90_u8, prop_oneof![2 => Just(MANY), 1 => 0..20_usize]).prop_map(|(n, len)| Op::Assign(n, len)),
        4 => (0..90_u8).prop_map(Op::Remove),
        2 => (0..90_u8).prop_map(Op::Retire),
        1 => (growth, 2..8_u32).prop_map(|(growth, cap)| Op::Configure(growth, cap)),
        1 => any::<bool>().prop_map(Op::Refuse),
        1 => Just(Op::Poll),
        1 => Just(Op::Settle),
        1 => Just(Op::Reopen),
    ]
}

struct Scene {
    pins: Arc<Pins>,
    refuses: Arc<AtomicBool>,
    config: Config,
    engine: Engine,
    /// Resources in force: the version of each, and how many endpoints it has.
    model: BTreeMap<u8, (u64, usize)>,
}

impl Scene {
    fn new() -> Self {
        let pins: Arc<Pins> = Arc::default();
        let refuses: Arc<AtomicBool> = Arc::default();
        let engine = Self::open(&pins, &refuses, SMALL).0;
        Self { pins, refuses, config: SMALL, engine, model: BTreeMap::new() }
    }

    fn open(pins: &Arc<Pins>, refuses: &Arc<AtomicBool>, config: Config) -> (Engine, Recovered) {
        let (range, arena) = Reservation::new(16).unwrap();
        let files = Files { pins: pins.clone(), range };
        let backing: Arc<dyn Backing> = Arc::new(Refusing { files, refuses: refuses.clone() });
        Engine::open(&backing, arena, config, &[], Arc::new(|| {})).unwrap()
    }

    fn apply(&mut self, op: Op, version: u64) -> Result<(), TestCaseError> {
        match op {
            Op::Assign(n, len) => {
                let refuses = self.refuses.load(Ordering::SeqCst);
                match assignment(&mut self.engine, &name(n), &vec![version as u16; len], version) {
                    Ok(_) => drop(self.model.insert(n, (version, len))),
                    Err(Full::Cap { cap, .. }) => {
                        prop_assert_eq!(cap, self.config.cap);
                        prop_assert!(self.engine.stats().slabs >= cap, "refused below the cap");
                        self.engine.settle();
                        let idle = self
                            .engine
                            .stats()
                            .classes
                            .iter()
                            .any(|(class, slots)| slots.idle > 0 && class.bytes() >= 4096);
                        prop_assert!(!idle || len < MANY, "refused beside an idle slot");
                    }
                    Err(Full::Growth { reason, .. }) => {
                        prop_assert!(refuses && reason.contains("no memory"), "{}", reason);
                    }
                    Err(Full::TooLarge { .. }) => prop_assert!(false, "it fits a slot"),
                }
            }
            Op::Remove(n) => {
                if let Some(handle) = self.engine.find(ENDPOINTS, &name(n)) {
                    self.engine.remove(handle);
                }
                self.model.remove(&n);
            }
            Op::Retire(n) => {
                if let Some(handle) = self.engine.find(ENDPOINTS, &name(n)) {
                    self.engine.unlist(handle);
                    self.engine.retire(handle);
                }
                self.model.remove(&n);
            }
            Op::Configure(growth, cap) => {
                self.config = Config { growth, cap, ..SMALL };
                prop_assert!(self.engine.set_config(self.config).is_ok());
            }
            Op::Refuse(refuses) => self.refuses.store(refuses, Ordering::SeqCst),
            Op::Poll => self.engine.poll(),
            Op::Settle => self.settled()?,
            Op::Reopen => {
                // The kernel has what is pinned, and nothing is created where there are slabs.
                self.engine.settle();
                let slabs = self.engine.stats().slabs;
                if slabs < SMALL.initial || self.config.growth == Growth::Eager {
                    return Ok(());
                }
                let (engine, recovered) = {
                    // The old one ends before the new one begins: there is one writer.
                    let stand_in = open(&Arc::default(), &[]).0;
                    drop(std::mem::replace(&mut self.engine, stand_in));
                    Self::open(&self.pins, &self.refuses, self.config)
                };
                self.engine = engine;
                let found: BTreeMap<String, u64> =
                    recovered.resources.iter().map(|r| (r.name.to_string(), r.version)).collect();
                let expected = self.model.iter().map(|(&n, &(version, _))| (name(n), version)).collect();
                prop_assert_eq!(found, expected);
            }
        }
        self.agrees()
    }

    /// The version in force is the one that was accepted last, whole.
    fn agrees(&self) -> Result<(), TestCaseError> {
        for (&n, &(version, len)) in &self.model {
            prop_assert_eq!(ports(&self.engine, &name(n)), Some(vec![version as u16; len]), "{}", name(n));
        }
        prop_assert_eq!(self.engine.resources().count(), self.model.len());
        let stats = self.engine.stats();
        let of_class: u64 = stats
            .classes
            .iter()
            .map(|(class, slots)| {
                let all = slots.used + slots.idle + slots.retired;
                assert_eq!(all % u64::from(class.slots_per_slab()), 0, "whole slabs: {stats:?}");
                all / u64::from(class.slots_per_slab())
            })
            .sum();
        prop_assert_eq!(of_class + u64::from(stats.empty_slabs), u64::from(stats.slabs));
        Ok(())
    }

    /// With nothing under way: nothing leaks, and there are as many slabs as the settings say.
    fn settled(&mut self) -> Result<(), TestCaseError> {
        self.engine.settle();
        let stats = self.engine.stats();
        let (used, retired) = totals(&self.engine);
        // A handle and a root for each; superblock and, with the first handle, a page.
        let fixed = used - 2 * self.model.len() as u64;
        prop_assert!((1..=2).contains(&fixed) && retired == 0, "{fixed} besides, {retired} retired");
        prop_assert_eq!(self.pins.files.lock().unwrap().len(), stats.slabs as usize, "every slab is pinned");
        prop_assert!(stats.slabs <= self.config.cap || stats.empty_slabs == 0, "above the cap, none is idle");
        Ok(())
    }
}

fn name(n: u8) -> String {
    format!("e{n}")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_is_refused_changes_nothing(ops in prop::collection::vec(op(), 1..200)) {
        let mut scene = Scene::new();
        for (op, version) in ops.into_iter().zip(1..) {
            scene.apply(op, version)?;
        }
        // There is room again, and what was refused is accepted.
        scene.refuses.store(false, Ordering::SeqCst);
        scene.apply(Op::Configure(Growth::OnDemand, 14), 0)?;
        for n in 0..90 {
            scene.apply(Op::Assign(n, MANY), 1_000 + u64::from(n))?;
        }
        prop_assert_eq!(scene.model.len(), 90);
        scene.settled()?;
        for n in 0..90 {
            scene.apply(Op::Remove(n), 0)?;
        }
        scene.settled()?;
        prop_assert_eq!(totals(&scene.engine), (2, 0));
    }
}

/// Batches of growth come without anybody asking for slots, until there is room for what was refused, and stay.
#[test]
fn growth_goes_on_while_what_was_refused_wants_room() {
    for growth in [Growth::Background, Growth::OnDemand] {
        let (mut engine, _) = open_with(&Arc::default(), &[], Config { growth, ..SMALL });
        engine.settle();
        let made = engine.new_capacity();
        engine.want(3 * SLAB_BYTES as u64 + 1);
        engine.settle();
        assert_eq!(engine.stats().empty_slabs, 4, "{growth:?}");
        engine.want(100 * SLAB_BYTES as u64);
        engine.settle();
        assert_eq!(engine.stats().slabs, SMALL.cap, "{growth:?}: no more than the cap allows");
        assert_eq!(engine.new_capacity(), made, "all of that was known");
        engine.set_config(Config { growth, cap: SMALL.cap + 2, ..SMALL }).unwrap();
        assert_eq!(engine.new_capacity(), made + 1);
        engine.settle();
        assert_eq!(engine.stats().slabs, SMALL.cap + 2, "{growth:?}: a higher cap is used at once");
        engine.want(0);
        engine.settle();
        assert_eq!(
            engine.stats().empty_slabs,
            SMALL.high_watermark,
            "{growth:?}: what nobody wants is given back"
        );
    }
}
