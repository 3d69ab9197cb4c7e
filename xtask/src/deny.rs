//! Licenses, bans and sources of every dependency, by cargo-deny and `deny.toml`.

use anyhow::Result;

use crate::cmd::{clean_cargo, host_cargo, run as run_command};
use crate::tool;
use crate::workspace::{Workspace, cache_dir};

/// Not `advisories`: those need the advisory database from the network on every run, and a new entry
/// would fail a build in which nothing changed.
const CHECKS: [&str; 3] = ["bans", "licenses", "sources"];

/// `cargo xtask deny`
pub fn run(workspace: &Workspace) -> Result<()> {
    let cargo_deny = tool::CARGO_DENY.ensure(&cache_dir()?)?;
    for manifest in [workspace.root().join("Cargo.toml"), workspace.programs_manifest()] {
        let shown = manifest.strip_prefix(workspace.root()).unwrap_or(&manifest).display();
        eprintln!("deny: {shown}");
        run_command(
            clean_cargo(&cargo_deny)
                // It asks cargo for the graph.
                .env("CARGO", host_cargo())
                .arg("--manifest-path")
                .arg(&manifest)
                .arg("--config")
                .arg(workspace.root().join("deny.toml"))
                // The two lock files share one list of bans, so not each entry matches in each.
                .args(["--locked", "check", "--hide-inclusion-graph", "--allow", "unused-wrapper"])
                .args(CHECKS),
        )?;
    }
    Ok(())
}
