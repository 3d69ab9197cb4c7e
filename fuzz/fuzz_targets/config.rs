//! Protobuf of the xDS types -> model -> records, in an engine without a kernel.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| slotmesh_fuzz::config(data));
