//! `envoy.config.cluster.v3.OutlierDetection`, as far as it is about connects that fail.
//!
//! As Envoy documents for TCP: a failed connect is one of the 5xx errors and of the gateway failures, unless local errors
//! are split from external ones; then it is one of the local origin. What is counted over many requests (rates of
//! success, percentages of failure) has no effect.

use std::num::NonZeroU32;

use slotmesh_xds::envoy::{
    envoy::{config::cluster::v3 as proto, r#type::v3::Percent},
    google::protobuf::{Duration, UInt32Value},
};

use super::{At, Invalid, cluster::whole_milliseconds, invalid, refuse_set, unsupported};

/// Envoy's default of how many errors in a row are too many.
const FAILURES: u32 = 5;
/// Envoy's default of the first time.
const BASE_MS: u32 = 30_000;
/// Envoy's default of the longest time.
const MOST_MS: u32 = 300_000;
/// Envoy's default of the most percent.
const MOST_PERCENT: u32 = 10;
/// Envoy's default of the percentage below which all are used.
const PANIC_PERCENT: f64 = 50.0;

/// When endpoints are left out because connects to them fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outliers {
    /// After so many in a row.
    pub failures: NonZeroU32,
    /// For so many milliseconds the first time.
    pub base_ms: u32,
    /// For so many milliseconds at most.
    pub most_ms: u32,
    /// So many percent of the endpoints of a family at most, but one in any case; with 0 none.
    pub most_percent: u32,
    /// Where fewer percent are left, all are used.
    pub panic_percent: u32,
}

/// `None` where nothing of it is about connects.
pub(super) fn read(
    detection: &proto::OutlierDetection,
    panic: Option<&Percent>,
) -> Result<Option<Outliers>, Invalid> {
    let proto::OutlierDetection {
        consecutive_5xx,
        base_ejection_time,
        max_ejection_percent,
        enforcing_consecutive_5xx,
        consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure,
        split_external_local_origin_errors,
        consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure,
        max_ejection_time,
        max_ejection_time_jitter,
        monitors,
        // An endpoint is left out, and taken back, when that is due, and not at the next of these.
        interval: _,
        // Over many requests.
        enforcing_success_rate: _,
        success_rate_minimum_hosts: _,
        success_rate_request_volume: _,
        success_rate_stdev_factor: _,
        enforcing_local_origin_success_rate: _,
        failure_percentage_threshold: _,
        enforcing_failure_percentage: _,
        enforcing_failure_percentage_local_origin: _,
        failure_percentage_minimum_hosts: _,
        failure_percentage_request_volume: _,
        detect_degraded_hosts: _,
        // There are no health checks.
        successful_active_health_check_uneject_host: _,
        // It always is.
        always_eject_one_host: _,
    } = detection;
    let at = At::ROOT.field("outlier_detection");
    refuse_set!(at,
        "the time is as long as it is said": max_ejection_time_jitter;
        "only failed connects are counted": monitors;
    );
    let threshold =
        |name: &'static str, most: Option<&UInt32Value>, chance: Option<&UInt32Value>, default: u32| {
            match chance.map_or(default, |chance| chance.value) {
                0 => Ok(None),
                100 => Ok(NonZeroU32::new(most.map_or(FAILURES, |most| most.value))),
                chance => Err(unsupported(at.field(name), format!("{chance}; 0 or 100"))),
            }
        };
    let split = threshold(
        "enforcing_consecutive_local_origin_failure",
        consecutive_local_origin_failure.as_ref(),
        enforcing_consecutive_local_origin_failure.as_ref(),
        100,
    )?;
    let errors = threshold(
        "enforcing_consecutive_5xx",
        consecutive_5xx.as_ref(),
        enforcing_consecutive_5xx.as_ref(),
        100,
    )?;
    let gateway = threshold(
        "enforcing_consecutive_gateway_failure",
        consecutive_gateway_failure.as_ref(),
        enforcing_consecutive_gateway_failure.as_ref(),
        0,
    )?;
    let failures = match split_external_local_origin_errors {
        true => split,
        false => errors.into_iter().chain(gateway).min(),
    };
    let time = |name: &'static str, time: Option<&Duration>| {
        let read = |time| whole_milliseconds(time).ok_or_else(|| invalid(at.field(name), "is not above 0"));
        time.map(read).transpose()
    };
    let base_ms = time("base_ejection_time", base_ejection_time.as_ref())?.unwrap_or(BASE_MS);
    let most_ms = time("max_ejection_time", max_ejection_time.as_ref())?;
    let most_ms = most_ms.unwrap_or_else(|| base_ms.max(MOST_MS));
    let most_percent = max_ejection_percent.map_or(MOST_PERCENT, |percent| percent.value);
    if most_percent > 100 {
        return Err(invalid(
            at.field("max_ejection_percent"),
            format!("{most_percent} percent are too many"),
        ));
    }
    let panic = panic.map_or(PANIC_PERCENT, |percent| percent.value);
    if !(0.0..=100.0).contains(&panic) {
        let at = At::ROOT.field("common_lb_config");
        return Err(invalid(at.field("healthy_panic_threshold"), format!("{panic} is no percentage")));
    }
    // Envoy takes the whole part, too.
    let panic_percent = panic as u32;
    Ok(failures.map(|failures| Outliers { failures, base_ms, most_ms, most_percent, panic_percent }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: u32) -> Option<UInt32Value> {
        Some(UInt32Value { value })
    }

    #[test]
    fn what_is_not_said_is_as_in_envoy() {
        let found = read(&proto::OutlierDetection::default(), None).unwrap();
        let failures = NonZeroU32::new(5).unwrap();
        let expected =
            Outliers { failures, base_ms: 30_000, most_ms: 300_000, most_percent: 10, panic_percent: 50 };
        assert_eq!(found, Some(expected));
        let long = Some(Duration { seconds: 400, nanos: 1 });
        let found = read(&proto::OutlierDetection { base_ejection_time: long, ..Default::default() }, None);
        assert_eq!(found.unwrap().map(|found| (found.base_ms, found.most_ms)), Some((400_001, 400_001)));
    }

    #[test]
    fn a_failed_connect_is_an_error_of_one_sort() {
        let all = proto::OutlierDetection {
            consecutive_5xx: number(7),
            consecutive_gateway_failure: number(3),
            consecutive_local_origin_failure: number(9),
            ..Default::default()
        };
        let failures = |detection: &proto::OutlierDetection| {
            read(detection, None).unwrap().map(|found| found.failures.get())
        };
        assert_eq!(failures(&all), Some(7), "gateway failures aren't enforced by default");
        let gateway =
            proto::OutlierDetection { enforcing_consecutive_gateway_failure: number(100), ..all.clone() };
        assert_eq!(failures(&gateway), Some(3));
        let split = proto::OutlierDetection { split_external_local_origin_errors: true, ..gateway.clone() };
        assert_eq!(failures(&split), Some(9));
        let none = proto::OutlierDetection { enforcing_consecutive_5xx: number(0), ..all };
        assert_eq!(failures(&none), None);
    }
}
