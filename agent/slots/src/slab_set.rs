//! A set of slabs as two levels of bits: every operation looks at a handful of words, however many slabs
//! there are. (Lists of wholly idle slabs made recovery quadratic near 16,384 of them.)

use slotmesh_records::{MAX_SLABS, SlabIndex};

const WORDS: usize = MAX_SLABS as usize / 64;

/// See the module's comment.
#[derive(Debug)]
pub(crate) struct SlabSet {
    words: Box<[u64; WORDS]>,
    /// One bit a word that isn't zero.
    summary: [u64; WORDS / 64],
    len: u32,
}

impl Default for SlabSet {
    fn default() -> Self {
        Self { words: Box::new([0; WORDS]), summary: [0; WORDS / 64], len: 0 }
    }
}

impl SlabSet {
    /// Every slab that there can be.
    pub fn full() -> Self {
        Self { words: Box::new([u64::MAX; WORDS]), summary: [u64::MAX; WORDS / 64], len: MAX_SLABS }
    }

    /// Puts a slab in that wasn't.
    pub fn insert(&mut self, slab: SlabIndex) {
        let (word, bit) = place(slab);
        debug_assert_eq!(self.words[word] & bit, 0, "slab {slab} is put in twice");
        self.words[word] |= bit;
        self.summary[word / 64] |= 1 << (word % 64);
        self.len += 1;
    }

    /// Takes a slab out that was in.
    pub fn remove(&mut self, slab: SlabIndex) {
        let (word, bit) = place(slab);
        debug_assert_ne!(self.words[word] & bit, 0, "slab {slab} isn't in");
        self.words[word] &= !bit;
        if self.words[word] == 0 {
            self.summary[word / 64] &= !(1 << (word % 64));
        }
        self.len -= 1;
    }

    /// The lowest.
    pub fn first(&self) -> Option<SlabIndex> {
        let (i, summary) = self.summary.iter().enumerate().find(|(_, summary)| **summary != 0)?;
        let word = i * 64 + summary.trailing_zeros() as usize;
        SlabIndex::new(word as u32 * 64 + self.words[word].trailing_zeros())
    }

    /// The highest.
    pub fn last(&self) -> Option<SlabIndex> {
        let (i, summary) = self.summary.iter().enumerate().rfind(|(_, summary)| **summary != 0)?;
        let word = i * 64 + 63 - summary.leading_zeros() as usize;
        SlabIndex::new(word as u32 * 64 + 63 - self.words[word].leading_zeros())
    }

    /// All, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = SlabIndex> {
        let words = self.words.iter().enumerate().filter(|(_, bits)| **bits != 0);
        words.flat_map(|(word, &bits)| {
            (0..64)
                .filter(move |bit| bits & 1 << bit != 0)
                .filter_map(move |bit| SlabIndex::new(word as u32 * 64 + bit))
        })
    }

    /// How many.
    pub const fn len(&self) -> u32 {
        self.len
    }
}

const fn place(slab: SlabIndex) -> (usize, u64) {
    (slab.get() as usize / 64, 1 << (slab.get() % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_plain_set() {
        let slab = |i| SlabIndex::new(i).unwrap();
        let mut set = SlabSet::default();
        assert_eq!((set.first(), set.last(), set.len()), (None, None, 0));
        let some = [0, 1, 63, 64, 4095, 4096, 9000, MAX_SLABS - 1];
        some.iter().rev().for_each(|&i| set.insert(slab(i)));
        assert_eq!(set.iter().map(SlabIndex::get).collect::<Vec<_>>(), some);
        for pair in some.windows(2) {
            assert_eq!((set.first(), set.last()), (Some(slab(pair[0])), Some(slab(MAX_SLABS - 1))));
            set.remove(slab(pair[0]));
        }
        assert_eq!((set.first(), set.len()), (set.last(), 1));
        let mut all = SlabSet::full();
        for i in (1..MAX_SLABS).rev() {
            assert_eq!(all.last(), Some(slab(i)));
            all.remove(slab(i));
        }
        assert_eq!((all.first(), all.len()), (Some(slab(0)), 1));
    }
}
