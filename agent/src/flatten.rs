//! Model -> records, children before parents, packed.
//!
//! ```text
//! Endpoints of up to 126    1 slot: header, IPv4 table, IPv6 table
//! Endpoints of more         1 index slot and a slot per 126
//! Endpoints by the source   1 slot more, and for each family a slot per 1,020 places of its table
//! Cluster                   1 slot, its endpoints where it is STATIC, and 1 where there is outlier detection or a rate
//! Route                     1 slot, a slot per 255 clusters of all its routes, and for addresses as
//!                           domains 1 index slot and a slot per 64
//! Listener                  1 slot, and 1 per 203 addresses where there are more; where chains match ports 1 per
//!                           204 of them, and 1 above that; where chains match callers 2, 1 per 255 of their classes,
//!                           and 1 per chain; 1 for a chain with several clusters
//! names, localities         a slot per 4 KiB, where there are any
//! ```
//! and one slot for the handle of each, which holds the name.

#[cfg(feature = "next-layout")]
mod next;

use std::{borrow::Cow, net::SocketAddr};

use bytemuck::Zeroable as _;
use slotmesh_records::{
    self as records, Chains, ClusterRange, EndpointChunk, EndpointIndex, HashChunk, HashTable, NO_LIMIT,
    Owned, RecordHeader, Ref, Text, Vip, VipChunk, VipKey, Within, balance,
};
use slotmesh_slots::{HandlePtr, Records};
use slotmesh_xds::Transport;

use crate::{
    RecordType,
    alias::{Slot, alias_pair, alias_table, are_equal},
    config::{
        Action, Balance, Chain, Cluster, Endpoint, Endpoints, Limits, Listener, Model, Outliers,
        REFUSING_CLUSTER, Rate, Route, Source, WeightedCluster, is_refusing,
    },
    hosts,
    maglev::Tables,
    packed::Packer,
    prepare::MANY,
};

/// Facts that other resources decide about the endpoints of a resource.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndpointsView<'t> {
    /// A cluster in force chooses among the endpoints of a load assignment by the source. Of endpoints that a cluster has
    /// itself, the cluster says so.
    pub hashed: bool,
    /// The tables for that, where they have been made.
    pub tables: Option<&'t Tables>,
}

impl EndpointsView<'_> {
    /// Tells whether tables have still to be made of these endpoints, which takes long.
    pub(crate) fn lacks_tables(&self, endpoints: &Endpoints<'_>) -> bool {
        self.hashed && self.tables.is_none() && endpoints.v4.len().max(endpoints.v6.len()) >= MANY
    }
}

/// Writes the records of a resource and makes them current.
///
/// # Errors
/// Where no slot is to be had; nothing has changed then.
pub fn flush<D: Records>(
    mut draft: D,
    name: &str,
    version: u64,
    model: &Model<'_>,
    view: EndpointsView<'_>,
) -> Result<HandlePtr, D::Error> {
    match model {
        Model::Cluster(cluster) => {
            let root = write_cluster(&mut draft, cluster, view, version)?;
            publish(draft, RecordType::Cluster, name, root)
        }
        Model::Endpoints(endpoints) => {
            let root = write_endpoints(&mut draft, endpoints, view, version)?;
            publish(draft, RecordType::Endpoints, name, root)
        }
        Model::Route(route) => {
            let root = write_route(&mut draft, route, version)?;
            publish(draft, RecordType::Route, name, root)
        }
        Model::Listener(listener) => {
            let root = write_listener(&mut draft, listener, version)?;
            publish(draft, RecordType::Listener, name, root)
        }
    }
}

fn publish<D: Records, R: records::Record>(
    mut draft: D,
    ty: RecordType,
    name: &str,
    root: Owned<R>,
) -> Result<HandlePtr, D::Error> {
    let handle = draft.handle(ty.kind(), name)?;
    draft.publish(handle, root)?;
    Ok(handle)
}

