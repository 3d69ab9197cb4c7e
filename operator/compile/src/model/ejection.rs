//! Outlier detection: endpoints to which connects fail are left out for some time.
//!
//! Of Istio's, as Envoy documents for TCP: a failed connect is one of the 5xx errors and of the gateway errors, unless
//! `splitExternalLocalOriginErrors` tells failures of local origin apart: then it is one of those.

use slotmesh_crds as crds;
use slotmesh_xds::envoy::{
    envoy::config::cluster::v3::OutlierDetection,
    google::protobuf::{Duration, UInt32Value},
};

use crate::report::Findings;

/// Istio's and Envoy's default of how many errors in a row are too many.
const FAILURES: u32 = 5;
/// Their default of the first time.
const BASE_MS: u64 = 30_000;
/// Envoy's default of the longest time, which Istio doesn't set.
const MOST_MS: u64 = 300_000;
/// Their default of the most percent.
const MOST_PERCENT: u32 = 10;
/// The longest time that can be said: a day.
const LONGEST_MS: u64 = 86_400_000;

/// When endpoints are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outliers {
    /// After so many failed connects in a row; `None` where none counts.
    failures: Option<u32>,
    base_ms: u64,
    most_ms: u64,
    most_percent: u32,
    pub(crate) panic_percent: u32,
}

impl Outliers {
    /// Reads that of a TrafficPolicy.
    pub(crate) fn of_policy(at: &str, said: &crds::own::Ejection, found: &mut Findings) -> Self {
        let crds::own::Ejection {
            consecutive_failures,
            base_seconds,
            max_seconds,
            max_percent,
            min_healthy_percent,
        } = *said;
        // The API server checks the same; a directory of manifests has none.
        for (field, value, least, most) in [
            ("consecutiveFailures", consecutive_failures, 1, 1_000_000),
            ("baseSeconds", base_seconds, 1, 86_400),
            ("maxSeconds", max_seconds, 1, 86_400),
            ("maxPercent", max_percent, 1, 100),
            ("minHealthyPercent", min_healthy_percent, 0, 100),
        ] {
            if !(least..=most).contains(&value) {
                found.refuse(format!("{at}.{field}"), format!("{value} is not between {least} and {most}"));
            }
        }
        Self {
            failures: Some(consecutive_failures),
            base_ms: u64::from(base_seconds) * 1_000,
            most_ms: u64::from(max_seconds.max(base_seconds)) * 1_000,
            most_percent: max_percent,
            panic_percent: min_healthy_percent,
        }
    }

    /// Reads that of a DestinationRule.
    pub(crate) fn of_rule(at: &str, said: &crds::OutlierDetection, found: &mut Findings) -> Self {
        let crds::OutlierDetection {
            consecutive_5xx_errors,
            consecutive_gateway_errors,
            consecutive_local_origin_failures,
            split_external_local_origin_errors,
            interval,
            base_ejection_time,
            max_ejection_percent,
            min_health_percent,
            rest,
        } = said;
        found.unsupported_rest(at, rest);
        let mut time = |name: &str, text: &Option<String>, default: u64| {
            let Some(text) = text else { return default };
            milliseconds(text).filter(|ms| (1..=LONGEST_MS).contains(ms)).unwrap_or_else(|| {
                let fault = format!("{text:?} is not a time from 1ms to 24h, such as 30s");
                found.refuse(format!("{at}.{name}"), fault);
                default
            })
        };
        let base_ms = time("baseEjectionTime", base_ejection_time, BASE_MS);
        // Nobody looks at intervals: an endpoint is left out, and taken back, when that is due.
        time("interval", interval, BASE_MS);
        let mut percent = |name: &str, said: &Option<i32>, default: u32| match said.map(u32::try_from) {
            None => default,
            Some(Ok(percent @ 0..=100)) => percent,
            Some(_) => {
                found.refuse(format!("{at}.{name}"), "it is not between 0 and 100");
                default
            }
        };
        let most_percent = percent("maxEjectionPercent", max_ejection_percent, 0);
        let panic_percent = percent("minHealthPercent", min_health_percent, 0);
        let failures = if *split_external_local_origin_errors == Some(true) {
            // 0 and unset are the same in Istio's own API.
            Some(consecutive_local_origin_failures.filter(|most| *most != 0).unwrap_or(FAILURES))
        } else {
            let errors = consecutive_5xx_errors.unwrap_or(FAILURES);
            [Some(errors), *consecutive_gateway_errors].into_iter().flatten().filter(|most| *most != 0).min()
        };
        Self {
            failures,
            base_ms,
            most_ms: MOST_MS.max(base_ms),
            // 0 and unset are the same there, too.
            most_percent: if most_percent == 0 { MOST_PERCENT } else { most_percent },
            panic_percent,
        }
    }

    pub(crate) fn to_proto(&self) -> OutlierDetection {
        let number = |value| Some(UInt32Value { value });
        let time =
            |ms: u64| Some(Duration { seconds: (ms / 1_000) as i64, nanos: (ms % 1_000) as i32 * 1_000_000 });
        OutlierDetection {
            consecutive_5xx: self.failures.and_then(number),
            enforcing_consecutive_5xx: number(if self.failures.is_some() { 100 } else { 0 }),
            enforcing_success_rate: number(0),
            base_ejection_time: time(self.base_ms),
            max_ejection_time: time(self.most_ms),
            max_ejection_percent: number(self.most_percent),
            ..Default::default()
        }
    }
}

/// A time as Istio's objects have it: numbers with units, such as `1m30s` or `1.5s`.
fn milliseconds(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(digits);
        let end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, after) = unit.split_at(end);
        let of_unit = match unit {
            "ms" => 1.0,
            "s" => 1_000.0,
            "m" => 60_000.0,
            "h" => 3_600_000.0,
            _ => return None,
        };
        sum += number.parse::<f64>().ok()? * of_unit;
        rest = after;
    }
    (!text.is_empty()).then_some(sum as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_units() {
        for (text, ms) in
            [("30s", 30_000), ("1.5s", 1_500), ("1m30s", 90_000), ("500ms", 500), ("2h", 7_200_000)]
        {
            assert_eq!(milliseconds(text), Some(ms), "{text}");
        }
        for bad in ["", "30", "s", "30x", "-1s", "1s2"] {
            assert_eq!(milliseconds(bad), None, "{bad}");
        }
    }
}
