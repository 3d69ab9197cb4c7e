//! What somebody has, in a fixed size, from which the difference to what another has can be read.
//!
//! ```text
//!  agent's: sum of what it acknowledged --- 96 cells ---> difference = { lacks: a', has besides: a }
//!  due:     sum of what is served ------- 96 cells ---^
//! ```
//!
//! A set of content hashes as an invertible Bloom look-up table: each element is added to four cells
//! (how many, XOR of the elements, XOR of their check sums). Subtracting two tables leaves the elements
//! that only one of them has, and these can be peeled off while there are few of them (some fifty),
//! however many elements both have. So a node's status tells exactly which resources it hasn't
//! acknowledged, in 1.8 kB, and an acknowledgement costs four cells.
//!
//! Invariant: a difference is told whole and right, or not at all ([`TooDifferent`]).

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{ResourceName, ResourceType, Version};

/// Each element is in one cell of each part.
const PARTS: usize = 4;
/// Cells of a part.
const PART: usize = 24;
const CELLS: usize = PARTS * PART;
const CELL_BYTES: usize = 2 + 8 + 4;

/// One resource in one version. Written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// The fingerprint of the resource of this type and name in this version.
    pub fn of(ty: ResourceType, name: &ResourceName, version: Version) -> Self {
        let (ty, name) = (ty.as_str().as_bytes(), name.as_str().as_bytes());
        let mut text = Vec::with_capacity(ty.len() + name.len() + 9);
        text.extend_from_slice(&version.get().to_le_bytes());
        text.extend_from_slice(ty);
        text.push(0);
        text.extend_from_slice(name);
        Self(xxh3_64(&text))
    }

    fn check(self) -> u32 {
        xxh3_64_with_seed(&self.0.to_le_bytes(), 1) as u32
    }

    /// Its cell in each part.
    fn places(self) -> [usize; PARTS] {
        let hash = xxh3_64_with_seed(&self.0.to_le_bytes(), 2) as usize;
        std::array::from_fn(|part| part * PART + ((hash >> (16 * part)) & 0xffff) % PART)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Fingerprint {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cell {
    /// How many elements, modulo 2^16: of a difference there are few.
    count: i16,
    elements: u64,
    checks: u32,
}

impl Cell {
    fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// The one element of this cell, and whether it is in the minuend.
    fn single(self) -> Option<(Fingerprint, bool)> {
        let element = Fingerprint(self.elements);
        let single = matches!(self.count, 1 | -1) && element.check() == self.checks;
        single.then_some((element, self.count == 1))
    }
}

/// A set of [`Fingerprint`]s in a fixed size.
///
/// One to which nothing was ever added takes no memory: an agent has one for each type of resource, of which it may have
/// none.
#[derive(Clone, Default)]
pub struct Sketch(Option<Box<[Cell; CELLS]>>);

static EMPTY: [Cell; CELLS] = [Cell { count: 0, elements: 0, checks: 0 }; CELLS];

impl PartialEq for Sketch {
    fn eq(&self, other: &Self) -> bool {
        self.cells() == other.cells()
    }
}

impl Eq for Sketch {}

/// What only one of two has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What only the first has.
    pub first: Vec<Fingerprint>,
    /// What only the second has.
    pub second: Vec<Fingerprint>,
}

/// Two sets differ in more elements than can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sets differ in too many elements to tell which")]
pub struct TooDifferent;

impl Sketch {
    fn cells(&self) -> &[Cell; CELLS] {
        self.0.as_deref().unwrap_or(&EMPTY)
    }

    fn cells_mut(&mut self) -> &mut [Cell; CELLS] {
        self.0.get_or_insert_with(|| Box::new(EMPTY))
    }

    /// Adds an element that isn't in the set.
    pub fn add(&mut self, element: Fingerprint) {
        self.count(element, 1);
    }

    /// Takes an element out that is in the set.
    pub fn remove(&mut self, element: Fingerprint) {
        self.count(element, -1);
    }

    fn count(&mut self, element: Fingerprint, by: i16) {
        let cells = self.cells_mut();
        for place in element.places() {
            let cell = &mut cells[place];
            cell.count = cell.count.wrapping_add(by);
            cell.elements ^= element.0;
            cell.checks ^= element.check();
        }
    }

    /// Adds all elements of another set, of which none is in this one.
    pub fn add_all(&mut self, other: &Self) {
        let Some(other) = &other.0 else { return };
        for (cell, other) in self.cells_mut().iter_mut().zip(&**other) {
            cell.count = cell.count.wrapping_add(other.count);
            cell.elements ^= other.elements;
            cell.checks ^= other.checks;
        }
    }

    /// What only one of the two has.
    ///
    /// # Errors
    /// Where that is too much to be told.
    pub fn difference(&self, other: &Self) -> Result<Difference, TooDifferent> {
        let mut rest = self.clone();
        for (cell, other) in rest.cells_mut().iter_mut().zip(other.cells()) {
            cell.count = cell.count.wrapping_sub(other.count);
            cell.elements ^= other.elements;
            cell.checks ^= other.checks;
        }
        let mut difference = Difference::default();
        while let Some((element, first)) = rest.cells().iter().find_map(|cell| cell.single()) {
            let found = difference.first.len() + difference.second.len();
            if found >= CELLS {
                return Err(TooDifferent);
            }
            rest.count(element, if first { -1 } else { 1 });
            if first { &mut difference.first } else { &mut difference.second }.push(element);
        }
        if rest.cells().iter().all(|cell| cell.is_empty()) { Ok(difference) } else { Err(TooDifferent) }
    }

    /// One short hash of the whole set: equal sets have equal digests, on every replica.
    pub fn digest(&self) -> Version {
        Version::of(&self.bytes())
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(CELLS * CELL_BYTES);
        for cell in self.cells() {
            bytes.extend_from_slice(&cell.count.to_le_bytes());
            bytes.extend_from_slice(&cell.elements.to_le_bytes());
            bytes.extend_from_slice(&cell.checks.to_le_bytes());
        }
        bytes
    }
}

impl fmt::Debug for Sketch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sketch({})", self.digest())
    }
}

