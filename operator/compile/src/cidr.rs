//! Ranges of addresses.

use std::{fmt, net::IpAddr, str::FromStr};

/// A range of addresses, such as `10.96.0.0/12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// The first address.
    first: IpAddr,
    length: u8,
}

/// Why a text is no range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoCidr(String);

impl fmt::Display for NoCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no range of addresses such as 10.96.0.0/12", self.0)
    }
}

impl std::error::Error for NoCidr {}

/// How many bits an address of this family has.
const fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The address with all but the first `length` bits cleared, or set.
fn masked(ip: IpAddr, length: u8, set: bool) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let rest = u32::MAX.checked_shr(length.into()).unwrap_or(0);
            IpAddr::V4(if set { ip.to_bits() | rest } else { ip.to_bits() & !rest }.into())
        }
        IpAddr::V6(ip) => {
            let rest = u128::MAX.checked_shr(length.into()).unwrap_or(0);
            IpAddr::V6(if set { ip.to_bits() | rest } else { ip.to_bits() & !rest }.into())
        }
    }
}

impl Cidr {
    /// The range of this length that holds the address; `None` where no range is that long.
    pub fn around(ip: IpAddr, length: u8) -> Option<Self> {
        (length <= bits(ip)).then(|| Self { first: masked(ip, length, false), length })
    }

    /// All ranges that hold the address, the largest first.
    pub(crate) fn all_around(ip: IpAddr) -> impl Iterator<Item = Self> {
        (0..=bits(ip)).filter_map(move |length| Self::around(ip, length))
    }

    /// Tells whether the range holds the address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.first.is_ipv4() && masked(ip, self.length, false) == self.first
    }

    /// The first and the last address.
    pub(crate) fn ends(&self) -> (IpAddr, IpAddr) {
        (self.first, masked(self.first, self.length, true))
    }
}

impl FromStr for Cidr {
    type Err = NoCidr;

    fn from_str(text: &str) -> Result<Self, NoCidr> {
        let read = || {
            let (ip, length) = match text.split_once('/') {
                Some((ip, length)) => (ip, Some(length.parse().ok()?)),
                None => (text, None),
            };
            let ip = ip.parse().ok()?;
            Self::around(ip, length.unwrap_or(bits(ip)))
        };
        read().ok_or_else(|| NoCidr(text.to_owned()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn what_a_range_holds() {
        for (range, inside, outside) in [
            ("10.96.0.0/12", ["10.96.0.0", "10.111.255.255"], ["10.95.255.255", "10.112.0.0"]),
            ("10.1.2.3", ["10.1.2.3", "10.1.2.3"], ["10.1.2.2", "10.1.2.4"]),
            ("fe80::/10", ["fe80::", "febf:ffff::1"], ["fec0::", "10.0.0.1"]),
            ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255"], ["::", "::1"]),
        ] {
            let range = cidr(range);
            assert!(inside.iter().all(|ip| range.contains(ip.parse().unwrap())), "{range}");
            assert!(!outside.iter().any(|ip| range.contains(ip.parse().unwrap())), "{range}");
        }
        assert_eq!(cidr("10.99.1.1/12"), cidr("10.96.0.0/12"));
        assert_eq!(
            cidr("10.96.0.0/12").ends(),
            ("10.96.0.0".parse().unwrap(), "10.111.255.255".parse().unwrap())
        );
        assert_eq!(cidr("fd00::1").to_string(), "fd00::1/128");
    }

    #[test]
    fn all_ranges_around_an_address_hold_it() {
        for (ip, count) in [("10.1.2.3", 33), ("fd00::1", 129)] {
            let ip = ip.parse().unwrap();
            let all: Vec<_> = Cidr::all_around(ip).collect();
            assert_eq!(all.len(), count);
            assert!(all.iter().all(|range| range.contains(ip)));
        }
    }

    #[test]
    fn what_is_no_range() {
        for text in ["", "10.0.0.0/33", "fd00::/129", "10.0.0/8", "10.0.0.0/", "/8", "10.0.0.0/-1"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
