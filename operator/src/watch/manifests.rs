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
//! longer than [`BUSY`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use kube_runtime::watcher;
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use slotmesh_compile::{Kind, ObjectRef, Report, Severity};
use tracing::{debug, info};

use super::{
    ReportChanges, Update, WatchEvent,
    files::{Signature, identity, is_manifest, may_matter, scan},
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
        let not_a_directory = || Error::NotADirectory { dir: dir.to_owned() };
        let absolute =
            std::path::absolute(dir).map_err(|source| Error::Unreadable { dir: dir.to_owned(), source })?;
        let root = identity(&absolute).ok_or_else(not_a_directory)?;
        let (wake, woken) = mpsc::channel();
        let sender = wake.clone();
        let unwatchable = |source| Error::Unwatchable { dir: dir.to_owned(), source };
        let watcher = notify::recommended_watcher(move |event| {
            // Whoever listened is gone when this fails, and the watcher goes next.
            drop(sender.send(Wake::Event(event)));
        })
        .map_err(unwatchable)?;
        let mut follower = Follower {
            shown: dir.to_owned(),
            dir: absolute,
            watcher,
            root: Some(root),
            store: Store::default(),
            seen: BTreeMap::new(),
            about_dirs: Vec::new(),
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

/// What a burst of events asks for.
#[derive(Debug, Default)]
struct Asked {
    files: BTreeSet<PathBuf>,
    /// Those that were written to and not closed since.
    writing: BTreeSet<PathBuf>,
    /// Something happened that isn't about one manifest.
    scan: bool,
}

impl Asked {
    fn is_empty(&self) -> bool {
        self.files.is_empty() && !self.scan
    }
}

/// What was last read of a file.
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
    watcher: RecommendedWatcher,
    /// Which directory is watched; `None` while there is none.
    root: Option<(u64, u64)>,
    store: Store,
    seen: BTreeMap<PathBuf, Seen>,
    /// What is to be said about folders now.
    about_dirs: Vec<Report>,
    deliver: Box<dyn FnMut(Update) -> bool + Send>,
}

impl Follower {
    fn watch(&mut self) -> notify::Result<()> {
        self.watcher.watch(&self.dir, RecursiveMode::Recursive)?;
        // The parent tells when the directory itself goes and comes; polling does as well, later.
        if let Some(parent) = self.dir.parent()
            && let Err(error) = self.watcher.watch(parent, RecursiveMode::NonRecursive)
        {
            debug!(%error, dir = %parent.display(), "the parent directory can't be watched");
        }
        Ok(())
    }

    fn unwatch(&mut self) {
        for dir in self.dir.clone().ancestors().take(2) {
            // It fails when the directory is gone, and the watch with it.
            drop(self.watcher.unwatch(dir));
        }
    }

    fn run(mut self, woken: &Receiver<Wake>) {
        let mut first = Vec::new();
        let (changed, mut appeared, disappeared) = self.read(Asked { scan: true, ..Asked::default() });
        for kind in Kind::ALL {
            first.push(WatchEvent { kind, event: watcher::Event::Init });
            let of_kind = changed.iter().filter_map(|c| c.new.as_ref()).filter(|s| s.object.kind() == kind);
            first.extend(of_kind.map(|s| WatchEvent { kind, event: watcher::Event::InitApply(s.clone()) }));
            first.push(WatchEvent { kind, event: watcher::Event::InitDone });
        }
        appeared.sort();
        let mut listening = (self.deliver)(Update { events: first, appeared, disappeared });
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
                listening = (self.deliver)(Update { events, appeared, disappeared });
            }
        }
    }

    /// Waits for a burst of events and its end; `None` when it is time to stop.
    fn next(&self, woken: &Receiver<Wake>, again: &mut Option<Instant>) -> Option<Asked> {
        let mut asked = Asked::default();
        let look = self.root.is_none().then(|| Instant::now() + LOOK);
        let mut until = [look, *again].into_iter().flatten().min();
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
                    let due = again.is_some_and(|at| at <= Instant::now());
                    asked.scan |= due || self.root.is_none();
                    return Some(asked);
                }
            }
        }
    }

    /// Notes what an event asks for; whether it does.
    fn ask(&self, event: notify::Result<notify::Event>, asked: &mut Asked) -> bool {
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            _ => {
                asked.scan = true;
                return true;
            }
        };
        let closed = event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write));
        let written = matches!(event.kind, EventKind::Modify(ModifyKind::Data(_)));
        let content = match event.kind {
            EventKind::Access(_) if !closed => return false,
            EventKind::Modify(ModifyKind::Name(_)) => false,
            EventKind::Access(_) | EventKind::Modify(_) => true,
            _ => false,
        };
        let mut asks = false;
        for path in event.paths {
            let Ok(below) = path.strip_prefix(&self.dir) else { continue };
            if is_manifest(below) {
                if written {
                    asked.writing.insert(path.clone());
                } else {
                    asked.writing.remove(&path);
                }
                asked.files.insert(path);
                asks = true;
            } else if !content && may_matter(below) {
                asked.scan = true;
                asks = true;
            }
        }
        asks
    }

    /// Reads what is asked for.
    fn read(&mut self, mut asked: Asked) -> (Vec<Changed>, Vec<Report>, Vec<Report>) {
        let mut about_dirs = self.about_dirs.clone();
        asked.scan |= self.check_root();
        let mut gone = Vec::new();
        if self.root.is_none() {
            asked = Asked::default();
            let message = "the directory has disappeared; all that it defined stays in force, and it is read \
                           again as soon as it is back";
            about_dirs = vec![self.about(&self.shown, message.to_owned())];
        }
        let mut files: BTreeMap<PathBuf, Option<Signature>> =
            asked.files.into_iter().map(|path| (path, None)).collect();
        if asked.scan {
            let found = scan(&self.dir);
            about_dirs = found
                .unreadable
                .iter()
                .map(|(dir, error)| {
                    let message =
                        format!("the directory can't be read: {error}; what it defined stays in force");
                    self.about(Path::new(&*self.name(dir)), message)
                })
                .collect();
            let unknown = |path: &Path| found.unreadable.iter().any(|(dir, _)| path.starts_with(dir));
            gone.extend(self.seen.keys().filter(|p| !found.files.contains_key(*p) && !unknown(p)).cloned());
            for (path, signature) in found.files {
                if self.seen.get(&path).is_none_or(|seen| seen.signature != Some(signature)) {
                    files.insert(path, Some(signature));
                }
            }
        }
        for (path, signature) in files {
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
        dirs.replace(std::mem::replace(&mut self.about_dirs, about_dirs.clone()), about_dirs);
        let (more, fewer) = dirs.take();
        appeared.extend(more);
        disappeared.extend(fewer);
        (changes, appeared, disappeared)
    }

    fn read_file(&mut self, path: PathBuf, signature: Option<Signature>, gone: &mut Vec<PathBuf>) {
        let name = self.name(&path);
        let content = fs::read(&path).and_then(|content| {
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

    /// Follows the directory when it goes, comes or is exchanged; whether all must be looked at.
    fn check_root(&mut self) -> bool {
        let now = identity(&self.dir);
        if now == self.root {
            return false;
        }
        self.unwatch();
        self.root = now;
        if now.is_none() {
            return false;
        }
        info!(dir = %self.shown.display(), "the manifest directory is back");
        if let Err(error) = self.watch() {
            debug!(%error, dir = %self.shown.display(), "the directory can't be watched yet");
            // It is looked at again, as if it weren't there.
            self.root = None;
        }
        self.root.is_some()
    }

    /// A path as it is shown to the user.
    fn name(&self, path: &Path) -> Arc<str> {
        let shown = match path.strip_prefix(&self.dir) {
            Ok(below) if below.as_os_str().is_empty() => self.shown.clone(),
            Ok(below) => self.shown.join(below),
            Err(_) => path.to_owned(),
        };
        shown.to_string_lossy().into()
    }

    fn about(&self, dir: &Path, message: String) -> Report {
        let object = ObjectRef {
            kind: "Directory".into(),
            namespace: "".into(),
            name: dir.to_string_lossy().into(),
            source: None,
        };
        Report { object, field: None, severity: Severity::Refused, message }
    }
}

fn event(Changed { old, new }: Changed) -> Option<WatchEvent> {
    let (sourced, event): (_, fn(_) -> _) = match (new, old) {
        (Some(new), _) => (new, watcher::Event::Apply),
        (None, Some(old)) => (old, watcher::Event::Delete),
        (None, None) => return None,
    };
    Some(WatchEvent { kind: sourced.object.kind(), event: event(sourced) })
}