impl fmt::Display for Sketch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD_NO_PAD.encode(self.bytes()))
    }
}

/// A text isn't that of a sketch of this size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a sketch of {CELLS} cells in base64")]
pub struct NotASketch;

impl FromStr for Sketch {
    type Err = NotASketch;

    fn from_str(text: &str) -> Result<Self, NotASketch> {
        fn part<const N: usize>(bytes: &[u8]) -> [u8; N] {
            let mut part = [0; N];
            part.copy_from_slice(&bytes[..N]);
            part
        }
        let bytes = STANDARD_NO_PAD.decode(text).map_err(|_| NotASketch)?;
        if bytes.len() != CELLS * CELL_BYTES {
            return Err(NotASketch);
        }
        let mut sketch = Self::default();
        for (cell, bytes) in sketch.cells_mut().iter_mut().zip(bytes.chunks_exact(CELL_BYTES)) {
            *cell = Cell {
                count: i16::from_le_bytes(part(bytes)),
                elements: u64::from_le_bytes(part(&bytes[2..])),
                checks: u32::from_le_bytes(part(&bytes[10..])),
            };
        }
        Ok(sketch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(n: u32) -> Fingerprint {
        Fingerprint::of(ResourceType::Cluster, &n.to_string().into(), Version::of(b"content"))
    }

    fn sketch(elements: impl IntoIterator<Item = u32>) -> Sketch {
        let mut sketch = Sketch::default();
        elements.into_iter().for_each(|n| sketch.add(element(n)));
        sketch
    }

    #[test]
    fn a_resource_differs_by_type_name_and_version() {
        let of = |ty, name: &str, content: &[u8]| Fingerprint::of(ty, &name.into(), Version::of(content));
        let one = of(ResourceType::Cluster, "a", b"1");
        assert_eq!(one, of(ResourceType::Cluster, "a", b"1"));
        for other in [
            of(ResourceType::Route, "a", b"1"),
            of(ResourceType::Cluster, "b", b"1"),
            of(ResourceType::Cluster, "a", b"2"),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn a_few_differences_are_told_however_much_both_have() {
        for seed in 0..100 {
            let base = seed * 100_000;
            let common = base..base + 2_000;
            let (mut due, mut held) = (sketch(common.clone()), sketch(common));
            let (lacking, besides) = (base + 5_000..base + 5_020, base + 6_000..base + 6_010);
            due.add_all(&sketch(lacking.clone()));
            held.add_all(&sketch(besides.clone()));
            let mut difference = due.difference(&held).unwrap();
            difference.first.sort();
            difference.second.sort();
            let sorted = |range: std::ops::Range<u32>| {
                let mut all: Vec<_> = range.map(element).collect();
                all.sort();
                all
            };
            assert_eq!(difference, Difference { first: sorted(lacking), second: sorted(besides) });
        }
    }

    #[test]
    fn too_many_differences_are_said_to_be_that() {
        for many in [200, 40_000, 65_536] {
            assert_eq!(sketch(0..many).difference(&Sketch::default()), Err(TooDifferent), "{many}");
        }
    }

    #[test]
    fn the_order_leaves_no_trace_and_text_is_read_back() {
        let mut one = sketch((0..100).rev());
        one.remove(element(99));
        let two = sketch(0..99);
        assert_eq!((&one, one.digest()), (&two, two.digest()));
        assert_ne!(one.digest(), sketch(0..98).digest());
        let text = one.to_string();
        assert_eq!(text.len(), 1_792);
        assert_eq!(text.parse(), Ok(two));
        for bad in ["", "AAAA", "?"] {
            assert_eq!(bad.parse::<Sketch>(), Err(NotASketch));
        }
        assert_eq!(element(7).to_string().parse(), Ok(element(7)));
    }
}
