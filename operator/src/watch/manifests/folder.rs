//! The directory itself: watched, gone, back again, and what is to be said about it.

use std::{fs, path::Path, sync::Arc, time::Instant};

use notify::{RecursiveMode, Watcher as _};
use slotmesh_compile::{ObjectRef, Report, Severity};
use tracing::{debug, info};

use super::{Follower, HELD, LOOK, RETRY};
use crate::watch::files::identity;

impl Follower {
    pub(super) fn watch(&mut self) -> notify::Result<()> {
        self.real = fs::canonicalize(&self.dir).map_err(notify::Error::io)?;
        self.here = match (self.dir.parent().map(fs::canonicalize), self.dir.file_name()) {
            (Some(Ok(parent)), Some(name)) => parent.join(name),
            _ => self.real.clone(),
        };
        self.watched.push(self.real.clone());
        self.watcher.watch(&self.real, RecursiveMode::Recursive)?;
        // The parents tell when the directory itself goes and comes; polling does as well, later.
        for path in [self.here.clone(), self.real.clone()] {
            let Some(parent) = path.parent().filter(|parent| !parent.starts_with(&self.real)) else {
                continue;
            };
            if self.watched.iter().any(|watched| watched == parent) {
                continue;
            }
            match self.watcher.watch(parent, RecursiveMode::NonRecursive) {
                Ok(()) => self.watched.push(parent.to_owned()),
                Err(error) => {
                    debug!(%error, dir = %parent.display(), "the parent directory can't be watched");
                }
            }
        }
        Ok(())
    }

    fn unwatch(&mut self) {
        for dir in std::mem::take(&mut self.watched) {
            // It fails when the directory is gone, and the watch with it.
            drop(self.watcher.unwatch(&dir));
        }
    }

    /// Notes that not all can be watched.
    pub(super) fn cannot_watch(&mut self, error: &notify::Error) {
        // A folder that goes while it is about to be watched is no trouble.
        if matches!(error.kind, notify::ErrorKind::PathNotFound) {
            self.retry = Some(Instant::now() + LOOK);
            return;
        }
        self.retry = Some(Instant::now() + RETRY);
        let remedy = match error.kind {
            notify::ErrorKind::MaxFilesWatch => "; raise fs.inotify.max_user_watches",
            _ => "",
        };
        self.unwatchable = Some(format!(
            "can't be watched: {error}{remedy}; until it can, it is read every {} s",
            RETRY.as_secs()
        ));
    }

    /// Follows the directory when it goes, comes or is exchanged; whether all must be looked at.
    pub(super) fn check_root(&mut self, rewatch: bool) -> bool {
        let now = identity(&self.dir);
        if now == self.root && !rewatch {
            return false;
        }
        let back = self.root.is_none() && now.is_some();
        self.unwatch();
        self.root = now;
        (self.unwatchable, self.retry) = (None, None);
        if now.is_none() {
            self.writing.clear();
            self.overdue.clear();
            return false;
        }
        if back {
            info!(dir = %self.shown.display(), "the manifest directory is back");
        }
        if let Err(error) = self.watch() {
            debug!(%error, dir = %self.shown.display(), "the directory can't be watched yet");
            self.cannot_watch(&error);
        }
        true
    }

    /// Reports about the directory, its folders and open files.
    pub(super) fn about_now(&self) -> Vec<Report> {
        if self.root.is_none() {
            let message = "the directory has disappeared; all that it defined stays in force, and it is read \
                           again as soon as it is back";
            return vec![self.about("Directory", &self.dir, Severity::Refused, message.to_owned())];
        }
        let unreadable = self.unreadable.iter().map(|(dir, error)| {
            let message = format!("the directory can't be read: {error}; what it defined stays in force");
            self.about("Directory", dir, Severity::Refused, message)
        });
        let unwatchable = self
            .unwatchable
            .iter()
            .map(|message| self.about("Directory", &self.dir, Severity::Refused, message.clone()));
        let overdue = self.overdue.iter().map(|path| {
            let message = format!(
                "the file is open for writing, but nothing was written for {} s; it is read as it is",
                HELD.as_secs()
            );
            self.about("File", path, Severity::Note, message)
        });
        unreadable.chain(unwatchable).chain(overdue).collect()
    }

    /// A path as it is shown to the user.
    pub(super) fn name(&self, path: &Path) -> Arc<str> {
        let shown = match path.strip_prefix(&self.dir) {
            Ok(below) if below.as_os_str().is_empty() => self.shown.clone(),
            Ok(below) => self.shown.join(below),
            Err(_) => path.to_owned(),
        };
        shown.to_string_lossy().into()
    }

    fn about(&self, kind: &'static str, path: &Path, severity: Severity, message: String) -> Report {
        let object =
            ObjectRef { kind: kind.into(), namespace: "".into(), name: self.name(path), source: None };
        Report::new(object, None, severity, message)
    }
}
