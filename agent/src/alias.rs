//! Alias tables: a weighted choice in O(1) (Walker 1977, Vose 1991), in integers only.

/// One element of an alias table: it is taken by a number below `threshold`, else `alias` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// In units of 2^-32; `u32::MAX` means always (its alias is the element itself).
    pub threshold: u32,
    /// Another element of the table.
    pub alias: u32,
}

impl Slot {
    /// Element `i` is itself: what all elements are where the weights are equal.
    pub const fn always(i: usize) -> Self {
        Self { threshold: u32::MAX, alias: i as u32 }
    }
}

/// Whether no weight differs from another: then no table needs to be computed.
pub fn are_equal(mut weights: impl Iterator<Item = u32>) -> bool {
    weights.next().is_none_or(|first| weights.all(|weight| weight == first))
}

/// The alias table over these weights, none of which is 0. Each element's probability is its weight's
/// share of the sum, to within 2^-32 per element.
pub fn alias_table(weights: impl ExactSizeIterator<Item = u32> + Clone) -> Vec<Slot> {
    let n = weights.len() as u64;
    let sum: u64 = weights.clone().map(u64::from).sum();
    let mut table: Vec<Slot> = (0..weights.len()).map(Slot::always).collect();
    if are_equal(weights.clone()) {
        return table;
    }
    // In these units the average element has `sum`; a weight times n, both below 2^32, fits 64 bits.
    let mut left: Vec<u64> = weights.map(|weight| u64::from(weight) * n).collect();
    let average = sum;
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..left.len()).partition(|&i| left[i] < average);
    while let (Some(&lesser), Some(&greater)) = (small.last(), large.last()) {
        small.pop();
        table[lesser] = Slot { threshold: share(left[lesser], average), alias: greater as u32 };
        left[greater] -= average - left[lesser];
        if left[greater] < average {
            large.pop();
            small.push(greater);
        }
    }
    table
}

/// A part of a whole that is less than it, in units of 2^-32; by the division that the processor has, where that does.
fn share(part: u64, whole: u64) -> u32 {
    match u32::try_from(part) {
        Ok(part) => ((u64::from(part) << 32) / whole) as u32,
        Err(_) => ((u128::from(part) << 32) / u128::from(whole)) as u32,
    }
}

/// [`alias_table`] of two elements, which most sets of weights have: without a list, and with the division
/// that the processor has.
pub fn alias_pair(weights: [u32; 2]) -> [Slot; 2] {
    let mut table = [Slot::always(0), Slot::always(1)];
    let lesser = usize::from(weights[1] < weights[0]);
    if weights[0] != weights[1] {
        let (part, sum) = (2 * u64::from(weights[lesser]), u64::from(weights[0]) + u64::from(weights[1]));
        table[lesser] = Slot { threshold: share(part, sum), alias: 1 - lesser as u32 };
    }
    table
}

/// The probability of each element, as the table has it.
#[cfg(test)]
fn probabilities(table: &[Slot]) -> Vec<f64> {
    let mut probabilities = vec![0.0; table.len()];
    for (i, slot) in table.iter().enumerate() {
        let own = f64::from(slot.threshold) / 2_f64.powi(32);
        probabilities[i] += own / table.len() as f64;
        probabilities[slot.alias as usize] += (1.0 - own) / table.len() as f64;
    }
    probabilities
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_weight_gets_its_share(weights in prop::collection::vec(1..=u32::MAX / 64, 1..64)) {
            let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            let table = alias_table(weights.iter().copied());
            for (i, probability) in probabilities(&table).into_iter().enumerate() {
                let share = f64::from(weights[i]) / sum;
                prop_assert!((probability - share).abs() < 1e-8, "{i}: {probability} for {share}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_pair_is_a_table(first in 1..=u32::MAX, second in 1..=u32::MAX) {
            for weights in [[first, second], [first, first], [second % 100 + 1, first % 100 + 1]] {
                prop_assert_eq!(alias_pair(weights).to_vec(), alias_table(weights.into_iter()));
            }
        }
    }

    #[test]
    fn equal_weights_need_no_alias() {
        let table = alias_table([7; 1000].into_iter());
        assert!(table.iter().enumerate().all(|(i, slot)| slot.alias as usize == i));
    }

    #[test]
    fn eighty_to_twenty_is_not_seventy_eight_to_twenty_two() {
        let share = |a, b| probabilities(&alias_table([a, b].into_iter()))[0];
        assert!((share(80, 20) - 0.8).abs() < 1e-9);
        assert!((share(78, 22) - 0.78).abs() < 1e-9);
    }
}
