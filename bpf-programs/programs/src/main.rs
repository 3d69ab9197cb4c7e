//! The eBPF programs. Each hook has a file of its own; all decide through [`lookup`].
//!
//! Attached per enrolled workload, by link, to its cgroup. None is sleepable: the agent's grace
//! periods cover non-sleepable programs only.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod affinity;
mod buckets;
mod closed;
mod connect;
mod connection_ends;
mod datagram;
mod explain;
mod flows;
mod getpeername;
mod kernel;
mod lookup;
mod maps;
mod network;
mod open;
mod outliers;
mod place;
mod pod_network;
mod removal;
mod running;
mod slabs;
mod sock_release;
mod socket;
mod to_proxy;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
