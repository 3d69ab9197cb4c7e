//! The work that an event of inotify's asks for: a file to read, a file to leave alone until it is closed, or a
//! look at which files there are.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use notify::{
    EventKind,
    event::{AccessKind, AccessMode, CreateKind, MetadataKind, ModifyKind, RemoveKind},
};

use super::{Asked, Follower};
use crate::watch::files::{is_manifest, is_new_and_empty, may_matter};

impl Follower {
    /// Notes what an event asks for; whether it does.
    pub(super) fn ask(&mut self, event: notify::Result<notify::Event>, asked: &mut Asked) -> bool {
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            Ok(_) => {
                asked.scan = true;
                return true;
            }
            Err(error) => {
                self.cannot_watch(&error);
                asked.scan = true;
                return true;
            }
        };
        if matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)) {
            return false;
        }
        let content = matches!(
            event.kind,
            EventKind::Access(_) | EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_))
        );
        let mut asks = false;
        for path in &event.paths {
            if *path == self.real || *path == self.here {
                if !content {
                    asked.rewatch = true;
                    asked.scan = true;
                    asks = true;
                }
                continue;
            }
            let Ok(below) = path.strip_prefix(&self.real) else { continue };
            let path = self.dir.join(below);
            if self.is_about_folder(event.kind, below, &path) {
                asked.scan = true;
                asks = true;
            } else if is_manifest(below) {
                match event.kind {
                    EventKind::Modify(ModifyKind::Data(_)) => {
                        self.hold(path, asked);
                    }
                    EventKind::Create(_) if is_new_and_empty(&path) => {
                        // Whoever made it writes to it next, or closes it.
                        self.hold(path, asked);
                    }
                    EventKind::Modify(ModifyKind::Metadata(_)) => {
                        asked.files.insert(path);
                    }
                    _ => {
                        self.writing.remove(&path);
                        self.overdue.remove(&path);
                        asked.writing.remove(&path);
                        asked.files.insert(path);
                    }
                }
                asks = true;
            }
        }
        asks
    }

    /// Leaves a file alone until it is closed.
    fn hold(&mut self, path: PathBuf, asked: &mut Asked) {
        self.writing.insert(path.clone(), Instant::now());
        asked.writing.insert(path);
    }

    /// Tells whether the event changes which files are there, other than by the one it names.
    fn is_about_folder(&self, kind: EventKind, below: &Path, path: &Path) -> bool {
        if !may_matter(below) {
            return false;
        }
        let link = below.file_name().is_some_and(|name| name == "..data");
        match kind {
            EventKind::Create(CreateKind::Folder) | EventKind::Remove(RemoveKind::Folder) => true,
            EventKind::Create(CreateKind::File) | EventKind::Remove(RemoveKind::File) => link,
            EventKind::Modify(ModifyKind::Name(_)) => {
                link || fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
                    || self.is_known_folder(path)
            }
            EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)) => {
                self.unreadable.iter().any(|(dir, _)| dir == path)
            }
            EventKind::Access(_) | EventKind::Modify(_) => false,
            _ => true,
        }
    }

    /// Tells whether there was a folder of this name that something was, or may have been, read from.
    pub(super) fn is_known_folder(&self, path: &Path) -> bool {
        let below = |known: &PathBuf| known != path && known.starts_with(path);
        self.seen.range(path.to_owned()..).take_while(|(p, _)| p.starts_with(path)).any(|(p, _)| below(p))
            || self.unreadable.iter().any(|(dir, _)| dir.starts_with(path))
    }
}
