//! One number of bytes for all slabs, and the cap that follows from it.

use std::{fmt, str::FromStr};

use slotmesh_records::{MAX_SLABS, SLAB_BYTES};

/// The kernel memory of a slab: its records and one page for the map itself.
pub const SLAB_COST: u64 = SLAB_BYTES as u64 + 4096;

/// The most memory that slabs may take together, in bytes; at least one slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemoryBudget(u64);

/// Why a text is no budget.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidBudget {
    /// Not a quantity.
    #[error("expected a number of bytes with or without a unit (Ki, Mi, Gi, k, M, G), such as 128Mi")]
    Malformed,
    /// Not even one slab.
    #[error("a budget of {0} bytes is less than one slab costs, {SLAB_COST} bytes")]
    TooSmall(u64),
}

impl MemoryBudget {
    /// A budget of this many bytes.
    ///
    /// # Errors
    /// Where it is less than one slab.
    pub const fn new(bytes: u64) -> Result<Self, InvalidBudget> {
        if bytes < SLAB_COST { Err(InvalidBudget::TooSmall(bytes)) } else { Ok(Self(bytes)) }
    }

    /// The cost of this many slabs, in bytes.
    pub const fn of_slabs(slabs: u32) -> Self {
        Self(slabs as u64 * SLAB_COST)
    }

    /// The budget in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// How many slabs it is for: the cap that follows from it, at most [`MAX_SLABS`].
    pub const fn cap(self) -> u32 {
        let slabs = self.0 / SLAB_COST;
        if slabs < MAX_SLABS as u64 { slabs as u32 } else { MAX_SLABS }
    }
}

impl FromStr for MemoryBudget {
    type Err = InvalidBudget;

    /// A quantity as in Kubernetes: `128Mi`, `1Gi`, `500M`, or bytes.
    fn from_str(text: &str) -> Result<Self, InvalidBudget> {
        const UNITS: [(&str, u64); 7] = [
            ("Ki", 1 << 10),
            ("Mi", 1 << 20),
            ("Gi", 1 << 30),
            ("k", 1_000),
            ("M", 1_000_000),
            ("G", 1_000_000_000),
            ("", 1),
        ];
        let (number, unit) = UNITS
            .iter()
            .find_map(|&(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)))
            .ok_or(InvalidBudget::Malformed)?;
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidBudget::Malformed);
        }
        let number: u64 = number.parse().map_err(|_| InvalidBudget::Malformed)?;
        Self::new(number.checked_mul(unit).ok_or(InvalidBudget::Malformed)?)
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1 << 20) {
            write!(f, "{}Mi", self.0 >> 20)
        } else if self.0.is_multiple_of(1 << 10) {
            write!(f, "{}Ki", self.0 >> 10)
        } else {
            self.0.fmt(f)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_quantity_and_gives_a_cap() {
        let cap = |text: &str| text.parse::<MemoryBudget>().map(MemoryBudget::cap);
        assert_eq!(cap("68Ki"), Ok(1));
        assert_eq!(cap("128Mi"), Ok(1927));
        assert_eq!(cap("1G"), Ok(14_361));
        assert_eq!(cap("64Gi"), Ok(MAX_SLABS));
        assert_eq!(cap("69632"), Ok(1));
        assert_eq!(cap("67Ki"), Err(InvalidBudget::TooSmall(67 << 10)));
        for bad in ["", "Mi", "-1Mi", "+1Mi", "1.5Gi", "12 Mi", "99999999999999999999", "99999999999Gi", "1m"]
        {
            assert_eq!(cap(bad), Err(InvalidBudget::Malformed), "{bad:?}");
        }
        assert_eq!(MemoryBudget::of_slabs(2048).to_string(), "136Mi");
        assert_eq!(MemoryBudget::of_slabs(1).to_string(), "68Ki");
    }
}
