//! A thread that waits for cgroups to be made, for requests, and for what is to be tried again.
//!
//! ```text
//!  inotify --created, missed--> thread, which owns a Watched
//!  whoever has a request -------^
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

/// An event that the thread waits for.
enum CgroupEvent<R> {
    /// These were created in directories that are watched.
    Created(Vec<PathBuf>),
    /// Something was created, and nobody knows what.
    Missed,
    /// Somebody has a request.
    Asked(R),
    /// It is to end.
    End,
}

/// State that the thread owns.
pub(super) trait Watched: Send + 'static {
    /// Requests of others.
    type Request: Send + 'static;
    /// Does what is asked.
    fn asked(&mut self, request: Self::Request, now: Instant);
    /// These were created.
    fn created(&mut self, paths: &[PathBuf], now: Instant);
    /// Anything may have been created.
    fn missed(&mut self, now: Instant);
    /// This directory is watched from now on: what is in it already was told by nobody.
    fn watching(&mut self, dir: &Path, now: Instant);
    /// The directories to watch besides.
    fn to_watch(&mut self) -> Vec<PathBuf>;
    /// When something is to be tried again, if anything is.
    fn due(&self) -> Option<Instant>;
    /// Tries it again.
    fn retry(&mut self, now: Instant);
    /// All that an event has led to is done.
    fn settled(&mut self) {}
}

/// The thread.
#[derive(Debug)]
pub(super) struct Watcher<R> {
    events: Sender<CgroupEvent<R>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<R: Send + 'static> Watcher<R> {
    /// Watches what there is to watch, and then on.
    ///
    /// # Errors
    /// Where inotify refuses, or there is no thread to be had.
    pub fn start(mut watched: impl Watched<Request = R>) -> Result<Self, NoPods> {
        let (sender, events) = channel();
        let tell = sender.clone();
        let told = move |event: notify::Result<notify::Event>| {
            let happened = match event {
                Ok(event) if event.need_rescan() => CgroupEvent::Missed,
                Ok(event) if event.kind.is_create() => CgroupEvent::Created(event.paths),
                Ok(_) => return,
                Err(_) => CgroupEvent::Missed,
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
        let thread = builder.spawn(move || follow(watcher, &mut watched, &events)).map_err(NoPods::Thread)?;
        Ok(Self { events: sender, thread: Mutex::new(Some(thread)) })
    }

    /// Hands a request to the thread; one that has ended drops it.
    pub fn ask(&self, request: R) {
        drop(self.events.send(CgroupEvent::Asked(request)));
    }
}

impl<R> Watcher<R> {
    /// Ends the thread and waits for it: nothing is attached any more.
    pub fn end(&self) {
        drop(self.events.send(CgroupEvent::End));
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A thread that panicked has printed why.
            drop(thread.join());
        }
    }
}

impl<R> Drop for Watcher<R> {
    fn drop(&mut self) {
        self.end();
    }
}

fn follow<W: Watched>(
    mut watcher: RecommendedWatcher,
    watched: &mut W,
    events: &Receiver<CgroupEvent<W::Request>>,
) {
    loop {
        let event = match watched.due() {
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => events.recv_timeout(due.saturating_duration_since(Instant::now()).max(SHORTEST)),
        };
        let now = Instant::now();
        match event {
            Ok(CgroupEvent::Created(paths)) => watched.created(&paths, now),
            Ok(CgroupEvent::Missed) => watched.missed(now),
            Ok(CgroupEvent::Asked(request)) => watched.asked(request, now),
            Err(RecvTimeoutError::Timeout) => watched.retry(now),
            Ok(CgroupEvent::End) | Err(RecvTimeoutError::Disconnected) => return,
        }
        for dir in watched.to_watch() {
            if let Err(error) = watch(&mut watcher, &dir) {
                tracing::warn!(%error, "pods below it aren't noticed");
            }
            watched.watching(&dir, now);
        }
        watched.settled();
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
        type Request = ();

        fn asked(&mut self, (): (), _: Instant) {}

        fn created(&mut self, _: &[PathBuf], _: Instant) {}

        fn missed(&mut self, _: Instant) {
            self.0.lock().unwrap().push("missed".to_owned());
        }

        fn watching(&mut self, _: &Path, _: Instant) {}

        fn to_watch(&mut self) -> Vec<PathBuf> {
            Vec::new()
        }

        fn due(&self) -> Option<Instant> {
            (!self.0.lock().unwrap().contains(&"retry".to_owned())).then(Instant::now)
        }

        fn retry(&mut self, _: Instant) {
            self.0.lock().unwrap().push("retry".to_owned());
        }
    }

    /// The kernel's queue of events is bounded: what it drops, it tells of as an overflow.
    #[test]
    fn an_overflow_and_what_is_due_are_told() {
        let notes = Notes::default();
        let watcher = Watcher::start(notes.clone()).unwrap();
        watcher.events.send(CgroupEvent::Missed).unwrap();
        watcher.end();
        let mut told = notes.0.lock().unwrap().clone();
        told.sort();
        told.dedup();
        assert!(told.contains(&"missed".to_owned()), "{told:?}");
        let overflow = notify::Event::new(notify::EventKind::Other).set_flag(notify::event::Flag::Rescan);
        assert!(overflow.need_rescan(), "what inotify's overflow is made");
    }
}
