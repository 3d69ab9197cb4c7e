//! Reasons why a resource isn't in force.

use slotmesh_kernel::BpfError;
use slotmesh_records::VipKey;
use slotmesh_slots::Full;

use super::retries::Lack;
use crate::{config::Invalid, vips::NotEntered};

/// Why a resource isn't in force; the version before it, if there is one, still is.
#[derive(Debug, thiserror::Error)]
pub enum RejectedRecord {
    /// It can't be acted on.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// There is no room for it.
    #[error(transparent)]
    Full(#[from] Full),
    /// Another listener has its address.
    #[error("address {vip} is already that of listener {owner}; remove it there first")]
    Taken {
        /// The address.
        vip: VipKey,
        /// The listener.
        owner: String,
    },
    /// Its address could not be entered.
    #[error(
        "address {vip} can't be entered into the VIP map ({source}), which holds {entered}: connections to it are \
         kube-proxy's; raise --max-addresses, or the memory limit, against which its elements count"
    )]
    Vip {
        /// The address.
        vip: VipKey,
        /// How many it holds.
        entered: usize,
        /// How many the listener wants beside those that it has.
        wanted: usize,
        /// The kernel's answer.
        #[source]
        source: BpfError,
    },
}

impl RejectedRecord {
    /// What the same resource is accepted with later; `None` where it never is.
    pub(super) fn lack(&self) -> Option<Lack> {
        match *self {
            Self::Full(Full::TooLarge { .. }) | Self::Invalid(_) => None,
            Self::Full(Full::Cap { class, needed, .. }) => Some(Lack::Slots(class, needed)),
            Self::Full(Full::Growth { .. }) => Some(Lack::Memory),
            Self::Taken { vip, .. } => Some(Lack::Address(vip)),
            Self::Vip { entered, wanted, .. } => Some(Lack::Places { held: entered, wanted }),
        }
    }
}

impl From<NotEntered> for RejectedRecord {
    fn from(NotEntered { vip, entered, wanted, source }: NotEntered) -> Self {
        Self::Vip { vip, entered, wanted, source }
    }
}
