//! Applies resources to the kernel's maps: the slot engine and the VIP map together.
//!
//! The kernel maps are the only state: which resources are in force, at which version, and which VIPs
//! a listener has, is read from the records themselves.
//!
//! A VIP leads to its listener's handle. It is entered after the listener is current (a program never
//! finds a handle that leads nowhere) and leaves before the listener is given up.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use slotmesh_ads::Update;
use slotmesh_kernel::{Arena, BpfError, Map, Outer};
use slotmesh_records::{Listener, SlotPtr, Vip, VipKey, VipValue};
use slotmesh_slots::{Backing, Config, Engine, Full, HandlePtr, RecoverError, Stats};
use slotmesh_xds::{Rejection, Resource, ResourceName, ResourceType, Version};

use crate::{
    config::{Invalid, Model},
    flatten::{flush, kind, resource_type, vip_key},
};

/// Why a resource isn't in force; the version before it, if there is one, still is.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It can't be acted on.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// There is no room for it.
    #[error(transparent)]
    Full(#[from] Full),
    /// Its address could not be entered.
    #[error("address {vip} can't be entered into the VIP map ({source}); it holds at most 65536 addresses")]
    Vip {
        /// The address.
        vip: std::net::SocketAddr,
        /// The kernel's answer.
        #[source]
        source: BpfError,
    },
}

/// How long a flush took: from decoded message to current, and of what type.
#[derive(Clone, Copy, Debug)]
pub struct Flush {
    /// The type of the resource.
    pub ty: ResourceType,
    /// Validated model to published records.
    pub took: Duration,
}

/// A listener, or the removal of one, that could not be carried through by the kernel.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The slots can't be had.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The VIP map can't be read or written.
    #[error("VIP map: {0}")]
    Vips(#[from] BpfError),
}

/// The one writer of the kernel's maps.
pub struct Writer {
    engine: Engine,
    vips: Map<VipKey, u64>,
}

