//! After a peak: what is left of it lies wherever it lies, and what comes next is of other sizes. Against a model
//! that only adds up bytes.

use super::*;

/// Enough that a slab a class, partly used, is no great share.
const CAP: u32 = 64;

const PEAK: Config = Config {
    growth: Growth::OnDemand,
    initial: 2,
    cap: CAP,
    low_watermark: 0,
    high_watermark: 4,
    batch: 4,
    threads: NonZeroUsize::MIN,
};

/// A cluster and its load assignment, or a load assignment alone.
#[derive(Clone, Debug)]
struct Service {
    name: String,
    endpoints: usize,
    has_cluster: bool,
}

impl Service {
    /// The room of its records and handles, each in whole units of 64 bytes.
    fn bytes(&self) -> usize {
        let units = |bytes: usize| bytes.next_multiple_of(64);
        let handle = units(size_of::<slotmesh_records::Handle>() + self.name.len());
        let endpoints = units(size_of::<Endpoints>() + self.endpoints * size_of::<Endpoint>());
        let cluster = if self.has_cluster { handle + units(size_of::<Cluster>()) } else { 0 };
        handle + endpoints + cluster
    }

    fn apply(&self, engine: &mut Engine, version: u64) -> Result<(), Full> {
        if self.has_cluster {
            cluster(engine, &self.name, &self.name)?;
        }
        assignment(engine, &self.name, &vec![version as u16; self.endpoints], version).map(drop)
    }

    fn remove(&self, engine: &mut Engine) {
        for kind in [CLUSTER, ENDPOINTS] {
            if let Some(handle) = engine.find(kind, &self.name) {
                engine.remove(handle);
            }
        }
    }
}

/// Many of few sizes each, as clusters are.
fn services(prefix: &'static str) -> impl Strategy<Value = Vec<Service>> {
    let size = prop_oneof![2 => 0..4_usize, 2 => 0..30_usize, 1 => 100..126_usize];
    let sort = (size, 4..90_usize, any::<bool>(), 100..2_000_usize);
    prop::collection::vec(sort, 1..4).prop_map(move |sorts| {
        let service = |(sort, (endpoints, name, has_cluster, many)): (usize, (usize, usize, bool, usize))| {
            (0..many).map(move |i| Service {
                name: format!("{prefix}-{sort}-{i:0name$}"),
                endpoints,
                has_cluster,
            })
        };
        sorts.into_iter().enumerate().flat_map(service).collect()
    })
}

/// Until nothing is under way, nor any more slab to be emptied.
fn compacted(engine: &mut Engine) {
    loop {
        engine.settle();
        if !engine.compact() {
            break;
        }
        while engine.compact() {}
    }
    engine.settle();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_fits_twice_into_the_cap_is_accepted_after_a_peak(
        peak in services("peak"), next in services("next"),
        every in 2..200_usize, shift in any::<prop::sample::Index>(), reopen in any::<bool>(),
    ) {
        let pins: Arc<Pins> = Arc::default();
        let (mut engine, _) = open_with_slabs(&pins, CAP, PEAK);
        let mut there: Vec<Service> = Vec::new();
        for (service, version) in peak.into_iter().zip(1..) {
            if service.apply(&mut engine, version).is_err() {
                service.remove(&mut engine);
                break;
            }
            there.push(service);
        }
        let peak_slabs = engine.stats().slabs;
        let half = CAP as usize * SLAB_BYTES / 2;
        let mut bytes = 0;
        let shift = shift.index(every);
        let mut kept = Vec::new();
        for (i, service) in there.into_iter().enumerate() {
            if i % every == shift && bytes + service.bytes() <= half {
                bytes += service.bytes();
                kept.push((service, i as u64 + 1));
            } else {
                service.remove(&mut engine);
            }
        }
        compacted(&mut engine);
        // Slabs went back to the kernel: there are those that the records need, and few beside.
        let slabs = engine.stats().slabs;
        let needed = (bytes as f64 * 1.45 / 0.75 / SLAB_BYTES as f64) as u32 + 12 + PEAK.high_watermark;
        prop_assert!(slabs <= needed, "{} slabs of {} are left for {} bytes", slabs, peak_slabs, bytes);
        prop_assert_eq!(pins.files.lock().unwrap().len(), slabs as usize);
        if reopen {
            drop(engine);
            engine = open_with_slabs(&pins, CAP, PEAK).0;
        }
        for (service, version) in &kept {
            prop_assert_eq!(ports(&engine, &service.name), Some(vec![*version as u16; service.endpoints]));
        }
        for service in next {
            bytes += service.bytes();
            if bytes > half {
                break;
            }
            prop_assert_eq!(service.apply(&mut engine, 7), Ok(()), "{} of {} bytes", bytes, 2 * half);
        }
        let resources = engine.resources().count();
        engine.settle();
        prop_assert_eq!(engine.resources().count(), resources);
        for (service, version) in &kept {
            prop_assert_eq!(ports(&engine, &service.name), Some(vec![*version as u16; service.endpoints]));
        }
    }
}

