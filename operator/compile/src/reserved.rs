//! Whose an address is, and which addresses a ServiceEntry can't have.
//!
//! A Service's cluster IPs go before everything, then its external addresses: whoever may write a Service chooses these,
//! so they never are another Service's cluster IP, on no port. A ServiceEntry can have any other address but those by which the cluster
//! itself works: whoever may create ServiceEntries in some namespace would else take the connections of all others.

use std::net::IpAddr;

use crate::{Cidr, Index, Kind, ObjectName, links::Claim, model::PortKey};

impl Index {
    /// The claim in force on an address and port, if any.
    pub(crate) fn owner_of(&self, ip: IpAddr, port: PortKey) -> Option<&Claim> {
        self.relations.claims.of(&(ip, port)).find(|claim| self.counts(claim, ip))
    }

    /// Tells whether a claim counts: what isn't in force claims nothing.
    fn counts(&self, claim: &Claim, ip: IpAddr) -> bool {
        let in_force = || {
            let provider = self.provider(&claim.service);
            provider.is_some_and(|provider| {
                provider.kind == Kind::ServiceEntry
                    && provider.name.namespace == claim.object.name.namespace
                    && self.fits(&claim.object)
            })
        };
        match claim.object.kind {
            Kind::Service => {
                let is_free = || self.relations.service_addresses.first(&ip).is_none();
                self.fits(&claim.object) && (!claim.is_external || is_free())
            }
            _ => self.reserved(ip).is_none() && in_force(),
        }
    }

    /// Why a ServiceEntry can't have this address, if it can't.
    pub(crate) fn reserved(&self, ip: IpAddr) -> Option<String> {
        let options = &self.options;
        if options.allowed_addresses.iter().any(|range| range.contains(ip)) {
            return None;
        }
        let named = |what: &str, name: &ObjectName| format!("is an address of {what} {name}");
        let local = match ip {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
        };
        if local {
            return Some("is of the node itself (loopback or link-local)".to_owned());
        }
        let relations = &self.relations;
        let service = relations.service_addresses.first(&ip).map(|name| named("Service", name));
        let pod = || relations.pods.first(&ip).map(|name| named("Pod", name));
        let node = || relations.node_addresses.first(&ip).map(|name| named("Node", name));
        let services = || {
            let of = Cidr::all_around(ip).find_map(|range| relations.service_ranges.first(&range))?;
            Some(format!("is of the cluster's Services (ServiceCIDR {of})"))
        };
        let range = || {
            let node = Cidr::all_around(ip).find_map(|range| relations.pod_ranges.first(&range))?;
            Some(format!("is of the Pods of Node {node}"))
        };
        let kept = || {
            let range = options.reserved_addresses.iter().find(|range| range.contains(ip))?;
            Some(format!("is of {range}, which the installation keeps for the cluster"))
        };
        service.or_else(services).or_else(pod).or_else(node).or_else(range).or_else(kept)
    }
}
