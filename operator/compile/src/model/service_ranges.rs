//! ServiceCIDRs: the ranges of which the API server takes cluster IPs.

use k8s_openapi::api::networking::v1;

use super::Read;
use crate::{Cidr, CompileOptions, ObjectName, report::Findings};

/// The ranges of a ServiceCIDR. Nobody else can have an address of these, whether a Service has it yet or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceRanges(pub(crate) Vec<Cidr>);

impl Read<v1::ServiceCIDR> for ServiceRanges {
    /// Reads a ServiceCIDR; `None` when it must be refused.
    fn read(
        object: &v1::ServiceCIDR,
        _: &ObjectName,
        _: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        let texts = object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
        let mut ranges = Vec::new();
        for (i, text) in texts.enumerate() {
            match text.parse() {
                Ok(range) => ranges.push(range),
                Err(fault) => found.refuse(format!("spec.cidrs[{i}]"), format!("{fault}")),
            }
        }
        ranges.sort_unstable();
        ranges.dedup();
        (!found.refused()).then_some(Self(ranges))
    }
}
