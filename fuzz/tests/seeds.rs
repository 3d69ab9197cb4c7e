//! Each fuzz target with its seeds, and with the inputs that once failed.

use std::{fs, path::Path};

use slotmesh_fuzz::{Frames, TARGETS, frame};

#[test]
fn every_seed_passes() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(seeds.len() > 2, "{} has seeds", target.name);
        seeds.iter().for_each(|seed| (target.run)(seed));
    }
}

#[test]
fn what_once_failed_passes() {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("found");
    let mut inputs = 0;
    for folder in fs::read_dir(&found).unwrap() {
        let folder = folder.unwrap().path();
        let target = TARGETS.into_iter().find(|target| folder.ends_with(target.name));
        let target = target.unwrap_or_else(|| panic!("{} is no target", folder.display()));
        for input in fs::read_dir(&folder).unwrap() {
            (target.run)(&fs::read(input.unwrap().path()).unwrap());
            inputs += 1;
        }
    }
    assert!(inputs > 0, "nothing in {}", found.display());
}

#[test]
fn frames_are_read_as_they_are_written() {
    let data = [frame(1, b"a"), frame(2, &[]), frame(3, b"cut off")].concat();
    let read: Vec<_> = Frames::new(&data[..data.len() - 4]).collect();
    assert_eq!(read, [(1, &b"a"[..]), (2, &[]), (3, b"cut")]);
}
