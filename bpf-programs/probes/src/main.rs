//! eBPF programs of the tests and benchmarks, in an object of their own (`target/bpf/probes.bpf.o`): no
//! product embeds them. Each reads slots as the product's programs do, through the same code, and tells
//! what it found.
//!
//! - [`tree`] lingers on the way from a VIP to its endpoints and checks every record that it meets.
//! - [`foreign`] reads nothing: it does what other people's programs do to callback flags.
//! - [`stores`] reads single lines of records, in each of the stores that the benchmarks compare.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod foreign;
mod line;
mod maps;
#[path = "../../programs/src/place.rs"]
mod place;
mod report;
#[path = "../../programs/src/slabs.rs"]
mod slabs;
mod stores;
mod tree;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
