//! The endpoint of a cluster: the one that is kept to, else one that is chosen.

use slotmesh_records::{
    Endpoint, EndpointChunk, EndpointIndex, Endpoints, Family, HashChunk, HashTable, Record, SlotPtr,
    balance, choose,
};

use super::{Choice, Numbers, forget, record};
use crate::{
    affinity::{self, Kept},
    place::{Place, tail},
    running,
};

/// The endpoints of one family.
pub struct List<'p> {
    at: &'p Place,
    chunked: bool,
    first: u32,
}

impl List<'_> {
    #[inline(always)]
    pub fn element(&self, i: u32) -> Option<Endpoint> {
        let i = self.first.wrapping_add(i);
        if self.chunked {
            let chunk =
                self.at.read::<SlotPtr>(tail::<EndpointIndex, SlotPtr>(i / EndpointChunk::CAPACITY))?;
            let chunk = Place::of(chunk)?;
            chunk.read::<Endpoint>(tail::<EndpointChunk, Endpoint>(i % EndpointChunk::CAPACITY))
        } else {
            self.at.read::<Endpoint>(tail::<Endpoints, Endpoint>(i))
        }
    }

    /// The endpoint with this address and port, of `count`, as [`pick`](Self::pick) answers: they are sorted.
    #[inline(always)]
    fn find(&self, count: u32, kept: &Kept) -> Option<Endpoint> {
        let wanted = Endpoint::order(kept.addr, kept.port);
        // So the verifier learns nothing from one step for the next ones: neither of the number nor of the count.
        let unknown = kept.addr[3];
        let mut found = 0;
        let mut step = EndpointIndex::CAPACITY.next_power_of_two() as u32 / 2;
        while step > 0 {
            let next = found + step;
            if next < forget(count, unknown) {
                let element = self.element(next)?;
                if Endpoint::order(element.addr, element.port) <= wanted {
                    found = next;
                }
            }
            found = forget(found, unknown);
            step /= 2;
        }
        let element = self.element(found)?;
        (Endpoint::order(element.addr, element.port) == wanted)
            .then_some(Endpoint { alias: found, ..element })
    }

    /// Element `i`, or its alias where `fraction` isn't below its threshold: with its own number for its alias, of which
    /// nobody knows anything any more.
    #[inline(always)]
    fn pick(&self, i: u32, fraction: Option<u32>) -> Option<Endpoint> {
        let chosen = self.element(i)?;
        match fraction {
            Some(fraction) if fraction >= chosen.threshold => {
                Some(Endpoint { alias: chosen.alias, ..self.element(chosen.alias)? })
            }
            _ => Some(Endpoint { alias: i, ..chosen }),
        }
    }
}

/// A cluster, and how its endpoints are chosen.
pub(super) struct Chosen {
    /// The hash of its name.
    pub(super) name: u64,
    /// See [`balance`].
    pub(super) balance: u32,
    /// For how many seconds a caller keeps to an endpoint; 0 where it doesn't.
    pub(super) affinity: u32,
}

/// The endpoints of one family, how many there are, and whether they differ in weight.
#[inline(always)]
pub fn of_family<'p>(at: &'p Place, head: &Endpoints, family: Family) -> (List<'p>, u32, bool) {
    let (first, all) = match family {
        Family::V4 => (0, head.v4),
        Family::V6 => (head.v4 & !Endpoints::WEIGHTED, head.v6),
    };
    let list = List { at, chunked: head.header.kind.get() == EndpointIndex::KIND.get(), first };
    (list, all & !Endpoints::WEIGHTED, all & Endpoints::WEIGHTED != 0)
}

/// The endpoint to take, as [`List::pick`] answers. `kept` is what is kept to where there is no affinity; of port 0 where that is
/// nothing.
#[inline(always)]
pub(super) fn endpoint(
    at: &Place,
    head: &Endpoints,
    family: Family,
    cluster: &Chosen,
    mut kept: Kept,
    numbers: &impl Numbers,
) -> Option<Endpoint> {
    let (list, count, weighted) = of_family(at, head, family);
    if count == 0 {
        return None;
    }
    // Without affinity this costs nothing.
    let key = if cluster.affinity == 0 { None } else { numbers.affinity(cluster.name) };
    if let Some(key) = &key
        && let Some(found) = affinity::kept(key, cluster.affinity)
    {
        kept = found;
    }
    if kept.port != 0 {
        if let Some(endpoint) = list.find(count, &kept) {
            return Some(endpoint);
        }
        if let Some(key) = &key {
            affinity::remove(key);
        }
    }
    let chosen = choose_one(&list, head, family, (count, weighted), cluster, numbers)?;
    if let Some(key) = &key
        && !affinity::keep(key, &chosen)
        && let Some(kept) = affinity::kept(key, cluster.affinity)
        && let Some(endpoint) = list.find(count, &kept)
    {
        // Another connection of the workload was faster: both go the same way.
        return Some(endpoint);
    }
    Some(chosen)
}

/// Chooses an endpoint of `count`, as the cluster says.
#[inline(always)]
fn choose_one(
    list: &List<'_>,
    head: &Endpoints,
    family: Family,
    (count, weighted): (u32, bool),
    cluster: &Chosen,
    numbers: &impl Numbers,
) -> Option<Endpoint> {
    let &Chosen { name: cluster, balance, affinity: _ } = cluster;
    let number = numbers.endpoint(&Choice { cluster, balance, count, weighted });
    let of_source =
        if balance == balance::HASH { of_source(head.hashes.ptr(), family, number) } else { None };
    let (i, fraction) = match of_source {
        Some(i) => (i, None),
        None => {
            let (i, fraction) = choose(number, count);
            (i, Some(fraction))
        }
    };
    let chosen = list.pick(i, fraction)?;
    if balance == balance::LEAST_CONNECTIONS {
        let (i, fraction) = choose(numbers.other(), count);
        let other = list.pick(i, Some(fraction))?;
        if running::is_busier(cluster, &chosen, &other) {
            return Some(other);
        }
    }
    Some(chosen)
}

/// The number of the endpoint that a source has; `None` where there is no table for the family.
#[inline(always)]
fn of_source(table: SlotPtr, family: Family, source: u32) -> Option<u32> {
    let at = Place::of(table)?;
    let table = record::<HashTable>(&at)?;
    let (first, size) = match family {
        Family::V4 => (0, table.v4),
        Family::V6 => (table.v4.div_ceil(HashChunk::CAPACITY), table.v6),
    };
    if size == 0 {
        return None;
    }
    let (i, _) = choose(source, size);
    let chunk = at.read::<SlotPtr>(tail::<HashTable, SlotPtr>(first + i / HashChunk::CAPACITY))?;
    Place::of(chunk)?.read::<u32>(tail::<HashChunk, u32>(i % HashChunk::CAPACITY))
}