impl Writer {
    /// Takes over what is in the maps, or begins anew. Afterwards the VIP map says what the listeners
    /// that are in force say.
    ///
    /// # Errors
    /// Where the maps can't be read.
    pub fn open(
        outer: Outer,
        arena: Arena,
        vips: Map<VipKey, u64>,
        config: Config,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Self, OpenError> {
        let mut entered = Vec::new();
        for key in vips.keys()? {
            if let Some(value) = vips.get(&key)? {
                entered.push((key, SlotPtr::from_bits(VipValue::from_bits(value).bits() as u32)));
            }
        }
        let roots: Vec<SlotPtr> = entered.iter().map(|&(_, handle)| handle).collect();
        let backing: Arc<dyn Backing> = Arc::new(outer);
        let (engine, recovered) = Engine::open(&backing, arena, config, &roots, wake)?;
        let mut writer = Self { engine, vips };
        for (key, handle) in entered {
            if !writer.vips_of(handle).contains(&key) || recovered.orphans.iter().any(|o| o.ptr() == handle) {
                writer.vips.delete(&key)?;
            }
        }
        for orphan in recovered.orphans {
            writer.engine.remove_after_grace(orphan);
        }
        let listener = kind(ResourceType::Listener);
        for resource in recovered.resources.iter().filter(|resource| resource.kind == listener) {
            for key in writer.vips_of(resource.handle.ptr()) {
                writer.vips.update(&key, &VipValue::new(&key, resource.handle.as_ref()).bits())?;
            }
        }
        writer.engine.poll();
        Ok(writer)
    }

    /// Applies one response; `flushed` is told of each resource that became current.
    pub fn apply(&mut self, update: Update, mut flushed: impl FnMut(Flush)) -> Vec<Rejection> {
        let mut rejected = Vec::new();
        for resource in update.upserts {
            match Model::decode(&resource).map_err(Refusal::from).and_then(|model| {
                let started = Instant::now();
                self.upsert(&resource, &model)?;
                Ok(started.elapsed())
            }) {
                Ok(took) => flushed(Flush { ty: resource.ty, took }),
                Err(error) => {
                    tracing::warn!(resource = %resource.name, ty = %resource.ty, %error, "refused a resource");
                    rejected.push(Rejection { name: resource.name, reason: error.to_string() });
                }
            }
        }
        for name in update.removed {
            if let Err(error) = self.remove(update.ty, &name) {
                tracing::error!(resource = %name, ty = %update.ty, %error, "can't remove a resource");
            }
        }
        self.engine.poll();
        rejected
    }

    /// Makes a validated resource current.
    ///
    /// # Errors
    /// Then the version before it, if there is one, still is.
    pub fn upsert(&mut self, resource: &Resource, model: &Model) -> Result<(), Refusal> {
        let (name, version) = (resource.name.as_str(), resource.version.get());
        let Model::Listener(listener) = model else {
            flush(self.engine.draft(), name, version, model)?;
            return Ok(());
        };
        let wanted: BTreeSet<VipKey> = listener.vips.iter().map(|&vip| vip_key(vip)).collect();
        let known = self.engine.find(kind(ResourceType::Listener), name);
        let held = known.map(|handle| self.vips_of(handle.ptr())).unwrap_or_default();
        if let Some(handle) = known.filter(|&handle| !self.engine.current(handle).is_null()) {
            // The handle leads to the old version until the flush, so new addresses can come first:
            // where one is refused, nothing of the old version has changed.
            let new: Vec<VipKey> = wanted.difference(&held).copied().collect();
            self.enter(handle, &new)?;
            if let Err(full) = flush(self.engine.draft(), name, version, model) {
                self.leave(handle, new);
                return Err(full.into());
            }
            self.leave(handle, held.difference(&wanted).copied());
        } else {
            let handle = flush(self.engine.draft(), name, version, model)?;
            let all: Vec<VipKey> = wanted.into_iter().collect();
            if let Err(error) = self.enter(handle, &all) {
                self.engine.remove_after_grace(handle);
                return Err(error);
            }
        }
        Ok(())
    }

    /// A resource is no more.
    ///
    /// # Errors
    /// Where an address can't be taken out of the VIP map; the listener then stays.
    pub fn remove(&mut self, ty: ResourceType, name: &ResourceName) -> Result<(), BpfError> {
        let Some(handle) = self.engine.find(kind(ty), name.as_str()) else { return Ok(()) };
        if ty == ResourceType::Listener {
            for key in self.vips_of(handle.ptr()) {
                if self.owns(handle, &key) {
                    self.vips.delete(&key)?;
                }
            }
            self.engine.remove_after_grace(handle);
        } else {
            self.engine.remove(handle);
        }
        Ok(())
    }

    /// What is in force: type, name, version.
    pub fn held(&self) -> Vec<(ResourceType, ResourceName, Version)> {
        self.engine
            .resources()
            .filter_map(|(kind, name, version)| {
                Some((resource_type(kind)?, name.into(), Version::from_u64(version)?))
            })
            .collect()
    }

    /// The slot table.
    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// Takes finished background work over.
    pub fn poll(&mut self) {
        self.engine.poll();
    }

    /// The addresses in the current version of a listener.
    fn vips_of(&self, handle: SlotPtr) -> BTreeSet<VipKey> {
        let listener = self
            .engine
            .record::<slotmesh_records::Handle>(handle)
            .and_then(|(handle, _)| self.engine.record::<Listener>(handle.current));
        listener.map(|(_, vips)| vips.iter().map(|vip: &Vip| vip.key).collect()).unwrap_or_default()
    }

    /// Enters addresses; where one fails, those before it are taken out again.
    fn enter(&self, handle: HandlePtr, keys: &[VipKey]) -> Result<(), Refusal> {
        for (i, key) in keys.iter().enumerate() {
            if let Err(source) = self.vips.update(key, &VipValue::new(key, handle.as_ref()).bits()) {
                self.leave(handle, keys[..i].iter().copied());
                return Err(Refusal::Vip { vip: key.socket_addr(), source });
            }
        }
        Ok(())
    }

    /// Takes addresses out, where they still lead to this handle.
    fn leave(&self, handle: HandlePtr, keys: impl IntoIterator<Item = VipKey>) {
        for key in keys {
            if self.owns(handle, &key)
                && let Err(error) = self.vips.delete(&key)
            {
                tracing::error!(vip = %key.socket_addr(), %error, "can't take an address out of the VIP map");
            }
        }
    }

    /// Whether an address leads to this listener: another one may have taken it over.
    fn owns(&self, handle: HandlePtr, key: &VipKey) -> bool {
        let value = self.vips.get(key).ok().flatten();
        value.is_some_and(|value| VipValue::from_bits(value).listener(key) == Some(handle.ptr()))
    }
}
