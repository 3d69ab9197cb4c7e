//! Manifest text -> objects -> compiled resources -> the agent's model.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| slotmesh_fuzz::manifests(data));
