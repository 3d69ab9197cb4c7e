//! The embedded source: a directory of manifests, followed by inotify.
//!
//! ```text
//!  inotify --Wake--> Follower: wait for quiet -> read what changed -> parse -> Store --Update-->
//! ```
//!
//! Invariant: an error takes nothing out of force. Only a definition that is gone from a directory
//! that is there is deleted.
//!
//! Editors save in several steps (truncate and write, write and rename), so a burst of events is
//! waited out: until what was written to is closed and nothing happened for [`QUIET`], but never
//! longer than [`BUSY`]. A file that is still being written to then is left for a later burst, as it
//! may be truncated, until it is closed or nothing was written to it for [`HELD`].

mod events;
mod folder;
#[cfg(test)]
mod tests;
mod updates;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use notify::{Config, RecommendedWatcher, Watcher as _};
use slotmesh_compile::Report;
use tracing::debug;

use self::updates::event;
pub(super) use self::updates::{first_update, store_with};
use super::{
    LocalNode, ReportChanges, Update,
    files::{Signature, identity, is_behind_link, scan},
    parse::parse,
    store::{Changed, Store},
};
use crate::Error;

/// A burst is over when nothing happened for this long.
const QUIET: Duration = Duration::from_millis(20);
/// A burst that doesn't end is read after this long.
const BUSY: Duration = Duration::from_millis(200);
/// How often a directory that disappeared is looked for, in case inotify doesn't tell.
const LOOK: Duration = Duration::from_millis(500);
/// A file that isn't closed is read when nothing was written to it for this long.
const HELD: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// How often a directory that can't be watched is read.
const RETRY: Duration = Duration::from_secs(2);

/// A directory of manifests that is being followed. Dropping it ends that.
#[derive(Debug)]
pub struct Manifests {
    wake: Sender<Wake>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Wake {
    Event(notify::Result<notify::Event>),
    Stop,
}

impl Manifests {
    /// Reads the directory and follows it. The first [`Update`] holds all that is there; it is given
    /// to `deliver` by a thread of its own, as all that follow. `deliver` returns whether anybody
    /// still listens.
    ///
    /// # Errors
    /// When there is no such directory or it can't be watched.
    pub fn follow(dir: &Path, deliver: impl FnMut(Update) -> bool + Send + 'static) -> Result<Self, Error> {
        Self::follow_on(None, dir, deliver)
    }