/// The engine fills it in.
const HEADER: RecordHeader =
    RecordHeader { kind: records::RecordKind::new(0), units: 0, count: 0, version: 0 };

/// The way by which a cluster chooses endpoints, as its record has it.
pub(crate) fn balance_of(cluster: &Cluster<'_>) -> u32 {
    match cluster.balance {
        _ if cluster.source == Source::Original => balance::NONE,
        Balance::Random => balance::RANDOM,
        Balance::RoundRobin => balance::ROUND_ROBIN,
        Balance::LeastConnections => balance::LEAST_CONNECTIONS,
        Balance::Hash => balance::HASH,
        Balance::HashByRoute => balance::HASH_BY_ROUTE,
    }
}

fn write_cluster<D: Records>(
    draft: &mut D,
    cluster: &Cluster<'_>,
    view: EndpointsView<'_>,
    version: u64,
) -> Result<Owned<records::Cluster>, D::Error> {
    let (endpoints, inline) = match &cluster.source {
        Source::Assignment(name) => (draft.handle(RecordType::Endpoints.kind(), name)?.as_ref(), Owned::NULL),
        Source::Inline(endpoints) => {
            let view = EndpointsView { hashed: cluster.balance.hashes(), ..view };
            (Ref::NULL, write_endpoints(draft, endpoints, view, 0)?)
        }
        Source::Original => (Ref::NULL, Owned::NULL),
    };
    let Limits { connections, pending_requests, requests, retries } = cluster.limits;
    let guard = write_guard(draft, cluster)?;
    let record = records::Cluster {
        header: HEADER,
        endpoints,
        inline,
        connect_timeout_ms: cluster.connect_timeout_ms,
        balance: balance_of(cluster),
        max_connections: connections.unwrap_or(NO_LIMIT),
        max_pending_requests: pending_requests.unwrap_or(NO_LIMIT),
        max_requests: requests.unwrap_or(NO_LIMIT),
        max_retries: retries.unwrap_or(NO_LIMIT),
        affinity: cluster.affinity.map_or(0, std::num::NonZeroU32::get),
        guard,
        #[cfg(feature = "next-layout")]
        added: next::write_added(draft, cluster)?,
        #[cfg(feature = "next-layout")]
        reserved: 0,
    };
    draft.write_root(&record, &[], version)
}

/// What a cluster has besides; null where that is nothing.
fn write_guard<D: Records>(draft: &mut D, cluster: &Cluster<'_>) -> Result<Owned<records::Guard>, D::Error> {
    if cluster.outliers.is_none() && cluster.rate.is_none() {
        return Ok(Owned::NULL);
    }
    let mut guard = records::Guard { header: HEADER, ..records::Guard::zeroed() };
    if let Some(Outliers { failures, base_ms, most_ms, most_percent, panic_percent }) = cluster.outliers {
        guard.failures = failures.get();
        guard.base_ms = base_ms;
        guard.most_ms = most_ms;
        guard.most_percent = most_percent;
        guard.panic_percent = panic_percent;
    }
    if let Some(Rate { per_second, burst, per_caller }) = cluster.rate {
        guard.per_second = per_second.get();
        guard.burst = burst.get();
        guard.per_caller = per_caller.into();
    }
    draft.write(&guard, &[])
}

