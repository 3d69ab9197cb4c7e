//! Where fields stand in the running kernel's structures, as its BTF says.
//!
//! Programs in Rust have no relocations against BTF, so the agent looks the offsets up and hands them to the
//! programs as constants.

use std::{fs, io};

/// Where the kernel tells its types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// `struct btf_type`
const TYPE: usize = 12;
/// `struct btf_member`
const MEMBER: usize = 12;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// How deep structures without a name lie within each other, at most.
const DEPTH: u32 = 8;

/// The types of a kernel.
pub struct KernelTypes {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Where each type stands in `types`; the number of the first is 1.
    places: Vec<u32>,
}

impl KernelTypes {
    /// Those of the running kernel.
    ///
    /// # Errors
    /// Where it tells none (`CONFIG_DEBUG_INFO_BTF`), or in another format.
    pub fn read() -> io::Result<Self> {
        Self::parse(&fs::read(VMLINUX)?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an unknown format of BTF"))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.get(..2)? != MAGIC.to_ne_bytes() {
            return None;
        }
        let [header, types, types_len, strings, strings_len] =
            [4, 8, 12, 16, 20].map(|at| word(bytes, at).map(|word| word as usize));
        let section = |at: Option<usize>, len: Option<usize>| {
            let start = header?.checked_add(at?)?;
            Some(bytes.get(start..start.checked_add(len?)?)?.to_vec())
        };
        let (types, strings) = (section(types, types_len)?, section(strings, strings_len)?);
        let mut places = Vec::new();
        let mut at = 0;
        while at < types.len() {
            places.push(at as u32);
            let info = word(&types, at + 4)?;
            let elements = (info & 0xffff) as usize;
            at += TYPE
                + match info >> 24 & 0x1f {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    STRUCT | UNION => elements * MEMBER,
                    6 | 13 => elements * 8,
                    15 | 19 => elements * 12,
                    2 | 7..=12 | 16 | 18 => 0,
                    _ => return None,
                };
        }
        Some(Self { types, strings, places })
    }

    /// Where `field` stands in the structure `of`, in bytes; `None` where there is no such structure or field.
    pub fn offset(&self, of: &str, field: &str) -> Option<u32> {
        let is_wanted = |&at: &usize| {
            matches!(self.kind(at), Some(STRUCT)) && self.name(at).is_some_and(|name| name == of.as_bytes())
        };
        let at = self.places.iter().map(|&at| at as usize).find(is_wanted)?;
        Some(self.bits(at, field.as_bytes(), DEPTH)? / 8)
    }

    /// In bits, also within members that have no name.
    fn bits(&self, at: usize, field: &[u8], depth: u32) -> Option<u32> {
        let info = word(&self.types, at + 4)?;
        let mut nameless = Vec::new();
        for i in 0..(info & 0xffff) as usize {
            let member = at + TYPE + i * MEMBER;
            let (ty, offset) = (word(&self.types, member + 4)?, word(&self.types, member + 8)?);
            // With the flag the upper 8 bits are the size of a bit field.
            let offset = if info >> 31 == 0 { offset } else { offset & 0x00ff_ffff };
            let name = self.name(member)?;
            if name == field {
                return Some(offset);
            }
            if name.is_empty() {
                nameless.push((ty, offset));
            }
        }
        let depth = depth.checked_sub(1)?;
        nameless.into_iter().find_map(|(ty, offset)| {
            let at = *self.places.get((ty as usize).checked_sub(1)?)? as usize;
            matches!(self.kind(at)?, STRUCT | UNION).then_some(())?;
            Some(offset + self.bits(at, field, depth)?)
        })
    }

    fn kind(&self, at: usize) -> Option<u32> {
        Some(word(&self.types, at + 4)? >> 24 & 0x1f)
    }

    /// The name that a type or a member begins with.
    fn name(&self, at: usize) -> Option<&[u8]> {
        let name = self.strings.get(word(&self.types, at)? as usize..)?;
        name.split(|&byte| byte == 0).next()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_running_kernel_are_found() {
        let types = KernelTypes::read().expect("this needs a kernel with BTF");
        // These two don't move: see the `closed` program, and the kernel's list_head.
        assert_eq!(types.offset("sock_common", "skc_state"), Some(18));
        assert_eq!(types.offset("list_head", "prev"), Some(8));
        // In a structure without a name within a union without one.
        assert_eq!(types.offset("sock_common", "skc_daddr"), Some(0));
        assert_eq!(types.offset("list_head", "no_such"), None);
        assert_eq!(types.offset("no_such", "prev"), None);
    }

    #[test]
    fn what_is_cut_off_is_no_btf() {
        let bytes = fs::read(VMLINUX).expect("this needs a kernel with BTF");
        for end in [0, 1, 2, 20, 24, bytes.len() / 2, bytes.len() - 1] {
            assert!(KernelTypes::parse(&bytes[..end]).is_none(), "{end}");
        }
    }
}
