//! The endpoints of a load assignment that callers on this node have, by where the node is: as kube-proxy decides
//! (`CategorizeEndpoints`), of each address family by itself.
//!
//! 1. Endpoints for the callers on one node are for those only.
//! 2. Degraded ones (that serve while they terminate) are for when there is no other.
//! 3. Where a policy says how to choose among localities, as it says ([`nearness`](crate::nearness)).
//! 4. Where each endpoint is meant for some nodes, and one for this node: those. Else where each is meant for some
//!    zones, and one for this node's zone: those. Else all of them.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use slotmesh_xds::EndpointHints;

use crate::{
    config::{Endpoint, Endpoints, NodePlace},
    nearness,
};

/// Where this node is, and which endpoints its callers can't reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Its name; empty where it isn't known.
    pub node: String,
    /// Its region and zone.
    pub place: NodePlace,
    /// By load assignment, the endpoints that are left out because connects to them fail.
    pub left_out: Arc<HashMap<String, BTreeSet<SocketAddr>>>,
}

impl View {
    /// Tells whether callers have the same endpoints of a load assignment by another view.
    pub fn is_same_of(&self, assignment: &str, other: &Self) -> bool {
        self.node == other.node
            && self.place == other.place
            && self.left_out.get(assignment) == other.left_out.get(assignment)
    }
}

impl Endpoints<'_> {
    /// Leaves the endpoints of the load assignment of this name that callers on a node have, and their localities.
    pub(crate) fn see_from(&mut self, name: &str, view: &View) {
        let hints = std::mem::take(&mut self.hints);
        if hints.is_empty() {
            return;
        }
        let policy = hints.iter().find_map(|hints| hints.policy.as_ref());
        for family in [&mut self.v4, &mut self.v6] {
            see(family, &hints, view);
            if let Some(policy) = policy {
                let left_out = view.left_out.get(name);
                let farther = nearness::choose(policy, family, &self.localities, &hints, view, left_out);
                self.farther = self.farther.max(farther);
            }
        }
        self.leave_localities();
    }

    /// Leaves the localities that endpoints are of.
    fn leave_localities(&mut self) {
        let mut places = vec![None; self.localities.len()];
        let mut left = Vec::new();
        for endpoint in self.v4.iter_mut().chain(&mut self.v6) {
            let before = usize::from(endpoint.locality);
            endpoint.locality = *places[before].get_or_insert_with(|| {
                left.push(self.localities[before]);
                (left.len() - 1) as u16
            });
        }
        self.localities = left;
    }
}

type Names = fn(&EndpointHints) -> &Vec<String>;

