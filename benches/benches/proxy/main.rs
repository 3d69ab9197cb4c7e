//! slotmesh's HTTP engine beside Envoy and nginx: CPU of a request, latency, memory, fairness. The tables are printed and
//! written to `docs/benchmarks-proxy.md`.
//!
//! ```text
//!  processor 1: clients ---> processor 0: slotmesh | Envoy | nginx, with the same routes ---> processor 1: endpoints
//! ```
//!
//! All in a row, round by round, so that a machine whose speed drifts slows all of them. With `SLOTMESH_BENCH=quick` a
//! tenth of the rounds is made and the page is left alone; further words name the parts to run: cpu, latency, memory,
//! flood.

mod config;
mod endpoint;
mod load;
mod measure;
mod sides;

use slotmesh_bench::{introduce, is_quick, write_page};

fn main() -> anyhow::Result<()> {
    let parts: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [word, file] = parts.as_slice()
        && word == sides::SERVE
    {
        return sides::serve(file);
    }
    introduce()?;
    measure::run(&parts)?;
    if parts.is_empty() && !is_quick() {
        write_page("docs/benchmarks-proxy.md", include_str!("page.md"))?;
    }
    Ok(())
}
