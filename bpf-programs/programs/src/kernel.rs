//! What is known of the running kernel.

use slotmesh_records::fields::{KernelFields, UNKNOWN};

/// Set by the agent. In a section of its own: the compiler takes a constant without one for any other of the same
/// content, and would set that, too.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.kernel")]
static KERNEL_FIELDS: KernelFields = UNKNOWN;

/// One of the numbers. The verifier knows it, and doesn't look at what can't be reached with it.
#[inline(always)]
pub fn field(number: usize) -> u32 {
    // SAFETY: within the array. Volatile: its value isn't that which stands here.
    unsafe { (&raw const KERNEL_FIELDS).cast::<u32>().add(number).read_volatile() }
}
