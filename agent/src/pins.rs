//! Where everything is pinned: three roots for three lifetimes.
//!
//! ```text
//! <pin root>/                         flock: one agent
//!   records-<layout hash>/            outer, vips, slabs/<index>     goes with a record layout
//!   state-v<version>/                 sockets, identity, clusters,   outlives record layouts
//!                                     lanes, endpoints, socket_totals,
//!                                     socket_limit, flows, flow_totals,
//!                                     affinities, affinity_totals,
//!                                     proxies, proxy_totals, traffic,
//!                                     traffic_settings, told_totals
//!   links-v<version>/<workload>/<hook>                               a workload's, of that state
//!   releases-v<version>/<cgroup>                                     stays with the cgroup's sockets
//! ```
//!
//! A link keeps the cgroup storage of its first program, so links belong to a version of the state: another
//! version's are attached beside them, and then the others go.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use slotmesh_kernel::{Hook, Link};
use slotmesh_records::{LAYOUT_HASH, STATE_VERSION};

const RECORDS: &str = "records-";
const STATE: &str = "state-v";
const LINKS: &str = "links";
const RELEASES: &str = "releases-v";

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
        [self.records(), self.state(), self.links(), self.releases()]
            .iter()
            .try_for_each(|dir| create_private(dir))
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

    /// Connections and turns of each cluster.
    pub fn clusters(&self) -> PathBuf {
        self.state().join("clusters")
    }

    /// Connections of each cluster without a limit, by CPU.
    pub fn lanes(&self) -> PathBuf {
        self.state().join("lanes")
    }

    /// How many connections count at each endpoint.
    pub fn endpoints(&self) -> PathBuf {
        self.state().join("endpoints")
    }

    /// How fast connections come.
    pub fn buckets(&self) -> PathBuf {
        self.state().join("buckets")
    }

    /// The endpoints to which connects fail.
    pub fn outliers(&self) -> PathBuf {
        self.state().join("outliers")
    }

    /// Which endpoints workloads keep to.
    pub fn affinities(&self) -> PathBuf {
        self.state().join("affinities")
    }

    /// How many of them there were.
    pub fn affinity_totals(&self) -> PathBuf {
        self.state().join("affinity_totals")
    }

    /// Where the proxies of network namespaces listen.
    pub fn proxies(&self) -> PathBuf {
        self.state().join("proxies")
    }

    /// How many connections that were for them went elsewhere.
    pub fn proxy_totals(&self) -> PathBuf {
        self.state().join("proxy_totals")
    }

    /// How many sockets are recorded.
    pub fn totals(&self) -> PathBuf {
        self.state().join("socket_totals")
    }

    /// Numbers of connections by workload and cluster.
    pub fn traffic(&self) -> PathBuf {
        self.state().join("traffic")
    }

    /// What is done with connections that end.
    pub fn traffic_settings(&self) -> PathBuf {
        self.state().join("traffic_settings")
    }

    /// How many ends of connections were told.
    pub fn told_totals(&self) -> PathBuf {
        self.state().join("told_totals")
    }

    /// The flows of sockets of UDP.
    pub fn flows(&self) -> PathBuf {
        self.state().join("flows")
    }

    /// Their numbers.
    pub fn flow_totals(&self) -> PathBuf {
        self.state().join("flow_totals")
    }

    /// How many may be.
    pub fn limit(&self) -> PathBuf {
        self.state().join("socket_limit")
    }

    /// The links of all workloads.
    pub fn links(&self) -> PathBuf {
        self.root.join(format!("{LINKS}-v{STATE_VERSION}"))
    }

    /// The links that count sockets down, by cgroup.
    pub fn releases(&self) -> PathBuf {
        self.root.join(format!("{RELEASES}{STATE_VERSION}"))
    }

    /// The link that counts the sockets of a cgroup down.
    pub fn release_of(&self, cgroup: u64) -> PathBuf {
        self.releases().join(format!("{cgroup:016x}"))
    }

    /// The links of one workload. bpffs allows no dots in names, so the workload stands there by its
    /// name's hash.
    pub fn links_of(&self, workload: u64) -> PathBuf {
        self.links().join(format!("{workload:016x}"))
    }

    /// Puts the links aside: their cgroup storage is lost. They stay in force until
    /// [`remove_other_states`](Self::remove_other_states).
    ///
    /// # Errors
    /// Where they can't be moved.
    pub fn set_links_aside(&self) -> io::Result<()> {
        let links = self.links();
        if !has_entries(&links)? {
            return Ok(());
        }
        let aside = |n: u32| self.root.join(format!("{}-aside-{n}", name(&links)));
        let free = (0..).map(aside).find(|path| !path.exists()).ok_or(io::ErrorKind::AlreadyExists)?;
        fs::rename(&links, free)?;
        create_private(&links)
    }

    /// What is in the pin root of ours.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn found(&self) -> io::Result<FoundPins> {
        let mut found = FoundPins {
            links: false,
            records: self.records().exists(),
            state: self.state().exists(),
            other_records: Vec::new(),
            other_states: Vec::new(),
        };
        for path in self.ours()? {
            found.links |= name(&path).starts_with(LINKS) && has_entries(&path)?;
            if self.is_current(&path) {
                continue;
            }
            if name(&path).starts_with(RECORDS) {
                found.other_records.push(path);
            } else {
                found.other_states.push(path);
            }
        }
        Ok(found)
    }

    /// Removes what belongs to other versions of the state. Their programs are detached, those that decide
    /// first.
    ///
    /// # Errors
    /// Where something can't be removed.
    pub fn remove_other_states(&self) -> io::Result<()> {
        remove(self.found()?.other_states)
    }

    /// Removes the pin root with our pins in it: programs detach first, those that decide before those that
    /// count; then the maps go with their last user. What isn't ours stays, and the pin root with it.
    ///
    /// # Errors
    /// Where something of ours can't be removed.
    pub fn remove_all(&self) -> io::Result<()> {
        remove(self.ours()?)?;
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
    pub fn restore(&self, found: &FoundPins) -> io::Result<()> {
        if found.is_nothing() {
            return self.remove_all();
        }
        if !found.records {
            gone(fs::remove_dir_all(self.records()))?;
        }
        if !found.state {
            remove(vec![self.links(), self.releases(), self.state()])?;
        }
        Ok(())
    }

    fn is_current(&self, path: &Path) -> bool {
        [self.records(), self.state(), self.links(), self.releases()].iter().any(|ours| ours == path)
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
            name == LINKS
                || name.starts_with(&format!("{LINKS}-v"))
                || [RECORDS, STATE, RELEASES].iter().any(|prefix| name.starts_with(prefix))
        };
        Ok(paths.into_iter().filter(ours).collect())
    }
}

