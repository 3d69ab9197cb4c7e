//! Where everything is pinned: three roots for three lifetimes.
//!
//! ```text
//! <pin root>/                         flock: one agent
//!   records-<layout hash>/            outer, vips, slabs/<index>     goes with a record layout
//!   state-v<version>/                 sockets, identity              outlives record layouts
//!   links/<workload>/<hook>                                          fixed
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use slotmesh_records::{LAYOUT_HASH, STATE_VERSION};

/// The pin root and what lies where in it.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The directories below `root`, which lies on bpffs; creates them.
    ///
    /// # Errors
    /// Where they can't be created.
    pub fn create(root: &Path) -> io::Result<Self> {
        let pins = Self { root: root.to_owned() };
        for dir in [pins.records(), pins.state(), pins.links()] {
            fs::create_dir_all(dir)?;
        }
        Ok(pins)
    }

    /// The records of this build's layout.
    pub fn records(&self) -> PathBuf {
        self.root.join(format!("records-{LAYOUT_HASH:016x}"))
    }

    /// Per-socket and identity state.
    pub fn state(&self) -> PathBuf {
        self.root.join(format!("state-v{STATE_VERSION}"))
    }

    /// The links of all workloads.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// The links of one workload. bpffs allows no dots in names, so the workload stands there by its
    /// name's hash.
    pub fn links_of(&self, workload: u64) -> PathBuf {
        self.links().join(format!("{workload:016x}"))
    }

    /// Removes the pin root with every pin: programs detach first, then the maps go with their last
    /// user.
    ///
    /// # Errors
    /// Where something can't be removed.
    pub fn remove_all(&self) -> io::Result<()> {
        fs::remove_dir_all(self.links())?;
        fs::remove_dir_all(&self.root)
    }
}