    /// As [`follow`](Self::follow), with a node that no manifest has to describe.
    ///
    /// # Errors
    /// As [`follow`](Self::follow).
    pub fn follow_on(
        node: Option<&LocalNode>,
        dir: &Path,
        deliver: impl FnMut(Update) -> bool + Send + 'static,
    ) -> Result<Self, Error> {
        let not_a_directory = || Error::NotADirectory { dir: dir.to_owned() };
        let absolute =
            std::path::absolute(dir).map_err(|source| Error::Unreadable { dir: dir.to_owned(), source })?;
        let root = identity(&absolute).ok_or_else(not_a_directory)?;
        let (wake, woken) = mpsc::channel();
        let sender = wake.clone();
        let unwatchable = |source| Error::Unwatchable { dir: dir.to_owned(), source };
        let tell = move |event| {
            // Whoever listened is gone when this fails, and the watcher goes next.
            drop(sender.send(Wake::Event(event)));
        };
        // The scan doesn't follow links to folders either.
        let config = Config::default().with_follow_symlinks(false);
        let watcher = RecommendedWatcher::new(tell, config).map_err(unwatchable)?;
        let mut follower = Follower {
            shown: dir.to_owned(),
            real: absolute.clone(),
            here: absolute.clone(),
            dir: absolute,
            watcher,
            watched: Vec::new(),
            unwatchable: None,
            retry: None,
            root: Some(root),
            store: node.map(store_with).unwrap_or_default(),
            seen: BTreeMap::new(),
            writing: BTreeMap::new(),
            overdue: BTreeSet::new(),
            unreadable: Vec::new(),
            about: Vec::new(),
            deliver: Box::new(deliver),
        };
        follower.watch().map_err(unwatchable)?;
        let run = move || follower.run(&woken);
        let thread = thread::Builder::new().name("manifests".to_owned()).spawn(run).map_err(Error::Thread)?;
        Ok(Self { wake, thread: Some(thread) })
    }
}

impl Drop for Manifests {
    fn drop(&mut self) {
        // Both only fail when the thread is gone already.
        drop(self.wake.send(Wake::Stop));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// The work that a burst of events asks for.
#[derive(Debug, Default)]
struct Asked {
    files: BTreeSet<PathBuf>,
    /// Those that were written to and not closed since.
    writing: BTreeSet<PathBuf>,
    /// Something happened that isn't about one manifest.
    scan: bool,
    /// The directory itself went or came, so the watch on it may be gone.
    rewatch: bool,
}

impl Asked {
    fn is_empty(&self) -> bool {
        self.files.is_empty() && !self.scan && !self.rewatch
    }
}

/// The state of a file as it was last read.
#[derive(Debug)]
struct Seen {
    signature: Option<Signature>,
    /// `None` when it couldn't be read.
    hash: Option<u64>,
}

struct Follower {
    /// The directory as the user named it.
    shown: PathBuf,
    dir: PathBuf,
    /// The same without links, which is what inotify tells about.
    real: PathBuf,
    /// The same without links on the way there; the directory itself may be one.
    here: PathBuf,
    watcher: RecommendedWatcher,
    watched: Vec<PathBuf>,
    /// Why not all can be watched, and when to try again.
    unwatchable: Option<String>,
    retry: Option<Instant>,
    /// Which directory is watched; `None` while there is none.
    root: Option<(u64, u64)>,
    store: Store,
    seen: BTreeMap<PathBuf, Seen>,
    /// The files that are written to, and when that was seen last.
    writing: BTreeMap<PathBuf, Instant>,
    /// Those that were read although nobody closed them.
    overdue: BTreeSet<PathBuf>,
    /// The folders that couldn't be read, and why.
    unreadable: Vec<(PathBuf, String)>,
    /// Reports that hold about the directory, its folders and open files.
    about: Vec<Report>,
    deliver: Box<dyn FnMut(Update) -> bool + Send>,
}

impl Follower {
    fn run(mut self, woken: &Receiver<Wake>) {
        let (changed, appeared, disappeared) = self.read(Asked { scan: true, ..Asked::default() });
        let mut listening = (self.deliver)(first_update(&changed, appeared, disappeared));
        let mut again = None;
        while listening {
            let Some(asked) = self.next(woken, &mut again) else { return };
            if asked.is_empty() {
                continue;
            }
            // A new folder may be filled before inotify watches it: look once more later.
            again = (asked.scan && again.is_none()).then(|| Instant::now() + BUSY);
            let (changed, appeared, disappeared) = self.read(asked);
            let events: Vec<_> = changed.into_iter().filter_map(event).collect();
            if !events.is_empty() || !appeared.is_empty() || !disappeared.is_empty() {
                let seen = Instant::now();
                listening = (self.deliver)(Update { events, appeared, disappeared, seen, reached: None });
            }
        }
    }

    /// Waits for a burst of events and its end; `None` when it is time to stop.
    fn next(&mut self, woken: &Receiver<Wake>, again: &mut Option<Instant>) -> Option<Asked> {
        let mut asked = Asked::default();
        let look = self.root.is_none().then(|| Instant::now() + LOOK);
        let held = self.writing.values().min().map(|last| *last + HELD);
        let mut until = [look, *again, self.retry, held].into_iter().flatten().min();
        let mut busy_until = None;
        loop {
            let wake = match until {
                None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(until) => woken.recv_timeout(until.saturating_duration_since(Instant::now())),
            };
            match wake {
                Ok(Wake::Event(event)) => {
                    if self.ask(event, &mut asked) {
                        let now = Instant::now();
                        let latest = *busy_until.get_or_insert(now + BUSY);
                        let quiet = if asked.writing.is_empty() { now + QUIET } else { latest };
                        until = Some(latest.min(quiet));
                    }
                }
                Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    let now = Instant::now();
                    asked.rewatch |= self.retry.take_if(|at| *at <= now).is_some();
                    let due = again.is_some_and(|at| at <= now);
                    asked.scan |= due || asked.rewatch || self.root.is_none();
                    let is_due = |last: &Instant| *last + HELD <= now;
                    let due: Vec<_> = self
                        .writing
                        .iter()
                        .filter(|(_, last)| is_due(last))
                        .map(|(p, _)| p.clone())
                        .collect();
                    for path in due {
                        self.writing.remove(&path);
                        self.overdue.insert(path.clone());
                        asked.files.insert(path);
                    }
                    return Some(asked);
                }
            }
        }
    }

    /// Reads what is asked for.
    fn read(&mut self, mut asked: Asked) -> (Vec<Changed>, Vec<Report>, Vec<Report>) {
        asked.scan |= self.check_root(asked.rewatch);
        let mut gone = Vec::new();
        if self.root.is_none() {
            asked = Asked::default();
        }
        asked.scan |= asked.files.iter().any(|path| match fs::symlink_metadata(path) {
            Ok(meta) => meta.is_dir(),
            Err(_) => self.is_known_folder(path),
        });
        let mut files: BTreeMap<PathBuf, Option<Signature>> =
            asked.files.into_iter().map(|path| (path, None)).collect();
        if asked.scan {
            let found = scan(&self.dir);
            self.unreadable =
                found.unreadable.iter().map(|(dir, error)| (dir.clone(), error.to_string())).collect();
            self.writing.retain(|path, _| found.files.contains_key(path));
            self.overdue.retain(|path| found.files.contains_key(path));
            let unknown = |path: &Path| found.unreadable.iter().any(|(dir, _)| path.starts_with(dir));
            gone.extend(self.seen.keys().filter(|p| !found.files.contains_key(*p) && !unknown(p)).cloned());
            for (path, signature) in found.files {
                if self.seen.get(&path).is_none_or(|seen| seen.signature != Some(signature)) {
                    files.insert(path, Some(signature));
                }
            }
        }
        for (path, signature) in files {
            if self.writing.contains_key(&path) {
                continue;
            }
            self.read_file(path, signature, &mut gone);
        }
        // While files were read the directory may have begun to go, file by file.
        if !gone.is_empty() && identity(&self.dir).is_some() {
            for path in gone {
                self.seen.remove(&path);
                self.store.remove(&self.name(&path));
            }
        }
        let (changes, mut appeared, mut disappeared) = self.store.changes();
        let mut dirs = ReportChanges::default();
        let about = self.about_now();
        dirs.replace(std::mem::replace(&mut self.about, about.clone()), about);
        let (more, fewer) = dirs.take();
        appeared.extend(more);
        disappeared.extend(fewer);
        (changes, appeared, disappeared)
    }

    fn read_file(&mut self, path: PathBuf, signature: Option<Signature>, gone: &mut Vec<PathBuf>) {
        let name = self.name(&path);
        // Whatever the scan would leave out is no manifest; to open a pipe would block.
        let left_out = |meta: &fs::Metadata| !meta.is_file() || is_behind_link(&self.dir, &path);
        let content = match fs::metadata(&path) {
            Ok(meta) if left_out(&meta) => Err(io::ErrorKind::NotFound.into()),
            Ok(_) => fs::read(&path),
            Err(error) => Err(error),
        };
        let content = content.and_then(|content| {
            String::from_utf8(content)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
        });
        let hash = match content {
            Ok(text) => {
                let hash = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
                if self.seen.get(&path).is_none_or(|seen| seen.hash != Some(hash)) {
                    debug!(file = %name, bytes = text.len(), "reading");
                    self.store.set(&name, parse(&name, &text));
                }
                Some(hash)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                gone.push(path);
                return;
            }
            Err(error) => {
                self.store.unreadable(&name, &error.to_string());
                None
            }
        };
        self.seen.insert(path, Seen { signature, hash });
    }
}
