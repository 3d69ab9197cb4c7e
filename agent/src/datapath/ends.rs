//! The ring buffer in which the programs tell of connections that end.

use std::fmt;

use aya::maps::{Map, MapData, RingBuf};
use slotmesh_records::ConnectionEnd;

use super::{Datapath, DatapathError};

/// Reads ends of connections: the only one that does.
pub(crate) struct Ends(RingBuf<MapData>);

impl Ends {
    pub(super) fn new(map: Option<Map>) -> Result<Self, DatapathError> {
        let map = map.ok_or(DatapathError::NoObject)?;
        RingBuf::try_from(map).map(Self).map_err(|error| DatapathError::Load(error.into()))
    }

    /// Takes out at most so many.
    pub fn take(&mut self, into: &mut Vec<ConnectionEnd>, most: usize) {
        for _ in 0..most {
            let Some(item) = self.0.next() else { return };
            // The programs write nothing else.
            into.extend(bytemuck::try_pod_read_unaligned::<ConnectionEnd>(&item).ok());
        }
    }
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ends").finish_non_exhaustive()
    }
}

impl Datapath {
    /// The ends of connections that the programs tell of; `None` where somebody has them already.
    pub(crate) fn take_ends(&self) -> Option<Ends> {
        self.ends.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}
