//! TrafficPolicies and DestinationRules about endpoints that fail, and about how fast connections come.

use prost::Message as _;
use slotmesh_builders::{RuleBuilder, policy, rule, service, slice, to, virtual_service};
use slotmesh_compile::{Object, Severity};
use slotmesh_crds::{
    OutlierDetection,
    own::{Ejection, NewConnections, RateScope},
};
use slotmesh_xds::{ConnectionRate, envoy::google::protobuf::Duration};

use crate::support::{Cluster, cluster};

fn web() -> Vec<Object> {
    let service = service("web").ip("10.0.0.1").named_port("http", 80).named_port("x", 81);
    vec![service.build(), slice("web", "web").named_port("http", 1).endpoint("10.1.0.1").build()]
}

fn with(outliers: OutlierDetection) -> RuleBuilder {
    let mut built = rule("r", "web");
    built.0.spec.traffic_policy.get_or_insert_default().outlier_detection = Some(outliers);
    built
}

/// Failures in a row (0: none count), the first time in milliseconds, the most percent, and the panic threshold.
fn detection(cluster_: &Cluster, name: &str) -> Option<(u32, i64, u32, f64)> {
    let message = cluster_.message(name);
    let detection = message.outlier_detection?;
    let enforced = detection.enforcing_consecutive_5xx.unwrap().value;
    let failures = detection.consecutive_5xx.map_or(0, |most| most.value);
    assert_eq!(enforced, if failures == 0 { 0 } else { 100 });
    assert_eq!(detection.enforcing_success_rate.unwrap().value, 0);
    let Duration { seconds, nanos } = detection.base_ejection_time.unwrap();
    let panic = message.common_lb_config.unwrap().healthy_panic_threshold.unwrap().value;
    let most_percent = detection.max_ejection_percent.unwrap().value;
    Some((failures, seconds * 1_000 + i64::from(nanos) / 1_000_000, most_percent, panic))
}

fn rate(cluster_: &Cluster, name: &str) -> Option<(u32, u32, bool)> {
    let filters = cluster_.message(name).filters;
    let [filter] = &filters[..] else { return None };
    let any = filter.typed_config.as_ref().unwrap();
    assert_eq!(
        (filter.name.as_str(), any.type_url.as_str()),
        (ConnectionRate::NAME, ConnectionRate::TYPE_URL)
    );
    let ConnectionRate { per_second, burst, per_caller } =
        ConnectionRate::decode(any.value.as_slice()).unwrap();
    Some((per_second, burst, per_caller))
}

#[test]
fn a_rule_says_it_as_istio_does() {
    let name = cluster("web", 80, "");
    let of = |outliers: OutlierDetection| {
        let cluster_ = Cluster::with(web().into_iter().chain([with(outliers).build()]));
        assert!(cluster_.refused().is_empty(), "{:?}", cluster_.refused());
        detection(&cluster_, &name).unwrap()
    };
    assert_eq!(of(OutlierDetection::default()), (5, 30_000, 10, 0.0));
    let all = OutlierDetection {
        consecutive_5xx_errors: Some(7),
        consecutive_gateway_errors: Some(3),
        consecutive_local_origin_failures: Some(9),
        interval: Some("1s".into()),
        base_ejection_time: Some("1m30s".into()),
        max_ejection_percent: Some(50),
        min_health_percent: Some(40),
        ..OutlierDetection::default()
    };
    assert_eq!(of(all.clone()), (3, 90_000, 50, 40.0), "a failed connect is an error of both sorts");
    let split = OutlierDetection { split_external_local_origin_errors: Some(true), ..all.clone() };
    assert_eq!(of(split).0, 9);
    let gateway = OutlierDetection { consecutive_gateway_errors: None, ..all.clone() };
    assert_eq!(of(gateway).0, 7);
    let none = OutlierDetection {
        consecutive_5xx_errors: Some(0),
        consecutive_gateway_errors: Some(0),
        ..OutlierDetection::default()
    };
    assert_eq!(of(none).0, 0);
}

#[test]
fn what_a_rule_says_of_a_subset_goes_before_what_it_says_of_all() {
    let mut built = with(OutlierDetection { consecutive_5xx_errors: Some(2), ..OutlierDetection::default() });
    built = built.version("v1").version("v2");
    let of_v1 = built.0.spec.subsets[0].traffic_policy.get_or_insert_default();
    of_v1.outlier_detection =
        Some(OutlierDetection { consecutive_5xx_errors: Some(8), ..OutlierDetection::default() });
    let route = virtual_service("v", "web").tcp([to("web/v1", 1), to("web/v2", 1)]).build();
    let cluster_ = Cluster::with(web().into_iter().chain([built.build(), route]));
    for (subset, failures) in [("", 2), ("v1", 8), ("v2", 2)] {
        assert_eq!(detection(&cluster_, &cluster("web", 80, subset)).unwrap().0, failures, "{subset}");
    }
}

