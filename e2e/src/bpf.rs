//! What the kernel holds for an agent, and whether it is gone.
//!
//! Ids are compared, not names: other agents of this machine have maps of the same names. The kernel
//! gives an id to no second object while it counts up, so an id that is gone stays gone.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{MapInfo, loaded_maps},
    programs::{loaded_links, loaded_programs},
};

use crate::{Up, wait};

/// Maps, programs and links by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Objects {
    maps: BTreeSet<u32>,
    programs: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Objects {
    /// Those of these programs, and these maps, that the kernel has now.
    ///
    /// What goes while it is listed is an error for the listing, and gone for us.
    fn loaded(of: &Self) -> Self {
        let known = |ids: &BTreeSet<u32>, id: &u32| ids.contains(id);
        Self {
            maps: loaded_maps().flatten().map(|map| map.id()).filter(|id| known(&of.maps, id)).collect(),
            programs: loaded_programs()
                .flatten()
                .map(|p| p.id())
                .filter(|id| known(&of.programs, id))
                .collect(),
            links: loaded_links()
                .flatten()
                .filter(|link| known(&of.programs, &link.program_id()) || known(&of.links, &link.id()))
                .map(|link| link.id())
                .collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.maps.is_empty() && self.programs.is_empty() && self.links.is_empty()
    }
}

/// The maps, programs, links and pins of an agent.
#[derive(Clone, Debug)]
pub struct Footprint {
    objects: Objects,
    pins: usize,
    pin_root: PathBuf,
}

impl Footprint {
    /// What a running agent has open or pinned, and the links of its programs.
    ///
    /// # Errors
    /// When it can't be looked at.
    pub fn of(up: &Up) -> Result<Self> {
        Self::at(up.pid(), &up.spec().pin_root)
    }

    /// The same for the agent that is this process, with the pin root as this process sees it.
    ///
    /// # Errors
    /// When it can't be looked at.
    pub fn at(agent: u32, pin_root: &Path) -> Result<Self> {
        let pin_root = pin_root.to_owned();
        let mut objects = Objects::default();
        let fds = format!("/proc/{agent}/fdinfo");
        for entry in fs::read_dir(&fds).with_context(|| fds.clone())? {
            // A file may be closed meanwhile.
            let info = fs::read_to_string(entry?.path()).unwrap_or_default();
            let id = |key| info.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u32>().ok());
            objects.maps.extend(id("map_id:"));
            objects.programs.extend(id("prog_id:"));
            objects.links.extend(id("link_id:"));
        }
        let pins = pins(&pin_root)?;
        let is_link = |pin: &PathBuf| {
            let dir = pin.strip_prefix(&pin_root).ok().and_then(|below| below.iter().next());
            dir.is_some_and(|dir| {
                ["links-", "releases-"].iter().any(|links| dir.to_string_lossy().starts_with(links))
            })
        };
        for pin in pins.iter().filter(|pin| !is_link(pin)) {
            let map = MapInfo::from_pin(pin).with_context(|| format!("read the map {}", pin.display()))?;
            objects.maps.insert(map.id());
        }
        // Looked up as it will be later, so that what is missing then isn't just not seen.
        let loaded = Objects::loaded(&objects);
        ensure!(
            loaded.maps == objects.maps && loaded.programs == objects.programs,
            "{loaded:?} of {objects:?}"
        );
        ensure!(
            !loaded.maps.is_empty() && !loaded.links.is_empty(),
            "an agent has maps and links: {loaded:?}"
        );
        Ok(Self { objects: loaded, pins: pins.len(), pin_root })
    }

    /// How many there are.
    pub fn describe(&self) -> String {
        let Objects { maps, programs, links } = &self.objects;
        format!("{} maps, {} programs, {} links, {} pins", maps.len(), programs.len(), links.len(), self.pins)
    }

    /// Waits until nothing of it is left (the kernel frees after a grace period).
    ///
    /// # Errors
    /// With what stays.
    pub fn expect_gone(&self) -> Result<()> {
        if self.pin_root.exists() {
            let stay = pins(&self.pin_root)?;
            ensure!(stay.is_empty(), "pins stay: {stay:?}");
        }
        let mut left = self.objects.clone();
        wait::until_true("maps, programs and links to be gone", || {
            left = Objects::loaded(&self.objects);
            Ok(left.is_empty())
        })
        .with_context(|| format!("the kernel still holds {left:?}"))
    }
}

/// All pins below a directory.
///
/// # Errors
/// When it can't be read.
pub fn pins(root: &Path) -> Result<Vec<PathBuf>> {
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
