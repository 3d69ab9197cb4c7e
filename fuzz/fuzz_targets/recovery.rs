//! Damaged slabs -> a new engine refuses them, or works.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| slotmesh_fuzz::recovery(data));
