//! Sets of places in a [`Table`](crate::table::Table), a bit each: what a stream has to say of each of many
//! resources costs it a bit.

use crate::table::Place;

/// A set of places.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bits {
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    fn split(place: Place) -> (usize, u64) {
        (place.number() / 64, 1 << (place.number() % 64))
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn contains(&self, place: Place) -> bool {
        let (word, bit) = Self::split(place);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Tells whether it wasn't in the set.
    pub(crate) fn insert(&mut self, place: Place) -> bool {
        let (at, bit) = Self::split(place);
        if at >= self.words.len() {
            self.words.resize(at + 1, 0);
        }
        let new = self.words[at] & bit == 0;
        self.words[at] |= bit;
        self.len += usize::from(new);
        new
    }

    /// Tells whether it was in the set.
    pub(crate) fn remove(&mut self, place: Place) -> bool {
        let (at, bit) = Self::split(place);
        let Some(word) = self.words.get_mut(at).filter(|word| **word & bit != 0) else { return false };
        *word &= !bit;
        self.len -= 1;
        true
    }

    /// The places in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Place> {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| Place::from(at * 64 + bit))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_places() {
        let mut bits = Bits::default();
        for number in [3, 64, 3, 1_000] {
            bits.insert(Place::from(number));
        }
        assert!(bits.iter().map(Place::number).eq([3, 64, 1_000]));
        assert!(
            bits.remove(Place::from(64)) && !bits.remove(Place::from(64)) && !bits.remove(Place::from(5_000))
        );
        assert!(bits.contains(Place::from(3)) && !bits.contains(Place::from(64)) && bits.len() == 2);
    }
}