#[test]
fn a_policy_goes_before_a_rule_and_takes_it_back_when_it_goes() {
    let name = cluster("web", 80, "");
    let ejection = Ejection {
        consecutive_failures: 2,
        base_seconds: 5,
        max_seconds: 60,
        max_percent: 100,
        min_healthy_percent: 1,
    };
    let rates = NewConnections { per_second: 100, burst: None, per: RateScope::Service };
    let policy_ = policy("p", "web").outliers(ejection).new_connections(rates.clone()).build();
    let of_port = policy("port", "web/x").created(1);
    let of_port = of_port.new_connections(NewConnections { burst: Some(7), per: RateScope::Caller, ..rates });
    let mut cluster_ = Cluster::with(web());
    assert_eq!((detection(&cluster_, &name), rate(&cluster_, &name)), (None, None));
    cluster_.apply([with(OutlierDetection::default()).build(), policy_.clone(), of_port.build()]);
    assert_eq!(detection(&cluster_, &name), Some((2, 5_000, 100, 1.0)));
    assert_eq!(rate(&cluster_, &name), Some((100, 100, false)));
    assert_eq!(rate(&cluster_, &cluster("web", 81, "")), Some((100, 7, true)));
    assert_eq!(detection(&cluster_, &cluster("web", 81, "")).unwrap().0, 2, "field by field");
    cluster_.delete(&policy_);
    assert_eq!(detection(&cluster_, &name), Some((5, 30_000, 10, 0.0)));
    assert_eq!(rate(&cluster_, &name), None);
}

#[test]
fn what_can_not_be_is_refused_by_field() {
    let text = |text: &str| Some(text.to_owned());
    for (outliers, fault) in [
        (
            OutlierDetection { base_ejection_time: text("soon"), ..<_>::default() },
            "baseEjectionTime: \"soon\" is not",
        ),
        (
            OutlierDetection { base_ejection_time: text("0s"), ..<_>::default() },
            "baseEjectionTime: \"0s\" is not",
        ),
        (OutlierDetection { interval: text("2d"), ..<_>::default() }, "interval: \"2d\" is not a time"),
        (
            OutlierDetection { max_ejection_percent: Some(101), ..<_>::default() },
            "maxEjectionPercent: it is not",
        ),
        (OutlierDetection { min_health_percent: Some(-1), ..<_>::default() }, "minHealthPercent: it is not"),
    ] {
        let cluster_ = Cluster::with(web().into_iter().chain([with(outliers).build()]));
        let refused = cluster_.refused();
        let fault = format!("spec.trafficPolicy.outlierDetection.{fault}");
        assert!(refused.iter().any(|said| said.contains(&fault)), "{fault}: {refused:?}");
        assert_eq!(detection(&cluster_, &cluster("web", 80, "")), None, "{fault}");
    }
    let ejection = Ejection { max_percent: 0, base_seconds: 0, ..Ejection::default() };
    let rates = NewConnections { per_second: 0, burst: Some(0), per: RateScope::Caller };
    let bad = policy("p", "web").outliers(ejection).new_connections(rates).build();
    let refused = Cluster::with(web().into_iter().chain([bad])).refused();
    for fault in [
        "spec.outlierDetection.maxPercent: 0 is not between 1 and 100",
        "spec.outlierDetection.baseSeconds: 0 is not between",
        "spec.newConnections.perSecond: 0 would refuse",
        "spec.newConnections.burst: 0 would refuse",
    ] {
        assert!(refused.iter().any(|said| said.contains(fault)), "{fault}: {refused:?}");
    }
}

#[test]
fn of_udp_there_are_no_connections() {
    let dns = service("dns").ip("10.0.0.3").udp_port("dns", 53).build();
    let rates = NewConnections { per_second: 1, burst: None, per: RateScope::Service };
    let said = policy("p", "dns").outliers(Ejection::default()).new_connections(rates).build();
    let cluster_ =
        Cluster::with([dns, slice("dns", "dns").udp_port("dns", 53).endpoint("10.1.0.3").build(), said]);
    let said = cluster_.said(Severity::NotSupported);
    for field in ["spec.outlierDetection", "spec.newConnections"] {
        assert!(said.iter().any(|said| said.contains(field)), "{field}: {said:?}");
    }
}
