//! The outer map on the real kernel. Needs root and BPF; fails with the reason where they are missing.

use std::{fs, num::NonZeroUsize, path::PathBuf, time::Instant};

use slotmesh_kernel::{BatchCost, MappedSlab, Outer, Puts, ensure_bpffs};
use slotmesh_records::{SlabIndex, SlotPtr};

/// A directory on bpffs that goes when dropped.
struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/sys/fs/bpf/slotmesh-outer-{}-{name}", std::process::id()));
        ensure_bpffs(&path).expect("a BPF file system");
        fs::create_dir_all(&path).expect("root");
        Self(path)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn slabs(range: std::ops::Range<u32>) -> Vec<SlabIndex> {
    range.map(|i| SlabIndex::new(i).expect("in range")).collect()
}

fn indexes(slabs: &[MappedSlab]) -> Vec<u32> {
    slabs.iter().map(|slab| slab.index().get()).collect()
}

#[test]
fn what_was_created_is_found_again_with_its_content_and_what_was_given_back_is_not() {
    let root = Root::new("lifecycle");
    let threads = NonZeroUsize::new(2).expect("not zero");
    let at = SlotPtr::new(SlabIndex::new(3).expect("in range"), 7).expect("in range");
    {
        let (outer, mut arena) = Outer::open(&root.0, threads).expect("root and BPF");
        assert_eq!(outer.batch_cost(), BatchCost::Unknown);
        let created = outer.create(&slabs(0..40)).expect("40 slabs");
        assert_eq!(indexes(&created), (0..40).collect::<Vec<_>>());
        assert_ne!(outer.batch_cost(), BatchCost::Unknown, "measured with the first batch");
        created.iter().for_each(|slab| arena.adopt(slab));
        arena.slot_mut(at, 64).expect("in use").fill(42);
        let given_back = slabs(30..40).into_iter().map(|slab| arena.surrender(slab)).collect();
        outer.remove(given_back).expect("given back");
    }
    let (outer, mut arena) = Outer::open(&root.0, threads).expect("root and BPF");
    let found = outer.recover().expect("the pins are readable");
    assert_eq!(indexes(&found), (0..30).collect::<Vec<_>>());
    found.iter().for_each(|slab| arena.adopt(slab));
    assert!(arena.slot(at, 64).expect("in use").iter().all(|&byte| byte == 42));
    let again = outer.create(&slabs(30..35)).expect("indexes are used again");
    again.iter().for_each(|slab| arena.adopt(slab));
    let fresh = SlotPtr::new(SlabIndex::new(30).expect("in range"), 0).expect("in range");
    assert!(arena.slot(fresh, 64).expect("in use").iter().all(|&byte| byte == 0));
}

/// Whichever way this kernel waits for a batch: the other way isn't taken. `make kernels` shows the line.
#[test]
fn records_are_put_in_the_way_that_waits_least_on_this_kernel() {
    let root = Root::new("batch");
    let threads = NonZeroUsize::new(4).expect("not zero");
    let (outer, _arena) = Outer::open(&root.0, threads).expect("root and BPF");
    outer.create(&slabs(0..32)).expect("the batch that tells");
    assert_eq!(outer.puts(), Puts { batched: 32, one_by_one: 0, threads: 0 });
    let started = Instant::now();
    outer.create(&slabs(32..96)).expect("64 more");
    let (took, puts, cost) = (started.elapsed(), outer.puts(), outer.batch_cost());
    let how = match cost {
        BatchCost::PerCall => "with one call".to_owned(),
        BatchCost::PerRecord => format!("one by one on {} threads", puts.threads),
        BatchCost::Unknown => panic!("32 records tell"),
    };
    println!(
        "measured: a grace period takes {:.1} ms, and the kernel waits {cost:?}; 64 records {how}: {:.1} ms",
        outer.grace_period().as_secs_f32() * 1e3,
        took.as_secs_f32() * 1e3
    );
    match cost {
        BatchCost::PerCall => assert_eq!(puts, Puts { batched: 96, one_by_one: 0, threads: 0 }),
        // A few are put with one call again, to tell whether it still is so.
        _ => assert_eq!(puts, Puts { batched: 40, one_by_one: 56, threads: 4 }),
    }
}

#[test]
fn a_file_that_is_no_slab_is_told_by_its_path() {
    let root = Root::new("stranger");
    let (outer, _arena) = Outer::open(&root.0, NonZeroUsize::MIN).expect("root and BPF");
    outer.create(&slabs(0..1)).expect("one slab");
    let stranger = root.0.join("slabs/01");
    fs::rename(root.0.join("slabs/0"), &stranger).expect("bpffs renames");
    let error = outer.recover().expect_err("not a slab's name").to_string();
    assert!(error.contains(&stranger.display().to_string()), "{error}");
}

#[test]
fn another_map_at_the_outer_maps_place_is_refused() {
    let root = Root::new("another");
    drop(Outer::open(&root.0, NonZeroUsize::MIN).expect("root and BPF"));
    fs::rename(root.0.join("outer"), root.0.join("vips")).expect("bpffs renames");
    let error =
        slotmesh_kernel::Map::<u64, u64>::open(&root.0.join("vips")).expect_err("other sizes").to_string();
    assert!(error.contains("another map"), "{error}");
}
