//! Model -> records, children before parents, packed.
//!
//! ```text
//! Endpoints of up to 126    1 slot: header, IPv4 table, IPv6 table
//! Endpoints of more         1 index slot and a slot per 126
//! Cluster                   1 slot
//! Route                     1 slot
//! Listener                  1 slot, and 1 more where it has several clusters
//! ```
//! and one slot for the handle of each, which holds the name.

use bytemuck::Zeroable as _;
use slotmesh_records::{
    self as records, EndpointChunk, EndpointIndex, Owned, RecordHeader, Ref, Vip, VipKey,
};
use slotmesh_slots::{Draft, Full, HandlePtr, ResourceKind};
use slotmesh_xds::ResourceType;

use crate::{
    alias::alias_table,
    config::{Action, Cluster, Endpoint, Endpoints, Listener, Model, WeightedCluster},
};

/// The number under which the engine keeps a resource type; part of the records' layout.
pub const fn kind(ty: ResourceType) -> ResourceKind {
    ResourceKind(match ty {
        ResourceType::Cluster => 1,
        ResourceType::Endpoints => 2,
        ResourceType::Route => 3,
        ResourceType::Listener => 4,
    })
}

/// The resource type that the engine keeps under this number.
pub fn resource_type(kind_: ResourceKind) -> Option<ResourceType> {
    ResourceType::ALL.into_iter().find(|&ty| kind(ty) == kind_)
}

/// Writes the records of a resource and makes them current.
///
/// # Errors
/// Where no slot is to be had; nothing has changed then.
pub fn flush(mut draft: Draft<'_>, name: &str, version: u64, model: &Model) -> Result<HandlePtr, Full> {
    match model {
        Model::Cluster(cluster) => {
            let handle = draft.handle(kind(ResourceType::Cluster), name)?;
            let root = write_cluster(&mut draft, cluster, version)?;
            draft.publish(handle, root);
            Ok(handle)
        }
        Model::Endpoints(endpoints) => {
            let handle = draft.handle(kind(ResourceType::Endpoints), name)?;
            if let Some(root) = write_endpoints(&mut draft, endpoints, version)? {
                draft.publish(handle, root);
            } else {
                let root = write_endpoint_index(&mut draft, endpoints, version)?;
                draft.publish(handle, root);
            }
            Ok(handle)
        }
        Model::Route(route) => {
            let handle = draft.handle(kind(ResourceType::Route), name)?;
            let tail = weighted(&mut draft, &route.clusters)?;
            let root = draft.write_root(&records::Route { header: HEADER }, &tail, version)?;
            draft.publish(handle, root);
            Ok(handle)
        }
        Model::Listener(listener) => {
            let handle = draft.handle(kind(ResourceType::Listener), name)?;
            let root = write_listener(&mut draft, listener, version)?;
            draft.publish(handle, root);
            Ok(handle)
        }
    }
}

/// The engine fills it in.
const HEADER: RecordHeader =
    RecordHeader { kind: records::RecordKind::new(0), units: 0, count: 0, version: 0 };

fn write_cluster(
    draft: &mut Draft<'_>,
    cluster: &Cluster,
    version: u64,
) -> Result<Owned<records::Cluster>, Full> {
    let endpoints = draft.handle(kind(ResourceType::Endpoints), cluster.endpoints.as_str())?.as_ref();
    let record =
        records::Cluster { header: HEADER, endpoints, connect_timeout_ms: cluster.connect_timeout_ms };
    draft.write_root(&record, &[], version)
}

/// The tables of both families behind each other; `None` where they don't fit one slot.
fn write_endpoints(
    draft: &mut Draft<'_>,
    endpoints: &Endpoints,
    version: u64,
) -> Result<Option<Owned<records::Endpoints>>, Full> {
    if endpoints.v4.len() + endpoints.v6.len() > EndpointChunk::CAPACITY as usize {
        return Ok(None);
    }
    let record =
        records::Endpoints { header: HEADER, v4: endpoints.v4.len() as u32, v6: endpoints.v6.len() as u32 };
    draft.write_root(&record, &tables(endpoints), version).map(Some)
}

fn write_endpoint_index(
    draft: &mut Draft<'_>,
    endpoints: &Endpoints,
    version: u64,
) -> Result<Owned<EndpointIndex>, Full> {
    let chunks = tables(endpoints)
        .chunks(EndpointChunk::CAPACITY as usize)
        .map(|chunk| draft.write(&EndpointChunk { header: HEADER, reserved: [0; 4] }, chunk))
        .collect::<Result<Vec<_>, _>>()?;
    let record =
        EndpointIndex { header: HEADER, v4: endpoints.v4.len() as u32, v6: endpoints.v6.len() as u32 };
    draft.write_root(&record, &chunks, version)
}

fn tables(endpoints: &Endpoints) -> Vec<records::Endpoint> {
    let mut elements = Vec::with_capacity(endpoints.v4.len() + endpoints.v6.len());
    for family in [&endpoints.v4, &endpoints.v6] {
        let table = alias_table(family.iter().map(|endpoint: &Endpoint| endpoint.weight.get()));
        elements.extend(family.iter().zip(table).map(|(endpoint, slot)| records::Endpoint {
            addr: VipKey::new(endpoint.ip, 0, 0).addr,
            port: endpoint.port.get().to_be(),
            reserved: 0,
            threshold: slot.threshold,
            alias: slot.alias,
            weight: endpoint.weight.get(),
        }));
    }
    elements
}

fn write_listener(
    draft: &mut Draft<'_>,
    listener: &Listener,
    version: u64,
) -> Result<Owned<records::Listener>, Full> {
    let mut record = records::Listener::zeroed();
    match &listener.action {
        Action::Clusters(clusters) => {
            if let [only] = clusters.as_slice() {
                record.cluster = cluster_ref(draft, only)?;
            } else {
                let tail = weighted(draft, clusters)?;
                record.clusters = draft.write(&records::ClusterSet { header: HEADER }, &tail)?;
            }
        }
        Action::Route(name) => {
            record.route = draft.handle(kind(ResourceType::Route), name.as_str())?.as_ref();
        }
    }
    let vips: Vec<Vip> = listener.vips.iter().map(|vip| Vip { key: vip_key(*vip) }).collect();
    draft.write_root(&record, &vips, version)
}

/// The key of a TCP address in the VIP map.
pub const fn vip_key(vip: std::net::SocketAddr) -> VipKey {
    VipKey::new(vip.ip(), vip.port(), VipKey::TCP)
}

fn weighted(
    draft: &mut Draft<'_>,
    clusters: &[WeightedCluster],
) -> Result<Vec<records::WeightedCluster>, Full> {
    let table = alias_table(clusters.iter().map(|cluster| cluster.weight.get()));
    clusters
        .iter()
        .zip(table)
        .map(|(cluster, slot)| {
            Ok(records::WeightedCluster {
                cluster: cluster_ref(draft, cluster)?,
                threshold: slot.threshold,
                alias: slot.alias,
                weight: cluster.weight.get(),
            })
        })
        .collect()
}

fn cluster_ref(draft: &mut Draft<'_>, cluster: &WeightedCluster) -> Result<Ref<records::Handle>, Full> {
    Ok(draft.handle(kind(ResourceType::Cluster), cluster.cluster.as_str())?.as_ref())
}
