//! What the kernel holds for an agent, and whether it is gone.
//!
//! Ids are compared, not names: other agents of this machine have maps of the same names.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{Up, wait};

/// The maps, programs and links of an agent.
#[derive(Clone, Debug)]
pub struct Footprint {
    objects: BTreeSet<(&'static str, u64)>,
    pin_root: PathBuf,
}

/// The kinds of objects, as bpftool calls them and as fdinfo names their ids.
const KINDS: [(&str, &str); 3] = [("map", "map_id:"), ("prog", "prog_id:"), ("link", "link_id:")];

impl Footprint {
    /// What a running agent has open and pinned.
    ///
    /// # Errors
    /// When it can't be looked at (bpftool is needed).
    pub fn of(up: &Up) -> Result<Self> {
        let pin_root = up.spec().pin_root.clone();
        let mut objects = BTreeSet::new();
        let fds = format!("/proc/{}/fdinfo", up.pid());
        for entry in fs::read_dir(&fds).with_context(|| fds.clone())? {
            // An fd may close meanwhile.
            let info = fs::read_to_string(entry?.path()).unwrap_or_default();
            for line in info.lines() {
                let id = KINDS.iter().find_map(|(kind, key)| {
                    let id = line.strip_prefix(key)?.trim().parse().ok()?;
                    Some((*kind, id))
                });
                // A link's fdinfo has its program's id too; both are right.
                objects.extend(id);
            }
        }
        for pin in pins(&pin_root)? {
            let kind = if pin.starts_with(pin_root.join("links")) { "link" } else { "map" };
            objects.insert((kind, pinned(kind, &pin)?));
        }
        let has = |kind| objects.iter().any(|(k, _)| *k == kind);
        ensure!(has("map") && has("link"), "an agent has maps and links: {objects:?}");
        Ok(Self { objects, pin_root })
    }

    /// How many maps, programs and links there are.
    pub fn counts(&self) -> [(&'static str, usize); 3] {
        KINDS.map(|(kind, _)| (kind, self.objects.iter().filter(|(k, _)| *k == kind).count()))
    }

    /// Waits until nothing of it is left (the kernel frees after a grace period).
    ///
    /// # Errors
    /// With what stays.
    pub fn expect_gone(&self) -> Result<()> {
        ensure!(
            !self.pin_root.exists() || pins(&self.pin_root)?.is_empty(),
            "pins stay in {:?}",
            self.pin_root
        );
        let mut left = self.objects.clone();
        wait::until_true("maps, programs and links to be gone", || {
            let mut stays = BTreeSet::new();
            for (kind, id) in &left {
                if exists(kind, *id)? {
                    stays.insert((*kind, *id));
                }
            }
            left = stays;
            Ok(left.is_empty())
        })
        .with_context(|| format!("the kernel still holds {:?}", self.objects))
    }
}

/// All pins below a directory.
fn pins(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { dirs.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    Ok(found)
}

fn pinned(kind: &str, pin: &Path) -> Result<u64> {
    let mut command = bpftool();
    command.args(["-j", kind, "show", "pinned"]).arg(pin);
    let output = command.stderr(Stdio::inherit()).output().context(NO_BPFTOOL)?;
    let value: Value = serde_json::from_slice(&output.stdout)?;
    value["id"].as_u64().with_context(|| format!("{} has no id: {value}", pin.display()))
}

fn exists(kind: &str, id: u64) -> Result<bool> {
    let mut command = bpftool();
    command.args([kind, "show", "id", &id.to_string()]);
    Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).status().context(NO_BPFTOOL)?.success())
}

const NO_BPFTOOL: &str = "run bpftool (Debian package bpftool; `make setup` installs it)";

fn bpftool() -> Command {
    let mut command = Command::new("bpftool");
    // Not in the PATH of everybody who is root.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).stdin(Stdio::null());
    command
}
