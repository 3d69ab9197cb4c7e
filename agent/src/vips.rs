//! The VIP map: which listener's handle each virtual address leads to.
//!
//! The agent is its only writer, so it keeps in memory which listener has which address, and asks the
//! kernel only to change something. A system call each, 0.5 us: a new address costs one, an update of a
//! listener that keeps its addresses none.

use std::collections::{BTreeSet, HashMap};

use slotmesh_kernel::{BpfError, Map};
use slotmesh_records::{SlotPtr, VipKey, VipValue};
use slotmesh_slots::HandlePtr;

/// See the module's comment.
pub(crate) struct Vips {
    map: Map<VipKey, u64>,
    owners: HashMap<VipKey, HandlePtr>,
    held: HashMap<HandlePtr, BTreeSet<VipKey>>,
}

/// An address that can't be entered.
#[derive(Debug)]
pub(crate) struct NotEntered {
    pub vip: VipKey,
    /// How many addresses there were.
    pub entered: usize,
    /// How many were to be entered.
    pub wanted: usize,
    pub source: BpfError,
}

impl Vips {
    /// The map with nothing known of it, and what it holds: addresses and the slots of the handles that
    /// they lead to, null where the value isn't the address's own.
    pub fn open(map: Map<VipKey, u64>) -> Result<(Self, Vec<(VipKey, SlotPtr)>), BpfError> {
        let mut entered = Vec::new();
        for key in map.keys()? {
            if let Some(value) = map.get(&key)? {
                entered.push((key, VipValue::from_bits(value).listener(&key).unwrap_or(SlotPtr::NULL)));
            }
        }
        Ok((Self { map, owners: HashMap::new(), held: HashMap::new() }, entered))
    }

    /// An earlier agent entered this address for this listener.
    pub fn adopt(&mut self, handle: HandlePtr, key: VipKey) {
        self.owners.insert(key, handle);
        self.held.entry(handle).or_default().insert(key);
    }

    /// Takes an address out that leads to no listener.
    pub fn discard(&self, key: &VipKey) -> Result<(), BpfError> {
        self.map.delete(key).map(drop)
    }

    /// The listener that has an address.
    pub fn owner(&self, key: &VipKey) -> Option<HandlePtr> {
        self.owners.get(key).copied()
    }

    /// The addresses of a listener.
    pub fn of(&self, handle: HandlePtr) -> BTreeSet<VipKey> {
        self.held.get(&handle).cloned().unwrap_or_default()
    }

    /// How many addresses there are.
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    /// Enters addresses that no other listener has. All or none.
    pub fn enter<'k>(
        &mut self,
        handle: HandlePtr,
        keys: impl IntoIterator<Item = &'k VipKey>,
    ) -> Result<(), NotEntered> {
        let new: Vec<&VipKey> =
            keys.into_iter().filter(|key| self.owners.get(key) != Some(&handle)).collect();
        let mut entered = BTreeSet::new();
        for &key in &new {
            if let Err(source) = self.map.update(key, &VipValue::new(key, handle.as_ref()).bits()) {
                let all = self.len();
                self.leave(handle, &entered);
                return Err(NotEntered { vip: *key, entered: all, wanted: new.len(), source });
            }
            self.adopt(handle, *key);
            entered.insert(*key);
        }
        Ok(())
    }

    /// Takes addresses of a listener out. What can't be taken out stays the listener's; whether all
    /// are out.
    pub fn leave<'k>(&mut self, handle: HandlePtr, keys: impl IntoIterator<Item = &'k VipKey>) -> bool {
        let mut all = true;
        for key in keys {
            if self.owners.get(key) != Some(&handle) {
                continue;
            }
            if let Err(error) = self.map.delete(key) {
                tracing::error!(vip = %key, %error, "can't take an address out of the VIP map");
                all = false;
                continue;
            }
            self.owners.remove(key);
            if let Some(held) = self.held.get_mut(&handle) {
                held.remove(key);
                if held.is_empty() {
                    self.held.remove(&handle);
                }
            }
        }
        all
    }
}
