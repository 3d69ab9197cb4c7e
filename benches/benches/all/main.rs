//! All benchmarks: the comparison of stores and flattens, start, recovery, memory and churn of the slot
//! engine, and the whole agent. Each figure beside its alternative, in the same run; the tables are
//! printed and written to `docs/benchmarks.md`.
//!
//! Root; makes cgroups, network namespaces and pins of its own and removes them. With
//! `SLOTMESH_BENCH=quick` a tenth of the rounds is made and the page is left alone; further words name
//! the parts to run: compare, figures, sizes, churn, flush, connect, datagram, callers, pipeline. `profile KIND COUNT` only updates,
//! for a profiler.

mod callers;
mod churn;
#[path = "../shared/clients.rs"]
mod clients;
mod compare;
mod connect;
mod datagram;
mod figures;
mod flush;
#[path = "../../../bpf-programs/probes/src/line.rs"]
mod line;
mod messages;
mod pipeline;
mod published;
mod readback;
mod session;
mod sides;
mod sizes;
mod store;

use std::path::PathBuf;

use slotmesh_bench::{effort, introduce, is_quick, write_page};

fn main() -> anyhow::Result<()> {
    // The benchmark starts itself again for what must run in a process of its own.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["child-hold", count, target] => return connect::child_hold(count.parse()?, target.parse()?, true),
        ["child-close", count, target] => return connect::child_hold(count.parse()?, target.parse()?, false),
        ["child-flush", count] => return flush::child(count.parse()?),
        ["child-at-the-cap", count] => return flush::child_at_the_cap(count.parse()?),
        ["child-hash", count] => return flush::child_hash(count.parse()?),
        ["child-connect", batch, rounds, target] => {
            return clients::child(batch.parse()?, rounds.parse()?, target.parse()?);
        }
        ["child-datagram", what, batch, rounds, target] => {
            return datagram::child(what, batch.parse()?, rounds.parse()?, target.parse()?);
        }
        ["profile", kind, count] => return compare::profile(kind, count.parse()?),
        ["child-churn", target] => return churn::child(target.parse()?),
        _ => {}
    }
    introduce()?;
    let is_wanted = |part: &str| args.is_empty() || args.iter().any(|arg| arg == part);
    if is_wanted("compare") {
        let outcome = compare::run()?;
        outcome.print();
        outcome.judge();
    }
    if is_wanted("figures") {
        figures::run()?;
    }
    if is_wanted("sizes") {
        sizes::run()?;
    }
    if is_wanted("churn") {
        churn::run()?;
    }
    for (part, run) in [
        ("flush", flush::run as fn() -> anyhow::Result<()>),
        ("connect", connect::run),
        ("datagram", datagram::run),
        ("callers", callers::run),
        ("pipeline", pipeline::run),
    ] {
        if is_wanted(part) {
            run()?;
        }
    }
    if args.is_empty() && !is_quick() {
        write_page("docs/benchmarks.md", include_str!("page.md"))?;
    }
    Ok(())
}

/// A pin root of this run.
fn pin_root(name: &str) -> PathBuf {
    PathBuf::from(format!("/sys/fs/bpf/slotmesh-bench-{}-{name}", std::process::id()))
}
