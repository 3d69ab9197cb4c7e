//! What the kernel's records hold of a resource, read back for people: JSON with names for pointers.

#[cfg(feature = "next-layout")]
mod next;

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::{Value, json};
use slotmesh_records::{
    Action, Cluster, ClusterSet, Guard, Handle, HashTable, HostChunk, HostIndex, Listener, NO_LIMIT, Owned,
    Ref, Route, SlotPtr, VipKey, WideListener, balance, name_hash, proxy_address,
};
use slotmesh_slots::{Snapshot, Stored as _};
use slotmesh_xds::Version;

use crate::{
    RecordType,
    config::{Endpoints, REFUSING_CLUSTER},
    held::{Held, chains, of_callers, text, vips},
    packed::Unpacker,
};

/// A version of a resource as it was when it was asked for. To show it is work for whoever asks.
pub(crate) struct Shown {
    pub ty: RecordType,
    pub name: String,
    pub snapshot: Snapshot,
}

impl Shown {
    /// As JSON; `None` where the records are damaged.
    pub fn json(&self) -> Option<Value> {
        let root = self.snapshot.root();
        let records = Records(&self.snapshot);
        let mut shown = match self.ty {
            RecordType::Cluster => records.cluster(root),
            RecordType::Endpoints => records.endpoints(root),
            RecordType::Route => records.route(root),
            RecordType::Listener => records.listener(root),
        }?;
        #[cfg(feature = "next-layout")]
        if self.ty == RecordType::Cluster {
            shown["added"] = records.added(root)?;
        }
        shown["name"] = self.name.as_str().into();
        shown["version"] = Version::from_u64(records.version(self.ty, root)?)?.to_string().into();
        Some(shown)
    }
}

/// The way by which a cluster chooses endpoints, in words.
pub(crate) const fn balance_in_words(of: u32) -> &'static str {
    match of {
        balance::RANDOM => "random",
        balance::ROUND_ROBIN => "round robin",
        balance::LEAST_CONNECTIONS => "least connections",
        balance::HASH => "consistent hash of the source",
        balance::NONE => "none: connections go where they were meant to go",
        balance::HASH_BY_ROUTE => "consistent hash of the source where the route says so",
        _ => "unknown",
    }
}

/// The bound of how fast connections may come.
pub(crate) fn rate_in_words(per_second: u32, burst: u32, per_caller: bool) -> Value {
    json!({ "perSecond": per_second, "burst": burst, "per": if per_caller { "caller" } else { "cluster" } })
}

struct Records<'s>(&'s Snapshot);

