//! Numbers of the traffic of this node's workloads: read from the kernel's maps when somebody asks, on whatever thread, so
//! that no update waits for it; kept by name for as many pairs of a workload and a Service as there may be, the rest summed.
//!
//! ```text
//! programs -> TRAFFIC (ended)  -\
//! open -> sockets (still open) ---> Ledger (by name, bounded) -> exposition
//! programs -> ENDS (ring)      ----> access log
//! ```

pub mod access_log;
mod destinations;
mod exposition;
mod ledger;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use slotmesh_kernel::{BpfError, Map};
use slotmesh_records::{
    ConnectionEnding, OpenConnection, ToldTotals, TrafficKey, TrafficSettings, TrafficState,
};

use self::ledger::{Ledger, Open, Pair, PairNames};
use crate::{
    agent::Handle,
    datapath::{Datapath, DatapathError},
};

/// The maps of traffic.
pub(crate) struct TrafficMaps {
    pub counts: Map<TrafficKey, TrafficState>,
    pub settings: Map<u32, TrafficSettings>,
    pub told: Map<u32, ToldTotals>,
}

impl TrafficMaps {
    /// Makes the elements for all that has none of its own, where they are missing.
    pub fn prepare(&self) -> Result<(), BpfError> {
        for lane in 0..TrafficKey::LANES {
            let key = TrafficKey::other(lane);
            if self.counts.get(&key)?.is_none() {
                self.counts.update(&key, &TrafficState::NONE)?;
            }
        }
        Ok(())
    }
}

/// Ends of connections that the programs told, or had no room to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Told.
    pub told: u64,
    /// Lost, as nobody read them in time.
    pub lost: u64,
}

/// Reads and bounds numbers of traffic.
pub(crate) struct TrafficReader {
    maps: TrafficMaps,
    datapath: Arc<Datapath>,
    ledger: Mutex<Ledger>,
    settings: Mutex<TrafficSettings>,
}

/// The sums of the kernel, by pair; and what is open.
struct Read {
    ended: HashMap<Pair, TrafficState>,
    open: HashMap<Pair, Open>,
}

impl TrafficReader {
    pub fn new(maps: TrafficMaps, datapath: Arc<Datapath>) -> Self {
        Self { maps, datapath, ledger: Mutex::default(), settings: Mutex::default() }
    }

    /// Shows so many pairs by name from now on; with 0 the programs count nothing.
    pub fn show(&self, most: usize) -> Result<(), BpfError> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner).set_most(most);
        self.set(|settings| settings.counts = u32::from(most > 0))
    }

    /// Tells the access log of this share of all ends, of [`TrafficSettings::ALL`]; 0 of none.
    pub fn tell(&self, share: u32) -> Result<(), BpfError> {
        self.set(|settings| settings.told = share)
    }

    fn set(&self, change: impl FnOnce(&mut TrafficSettings)) -> Result<(), BpfError> {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut settings);
        self.maps.settings.update(&0, &settings)
    }

    /// How many ends were told and lost since the maps were made.
    pub fn told(&self) -> Result<Told, BpfError> {
        let lanes = self.maps.told.entries()?;
        Ok(lanes.into_iter().fold(Told::default(), |sum, (_, lane)| Told {
            told: sum.told + lane.told,
            lost: sum.lost + lane.lost,
        }))
    }

    /// The names of the workloads that are attached, by their marks.
    pub fn sources(&self) -> HashMap<u32, [String; 2]> {
        self.datapath.sources()
    }

    /// Reads what has ended, then what is open: what ends meanwhile is in neither, and is in both never.
    fn read(&self) -> Result<Read, DatapathError> {
        let mut ended = HashMap::<Pair, TrafficState>::new();
        for (key, state) in self.maps.counts.entries().map_err(DatapathError::running)? {
            let sum = ended.entry(Pair::of(key)).or_default();
            *sum = sum.plus(&state);
        }
        let mut open = HashMap::<Pair, Open>::new();
        for OpenConnection { cluster, sent, received, source, retransmits } in
            self.datapath.open_connections()?
        {
            let sum = open.entry(Pair { cluster, source }).or_default();
            sum.connections += 1;
            sum.sent += sent;
            sum.received += received;
            sum.retransmits += u64::from(retransmits);
        }
        Ok(Read { ended, open })
    }

    /// Forgets what nobody counts in any more.
    fn forget(&self, pairs: &[Pair]) -> Result<(), BpfError> {
        for pair in pairs {
            for lane in 0..TrafficKey::LANES {
                self.maps.counts.delete(&TrafficKey { cluster: pair.cluster, source: pair.source, lane })?;
            }
        }
        Ok(())
    }

    /// Takes over what the kernel has counted until now. `names` are asked for clusters whose names aren't known yet.
    fn take(&self, read: Read, names: &HashMap<u64, String>, is_known: bool) {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let over = ledger.take(
            &read.ended,
            &read.open,
            PairNames { sources: &self.sources(), clusters: names },
            is_known,
        );
        if let Err(error) = self.forget(&over) {
            tracing::warn!(%error, "numbers of traffic of workloads that are gone can't be removed");
        }
    }
}

