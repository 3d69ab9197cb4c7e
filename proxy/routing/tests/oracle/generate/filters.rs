//! Faults and CORS policies.

use std::collections::HashMap;

use prost::{Message, Name};
use slotmesh_xds::envoy::{
    envoy::{
        config::{core::v3::RuntimeFractionalPercent, route::v3::FilterConfig},
        extensions::filters::{
            common::fault::v3::{
                FaultDelay,
                fault_delay::{FaultDelaySecifier, HeaderDelay},
            },
            http::{
                cors::v3::CorsPolicy,
                fault::v3::{
                    FaultAbort, HttpFault,
                    fault_abort::{ErrorType, HeaderAbort},
                },
            },
        },
        r#type::v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
    google::protobuf::{Any, BoolValue, Duration},
};

use super::{Chance, routes};

pub const ORIGINS: [&str; 4] = ["http://a.test", "http://b.test", "https://A.test", "null"];
pub const FAULT_HEADERS: [&str; 4] = [
    "x-envoy-fault-abort-request",
    "x-envoy-fault-abort-grpc-request",
    "x-envoy-fault-abort-request-percentage",
    "x-envoy-fault-delay-request-percentage",
];

const FAULT: &str = "envoy.filters.http.fault";
const CORS: &str = "envoy.filters.http.cors";

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// All or none: nothing is left to chance.
pub fn share(chance: &mut Chance) -> FractionalPercent {
    let (all, denominator) = chance.one(&[
        (100, DenominatorType::Hundred),
        (10_000, DenominatorType::TenThousand),
        (1_000_000, DenominatorType::Million),
    ]);
    let numerator = if chance.percent(80) { all } else { 0 };
    FractionalPercent { numerator, denominator: denominator.into() }
}

/// The settings of filters of one level.
pub fn configs(chance: &mut Chance) -> HashMap<String, Any> {
    let mut configs = HashMap::new();
    let mut add = |chance: &mut Chance, name: &str, any: Any| {
        let wrapped = match chance.below(10) {
            0 => FilterConfig { config: Some(any), ..Default::default() },
            1 => FilterConfig { disabled: true, ..Default::default() },
            _ => return configs.insert(name.to_owned(), any),
        };
        configs.insert(name.to_owned(), self::any(&wrapped))
    };
    if chance.percent(10) {
        let any = any(&fault(chance));
        add(chance, FAULT, any);
    }
    if chance.percent(15) {
        let any = any(&cors(chance));
        add(chance, CORS, any);
    }
    configs
}

fn fault(chance: &mut Chance) -> HttpFault {
    let abort = chance.percent(80);
    let error = match chance.below(5) {
        0 => ErrorType::GrpcStatus(chance.one(&[0, 5, 14, 99])),
        1 | 2 => ErrorType::HeaderAbort(HeaderAbort {}),
        _ => ErrorType::HttpStatus(chance.one(&[200, 404, 418, 503])),
    };
    let delay = if chance.percent(50) {
        FaultDelaySecifier::HeaderDelay(HeaderDelay {})
    } else {
        FaultDelaySecifier::FixedDelay(Duration { seconds: 0, nanos: 1_000_000 })
    };
    HttpFault {
        abort: abort.then(|| FaultAbort {
            percentage: Some(share(chance)),
            response_body: chance.one(&["", "aborted"]).into(),
            error_type: Some(error),
        }),
        delay: (!abort || chance.percent(20))
            .then(|| FaultDelay { percentage: Some(share(chance)), fault_delay_secifier: Some(delay) }),
        headers: chance.some(1, routes::header),
        ..Default::default()
    }
}

fn cors(chance: &mut Chance) -> CorsPolicy {
    let text = |chance: &mut Chance, texts: &[&str]| chance.one(texts).to_owned();
    let flag = |chance: &mut Chance| chance.percent(40).then(|| BoolValue { value: chance.percent(60) });
    CorsPolicy {
        allow_origin_string_match: chance.some(2, routes::origin),
        allow_methods: text(chance, &["", "GET, PUT"]),
        allow_headers: text(chance, &["", "x-a"]),
        expose_headers: text(chance, &["", "x-resp"]),
        max_age: text(chance, &["", "600"]),
        allow_credentials: flag(chance),
        filter_enabled: chance.percent(20).then(|| RuntimeFractionalPercent {
            default_value: Some(share(chance)),
            runtime_key: String::new(),
        }),
        shadow_enabled: None,
        allow_private_network_access: flag(chance),
        forward_not_matching_preflights: flag(chance),
    }
}
