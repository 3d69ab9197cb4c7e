//! Claims that hold in every interleaving, and what the model finds when the protocol is broken.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::AtomicUsize},
};

use loom::{
    sync::atomic::Ordering::{Relaxed, Release},
    thread,
};

use super::{
    faults::{Fault, make},
    world::{RESOURCE, SMALL, World, flush},
};
use crate::{ClassStats, Config, Engine, Full, compaction::Moves};

/// Tries every interleaving with at most this many preemptions, from where the model calls
/// `loom::explore`; how many there were. `LOOM_MAX_PREEMPTIONS` asks for more (one more takes ten times
/// as long).
fn explore(preemptions: usize, model: fn()) -> usize {
    let tried = Arc::new(AtomicUsize::new(0));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.max(Some(preemptions));
    builder.max_branches = 10_000;
    builder.expect_explicit_explore = true;
    let count = tried.clone();
    builder.check(move || {
        count.fetch_add(1, Relaxed);
        model();
    });
    let tried = tried.load(Relaxed);
    println!("{tried} interleavings");
    tried
}

/// The model's verdict on a protocol with this mistake.
fn verdict(fault: Fault, model: fn()) -> String {
    make(Some(fault));
    let found = catch_unwind(AssertUnwindSafe(|| explore(2, model)));
    make(None);
    let panic = found.expect_err("the model finds nothing wrong");
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

fn reader(world: &Arc<World>, cpu: usize, runs: usize) -> thread::JoinHandle<()> {
    let world = world.clone();
    thread::spawn(move || {
        let mut newest = 0;
        for _ in 0..runs {
            let version = world.run(cpu).unwrap_or(newest);
            assert!(version >= newest, "version {version} after {newest}");
            newest = version;
        }
    })
}

fn totals(engine: &Engine) -> (u64, u64) {
    let stats = engine.stats();
    let sum = |(used, retired), (_, class): &(_, ClassStats)| (used + class.used, retired + class.retired);
    stats.classes.iter().fold((0, 0), sum)
}

/// Superblock and directory page; a handle; a version's two records.
const FIXED: u64 = 2;
const HANDLE: u64 = 1;
const VERSION: u64 = 2;

/// One resource is updated while a program follows its VIP. The last updates take all slots that are
/// idle after the barrier.
fn updates() {
    let world = World::new(1);
    let mut engine = world.engine(SMALL);
    let handle = flush(&mut engine, "web", 1).unwrap();
    world.vip.store(handle.ptr().bits(), Release);
    let reader = reader(&world, 0, 1);
    loom::explore();
    flush(&mut engine, "web", 2).unwrap();
    engine.poll();
    // Retired while the barrier for the first update is under way, or after it.
    flush(&mut engine, "web", 3).unwrap();
    engine.wait_for_barrier();
    flush(&mut engine, "web", 4).unwrap();
    flush(&mut engine, "web", 5).unwrap();
    engine.settle();
    reader.join().unwrap();
    assert_eq!(totals(&engine), (FIXED + HANDLE + VERSION, 0));
}

/// A version's records are written anew elsewhere while a program follows its VIP, and others take their slots.
fn rewriting() {
    let world = World::new(1);
    let mut engine = world.engine(SMALL);
    let handle = flush(&mut engine, "web", 1).unwrap();
    world.vip.store(handle.ptr().bits(), Release);
    let reader = reader(&world, 0, 1);
    loom::explore();
    assert!(engine.rewrite(handle, Moves::new(), |_, _| true));
    engine.poll();
    assert_eq!(engine.resources().next(), Some((RESOURCE, "web", 1)), "the same version");
    engine.wait_for_barrier();
    flush(&mut engine, "api", 1).unwrap();
    flush(&mut engine, "web", 2).unwrap();
    engine.settle();
    reader.join().unwrap();
    assert_eq!(totals(&engine), (FIXED + 2 * (HANDLE + VERSION), 0));
}

/// A resource is removed while a program follows its VIP, and another takes its slots.
fn removal() {
    let world = World::new(1);
    let mut engine = world.engine(SMALL);
    let handle = flush(&mut engine, "web", 1).unwrap();
    world.vip.store(handle.ptr().bits(), Release);
    let reader = reader(&world, 0, 1);
    loom::explore();
    engine.unlist(handle);
    world.vip.store(0, Release);
    engine.retire(handle);
    engine.settle();
    assert_eq!(totals(&engine), (FIXED, 0));
    let other = flush(&mut engine, "api", 2).unwrap();
    assert_eq!(other, handle, "the slot is used again");
    world.vip.store(other.ptr().bits(), Release);
    reader.join().unwrap();
}

/// The kernel doesn't create slabs until the flushes are over that find idle slots.
fn growth_that_takes_long() {
    let world = World::new(1);
    let mut engine = world.engine(Config { cap: 5, low_watermark: 2, high_watermark: 3, ..SMALL });
    let handle = flush(&mut engine, "web", 1).unwrap();
    world.vip.store(handle.ptr().bits(), Release);
    world.growth.close();
    engine.set_config(Config { growth: crate::Growth::Background, ..*engine.config() }).unwrap();
    let reader = reader(&world, 0, 1);
    loom::explore();
    flush(&mut engine, "web", 2).unwrap();
    engine.poll();
    flush(&mut engine, "web", 3).unwrap();
    world.growth.open();
    engine.settle();
    reader.join().unwrap();
    assert_eq!((engine.stats().slabs, engine.stats().empty_slabs), (4, 2), "as many idle as are asked for");
}

/// Slabs are created for a flush that waits for them, given back when they are idle, and created again.
fn growth_and_giving_back() {
    let world = World::new(1);
    let config = Config { initial: 1, cap: 2, ..SMALL };
    let mut engine = world.engine(config);
    loom::explore();
    // Its directory page takes the second slab, which is there once the flush is over.
    let handle = flush(&mut engine, "web", 1).unwrap();
    assert_eq!(engine.stats().slabs, 2);
    world.vip.store(handle.ptr().bits(), Release);
    let reader = reader(&world, 0, 1);
    engine.set_config(Config { cap: 4, ..config }).unwrap();
    engine.grow_by_two();
    engine.settle();
    assert_eq!(engine.stats().empty_slabs, 1, "the other is given back");
    engine.grow_by_two();
    engine.settle();
    reader.join().unwrap();
    assert_eq!(totals(&engine), (FIXED + HANDLE + VERSION, 0));
}

/// At the cap, a flush is refused or takes what the grace period under way frees.
fn exhaustion() {
    let world = World::new(1);
    let mut engine = world.engine(SMALL);
    let handle = flush(&mut engine, "web", 1).unwrap();
    world.vip.store(handle.ptr().bits(), Release);
    let held = engine.take_all();
    let reader = reader(&world, 0, 1);
    loom::explore();
    let refused = flush(&mut engine, "web", 2);
    assert!(matches!(refused, Err(Full::Cap { .. })), "{refused:?}");
    assert_eq!(engine.find(RESOURCE, "web"), Some(handle), "what was current stays");
    engine.retire_all(held);
    flush(&mut engine, "web", 3).unwrap();
    engine.settle();
    reader.join().unwrap();
    assert_eq!(totals(&engine), (FIXED + HANDLE + VERSION, 0));
}

/// An owner that sleeps until it is woken hears of all that is finished.
fn waking() {
    let world = World::new(0);
    let mut engine = world.engine(SMALL);
    flush(&mut engine, "web", 1).unwrap();
    loom::explore();
    flush(&mut engine, "web", 2).unwrap();
    engine.poll();
    flush(&mut engine, "web", 3).unwrap();
    while engine.stats().quarantined > 0 {
        world.woken.take();
        engine.poll();
    }
    assert_eq!(totals(&engine), (FIXED + HANDLE + VERSION, 0));
}

/// An engine ends with work under way.
fn ending() {
    let world = World::new(0);
    let mut engine = world.engine(Config { cap: 4, ..SMALL });
    flush(&mut engine, "web", 1).unwrap();
    loom::explore();
    flush(&mut engine, "web", 2).unwrap();
    engine.grow_by_two();
    engine.poll();
}

#[test]
fn a_program_reads_one_version_whole_and_slots_are_reused_only_after_it() {
    assert!(explore(2, updates) > 100);
}

#[test]
fn what_is_rewritten_stays_readable_for_those_that_found_it() {
    assert!(explore(2, rewriting) > 100);
}

#[test]
fn what_is_removed_stays_readable_for_those_that_found_it() {
    assert!(explore(2, removal) > 100);
}

#[test]
fn a_flush_that_finds_idle_slots_waits_for_no_growth() {
    assert!(explore(1, growth_that_takes_long) > 100);
}

#[test]
fn slabs_change_hands_whole() {
    assert!(explore(1, growth_and_giving_back) > 100);
}

#[test]
fn at_the_cap_what_is_current_stays() {
    assert!(explore(2, exhaustion) > 100);
}

#[test]
fn no_wake_up_is_lost() {
    assert!(explore(2, waking) > 100);
}

#[test]
fn an_engine_ends_with_work_under_way() {
    assert!(explore(2, ending) > 100);
}

const RACE: &str = "Concurrent read and write accesses";

#[test]
fn without_a_barrier_a_slot_is_written_under_its_reader() {
    for model in [updates, removal, rewriting] {
        let verdict = verdict(Fault::NoBarrier, model);
        assert!(verdict.contains(RACE), "{verdict}");
    }
}

#[test]
fn with_a_barrier_that_began_too_early_a_slot_is_written_under_its_reader() {
    let verdict = verdict(Fault::EarlyBarrier, updates);
    assert!(verdict.contains(RACE), "{verdict}");
}

#[test]
fn with_a_publication_that_orders_nothing_a_reader_comes_before_the_children() {
    let verdict = verdict(Fault::UnorderedPublication, updates);
    assert!(verdict.contains(RACE), "{verdict}");
}
