//! A thread that waits for cgroups to be made, and for what is to be tried again.
//!
//! ```text
//!  inotify --created, missed--> thread --> Watched
//!  whoever has changed what is to be watched --^
//! ```
//!
//! inotify's own thread only sends: it waits for nobody, so whoever waits for it (to watch one more directory) may hold
//! any lock.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use super::NoPods;

/// So often at most is looked at what is due.
const SHORTEST: Duration = Duration::from_millis(1);

/// What the thread is told.
enum News {
    /// These were created in directories that are watched.
    Created(Vec<PathBuf>),
    /// Something was created, and nobody knows what.
    Missed,
    /// What is to be watched or tried again may have changed.
    Changed,
    /// It is to end.
    End,
}

/// Whoever wants to know.
pub(super) trait Watched: Send + 'static {
    /// These were created.
    fn created(&self, paths: &[PathBuf], now: Instant);
    /// Anything may have been created.
    fn missed(&self, now: Instant);
    /// This directory is watched from now on: what is in it already was told by nobody.
    fn watching(&self, dir: &Path, now: Instant);
    /// The directories to watch besides.
    fn to_watch(&self) -> Vec<PathBuf>;
    /// When something is to be tried again, if anything is.
    fn due(&self) -> Option<Instant>;
    /// Tries it again.
    fn retry(&self, now: Instant);
}

/// The thread.
#[derive(Debug)]
pub(super) struct Watcher {
    news: Sender<News>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Watcher {
    /// Watches what there is to watch, and then on.
    ///
    /// # Errors
    /// Where inotify refuses, or there is no thread to be had.
    pub fn start(watched: impl Watched) -> Result<Self, NoPods> {
        let (sender, news) = channel();
        let tell = sender.clone();
        let told = move |event: notify::Result<notify::Event>| {
            let happened = match event {
                Ok(event) if event.need_rescan() => News::Missed,
                Ok(event) if event.kind.is_create() => News::Created(event.paths),
                Ok(_) => return,
                Err(_) => News::Missed,
            };
            // When nobody listens any more, nobody is to be told.
            drop(tell.send(happened));
        };
        let mut watcher = notify::recommended_watcher(told).map_err(NoPods::Unwatchable)?;
        for dir in watched.to_watch() {
            watch(&mut watcher, &dir)?;
            watched.watching(&dir, Instant::now());
        }
        let builder = std::thread::Builder::new().name("enrolment".to_owned());
        let thread = builder.spawn(move || follow(watcher, &watched, &news)).map_err(NoPods::Thread)?;
        Ok(Self { news: sender, thread: Mutex::new(Some(thread)) })
    }

    /// What is to be watched or tried again may have changed.
    pub fn changed(&self) {
        // When it has ended, there is nothing to be done.
        drop(self.news.send(News::Changed));
    }

    /// Ends the thread and waits for it: nothing is attached any more.
    pub fn end(&self) {
        drop(self.news.send(News::End));
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A thread that panicked has printed why.
            drop(thread.join());
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.end();
    }
}

fn follow(mut watcher: RecommendedWatcher, watched: &impl Watched, news: &Receiver<News>) {
    loop {
        let told = match watched.due() {
            None => news.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => news.recv_timeout(due.saturating_duration_since(Instant::now()).max(SHORTEST)),
        };
        let now = Instant::now();
        match told {
            Ok(News::Created(paths)) => watched.created(&paths, now),
            Ok(News::Missed) => watched.missed(now),
            Ok(News::Changed) => {}
            Err(RecvTimeoutError::Timeout) => watched.retry(now),
            Ok(News::End) | Err(RecvTimeoutError::Disconnected) => return,
        }
        for dir in watched.to_watch() {
            if let Err(error) = watch(&mut watcher, &dir) {
                tracing::warn!(%error, "pods below it aren't noticed");
            }
            watched.watching(&dir, now);
        }
    }
}

fn watch(watcher: &mut RecommendedWatcher, dir: &Path) -> Result<(), NoPods> {
    match watcher.watch(dir, RecursiveMode::NonRecursive) {
        // It is gone already, and what was in it, too.
        Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => Ok(()),
        watched => watched.map_err(NoPods::Unwatchable),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Notes what it is told, and is due once.
    #[derive(Clone, Default)]
    struct Notes(Arc<Mutex<Vec<String>>>);

    impl Watched for Notes {
        fn created(&self, _: &[PathBuf], _: Instant) {}

        fn missed(&self, _: Instant) {
            self.0.lock().unwrap().push("missed".to_owned());
        }

        fn watching(&self, _: &Path, _: Instant) {}

        fn to_watch(&self) -> Vec<PathBuf> {
            Vec::new()
        }

        fn due(&self) -> Option<Instant> {
            (!self.0.lock().unwrap().contains(&"retry".to_owned())).then(Instant::now)
        }

        fn retry(&self, _: Instant) {
            self.0.lock().unwrap().push("retry".to_owned());
        }
    }

    /// The kernel's queue of events is bounded: what it drops, it tells of as an overflow.
    #[test]
    fn an_overflow_and_what_is_due_are_told() {
        let notes = Notes::default();
        let watcher = Watcher::start(notes.clone()).unwrap();
        watcher.news.send(News::Missed).unwrap();
        watcher.end();
        let mut told = notes.0.lock().unwrap().clone();
        told.sort();
        told.dedup();
        assert!(told.contains(&"missed".to_owned()), "{told:?}");
        let overflow = notify::Event::new(notify::EventKind::Other).set_flag(notify::event::Flag::Rescan);
        assert!(overflow.need_rescan(), "what inotify's overflow is made");
    }
}
