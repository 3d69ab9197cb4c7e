//! The engine's needs of the kernel: slabs and grace periods.

use std::num::NonZeroUsize;

#[cfg(not(loom))]
use slotmesh_kernel::Outer;
use slotmesh_records::SlabIndex;

use crate::sync::MappedSlab;

/// Why the kernel didn't.
pub type BackingError = Box<dyn std::error::Error + Send + Sync>;

/// Where slabs come from. Called by the growth thread and the grace-period thread at the same time.
pub trait Backing: Send + Sync + 'static {
    /// Creates these slabs so that programs can reach them and a later agent finds them.
    ///
    /// # Errors
    /// Then none of them is in use.
    fn create(&self, slabs: &[SlabIndex]) -> Result<Vec<MappedSlab>, BackingError>;

    /// Takes slabs away that nothing leads to any more.
    ///
    /// # Errors
    /// Then they may take memory until they are created again; none is in use.
    fn remove(&self, slabs: Vec<MappedSlab>) -> Result<(), BackingError>;

    /// From now on this many threads share the creation of slabs.
    fn set_threads(&self, _threads: NonZeroUsize) {}

    /// Returns after every program run that was under way at the call has ended.
    ///
    /// # Errors
    /// Then nothing is known about them.
    fn barrier(&self) -> Result<(), BackingError>;

    /// The slabs that an earlier agent left.
    ///
    /// # Errors
    /// Where they can't be opened.
    fn existing(&self) -> Result<Vec<MappedSlab>, BackingError>;
}

#[cfg(not(loom))]
impl Backing for Outer {
    fn create(&self, slabs: &[SlabIndex]) -> Result<Vec<MappedSlab>, BackingError> {
        Ok(Self::create(self, slabs)?)
    }

    fn remove(&self, slabs: Vec<MappedSlab>) -> Result<(), BackingError> {
        Ok(Self::remove(self, slabs)?)
    }

    fn set_threads(&self, threads: NonZeroUsize) {
        Self::set_threads(self, threads);
    }

    fn barrier(&self) -> Result<(), BackingError> {
        Ok(Self::barrier(self)?)
    }

    fn existing(&self) -> Result<Vec<MappedSlab>, BackingError> {
        Ok(self.recover()?)
    }
}
