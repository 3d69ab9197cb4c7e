//! Requests of an agent -> the server's stream.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| slotmesh_fuzz::requests(data));
