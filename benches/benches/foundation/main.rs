//! The foundation's figures: flush, connect, pipeline. Each beside its alternative, in the same run.
//!
//! Root; makes cgroups, network namespaces and pins of its own and removes them.

mod connect;
mod flush;
mod pipeline;

use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    // The benchmark starts itself again for what must run in a process of its own.
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["child-flush", count] => return flush::child(count.parse()?),
        ["child-connect", rounds, batch, target] => {
            return connect::child(rounds.parse()?, batch.parse()?, target.parse()?);
        }
        _ => {}
    }
    println!("kernel {}", std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    flush::run()?;
    connect::run()?;
    pipeline::run()
}

/// A pin root of this run.
fn pin_root(name: &str) -> PathBuf {
    PathBuf::from(format!("/sys/fs/bpf/slotmesh-bench-{}-{name}", std::process::id()))
}
