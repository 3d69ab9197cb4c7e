//! The index of virtual hosts by address: a cuckoo table (Pagh and Rodler 2001), so that a program
//! looks at two places at most. Two places for each address are the threshold below which insertions fail
//! (at it a fifth of all seeds does); with two and a half hardly any does, and then another seed is tried.

use slotmesh_records::{ClusterRange, Host, HostChunk, HostIndex};

/// How often an insertion may push others on before another seed is tried.
const PUSHES: usize = 256;

/// The places, and the seed by which they are computed.
pub(crate) struct Table {
    pub places: Vec<Host>,
    pub seed: u32,
}

/// Builds the table over hosts of different addresses, at least one.
pub(crate) fn table(hosts: impl ExactSizeIterator<Item = Host> + Clone) -> Table {
    let size = size(hosts.len());
    (0..)
        .find_map(|seed| place(hosts.clone(), size, seed))
        .expect("a seed among 2^32 has room for a table of which two fifths are full")
}

/// How many places there are for so many hosts.
const fn size(hosts: usize) -> usize {
    hosts * 5 / 2 + 1
}

/// The most hosts: what the places of a full slot's chunks are for.
pub(crate) const MOST: usize = (HostIndex::PLACES as usize - 1) * 2 / 5;

const EMPTY: Host = Host {
    addr: [0; 4],
    port: 0,
    reserved: 0,
    clusters: ClusterRange { set: slotmesh_records::Within::NULL, first: 0, count: 0 },
};

const fn is_free(place: &Host) -> bool {
    place.clusters.set.ptr().is_null()
}

fn place(hosts: impl Iterator<Item = Host>, size: usize, seed: u32) -> Option<Table> {
    let mut places = vec![EMPTY; size];
    for mut host in hosts {
        let mut pushed_from = None;
        let mut placed = false;
        for _ in 0..PUSHES {
            let [first, second] =
                HostIndex::places(host.addr, host.port, size as u32, seed).map(|place| place as usize);
            if let Some(free) = [first, second].into_iter().find(|&place| is_free(&places[place])) {
                places[free] = host;
                placed = true;
                break;
            }
            // What was pushed out goes to its other place.
            let at = if pushed_from == Some(first) { second } else { first };
            std::mem::swap(&mut places[at], &mut host);
            pushed_from = Some(at);
        }
        if !placed {
            return None;
        }
    }
    Some(Table { places, seed })
}

/// The pieces of a table that fit a slot each.
pub(crate) fn chunks(table: &Table) -> impl Iterator<Item = &[Host]> {
    table.places.chunks(HostChunk::CAPACITY as usize)
}

#[cfg(test)]
mod tests {
    use slotmesh_records::{SlotPtr, Within};

    use super::*;

    fn host(i: u32) -> Host {
        Host {
            addr: [0, 0, 0xffff_u32.to_be(), (0x0a60_0000 + i / 2).to_be()],
            port: if i.is_multiple_of(2) { 0 } else { 80_u16.to_be() },
            clusters: ClusterRange { set: Within::new(SlotPtr::from_bits(1)), first: i as u16, count: 1 },
            ..EMPTY
        }
    }

    #[test]
    fn the_most_hosts_have_a_table() {
        assert!(size(MOST) <= HostIndex::PLACES as usize && size(MOST + 1) > HostIndex::PLACES as usize);
    }

    /// A seed that fails costs the owner of the maps a whole table's time.
    #[test]
    fn hardly_any_seed_fails() {
        for count in [10, 100, 1_000, 10_000] {
            let size = size(count as usize);
            let failed = (0..100).filter(|&seed| place((0..count).map(host), size, seed).is_none()).count();
            assert!(failed <= 5, "{failed} seeds of 100 fail for {count}");
        }
    }

    #[test]
    fn every_address_is_at_one_of_its_places() {
        for count in [1, 2, 3, 10, 1000, 30_000_u32] {
            let hosts: Vec<Host> = (0..count).map(host).collect();
            let table = table(hosts.iter().copied());
            for host in &hosts {
                let at = HostIndex::places(host.addr, host.port, table.places.len() as u32, table.seed);
                let found = at.iter().any(|&place| {
                    let found = table.places[place as usize];
                    (found.addr, found.port) == (host.addr, host.port)
                });
                assert!(found, "{host:?} of {count}");
            }
            assert_eq!(chunks(&table).map(<[Host]>::len).sum::<usize>(), table.places.len());
        }
    }
}
