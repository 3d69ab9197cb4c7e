//! Removes the state of a cluster or an endpoint where no connection counts in it, and what is known of failures that
//! are long ago; run by the agent through
//! BPF_PROG_TEST_RUN. A program can tell "nothing counts" and remove in one step, the agent can't.

use aya_ebpf::{bindings::TC_ACT_OK, macros::classifier, programs::TcContext};
use slotmesh_records::Removal;

use crate::{buckets, outliers, running};

const ETHERNET: usize = 14;

#[classifier]
pub fn removal(ctx: TcContext) -> i32 {
    if let Ok(mut asked) = ctx.load::<Removal>(ETHERNET) {
        let removed = if asked.of.reserved == Removal::OUTLIER {
            asked.of.reserved = 0;
            outliers::settle(&asked.of)
        } else if asked.of.reserved == Removal::BUCKET {
            buckets::remove(&Removal::bucket_of(&asked.of))
        } else if asked.of.at.port == 0 {
            running::remove(asked.of.cluster)
        } else {
            running::remove_at(&asked.of)
        };
        asked.removed = u64::from(removed);
        let _ = ctx.skb.store(ETHERNET, &asked, 0);
    }
    TC_ACT_OK as i32
}
