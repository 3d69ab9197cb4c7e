//! Responses of a control plane -> the agent's session.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| slotmesh_fuzz::responses(data));
