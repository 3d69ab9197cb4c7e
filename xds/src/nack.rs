//! How a NACK names each bad resource with its reason.
//!
//! `DeltaDiscoveryRequest.error_detail` is a `google.rpc.Status`. Its message is for people; its
//! details carry one `google.rpc.BadRequest` whose field violations are (resource name, reason),
//! so the server knows exactly which resources are not in force.

use envoy_types::pb::google::{protobuf::Any, rpc::Status};
use prost::Message;

use crate::ResourceName;

const BAD_REQUEST_URL: &str = "type.googleapis.com/google.rpc.BadRequest";
/// `google.rpc.Code.INVALID_ARGUMENT`
const INVALID_ARGUMENT: i32 = 3;

/// One resource that the agent refused, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The refused resource.
    pub name: ResourceName,
    /// What is wrong with it and what to do, for a person.
    pub reason: String,
}

/// `google.rpc.BadRequest`, of which only the violations are used.
#[derive(Clone, PartialEq, Message)]
struct BadRequest {
    #[prost(message, repeated, tag = "1")]
    field_violations: Vec<FieldViolation>,
}

/// `google.rpc.BadRequest.FieldViolation`
#[derive(Clone, PartialEq, Message)]
struct FieldViolation {
    #[prost(string, tag = "1")]
    field: String,
    #[prost(string, tag = "2")]
    description: String,
}

/// The `error_detail` of a NACK for these resources.
pub fn status_from_rejections(rejections: &[Rejection]) -> Status {
    let detail = BadRequest {
        field_violations: rejections
            .iter()
            .map(|r| FieldViolation { field: r.name.to_string(), description: r.reason.clone() })
            .collect(),
    };
    let message = match rejections {
        [one] => format!("{}: {}", one.name, one.reason),
        [first, ..] => {
            format!("{} resources refused; the first: {}: {}", rejections.len(), first.name, first.reason)
        }
        [] => "refused".to_owned(),
    };
    Status {
        code: INVALID_ARGUMENT,
        message,
        details: vec![Any { type_url: BAD_REQUEST_URL.to_owned(), value: detail.encode_to_vec() }],
    }
}

/// The refused resources that a NACK names; empty where a foreign client names none.
pub fn rejections_from_status(status: &Status) -> Vec<Rejection> {
    status
        .details
        .iter()
        .filter(|any| any.type_url == BAD_REQUEST_URL)
        .filter_map(|any| BadRequest::decode(any.value.as_slice()).ok())
        .flat_map(|bad| bad.field_violations)
        .map(|v| Rejection { name: v.field.into(), reason: v.description })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refused_resource_survives_the_wire() {
        let refused = vec![
            Rejection { name: "a".into(), reason: "no endpoints field".into() },
            Rejection { name: "b".into(), reason: "weights sum to 0".into() },
        ];
        let status = Status::decode(status_from_rejections(&refused).encode_to_vec().as_slice()).unwrap();
        assert_eq!(rejections_from_status(&status), refused);
        assert!(status.message.starts_with("2 resources refused"), "{}", status.message);
    }
}
