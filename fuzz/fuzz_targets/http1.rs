//! Bytes of HTTP/1 -> the parser of the path of our own.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| slotmesh_fuzz::http1(data));
