//! "Where would this connection go?", answered through BPF_PROG_TEST_RUN by the same look-up.
//!
//! The kernel offers no test run for cgroup_sock_addr programs, so this is a classifier. The packet
//! is an Ethernet header (the test run insists on one), an [`ExplainRequest`] and room for the [`ExplainResponse`].

use core::mem::size_of;

use aya_ebpf::{bindings::TC_ACT_OK, macros::classifier, programs::TcContext};
use slotmesh_records::{ExplainRequest, ExplainResponse, Family, LAYOUT_HASH, Verdict};

use crate::lookup::{Choice, Found, Numbers, look_up};

const ETHERNET: usize = 14;

#[classifier]
pub fn explain(ctx: TcContext) -> i32 {
    if let Ok(request) = ctx.load::<ExplainRequest>(ETHERNET) {
        let response = respond(&request);
        let _ = ctx.skb.store(ETHERNET + size_of::<ExplainRequest>(), &response, 0);
    }
    TC_ACT_OK as i32
}

/// The numbers are part of the request.
struct Given<'r>(&'r ExplainRequest);

impl Numbers for Given<'_> {
    #[inline(always)]
    fn cluster(&self) -> u32 {
        self.0.cluster_random
    }

    #[inline(always)]
    fn endpoint(&self, _: &Choice) -> u32 {
        self.0.endpoint_random
    }

    #[inline(always)]
    fn other(&self) -> u32 {
        self.0.other_random
    }

    #[inline(always)]
    fn classes(&self) -> [u64; 2] {
        [self.0.class, self.0.namespace]
    }
}

#[inline(always)]
fn respond(request: &ExplainRequest) -> ExplainResponse {
    let family = if request.vip.is_v4() { Family::V4 } else { Family::V6 };
    let found = look_up(&request.vip, family, &Given(request));
    let mut response = ExplainResponse {
        layout: LAYOUT_HASH,
        cluster: 0,
        addr: [0; 4],
        port: 0,
        verdict: Verdict::Pass as u16,
        reserved: 0,
    };
    match found {
        Found::Pass => {}
        Found::Refuse | Found::Nowhere => response.verdict = Verdict::Refuse as u16,
        Found::Target(target) => {
            response.verdict = Verdict::Redirect as u16;
            response.addr = target.addr;
            response.port = target.port;
            response.cluster = target.cluster;
        }
    }
    response
}
