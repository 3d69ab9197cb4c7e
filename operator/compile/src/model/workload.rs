//! Workloads that aren't Pods: WorkloadEntries, and the endpoints of ServiceEntries.

use std::{collections::BTreeMap, net::IpAddr};

use slotmesh_crds as crds;

use super::{Locality, Read, ServicePort, TargetPort, ip_address, port_number};
use crate::{CompileOptions, ObjectName, report::Findings};

/// A valid workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) ip: IpAddr,
    /// Where it has another port than others: by the name of the service's port.
    ports: BTreeMap<String, u16>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Its share; above 0.
    pub(crate) weight: u32,
    pub(crate) locality: Locality,
}

impl Read<crds::WorkloadEntry> for Workload {
    fn read(
        object: &crds::WorkloadEntry,
        _: &ObjectName,
        _: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        Self::read_at(&object.spec, "spec", found)
    }
}

impl Workload {
    /// Reads a workload; `None` when it must be refused. `at` is where it stands.
    pub(crate) fn read_at(spec: &crds::WorkloadEntrySpec, at: &str, found: &mut Findings) -> Option<Self> {
        let before = found.reports.len();
        for name in spec.rest.keys() {
            let consequence = match name.as_str() {
                "network" => "connections go to its address directly",
                "serviceAccount" => "nobody verifies who answers",
                _ => "",
            };
            found.unsupported(format!("{at}.{name}"), consequence);
        }
        let ip = ip_address(&spec.address)
            .map_err(|fault| {
                let fault = format!("{fault}; give the address at which the workload is reached");
                found.refuse(format!("{at}.address"), fault);
            })
            .ok();
        let mut ports = BTreeMap::new();
        for (name, number) in &spec.ports {
            match port_number(*number) {
                Some(number) => drop(ports.insert(name.clone(), number)),
                None => {
                    let fault = format!("{number} is not a port; ports are 1 to 65535");
                    found.refuse(format!("{at}.ports.{name}"), fault);
                }
            }
        }
        // 0 and unset are the same in Istio's own API.
        let weight = spec.weight.unwrap_or_default().max(1);
        let locality = spec.locality.as_deref().map_or_else(Locality::default, |text| {
            Locality::read(text).unwrap_or_else(|| {
                let fault = format!("{text:?} is no locality; write REGION/ZONE/SUBZONE");
                found.refuse(format!("{at}.locality"), fault);
                Locality::default()
            })
        });
        let refused = found.refused_since(before);
        ip.filter(|_| !refused).map(|ip| Self { ip, ports, labels: spec.labels.clone(), weight, locality })
    }

    /// Its port for a port of a Service; `None` where that asks for one by a name that it doesn't have.
    pub(crate) fn port(&self, port: &ServicePort) -> Option<u16> {
        self.ports.get(&port.name).copied().or_else(|| match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => self.ports.get(name).copied(),
        })
    }
}
