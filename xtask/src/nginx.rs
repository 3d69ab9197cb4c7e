//! The nginx that the proxy is measured beside: Debian's, fetched and not installed.
//!
//! It lies in the cache folder under a name with its version; `target/nginx` leads there.

use anyhow::{Context, Result, bail};

use crate::apt::{self, Candidate};
use crate::control_plane::lead;
use crate::setup;
use crate::workspace::{Workspace, cache_dir};

const PACKAGE: &str = "nginx";

/// `cargo xtask nginx`
pub fn run(workspace: &Workspace) -> Result<()> {
    let cache = cache_dir()?;
    let _alone = setup::lock(&cache)?;
    if !apt::is_available() {
        bail!("nginx comes from Debian's packages, and this is no Debian");
    }
    let get = |candidate: &Candidate| candidate.file(&cache, "usr/sbin/nginx");
    let program = apt::fetch(PACKAGE, || apt::candidate(PACKAGE), get)?;
    let dir = program.parent().context("a program is in a folder")?;
    lead(&workspace.target(PACKAGE), dir)?;
    eprintln!("nginx: ready ({})", dir.display());
    Ok(())
}
