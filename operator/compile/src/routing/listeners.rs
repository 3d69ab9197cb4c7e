//! The listeners of a port, with a filter chain for each group of callers whose connections go another way.
//!
//! Invariants: an address is only listened at for the object that owns it; and a caller costs a chain only where its
//! answer differs.

use std::collections::{BTreeMap, BTreeSet};

use super::{Answer, Answers, Way, WeightedClusters, reports::not_its_own};
use crate::{
    Audience, Index, ObjectKey, ServiceId,
    envoy::{self, CallerChain, Forward},
    model::{Caller, RouteKind, ServicePort},
    names::{BLACK_HOLE, PASSTHROUGH, callers_route_name, cluster_name, route_name},
    unit::Compiled,
};

/// The listeners of one port, for each address and NodePort that belongs to this Service.
pub(super) fn listen(
    index: &Index,
    name: &ServiceId,
    port: &ServicePort,
    (everybody, callers): (&Answers<'_>, &[(Caller<'_>, Answers<'_>)]),
    out: &mut Compiled,
) {
    let host = index.host(name);
    let own = cluster_name(&host, port.key, "");
    let route = route_name(&host, port.key);
    let mut by_route = None;
    // Of callers who don't see what an address is of.
    let refuses = |caller| index.sidecar_of(caller).is_some_and(|sidecar| sidecar.refuses);
    let unseen = |caller| {
        let cluster = if refuses(caller) { BLACK_HOLE } else { PASSTHROUGH };
        Way::from(vec![(cluster.to_owned(), 1)])
    };
    for (ip, at, by) in index.places(name, port.key) {
        match index.owner_of(ip, at) {
            Some(claim) if claim.object == by => {}
            // Two ServiceEntries of one host that have the same address.
            Some(claim) if claim.service == *name => continue,
            owner => {
                out.reports.push(not_its_own(index, name, (ip, at), &by, owner));
                continue;
            }
        }
        let export = index.export_of(&by);
        let of = |answers: &Answers<'_>| {
            let found = answers.get(&(port.key, Some(ip))).or_else(|| answers.get(&(port.key, None)));
            let by = |answer: &Answer<'_>| answer.by.iter().copied().cloned().collect();
            found.map(|answer| (answer.kind, answer.way.clone(), by(answer), answer.needs_a_listener()))
        };
        let sees = |caller| export.is_none_or(|export| export.sees(caller));
        let Some((kind, way, own_makers, needed)) = of(everybody) else { continue };
        let (kind, way, own_makers): (_, _, BTreeSet<ObjectKey>) = match sees(Caller::Anyone) {
            true => (kind, way, own_makers),
            false => (RouteKind::Tcp, unseen(Caller::Anyone), BTreeSet::new()),
        };
        let needs = |caller, needs| if sees(caller) { needs } else { refuses(caller) };
        let mut audience = Audience { everybody: needs(Caller::Anyone, needed), ..Audience::default() };
        let mut makers = own_makers.clone();
        // Of namespaces what differs from what is so for everybody, of classes what differs from their namespaces'.
        let mut of_namespace: BTreeMap<&str, &Way> = BTreeMap::new();
        let mut differing: Vec<(String, Way, &BTreeSet<ObjectKey>)> = Vec::new();
        let found: Vec<(Caller<'_>, Way, BTreeSet<ObjectKey>)> = callers
            .iter()
            .filter_map(|(caller, answers)| {
                let (_, way, makers, needed) = of(answers)?;
                if let Some(class) = caller.class() {
                    audience.note(class, needs(*caller, needed));
                }
                Some(match sees(*caller) {
                    true => (*caller, way, makers),
                    false => (*caller, unseen(*caller), BTreeSet::new()),
                })
            })
            .collect();
        for (caller, answer, by) in &found {
            let (class, before) = match caller {
                Caller::Anyone => continue,
                Caller::Of(namespace) => {
                    of_namespace.insert(namespace, answer);
                    (namespace.to_string(), &way)
                }
                Caller::In(class) => {
                    (class.to_string(), of_namespace.get(&*class.namespace).copied().unwrap_or(&way))
                }
            };
            if answer != before {
                differing.push((class, answer.clone(), by));
                makers.extend(by.iter().cloned());
            }
        }
        let mut chains_of = Vec::new();
        for (classes, Way { choice, requests }, by) in chains(differing) {
            let requests = requests.map(|requests| {
                let name = callers_route_name(&host, port.key, classes.first().map_or("", String::as_str));
                let resource = envoy::configuration(&name, &requests);
                out.made(&resource, by, port.key);
                if !out.resources.contains(&resource) {
                    out.resources.push(resource);
                }
                name
            });
            chains_of.push(CallerChain { classes, choice, requests });
        }
        let chains = chains_of;
        let refuses = |choice: &WeightedClusters| choice.iter().any(|(cluster, _)| cluster == BLACK_HOLE);
        let passes = |choice: &WeightedClusters| choice.iter().any(|(cluster, _)| cluster == PASSTHROUGH);
        out.refuses |= refuses(&way.choice) || chains.iter().any(|chain| refuses(&chain.choice));
        out.passes |= passes(&way.choice) || chains.iter().any(|chain| passes(&chain.choice));
        let forward = match kind {
            _ if way.requests.is_some() => Forward::Requests(&route),
            RouteKind::Http => Forward::Http(&route),
            RouteKind::Tcp => Forward::Layer4(&way.choice),
        };
        let listener = envoy::listener(ip, at, &own, &forward, &chains);
        if !audience.is_all() {
            out.audiences.insert(listener.name.clone(), audience);
        }
        out.made(&listener, makers, port.key);
        out.resources.push(listener);
        if kind == RouteKind::Http {
            by_route = Some((way, own_makers));
        }
    }
    if let Some((way, makers)) = by_route {
        let resource = match &way.requests {
            Some(requests) => envoy::configuration(&route, requests),
            None => envoy::route(&route, &way.choice),
        };
        out.made(&resource, makers, port.key);
        out.resources.push(resource);
    }
}

/// Callers, where their connections go, and the objects that say so.
type CallersWay = (Vec<String>, Way, BTreeSet<ObjectKey>);

/// One chain for all whose connections go the same way.
fn chains(differing: Vec<(String, Way, &BTreeSet<ObjectKey>)>) -> Vec<CallersWay> {
    let mut by_way: BTreeMap<Way, (Vec<String>, BTreeSet<ObjectKey>)> = BTreeMap::new();
    for (class, way, by) in differing {
        let (classes, makers) = by_way.entry(way).or_default();
        classes.push(class);
        makers.extend(by.iter().cloned());
    }
    let chains = by_way.into_iter().map(|(way, (mut classes, makers))| {
        classes.sort_unstable();
        (classes, way, makers)
    });
    let mut chains: Vec<_> = chains.collect();
    chains.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    chains
}
