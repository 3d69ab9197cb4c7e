//! A route configuration and requests -> decisions.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| slotmesh_fuzz::routing(data));
