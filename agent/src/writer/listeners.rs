//! Listeners and their addresses in the VIP map, both changed so that no program finds one without the other.

use std::collections::BTreeSet;

use slotmesh_records::VipKey;
use slotmesh_slots::HandlePtr;

use super::{RejectedRecord, Writer};
use crate::{
    RecordType,
    config::{Listener, Model},
    flatten::{EndpointsView, flush, vip_key},
    held::vips,
};

impl Writer {
    /// Makes a listener current, and enters its addresses.
    pub(super) fn upsert_listener(
        &mut self,
        name: &str,
        version: u64,
        listener: &Listener<'_>,
        model: &Model<'_>,
    ) -> Result<(), RejectedRecord> {
        let wanted: BTreeSet<VipKey> =
            listener.vips.iter().map(|&vip| vip_key(vip, listener.protocol)).collect();
        let known = self.engine.find(RecordType::Listener.kind(), name);
        for key in &wanted {
            if let Some(owner) = self.vips.owner(key).filter(|&owner| Some(owner) != known) {
                let owner = self.engine.name(owner).unwrap_or("that is being removed").to_owned();
                return Err(RejectedRecord::Taken { vip: *key, owner });
            }
        }
        if let Some(handle) = known.filter(|&handle| !self.engine.current(handle).is_null()) {
            // The handle leads to the old version until the flush, so new addresses can come first:
            // where one is refused, nothing of the old version has changed.
            let held = self.vips.of(handle);
            self.vips.enter(handle, &wanted)?;
            if let Err(full) = flush(self.engine.draft(), name, version, model, EndpointsView::default()) {
                self.vips.leave(handle, wanted.difference(&held));
                return Err(full.into());
            }
            if held.difference(&wanted).next().is_some() {
                // What can't be taken out now goes with the listener; it leads to the listener until then.
                self.vips.leave(handle, held.difference(&wanted));
                self.addresses_freed += 1;
            }
        } else {
            let handle = flush(self.engine.draft(), name, version, model, EndpointsView::default())?;
            if let Err(error) = self.vips.enter(handle, &wanted) {
                self.remove_listener(handle);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Removes a listener: from the directory, from the VIP map, and after a grace period its records.
    pub(super) fn remove_listener(&mut self, handle: HandlePtr) {
        self.engine.unlist(handle);
        self.leaving.push(handle);
        self.go_on_leaving();
    }

    /// A listener's records go only once no address leads to them.
    pub(super) fn go_on_leaving(&mut self) {
        for handle in std::mem::take(&mut self.leaving) {
            let held = self.vips.of(handle);
            if self.vips.leave(handle, &held) {
                self.engine.retire(handle);
                self.addresses_freed += 1;
            } else {
                self.leaving.push(handle);
            }
        }
    }

    /// The name of the listener to which programs find the way from this address, in the VIP map or as a NodePort.
    pub(crate) fn listener_at(&self, key: &VipKey) -> Option<String> {
        let of_nodes = || {
            self.vips.owner(&VipKey::node(key.addr))?;
            self.vips.owner(&VipKey::node_port(key.addr, key.port, key.protocol))
        };
        self.engine.name(self.vips.owner(key).or_else(of_nodes)?).map(str::to_owned)
    }

    /// The addresses in the current version of a listener.
    pub(super) fn vips_in_record(&self, handle: HandlePtr) -> BTreeSet<VipKey> {
        vips(&self.engine, self.engine.current(handle)).into_iter().flatten().collect()
    }
}
