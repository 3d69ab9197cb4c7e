//! Where everything is pinned: three roots for three lifetimes.
//!
//! ```text
//! <pin root>/                         flock: one agent
//!   records-<layout hash>/            outer, vips, slabs/<index>     goes with a record layout
//!   state-v<version>/                 sockets, identity, clusters,   outlives record layouts
//!                                     endpoints
//!   links/<workload>/<hook>                                          fixed
//! ```

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use slotmesh_records::{LAYOUT_HASH, STATE_VERSION};

const RECORDS: &str = "records-";
const STATE: &str = "state-v";
const LINKS: &str = "links";

/// The pin root and what lies where in it.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// What lies where below `root`, a directory on bpffs.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Creates the directories that are missing, for nobody but us.
    ///
    /// # Errors
    /// Where they can't be created.
    pub fn create(&self) -> io::Result<()> {
        [self.records(), self.state(), self.links()].iter().try_for_each(|dir| create_private(dir))
    }

    /// Creates the directory of a workload's links; whether it was missing.
    ///
    /// # Errors
    /// Where it can't be created.
    pub fn create_links_of(&self, workload: u64) -> io::Result<bool> {
        let dir = self.links_of(workload);
        let missing = !dir.exists();
        create_private(&dir)?;
        Ok(missing)
    }

    /// The records of this build's layout.
    pub fn records(&self) -> PathBuf {
        self.root.join(format!("{RECORDS}{LAYOUT_HASH:016x}"))
    }

    /// Per-socket and identity state.
    pub fn state(&self) -> PathBuf {
        self.root.join(format!("{STATE}{STATE_VERSION}"))
    }

    /// What runs of each cluster.
    pub fn clusters(&self) -> PathBuf {
        self.state().join("clusters")
    }

    /// How many connections count at each endpoint.
    pub fn endpoints(&self) -> PathBuf {
        self.state().join("endpoints")
    }

    /// The links of all workloads.
    pub fn links(&self) -> PathBuf {
        self.root.join(LINKS)
    }

    /// The links of one workload. bpffs allows no dots in names, so the workload stands there by its
    /// name's hash.
    pub fn links_of(&self, workload: u64) -> PathBuf {
        self.links().join(format!("{workload:016x}"))
    }

    /// What is in the pin root of ours.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn found(&self) -> io::Result<Found> {
        let links = match fs::read_dir(self.links()) {
            Ok(mut links) => links.next().is_some(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        let (records, state) = (self.records(), self.state());
        let mut found =
            Found { links, records: records.exists(), state: state.exists(), other_records: Vec::new() };
        for path in self.ours()? {
            if name(&path).starts_with(RECORDS) && path != records {
                found.other_records.push(path);
            }
        }
        Ok(found)
    }

    /// Removes the pin root with our pins in it: programs detach first, then the maps go with their
    /// last user. What isn't ours stays, and the pin root with it.
    ///
    /// # Errors
    /// Where something of ours can't be removed.
    pub fn remove_all(&self) -> io::Result<()> {
        gone(fs::remove_dir_all(self.links()))?;
        for path in self.ours()? {
            gone(fs::remove_dir_all(path))?;
        }
        match gone(fs::remove_dir(&self.root)) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                tracing::warn!(pin_root = %self.root.display(), "stays: there is more in it than slotmesh's");
                Ok(())
            }
            removed => removed,
        }
    }

    /// Removes what a start created that failed: all but what was `found` before.
    ///
    /// # Errors
    /// Where something can't be removed.
    pub fn restore(&self, found: &Found) -> io::Result<()> {
        if found.is_nothing() {
            return self.remove_all();
        }
        if !found.records {
            gone(fs::remove_dir_all(self.records()))?;
        }
        if !found.state {
            gone(fs::remove_dir_all(self.state()))?;
        }
        Ok(())
    }

    /// The directories of ours in the pin root, of whatever layout.
    fn ours(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
        let ours = |path: &PathBuf| {
            let name = name(path);
            name == LINKS || name.starts_with(RECORDS) || name.starts_with(STATE)
        };
        Ok(paths.into_iter().filter(ours).collect())
    }
}

/// What an earlier agent left in a pin root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Links: programs are attached.
    pub links: bool,
    /// Records of this build's layout.
    pub records: bool,
    /// State of this build's version.
    pub state: bool,
    /// The directories of records of other layouts.
    pub other_records: Vec<PathBuf>,
}

impl Found {
    /// Whether nobody left anything.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the programs that are attached may use records of another layout. These are in force
    /// until this build's are complete.
    pub fn is_upgrade(&self) -> bool {
        self.links && (!self.records || !self.other_records.is_empty())
    }
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn create_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// What was to be removed and isn't there is removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let pins = Pins::new(&root);
        assert!(pins.found().unwrap().is_nothing());
        pins.create().unwrap();
        fs::create_dir_all(root.join("records-0000000000000001/slabs")).unwrap();
        fs::create_dir(root.join("others")).unwrap();
        pins.remove_all().unwrap();
        let left: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["others"]);
        fs::remove_dir(root.join("others")).unwrap();
        pins.remove_all().unwrap();
        assert!(!root.exists());
        pins.remove_all().unwrap();
    }

    #[test]
    fn a_failed_start_leaves_what_it_found() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::new(&dir.path().join("root"));
        pins.create().unwrap();
        pins.create_links_of(7).unwrap();
        let old = pins.records().with_file_name("records-0000000000000001");
        fs::rename(pins.records(), &old).unwrap();
        let found = pins.found().unwrap();
        assert!(found.is_upgrade() && found.other_records == [old.clone()], "{found:?}");
        pins.create().unwrap();
        assert!(pins.found().unwrap().is_upgrade(), "until the other records are gone");
        pins.restore(&found).unwrap();
        assert_eq!(pins.found().unwrap(), found);
        assert!(old.exists() && pins.links_of(7).exists());
    }
}
