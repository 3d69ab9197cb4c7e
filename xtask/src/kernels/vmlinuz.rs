//! The kernels: fetched from Debian's package sources, once per machine, into the cache folder.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::apt::{self, Candidate};

/// A kernel of Debian's.
pub struct Kernel {
    /// The output of its `uname -r`.
    pub release: String,
    /// The file to boot.
    pub image: PathBuf,
}

/// The newest kernel of a series. (Each security update has a name of its own, and replaces the one before it
/// after a while.)
pub fn fetch(cache: &Path, series: &str) -> Result<Kernel> {
    let newest = || apt::newest(&format!("linux-image-{series}."), "-cloud-amd64");
    let what = format!("linux-image-{series}.…-cloud-amd64");
    apt::fetch(&what, newest, |candidate| ensure_kernel(cache, candidate))
}

/// Only the image is kept: what the tests need is built in, so its modules (100 MB) are not.
fn ensure_kernel(cache: &Path, candidate: &Candidate) -> Result<Kernel> {
    let package = &candidate.package;
    let release = package.strip_prefix("linux-image-").unwrap_or(package).to_owned();
    let image = candidate.file(cache, &format!("boot/vmlinuz-{release}"))?;
    Ok(Kernel { release, image })
}