/// The tables of both families behind each other, in one slot or, where they don't fit it, in chunks:
/// then the record is an `EndpointIndex`, which begins alike.
fn write_endpoints<D: Records>(
    draft: &mut D,
    endpoints: &Endpoints<'_>,
    view: EndpointsView<'_>,
    version: u64,
) -> Result<Owned<records::Endpoints>, D::Error> {
    let mut elements = Vec::with_capacity(endpoints.v4.len() + endpoints.v6.len());
    let v4 = table(&endpoints.v4, &mut elements);
    let v6 = table(&endpoints.v6, &mut elements);
    let hashes = if view.hashed { write_hashes(draft, endpoints, view.tables)? } else { Owned::NULL };
    let localities = write_localities(draft, endpoints)?;
    if elements.len() <= EndpointChunk::CAPACITY as usize {
        let record = records::Endpoints { header: HEADER, v4, v6, hashes, localities };
        return draft.write_root(&record, &elements, version);
    }
    let chunks = elements
        .chunks(EndpointChunk::CAPACITY as usize)
        .map(|chunk| draft.write(&EndpointChunk { header: HEADER, reserved: [0; 4] }, chunk))
        .collect::<Result<Vec<_>, _>>()?;
    let record = EndpointIndex { header: HEADER, v4, v6, hashes, localities };
    Ok(Owned::new(draft.write_root(&record, &chunks, version)?.ptr()))
}

/// Which endpoint each source has; null where no family has two endpoints.
fn write_hashes<D: Records>(
    draft: &mut D,
    endpoints: &Endpoints<'_>,
    tables: Option<&Tables>,
) -> Result<Owned<HashTable>, D::Error> {
    let Tables { v4, v6 } = match tables {
        Some(made) => made,
        None => &Tables::of(&endpoints.v4, &endpoints.v6),
    };
    if v4.is_empty() && v6.is_empty() {
        return Ok(Owned::NULL);
    }
    let pieces = [v4, v6].into_iter().flat_map(|table| table.chunks(HashChunk::CAPACITY as usize));
    let chunks = pieces
        .map(|piece| draft.write(&HashChunk { header: HEADER }, piece))
        .collect::<Result<Vec<_>, _>>()?;
    let record = HashTable { header: HEADER, v4: v4.len() as u32, v6: v6.len() as u32 };
    draft.write(&record, &chunks)
}

/// Appends the alias table of one family; how many there are, and whether the weights differ.
fn table(endpoints: &[Endpoint], elements: &mut Vec<records::Endpoint>) -> u32 {
    let count = endpoints.len() as u32;
    let element = |endpoint: &Endpoint, slot: Slot| records::Endpoint {
        addr: records::words(endpoint.ip),
        port: endpoint.port.get().to_be(),
        locality: endpoint.locality,
        threshold: slot.threshold,
        alias: slot.alias,
        weight: endpoint.weight.get(),
    };
    let weights = endpoints.iter().map(|endpoint| endpoint.weight.get());
    if are_equal(weights.clone()) {
        elements.extend(endpoints.iter().enumerate().map(|(i, endpoint)| element(endpoint, Slot::always(i))));
        return count;
    }
    let table = alias_table(weights);
    elements.extend(endpoints.iter().zip(table).map(|(endpoint, slot)| element(endpoint, slot)));
    count | records::Endpoints::WEIGHTED
}

fn write_localities<D: Records>(draft: &mut D, endpoints: &Endpoints<'_>) -> Result<Owned<Text>, D::Error> {
    let localities = &endpoints.localities;
    if !endpoints.viewed && localities.iter().all(crate::config::Locality::is_anonymous) {
        return Ok(Owned::NULL);
    }
    let mut text = Packer::with_capacity(64 * localities.len());
    text.count(localities.len());
    for locality in localities {
        text.text(locality.region);
        text.text(locality.zone);
        text.text(locality.sub_zone);
        text.number(locality.priority);
        text.number(locality.weight.map_or(0, std::num::NonZeroU32::get));
    }
    text.number(endpoints.viewed.into());
    write_text(draft, &text)
}

/// The last piece first: each points at the one behind it.
fn write_text<D: Records>(draft: &mut D, text: &Packer) -> Result<Owned<Text>, D::Error> {
    let mut next = Owned::NULL;
    for piece in text.bytes().chunks(Text::CAPACITY).rev() {
        next = draft.write(&Text { header: HEADER, next, reserved: 0 }, piece)?;
    }
    Ok(next)
}