fn see(family: &mut Vec<Endpoint>, hints: &[EndpointHints], view: &View) {
    let of = |endpoint: &Endpoint| &hints[usize::from(endpoint.locality)];
    family.retain(|endpoint| {
        let only = &of(endpoint).only_node;
        only.is_empty() || *only == view.node
    });
    if family.iter().any(|endpoint| !endpoint.degraded) {
        family.retain(|endpoint| !endpoint.degraded);
    }
    let sorts: [(Names, &String); 2] =
        [(|hints| &hints.for_nodes, &view.node), (|hints| &hints.for_zones, &view.place.zone)];
    for (names, own) in sorts {
        let all_meant = family.iter().all(|endpoint| !names(of(endpoint)).is_empty());
        let meant = |endpoint: &Endpoint| names(of(endpoint)).contains(own);
        if all_meant && family.iter().any(meant) {
            family.retain(meant);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr, Ipv6Addr},
        num::NonZeroU32,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::config::Locality;

    /// An endpoint as an EndpointSlice has it.
    #[derive(Clone, Debug)]
    struct Given {
        v4: bool,
        ready: bool,
        node: u8,
        for_nodes: BTreeSet<u8>,
        for_zones: BTreeSet<u8>,
    }

    /// The endpoints, by number, that kube-proxy uses on a node for connections from its pods to a cluster IP: a plain
    /// reading of `CategorizeEndpoints` and `topologyModeFromHints`. Those that aren't ready serve while they
    /// terminate; which of these are sent for all nodes is the operator's to decide.
    fn kube_proxy(all: &[Given], local: bool, node: u8, zone: u8) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        for v4 in [true, false] {
            let family = || all.iter().enumerate().filter(|(_, one)| one.v4 == v4);
            let pick = |is: &dyn Fn(&Given) -> bool| -> BTreeSet<usize> {
                family().filter(|(_, one)| is(one)).map(|(i, _)| i).collect()
            };
            if local {
                let ready = pick(&|one| one.node == node && one.ready);
                found.extend(if ready.is_empty() { pick(&|one| one.node == node) } else { ready });
                continue;
            }
            let ready = || family().map(|(_, one)| one).filter(|one| one.ready);
            let by_node = ready().all(|one| !one.for_nodes.is_empty())
                && ready().any(|one| one.for_nodes.contains(&node));
            let by_zone = ready().all(|one| !one.for_zones.is_empty())
                && ready().any(|one| one.for_zones.contains(&zone));
            let chosen = pick(&|one| {
                one.ready
                    && if by_node {
                        one.for_nodes.contains(&node)
                    } else {
                        !by_zone || one.for_zones.contains(&zone)
                    }
            });
            found.extend(if chosen.is_empty() { pick(&|_| true) } else { chosen });
        }
        found
    }

    fn name(of: u8) -> String {
        // 0 is a node of no zone.
        if of == 0 { String::new() } else { format!("n{of}") }
    }

    /// The assignment that the operator makes of them: see `endpoints::choose` there.
    fn sent(all: &[Given], local: bool) -> Endpoints<'static> {
        let mut endpoints = Endpoints { viewed: true, ..Endpoints::default() };
        for (i, one) in all.iter().enumerate() {
            let any_ready = all.iter().any(|other| other.v4 == one.v4 && other.ready);
            if !local && !one.ready && any_ready {
                continue;
            }
            let names = |of: &BTreeSet<u8>| of.iter().filter(|_| one.ready).map(|of| name(*of)).collect();
            endpoints.hints.push(if local {
                EndpointHints { only_node: format!("n{}", one.node), ..EndpointHints::default() }
            } else {
                EndpointHints {
                    for_nodes: names(&one.for_nodes),
                    for_zones: names(&one.for_zones),
                    ..EndpointHints::default()
                }
            });
            let weight = NonZeroU32::new(i as u32 + 1);
            endpoints.localities.push(Locality { weight, ..Locality::default() });
            let v4 = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + i as u32));
            let ip = if one.v4 { v4 } else { IpAddr::V6(Ipv6Addr::from(i as u128 + (0xfd00_u128 << 112))) };
            let family = if one.v4 { &mut endpoints.v4 } else { &mut endpoints.v6 };
            family.push(Endpoint {
                ip,
                port: 80.try_into().unwrap(),
                locality: (endpoints.localities.len() - 1) as u16,
                weight: weight.unwrap(),
                degraded: local && !one.ready,
            });
        }
        endpoints
    }

    fn given() -> impl Strategy<Value = Given> {
        let names = || prop::collection::btree_set(1..4_u8, 0..3);
        (any::<bool>(), prop::bool::weighted(0.7), 0..4_u8, names(), names()).prop_map(
            |(v4, ready, node, for_nodes, for_zones)| Given { v4, ready, node, for_nodes, for_zones },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn callers_have_the_endpoints_that_kube_proxy_gives_them(
            all in prop::collection::vec(given(), 0..8), local: bool, node in 1..4_u8, zone in 0..4_u8,
        ) {
            let mut endpoints = sent(&all, local);
            let place = NodePlace { zone: name(zone), ..NodePlace::default() };
            endpoints.see_from("web", &View { node: format!("n{node}"), place, ..View::default() });
            let chosen = endpoints.v4.iter().chain(&endpoints.v6);
            let found: BTreeSet<usize> = chosen.clone().map(|one| one.weight.get() as usize - 1).collect();
            prop_assert_eq!(&found, &kube_proxy(&all, local, node, zone));
            // Each has its own locality, and no other is left.
            let mut localities = BTreeSet::new();
            for one in chosen {
                let locality = &endpoints.localities[usize::from(one.locality)];
                prop_assert_eq!(locality.weight, Some(one.weight));
                localities.insert(one.locality);
            }
            prop_assert_eq!(localities.len(), endpoints.localities.len());
        }
    }
}
