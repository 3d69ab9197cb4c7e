//! Slabs that an earlier agent can't have left: refused, with what is wrong.

use std::os::unix::fs::FileExt as _;

use super::*;
use crate::RecoverError;

/// Replaces bytes, the first time that they occur in any slab.
fn replace(pins: &Pins, old: &[u8], new: &[u8]) {
    for file in pins.files.lock().unwrap().values() {
        let mut bytes = vec![0; SLAB_BYTES];
        file.read_exact_at(&mut bytes, 0).unwrap();
        if let Some(at) = bytes.windows(old.len()).position(|found| found == old) {
            return file.write_all_at(new, at as u64).unwrap();
        }
    }
    panic!("no slab holds {old:?}");
}

#[test]
fn two_handles_of_one_name_are_refused() {
    let pins: Arc<Pins> = Arc::default();
    let (mut engine, _) = open(&pins, &[]);
    assignment(&mut engine, "web-1", &[80], 1).unwrap();
    assignment(&mut engine, "web-2", &[80], 1).unwrap();
    drop(engine);
    replace(&pins, b"web-2", b"web-1");
    let (range, arena) = Reservation::new(16).unwrap();
    let backing: Arc<dyn Backing> = Arc::new(Files { pins, range });
    let opened = Engine::open(&backing, arena, SMALL, &[], Arc::new(|| {}));
    let Err(RecoverError::Damaged { what, .. }) = opened.map(drop) else { panic!("it is accepted") };
    assert!(what.contains("same name"), "{what}");
}