impl Records<'_> {
    fn version(&self, ty: RecordType, root: SlotPtr) -> Option<u64> {
        let header = match ty {
            RecordType::Cluster => self.0.record::<Cluster>(root)?.0.header,
            RecordType::Endpoints => return Some(Held::read(self.0, root)?.version()),
            RecordType::Route => self.0.record::<Route>(root)?.0.header,
            RecordType::Listener => {
                let listener = self.0.record::<Listener>(root).map(|(listener, _)| listener.header);
                listener.or_else(|| Some(self.0.record::<WideListener>(root)?.0.header))?
            }
        };
        Some(header.version)
    }

    fn cluster(&self, root: SlotPtr) -> Option<Value> {
        let (cluster, _) = self.0.record::<Cluster>(root)?;
        let limit = |limit: u32| (limit != NO_LIMIT).then_some(limit);
        Some(json!({
            "balance": balance_in_words(cluster.balance),
            "connectTimeoutMs": cluster.connect_timeout_ms,
            "maxConnections": limit(cluster.max_connections),
            "maxPendingRequests": limit(cluster.max_pending_requests),
            "maxRequests": limit(cluster.max_requests),
            "maxRetries": limit(cluster.max_retries),
            "outlierDetection": self.outliers(cluster.guard),
            "newConnections": self.rate(cluster.guard),
            "affinitySeconds": (cluster.affinity != 0).then_some(cluster.affinity),
            "assignment": self.name(cluster.endpoints),
            "endpoints": self.endpoints(cluster.inline.ptr()),
        }))
    }

    fn rate(&self, at: Owned<Guard>) -> Option<Value> {
        let (guard, _) = self.0.record::<Guard>(at.ptr())?;
        (guard.per_second != 0).then(|| rate_in_words(guard.per_second, guard.burst, guard.per_caller != 0))
    }

    fn outliers(&self, at: Owned<Guard>) -> Option<Value> {
        let (guard, _) = self.0.record::<Guard>(at.ptr())?;
        (guard.failures != 0).then(|| {
            json!({
                "consecutiveFailures": guard.failures,
                "baseEjectionMs": guard.base_ms,
                "maxEjectionMs": guard.most_ms,
                "maxEjectionPercent": guard.most_percent,
                "minHealthyPercent": guard.panic_percent,
            })
        })
    }

    fn endpoints(&self, root: SlotPtr) -> Option<Value> {
        let held = Held::read(self.0, root)?;
        let Endpoints { v4, v6, localities, viewed, .. } = held.endpoints()?;
        let endpoints = v4.iter().chain(&v6).map(|endpoint| {
            json!({
                "address": SocketAddr::new(endpoint.ip, endpoint.port.get()).to_string(),
                "weight": endpoint.weight,
                "locality": endpoint.locality,
            })
        });
        let localities = localities.iter().map(|locality| {
            json!({
                "region": locality.region,
                "zone": locality.zone,
                "subZone": locality.sub_zone,
                "priority": locality.priority,
                "weight": locality.weight,
            })
        });
        let places = self.0.record::<HashTable>(held.hashes().ptr()).map(|(table, _)| [table.v4, table.v6]);
        Some(json!({
            "endpoints": endpoints.collect::<Vec<_>>(),
            "localities": localities.collect::<Vec<_>>(),
            "chosenForThisNode": viewed,
            "hashPlaces": places.map(|[v4, v6]| json!({ "v4": v4, "v6": v6 })),
        }))
    }

    fn listener(&self, root: SlotPtr) -> Option<Value> {
        let wide =
            || self.0.record::<WideListener>(root).map(|(wide, _)| (wide.any, wide.chains, wide.names));
        let listener = self.0.record::<Listener>(root);
        let (any, matching, names) =
            listener.map(|(one, _)| (one.any, one.chains, one.names)).or_else(wide)?;
        let names = text(self.0, names)?;
        let mut names = Unpacker(&names);
        let mut named = BTreeMap::new();
        let mut callers: Vec<(&str, Vec<&str>)> = Vec::new();
        for _ in 0..names.number().unwrap_or(0) {
            let (port, name) = (names.number()?, names.text()?);
            let classes = (0..names.number()?).map(|_| names.text()).collect::<Option<Vec<_>>>()?;
            if classes.is_empty() {
                named.insert(port, name);
            } else {
                callers.push((name, classes));
            }
        }
        let of_callers = of_callers(self.0, matching)?;
        let mut shown: Vec<Value> = callers
            .into_iter()
            .filter_map(|(name, classes)| {
                let action = of_callers.get(&name_hash(classes.first()?))?;
                Some(json!({ "name": name, "callers": classes, "to": self.action(action)? }))
            })
            .collect();
        let mut chains: Vec<(Option<u16>, Action)> =
            chains(self.0, matching)?.iter().map(|chain| (Some(chain.port), chain.action)).collect();
        chains.push((None, any));
        shown.extend(chains.into_iter().filter_map(|(port, action)| {
            Some(json!({
                "name": named.get(&port.map_or(0, u32::from)),
                "port": port,
                "to": self.action(&action)?,
            }))
        }));
        let vips: Vec<String> = vips(self.0, root)?.iter().map(ToString::to_string).collect();
        Some(json!({ "addresses": vips, "chains": shown }))
    }

    /// `None` where it leads nowhere.
    fn action(&self, action: &Action) -> Option<Value> {
        if let Some(cluster) = self.name(action.cluster) {
            return Some(json!({ "cluster": cluster }));
        }
        if let Some(route) = self.name(action.route) {
            return Some(json!({ "route": route }));
        }
        if let Some((_, set)) = self.0.record::<ClusterSet>(action.clusters.ptr()) {
            let clusters: Vec<Value> = set.iter().map(|cluster| self.weighted(cluster)).collect();
            return Some(json!({ "clusters": clusters }));
        }
        self.route(action.inline.ptr())
    }

    fn weighted(&self, element: &slotmesh_records::WeightedCluster) -> Value {
        let cluster = self.name(element.cluster).unwrap_or(REFUSING_CLUSTER);
        let mut shown = json!({ "cluster": cluster, "weight": element.weight });
        if element.by_source != 0 {
            shown["hash"] = "source".into();
        }
        shown
    }

    fn route(&self, root: SlotPtr) -> Option<Value> {
        let (route, sets) = self.0.record::<Route>(root)?;
        let bytes = text(self.0, route.text)?;
        let mut text = Unpacker(&bytes);
        let hosts = (0..text.number()?)
            .map(|_| {
                let name = text.text()?;
                let domains =
                    (0..text.number()?).map(|_| Some(text.text()?.to_owned())).collect::<Option<Vec<_>>>()?;
                let routes = (0..text.number()?)
                    .map(|_| {
                        let name = text.text()?;
                        let (set, first, count) = (text.number()?, text.number()?, text.number()?);
                        let (_, set) = self.0.record::<ClusterSet>(sets.get(set as usize)?.ptr())?;
                        let clusters = set.get(first as usize..)?.get(..count as usize)?;
                        let clusters: Vec<Value> = clusters.iter().map(|one| self.weighted(one)).collect();
                        Some(json!({ "name": name, "clusters": clusters }))
                    })
                    .collect::<Option<Vec<_>>>()?;
                Some(json!({ "name": name, "domains": domains, "routes": routes }))
            })
            .collect::<Option<Vec<_>>>()?;
        let mut shown = json!({ "virtualHosts": hosts, "addresses": self.addresses(route.index)? });
        if route.proxy != 0 {
            let at = VipKey { addr: proxy_address(route.proxy), port: 0, protocol: 0, reserved: 0 };
            shown["proxy"] = at.socket_addr().ip().to_string().into();
        }
        Some(shown)
    }

    /// How many addresses virtual hosts can be chosen by.
    fn addresses(&self, index: Owned<HostIndex>) -> Option<usize> {
        if index.ptr().is_null() {
            return Some(0);
        }
        let (_, chunks) = self.0.record::<HostIndex>(index.ptr())?;
        chunks
            .iter()
            .map(|chunk| {
                let (_, hosts) = self.0.record::<HostChunk>(chunk.ptr())?;
                Some(hosts.iter().filter(|host| !host.clusters.set.ptr().is_null()).count())
            })
            .sum()
    }

    /// The name of the resource behind a handle; `None` for null.
    fn name(&self, handle: Ref<Handle>) -> Option<&str> {
        let (record, name) = self.0.record::<Handle>(handle.ptr())?;
        let name = std::str::from_utf8(name).ok()?;
        debug_assert_eq!(record.name_hash, name_hash(name));
        Some(name)
    }
}