fn write_listener<D: Records>(
    draft: &mut D,
    listener: &Listener<'_>,
    version: u64,
) -> Result<Owned<records::Listener>, D::Error> {
    let mut record = records::Listener::zeroed();
    let mut chains = Vec::with_capacity(listener.chains.len());
    let mut of_callers = Vec::new();
    for Chain { name: _, port, callers, action } in &listener.chains {
        let action = write_action(draft, action)?;
        match port {
            _ if !callers.is_empty() => of_callers.push((callers.as_slice(), action)),
            None => record.any = action,
            Some(port) => chains.push(records::Chain { port: port.get(), reserved: 0, action }),
        }
    }
    record.chains = match of_callers.as_slice() {
        [] => write_chains(draft, &chains)?,
        of_callers => write_callers(draft, of_callers)?,
    };
    if listener.chains.iter().any(|chain| !chain.name.is_empty()) {
        let mut names = Packer::with_capacity(32 * listener.chains.len());
        names.count(listener.chains.len());
        for chain in &listener.chains {
            names.number(chain.port.map_or(0, |port| port.get().into()));
            names.text(chain.name);
            names.count(chain.callers.len());
            chain.callers.iter().for_each(|class| names.text(class));
        }
        record.names = write_text(draft, &names)?;
    }
    let vip = |vip: &SocketAddr| Vip { key: vip_key(*vip, listener.protocol) };
    if let [only] = listener.vips.as_slice() {
        return draft.write_root(&record, &[vip(only)], version);
    }
    let vips: Vec<Vip> = listener.vips.iter().map(vip).collect();
    if vips.len() <= records::Listener::VIPS {
        return draft.write_root(&record, &vips, version);
    }
    let chunks = vips
        .chunks(VipChunk::CAPACITY)
        .map(|chunk| draft.write(&VipChunk { header: HEADER }, chunk))
        .collect::<Result<Vec<_>, _>>()?;
    let records::Listener { header: _, any, chains, names } = record;
    let record = records::WideListener { header: HEADER, any, chains, names };
    Ok(Owned::new(draft.write_root(&record, &chunks, version)?.ptr()))
}

/// Filter chains that match ports, in one slot or, where they don't fit it, in several: then the record is a
/// `ChainIndex`. Null where there are none.
fn write_chains<D: Records>(draft: &mut D, chains: &[records::Chain]) -> Result<Owned<Chains>, D::Error> {
    let mut ranges = Vec::new();
    for chunk in chains.chunks(Chains::CAPACITY as usize) {
        let written = draft.write(&Chains { header: HEADER }, chunk)?;
        ranges.push(records::ChainRange { port: chunk[0].port, reserved: 0, chains: written });
    }
    match *ranges.as_slice() {
        [] => Ok(Owned::NULL),
        [only] => Ok(only.chains),
        _ => Ok(Owned::new(draft.write(&records::ChainIndex { header: HEADER }, &ranges)?.ptr())),
    }
}