impl Handle {
    /// Shows traffic of so many pairs of a workload and a Service, the busiest, in metrics; 0 counts none.
    ///
    /// # Errors
    /// Where the kernel doesn't take the setting.
    pub fn show_traffic(&self, most: usize) -> Result<(), BpfError> {
        self.traffic.as_ref().map_or(Ok(()), |traffic| traffic.show(most))
    }

    /// How many ends of connections the programs told the access log, and how many they couldn't.
    ///
    /// # Errors
    /// Where the kernel doesn't say.
    pub fn told(&self) -> Result<Told, BpfError> {
        self.traffic.as_ref().map_or(Ok(Told::default()), |traffic| traffic.told())
    }

    /// The lines of the exposition that tell of traffic; empty where nothing is counted.
    pub async fn traffic_lines(&self) -> String {
        let Some(traffic) = self.traffic.clone() else { return String::new() };
        let of_log = {
            let is_told = traffic.settings.lock().unwrap_or_else(PoisonError::into_inner).told != 0;
            let told = if is_told { traffic.told() } else { Ok(Told::default()) };
            match told {
                Ok(told) if is_told => exposition::of_log(told),
                Ok(_) => String::new(),
                Err(error) => {
                    tracing::warn!(%error, "the numbers of the access log can't be read");
                    String::new()
                }
            }
        };
        if !traffic.ledger.lock().unwrap_or_else(PoisonError::into_inner).is_shown() {
            return of_log;
        }
        let reader = traffic.clone();
        let read = match tokio::task::spawn_blocking(move || reader.read()).await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => {
                tracing::warn!(%error, "numbers of traffic can't be read");
                return of_log;
            }
            Err(_panicked) => return of_log,
        };
        let clusters: HashSet<u64> =
            read.ended.keys().chain(read.open.keys()).map(|pair| pair.cluster).collect();
        let asked = clusters.len();
        let names = if asked == 0 { HashMap::new() } else { self.cluster_names(clusters).await };
        let is_known = self.is_synced();
        let shown = tokio::task::spawn_blocking(move || {
            traffic.take(read, &names, is_known);
            let ledger = traffic.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            exposition::lines(&ledger)
        });
        shown.await.unwrap_or_default() + &of_log
    }
}

/// The reasons for which connects fail, or are refused in the kernel.
const FAILURES: [ConnectionEnding; 4] = [
    ConnectionEnding::Refused,
    ConnectionEnding::TimedOut,
    ConnectionEnding::Abandoned,
    ConnectionEnding::Unsent,
];
const REFUSALS: [ConnectionEnding; 4] = [
    ConnectionEnding::Full,
    ConnectionEnding::TooFast,
    ConnectionEnding::NoEndpoint,
    ConnectionEnding::NoRoom,
];
