//! Removal of what runs, by the programs: whoever counts at the same moment keeps it.

use std::os::fd::AsFd as _;

use slotmesh_kernel::test_run;
use slotmesh_records::{BucketKey, EndpointKey, Removal};

use super::{Datapath, DatapathError, ETHERNET, error::bpf};

impl Datapath {
    /// Lets the connections count no more that are over although their sockets aren't closed.
    pub(crate) fn release_closed(&self) -> Result<(), DatapathError> {
        self.sockets.as_ref().map_or(Ok(()), |sockets| sockets.run().map_err(bpf("go over the sockets")))
    }

    /// Removes the state of a cluster where nothing counts in it; whether nothing is left of it.
    pub(crate) fn remove_cluster(&self, cluster: u64) -> Result<bool, DatapathError> {
        self.remove_state(EndpointKey::new(cluster, [0; 4], 0))
    }

    /// Removes the state of an endpoint where nothing counts at it; whether it did.
    pub(crate) fn remove_endpoint(&self, endpoint: &EndpointKey) -> Result<bool, DatapathError> {
        self.remove_state(*endpoint)
    }

    /// Takes an endpoint back whose time is over, and forgets it where it has been quiet for long; whether it did.
    pub(crate) fn settle_outlier(&self, endpoint: &EndpointKey) -> Result<bool, DatapathError> {
        self.remove_state(Removal::outlier(*endpoint))
    }

    /// Removes a bucket that is full; whether it did.
    pub(crate) fn remove_bucket(&self, bucket: &BucketKey) -> Result<bool, DatapathError> {
        self.remove_state(Removal::bucket(*bucket))
    }

    fn remove_state(&self, of: EndpointKey) -> Result<bool, DatapathError> {
        let mut packet = [0_u8; ETHERNET + size_of::<Removal>()];
        packet[ETHERNET..].copy_from_slice(bytemuck::bytes_of(&Removal { of, removed: 0 }));
        test_run(self.removal.as_fd(), &mut packet).map_err(bpf("run the removing program"))?;
        Ok(bytemuck::pod_read_unaligned::<Removal>(&packet[ETHERNET..]).removed != 0)
    }
}