/// Slabs of 4 KiB records, of each of which one is left, and then clusters with their assignments.
#[test]
fn survivors_of_a_peak_are_put_together_and_their_slabs_go_back() {
    let pins: Arc<Pins> = Arc::default();
    let (mut engine, _) = open_with_slabs(&pins, CAP, PEAK);
    let many: Vec<u16> = (0..120).collect();
    for i in 0..480 {
        assignment(&mut engine, &format!("e{i}"), &many, i + 1).unwrap();
    }
    let before = engine.stats().slabs;
    for i in (0..480).filter(|i| i % 16 != 3) {
        let handle = engine.find(ENDPOINTS, &format!("e{i}")).unwrap();
        engine.remove(handle);
    }
    engine.settle();
    assert!(engine.stats().slabs >= 30, "each slab has one left: {} of {before}", engine.stats().slabs);
    compacted(&mut engine);
    assert!(engine.stats().slabs <= 10, "{}", engine.stats().slabs);
    for i in (3..480).step_by(16) {
        assert_eq!(ports(&engine, &format!("e{i}")).as_ref(), Some(&many));
        let version = engine.resources().find(|(_, name, _)| *name == format!("e{i}")).unwrap().2;
        assert_eq!(version, i + 1, "the same version");
    }
}

/// A flush that comes while slabs are being emptied has their idle slots, if it needs them.
#[test]
fn a_flush_waits_for_nothing_that_is_being_emptied() {
    let config = Config { initial: 4, cap: 4, high_watermark: 8, ..PEAK };
    let (mut engine, _) = open_with_slabs(&Arc::default(), CAP, config);
    let many: Vec<u16> = (0..120).collect();
    let mut last = 0;
    while assignment(&mut engine, &format!("e{last}"), &many, 1).is_ok() {
        last += 1;
    }
    for i in (0..last).filter(|i| i % 4 != 0) {
        let handle = engine.find(ENDPOINTS, &format!("e{i}")).unwrap();
        engine.remove(handle);
    }
    engine.settle();
    assert!(engine.compact() && engine.is_compacting());
    for i in (0..last).filter(|i| i % 4 != 0) {
        assignment(&mut engine, &format!("e{i}"), &many, 2).unwrap();
    }
    let refused = assignment(&mut engine, "one more", &many, 1).unwrap_err();
    assert!(refused.to_string().contains("KiB idle in slots of other sizes"), "{refused}");
}

/// Nothing that is retired helps: the refusal waits for no grace period.
#[test]
fn want_of_room_costs_no_grace_period() {
    let pins = Arc::new(Pins { held: true.into(), ..Pins::default() });
    let config = Config { initial: 4, cap: 4, high_watermark: 8, ..PEAK };
    let (mut engine, _) = open_with_slabs(&pins, CAP, config);
    let many: Vec<u16> = (0..120).collect();
    let mut last = 0;
    while assignment(&mut engine, &format!("e{last}"), &many, 1).is_ok() {
        last += 1;
    }
    // Small ones change all the time: what they retire is too small.
    for version in 1..4 {
        assignment(&mut engine, "small", &[1], version).unwrap();
        let refused = assignment(&mut engine, "large", &many, version);
        assert!(matches!(refused, Err(Full::Cap { .. })), "{refused:?}");
    }
    assert!(engine.stats().quarantined > 0 && engine.stats().grace_periods == 0);
    pins.held.store(false, Ordering::Release);
}
