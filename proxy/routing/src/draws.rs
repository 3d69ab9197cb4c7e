//! Chance: where it comes from, and shares of all requests.

use slotmesh_xds::envoy::envoy::{
    config::core::v3::RuntimeFractionalPercent,
    r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
};

use crate::field::{FieldPath, InvalidField};

/// A source of random numbers. A test gives the numbers that it wants.
pub trait Draws {
    /// A number of 64 bits, each as likely as any other.
    fn draw(&mut self) -> u64;

    /// A number from 0 up to `bound`, without `bound`. 0 where `bound` is 0.
    fn below(&mut self, bound: u64) -> u64 {
        // The upper half of the product: no division, and no bias worth the name.
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }
}

impl<F: FnMut() -> u64> Draws for F {
    fn draw(&mut self) -> u64 {
        self()
    }
}

/// A share of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Portion {
    pub(crate) numerator: u32,
    pub(crate) denominator: u32,
}

impl Portion {
    /// All requests.
    pub(crate) const ALL: Self = Self { numerator: 100, denominator: 100 };

    pub(crate) fn new(at: &FieldPath<'_>, percent: &FractionalPercent) -> Result<Self, InvalidField> {
        let denominator = match DenominatorType::try_from(percent.denominator) {
            Ok(DenominatorType::Hundred) => 100,
            Ok(DenominatorType::TenThousand) => 10_000,
            Ok(DenominatorType::Million) => 1_000_000,
            Err(_) => return Err(at.field("denominator").wrong("there is no such denominator")),
        };
        Ok(Self { numerator: percent.numerator, denominator })
    }

    /// The default value of a share that Envoy would look up among its runtime settings, of which there are none here.
    pub(crate) fn runtime(
        at: &FieldPath<'_>,
        percent: Option<&RuntimeFractionalPercent>,
    ) -> Result<Option<Self>, InvalidField> {
        let Some(percent) = percent else { return Ok(None) };
        match &percent.default_value {
            Some(value) => Self::new(&at.field("default_value"), value).map(Some),
            None => Err(at.field("default_value").wrong("there is none")),
        }
    }

    /// True for this share of the calls.
    pub(crate) fn hit(self, draws: &mut impl Draws) -> bool {
        if self.numerator >= self.denominator {
            return true;
        }
        self.numerator != 0 && draws.below(self.denominator.into()) < self.numerator.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_hit_as_often_as_it_says() {
        let third = Portion { numerator: 30, denominator: 100 };
        // The numbers of a clock that ticks evenly.
        let hits = (0..1_000_u64).filter(|tick| third.hit(&mut || tick * (u64::MAX / 1_000))).count();
        assert!((299..=301).contains(&hits), "{hits}");
        assert!(!Portion { numerator: 0, denominator: 100 }.hit(&mut || panic!("needs no chance")));
        assert!(Portion::ALL.hit(&mut || panic!("needs no chance")));
    }
}