/// What an earlier agent left in a pin root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundPins {
    /// Links: programs are attached.
    pub links: bool,
    /// Records of this build's layout.
    pub records: bool,
    /// State of this build's version.
    pub state: bool,
    /// The directories of records of other layouts.
    pub other_records: Vec<PathBuf>,
    /// The directories of other versions of the state, and of their links.
    pub other_states: Vec<PathBuf>,
}

impl FoundPins {
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

fn has_entries(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes directories of pins in such an order that no connect is redirected that nobody counts down.
fn remove(mut dirs: Vec<PathBuf>) -> io::Result<()> {
    dirs.sort_by_key(|dir| (!name(dir).starts_with(LINKS), !name(dir).starts_with(RELEASES)));
    for dir in dirs.iter().filter(|dir| name(dir).starts_with(LINKS) && dir.is_dir()) {
        for workload in fs::read_dir(dir)? {
            remove_links(&workload?.path())?;
        }
    }
    dirs.into_iter().try_for_each(|dir| gone(fs::remove_dir_all(dir)))
}

/// Detaches the programs of a workload, those that decide first, and removes their pins.
///
/// # Errors
/// Where something can't be removed.
pub fn remove_links(workload: &Path) -> io::Result<()> {
    for hook in Hook::ALL.into_iter().rev() {
        let path = workload.join(hook.as_str());
        // At once; what can't be detached so is by the end of its pin.
        if let Ok(Some(link)) = Link::open(&path) {
            let _ = link.detach();
        }
        gone(fs::remove_file(path))?;
    }
    gone(fs::remove_dir_all(workload))
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
        for other in ["state-v0", "links", "links-v0/x", "releases-v0"] {
            fs::create_dir_all(root.join(other)).unwrap();
        }
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

    #[test]
    fn links_whose_storage_is_lost_are_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::new(&dir.path().join("root"));
        pins.create().unwrap();
        pins.set_links_aside().unwrap();
        assert!(pins.found().unwrap().other_states.is_empty(), "there were none");
        for round in 1..3 {
            pins.create_links_of(7).unwrap();
            pins.set_links_aside().unwrap();
            assert!(!pins.links_of(7).exists() && pins.links().exists());
            assert_eq!(pins.found().unwrap().other_states.len(), round);
            assert!(pins.found().unwrap().links, "they are in force");
        }
        pins.remove_other_states().unwrap();
        let found = pins.found().unwrap();
        assert!(found.other_states.is_empty() && found.state && !found.links, "{found:?}");
    }
}
