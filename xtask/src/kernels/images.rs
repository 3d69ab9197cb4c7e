//! The kernels: fetched from Debian's package sources, once per machine, into the cache folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::initramfs::remove_dir;
use crate::apt::{self, Candidate};
use crate::cmd::{run_quietly, step};

/// A kernel of Debian's.
pub struct Kernel {
    /// What its `uname -r` prints.
    pub release: String,
    /// The file to boot.
    pub image: PathBuf,
}

/// The newest kernel of a series.
pub fn fetch(cache: &Path, series: &str) -> Result<Kernel> {
    let newest = || apt::newest(&format!("linux-image-{series}."), "-cloud-amd64");
    if let Some(candidate) = newest()
        && let Ok(kernel) = ensure_kernel(cache, &candidate)
    {
        return Ok(kernel);
    }
    // Each security update has a name of its own, and replaces the one before it after a while.
    apt::refresh(&format!("the package lists know no kernel {series} that can be fetched"))?;
    let Some(candidate) = newest() else {
        bail!(
            "no linux-image-{series}.…-cloud-amd64 is to be had from this machine's package sources. It is in \
             Debian bookworm's security updates: do the sources name bookworm-security?"
        );
    };
    ensure_kernel(cache, &candidate)
}

/// The kernel's image in the cache folder, fetched unless it is there.
fn ensure_kernel(cache: &Path, candidate: &Candidate) -> Result<Kernel> {
    let Candidate { package, version } = candidate;
    let release = package.strip_prefix("linux-image-").unwrap_or(package).to_owned();
    let dir = cache.join(format!("{package}_{version}"));
    let image = dir.join("vmlinuz");
    if !image.is_file() {
        step(format!("fetching {package} (once per machine)"), || {
            let part = cache.join(format!("{package}_{version}.part"));
            remove_dir(&part)?;
            let done = unpack(candidate, &part, &dir, &release);
            remove_dir(&part)?;
            done
        })?;
    }
    Ok(Kernel { release, image })
}

/// Only the image is kept: what the tests need is built in, so its modules (100 MB) are not.
fn unpack(candidate: &Candidate, part: &Path, dir: &Path, release: &str) -> Result<()> {
    fs::create_dir(part).with_context(|| format!("can't create {}", part.display()))?;
    apt::download(candidate, part)?;
    let files = fs::read_dir(part)?.collect::<Result<Vec<_>, _>>()?;
    let [file] = &files[..] else { bail!("apt-get download left {} files instead of one", files.len()) };
    let tree = part.join("tree");
    run_quietly(Command::new("dpkg-deb").arg("-x").arg(file.path()).arg(&tree))?;
    let kept = part.join("kept");
    fs::create_dir(&kept)?;
    fs::rename(tree.join(format!("boot/vmlinuz-{release}")), kept.join("vmlinuz"))
        .with_context(|| format!("{} holds no kernel {release}", candidate.package))?;
    remove_dir(dir)?;
    fs::rename(&kept, dir).with_context(|| format!("can't write {}", dir.display()))
}