/// The chains of callers, each with the names of their classes: an index stands where other chains would.
fn write_callers<D: Records>(
    draft: &mut D,
    of_callers: &[(&[Cow<'_, str>], records::Action)],
) -> Result<Owned<Chains>, D::Error> {
    let mut written = Vec::with_capacity(of_callers.len());
    let mut entries = Vec::new();
    for (classes, action) in of_callers {
        let chain = draft.write(&records::CallerChain { header: HEADER, action: *action }, &[])?;
        written.push(chain);
        entries.extend(classes.iter().map(|class| records::CallerEntry {
            class: records::name_hash(class),
            chain: Within::new(chain.ptr()),
            reserved: 0,
        }));
    }
    entries.sort_unstable_by_key(|entry| entry.class);
    let mut chains = Owned::NULL;
    for piece in written.chunks(records::CallerChains::CAPACITY).rev() {
        chains = draft.write(&records::CallerChains { header: HEADER, next: chains, reserved: 0 }, piece)?;
    }
    let mut ranges = Vec::new();
    for piece in entries.chunks(records::Callers::CAPACITY as usize) {
        let callers = draft.write(&records::Callers { header: HEADER }, piece)?;
        ranges.push(records::CallerRange { class: piece[0].class, callers, reserved: 0 });
    }
    let index = records::CallerIndex { header: HEADER, chains, reserved: 0 };
    Ok(Owned::new(draft.write(&index, &ranges)?.ptr()))
}

fn write_action<D: Records>(draft: &mut D, action: &Action<'_>) -> Result<records::Action, D::Error> {
    let mut record = records::Action::zeroed();
    match action {
        // As a set of it alone: an action that is all null has no chain.
        Action::Cluster(name) if name == REFUSING_CLUSTER => {
            let refusing = WeightedCluster {
                cluster: REFUSING_CLUSTER.into(),
                weight: std::num::NonZeroU32::MIN,
                by_source: false,
            };
            return write_action(draft, &Action::Clusters(vec![refusing]));
        }
        Action::Cluster(name) => record.cluster = draft.handle(RecordType::Cluster.kind(), name)?.as_ref(),
        Action::Clusters(clusters) => {
            let mut tail = Vec::with_capacity(clusters.len());
            weighted(&cluster_refs(draft, clusters)?, clusters, &mut tail);
            record.clusters = draft.write(&records::ClusterSet { header: HEADER }, &tail)?;
        }
        Action::Route(name) => record.route = draft.handle(RecordType::Route.kind(), name)?.as_ref(),
        Action::Inline(route) => record.inline = write_route(draft, route, 0)?,
    }
    Ok(record)
}

/// The key of an address in the VIP map; also of a port at all nodes' addresses, and of a node's address.
pub const fn vip_key(vip: SocketAddr, protocol: Transport) -> VipKey {
    let key = asked_key(vip, protocol);
    match vip.port() {
        0 => VipKey::node(key.addr),
        _ if vip.ip().is_unspecified() => VipKey::node_port(key.addr, key.port, key.protocol),
        _ => key,
    }
}

/// The key by which programs look for an address that a connection, or a datagram, goes to.
pub const fn asked_key(to: SocketAddr, protocol: Transport) -> VipKey {
    let protocol = match protocol {
        Transport::Tcp => VipKey::TCP,
        Transport::Udp => VipKey::UDP,
    };
    VipKey::new(to.ip(), to.port(), protocol)
}

/// The clusters of all routes that a set holds, and which routes they are.
struct Sets {
    written: Vec<Owned<records::ClusterSet>>,
    /// Of each route: the number of its set, its first element there, its count.
    ranges: Vec<(u32, u16, u16)>,
}

fn write_sets<D: Records>(draft: &mut D, route: &Route<'_>) -> Result<Sets, D::Error> {
    let mut sets = Sets { written: Vec::new(), ranges: Vec::with_capacity(route.routes.len()) };
    let mut elements = Vec::with_capacity(route.clusters.len().min(records::ClusterSet::CAPACITY));
    let handles = cluster_refs(draft, &route.clusters)?;
    for entry in &route.routes {
        let range = entry.clusters.start as usize..entry.clusters.end as usize;
        let (clusters, handles) = (&route.clusters[range.clone()], &handles[range]);
        if elements.len() + clusters.len() > records::ClusterSet::CAPACITY {
            sets.written.push(draft.write(&records::ClusterSet { header: HEADER }, &elements)?);
            elements.clear();
        }
        sets.ranges.push((sets.written.len() as u32, elements.len() as u16, clusters.len() as u16));
        weighted(handles, clusters, &mut elements);
    }
    sets.written.push(draft.write(&records::ClusterSet { header: HEADER }, &elements)?);
    Ok(sets)
}

fn write_route<D: Records>(
    draft: &mut D,
    route: &Route<'_>,
    version: u64,
) -> Result<Owned<records::Route>, D::Error> {
    let sets = write_sets(draft, route)?;
    // The first route of a host is the one in force.
    let range = |host: u32| {
        let (set, first, count) = sets.ranges[route.hosts[host as usize].routes.start as usize];
        ClusterRange { set: Within::new(sets.written[set as usize].ptr()), first, count }
    };
    let index = if route.addresses.is_empty() {
        Owned::NULL
    } else {
        let hosts = route.addresses.iter().map(|&(key, host)| records::Host {
            addr: records::words(key.ip),
            port: key.port.to_be(),
            reserved: 0,
            clusters: range(host),
        });
        let table = hosts::table(hosts);
        let chunks = hosts::chunks(&table)
            .map(|chunk| draft.write(&records::HostChunk { header: HEADER }, chunk))
            .collect::<Result<Vec<_>, _>>()?;
        let size = table.places.len() as u32;
        draft.write(&records::HostIndex { header: HEADER, size, seed: table.seed }, &chunks)?
    };
    let any = route.any.map_or(ClusterRange::zeroed(), range);
    let text = write_text(draft, &route_text(route, &sets))?;
    let record = records::Route { header: HEADER, any, index, text, proxy: route.proxy, reserved: 0 };
    draft.write_root(&record, &sets.written, version)
}

fn route_text(route: &Route<'_>, sets: &Sets) -> Packer {
    let mut text = Packer::with_capacity(256 * route.hosts.len());
    text.count(route.hosts.len());
    for host in &route.hosts {
        text.text(&host.name);
        text.count(host.domains.len());
        host.domains.iter().for_each(|domain| text.text(domain));
        let routes = host.routes.start as usize..host.routes.end as usize;
        text.count(routes.len());
        for (entry, &(set, first, count)) in route.routes[routes.clone()].iter().zip(&sets.ranges[routes]) {
            text.text(&entry.name);
            text.number(set);
            text.number(first.into());
            text.number(count.into());
        }
    }
    text
}

/// The handles of these clusters, one for each. That which refuses is null, so that it needs nothing else.
fn cluster_refs<D: Records>(
    draft: &mut D,
    clusters: &[WeightedCluster<'_>],
) -> Result<Vec<Ref<records::Handle>>, D::Error> {
    let is_real = |cluster: &&WeightedCluster<'_>| !is_refusing(&cluster.cluster);
    let names: Vec<&str> = clusters.iter().filter(is_real).map(|cluster| &*cluster.cluster).collect();
    let mut handles = draft.handles(RecordType::Cluster.kind(), &names)?.into_iter();
    let mut refer = |cluster| if is_real(&cluster) { handles.next() } else { None };
    Ok(clusters.iter().map(|cluster| refer(cluster).map_or(Ref::NULL, HandlePtr::as_ref)).collect())
}

/// Appends the alias table over these clusters, whose handles these are.
fn weighted(
    handles: &[Ref<records::Handle>],
    clusters: &[WeightedCluster<'_>],
    tail: &mut Vec<records::WeightedCluster>,
) {
    let element = |i: usize, slot: Slot| records::WeightedCluster {
        cluster: handles[i],
        threshold: slot.threshold,
        // A route has at most `ClusterSet::CAPACITY` clusters.
        alias: slot.alias as u16,
        by_source: clusters[i].by_source.into(),
        weight: clusters[i].weight.get(),
    };
    match clusters {
        [_] => tail.push(element(0, Slot::always(0))),
        [first, second] => {
            let [one, two] = alias_pair([first.weight.get(), second.weight.get()]);
            tail.extend([element(0, one), element(1, two)]);
        }
        _ => {
            let table = alias_table(clusters.iter().map(|cluster| cluster.weight.get()));
            tail.extend(table.into_iter().enumerate().map(|(i, slot)| element(i, slot)));
        }
    }
}
