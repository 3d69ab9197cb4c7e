//! Maps beside the slots: the VIP map and those of what runs, before the programs that use them.

use std::path::Path;

use bytemuck::Pod;
use slotmesh_kernel::{Map, MapKind, MapSpec};
use slotmesh_records::{FlowTotals, ProxyTotals, SocketShare, ToldTotals, VipKey};

use super::{Datapath, DatapathError, error::bpf};
use crate::{pins::Pins, running::RunningMaps, traffic::TrafficMaps};

/// How many elements there may be of the maps beside the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// Virtual addresses.
    pub addresses: u32,
    /// Clusters whose connections count.
    pub clusters: u32,
    /// Endpoints at which connections count; and those to which they fail.
    pub endpoints: u32,
    /// Endpoints that workloads keep to.
    pub affinities: u32,
    /// Pairs of a workload and a cluster whose connections are counted, on each lane of CPUs.
    pub traffic: u32,
    /// Bytes for ends of connections that the access log hasn't read yet: a power of two, of whole pages.
    pub ends: u32,
}

impl Default for MapSizes {
    fn default() -> Self {
        Self {
            addresses: 65_536,
            clusters: 65_536,
            endpoints: 65_536,
            affinities: 16_384,
            traffic: 65_536,
            ends: 4_096,
        }
    }
}

/// Network namespaces with a proxy: more pods than a node has.
const MOST_PROXIES: u32 = 4_096;

/// An element takes memory when it is used (`BPF_F_NO_PREALLOC`).
const AS_USED: (MapKind, u32) = (MapKind::Hash, 1);

/// Where there is no room, the element goes that was used longest ago; such a map takes all its memory at once.
const LEAST_RECENT_GOES: (MapKind, u32) = (MapKind::LruHash, 0);

/// Opens a hash map, or creates it. The agent makes the elements of addresses, in a system call; those of clusters and
/// endpoints the programs make, which take them from what the kernel keeps ready for each processor and never wait;
/// where nothing is ready, the connection isn't counted. A map that is there keeps its size: attached programs use it.
fn open_hash<K: Pod, V: Pod>(
    path: &Path,
    name: &'static str,
    (kind, flags): (MapKind, u32),
    max_entries: u32,
    what: &str,
) -> Result<Map<K, V>, DatapathError> {
    let spec = MapSpec { name, kind, max_entries, flags };
    let (map, found) =
        Map::open_or_create_of_any_size(path, &spec, None).map_err(bpf(format!("open {what}")))?;
    if found != max_entries {
        tracing::warn!(
            map = what,
            elements = found,
            asked_for = max_entries,
            "a map keeps its size while anything of slotmesh is left on the node"
        );
    }
    Ok(map)
}

impl Datapath {
    /// Opens the VIP map, or creates it, before the programs that use it.
    ///
    /// # Errors
    /// Where the kernel refuses, or another kind of map is pinned there.
    pub fn open_vips(pins: &Pins, sizes: MapSizes) -> Result<Map<VipKey, u64>, DatapathError> {
        open_hash(&pins.records().join("vips"), "slotmesh_vips", AS_USED, sizes.addresses, "the VIP map")
    }

    /// Opens the maps of traffic, or creates them, before the programs that use them.
    ///
    /// # Errors
    /// Where the kernel refuses, or other kinds of maps are pinned there.
    pub(crate) fn open_traffic(pins: &Pins, sizes: MapSizes) -> Result<TrafficMaps, DatapathError> {
        const SETTINGS: MapSpec =
            MapSpec { name: "slotmesh_trafset", kind: MapKind::Array, max_entries: 1, flags: 0 };
        const TOLD: MapSpec =
            MapSpec { name: "slotmesh_told", kind: MapKind::Array, max_entries: ToldTotals::LANES, flags: 0 };
        let maps = TrafficMaps {
            counts: open_hash(
                &pins.traffic(),
                "slotmesh_traffic",
                AS_USED,
                sizes.traffic,
                "numbers of traffic",
            )?,
            settings: Map::open_or_create(&pins.traffic_settings(), &SETTINGS, None)
                .map_err(bpf("open the settings of traffic"))?,
            told: Map::open_or_create(&pins.told_totals(), &TOLD, None)
                .map_err(bpf("open the numbers of the access log"))?,
        };
        maps.prepare().map_err(bpf("make the numbers of traffic"))?;
        Ok(maps)
    }

    /// Opens the maps of what runs, or creates them, before the programs that use them.
    ///
    /// # Errors
    /// Where the kernel refuses, or other kinds of maps are pinned there.
    pub(crate) fn open_running(pins: &Pins, sizes: MapSizes) -> Result<RunningMaps, DatapathError> {
        const TOTALS: MapSpec = MapSpec {
            name: "slotmesh_totals",
            kind: MapKind::Array,
            max_entries: SocketShare::ELEMENTS,
            flags: 0,
        };
        const FLOWS: MapSpec = MapSpec {
            name: "slotmesh_flows",
            kind: MapKind::Array,
            max_entries: FlowTotals::LANES,
            flags: 0,
        };
        const KEPT: MapSpec =
            MapSpec { name: "slotmesh_afftot", kind: MapKind::Array, max_entries: 1, flags: 0 };
        const PROXIED: MapSpec = MapSpec {
            name: "slotmesh_proxtot",
            kind: MapKind::Array,
            max_entries: ProxyTotals::LANES,
            flags: 0,
        };
        let MapSizes { addresses: _, clusters, endpoints, affinities, traffic: _, ends: _ } = sizes;
        Ok(RunningMaps {
            proxies: open_hash(&pins.proxies(), "slotmesh_proxies", AS_USED, MOST_PROXIES, "the proxies")?,
            proxy_totals: Map::open_or_create(&pins.proxy_totals(), &PROXIED, None)
                .map_err(bpf("open the numbers of connections to proxies"))?,
            clusters: open_hash(
                &pins.clusters(),
                "slotmesh_clust",
                AS_USED,
                clusters,
                "what runs of clusters",
            )?,
            lanes: open_hash(
                &pins.lanes(),
                "slotmesh_lanes",
                AS_USED,
                clusters,
                "what runs of clusters by CPU",
            )?,
            endpoints: open_hash(
                &pins.endpoints(),
                "slotmesh_endp",
                AS_USED,
                endpoints,
                "what runs at endpoints",
            )?,
            buckets: open_hash(
                &pins.buckets(),
                "slotmesh_bucket",
                AS_USED,
                clusters,
                "rates of new connections",
            )?,
            outliers: open_hash(
                &pins.outliers(),
                "slotmesh_outl",
                AS_USED,
                endpoints,
                "endpoints to which connects fail",
            )?,
            affinities: open_hash(
                &pins.affinities(),
                "slotmesh_affin",
                LEAST_RECENT_GOES,
                affinities,
                "session affinities",
            )?,
            affinity_totals: Map::open_or_create(&pins.affinity_totals(), &KEPT, None)
                .map_err(bpf("open the number of session affinities"))?,
            totals: Map::open_or_create(&pins.totals(), &TOTALS, None)
                .map_err(bpf("open the number of sockets"))?,
            flows: Map::open_or_create(&pins.flow_totals(), &FLOWS, None)
                .map_err(bpf("open the numbers of flows"))?,
        })
    }
}
