//! The threads that wait for grace periods, so that the engine's owner never does.

use std::{sync::Arc, thread, time::Duration};

use slotmesh_records::SlabIndex;

use crate::{
    Backing, BackingError,
    sync::{self, JoinHandle, MappedSlab, Receiver, Sender, channel},
};

/// How long a failed barrier is held back before it is reported, so that a kernel that refuses isn't
/// asked in a tight loop.
const BARRIER_RETRY: Duration = Duration::from_millis(100);

const GROWTH: &str = "slots-growth";
const GRACE: &str = "slots-grace";

/// Finished work.
pub(crate) enum Done {
    /// A batch of slabs.
    Grown(Result<Vec<MappedSlab>, BackingError>),
    /// Slabs that were given back.
    Shrunk(Result<(), BackingError>),
    /// A grace period.
    Barrier(Result<(), BackingError>),
    /// A thread ended by a panic: nothing it was asked for will be done.
    Died(&'static str),
}

/// Tells of the end of a thread that panics.
struct PanicReporter {
    thread: &'static str,
    finished: Sender<Done>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Drop for PanicReporter {
    fn drop(&mut self) {
        if thread::panicking() {
            // Nobody to tell where the engine is gone too.
            let _ = self.finished.send(Done::Died(self.thread));
            (self.wake)();
        }
    }
}

/// Work for the growth thread.
enum Job {
    Grow(Vec<SlabIndex>),
    Shrink(Vec<MappedSlab>),
}

/// The growth thread and the grace-period thread.
pub(crate) struct Background {
    jobs: Option<Sender<Job>>,
    barrier: Option<Sender<()>>,
    done: Receiver<Done>,
    threads: Vec<JoinHandle<()>>,
}

impl Background {
    /// Starts the threads. `wake` is called after each piece of finished work.
    pub fn start(backing: &Arc<dyn Backing>, wake: Arc<dyn Fn() + Send + Sync>) -> std::io::Result<Self> {
        let (finished, done) = channel();
        let (jobs, growth) = channel::<Job>();
        let (barrier, periods) = channel::<()>();
        let grower = {
            let (backing, finished, wake) = (backing.clone(), finished.clone(), wake.clone());
            move || {
                let _reporter =
                    PanicReporter { thread: GROWTH, finished: finished.clone(), wake: wake.clone() };
                while let Ok(job) = growth.recv() {
                    let done = match job {
                        Job::Grow(batch) => Done::Grown(backing.create(&batch)),
                        Job::Shrink(slabs) => Done::Shrunk(backing.remove(slabs)),
                    };
                    if finished.send(done).is_err() {
                        return;
                    }
                    wake();
                }
            }
        };
        let backing = backing.clone();
        let waiter = move || {
            let _reporter = PanicReporter { thread: GRACE, finished: finished.clone(), wake: wake.clone() };
            while let Ok(()) = periods.recv() {
                let result = backing.barrier();
                if result.is_err() {
                    sync::sleep(BARRIER_RETRY);
                }
                if finished.send(Done::Barrier(result)).is_err() {
                    return;
                }
                wake();
            }
        };
        let threads = vec![
            sync::Builder::new().name(GROWTH.to_owned()).spawn(grower)?,
            sync::Builder::new().name(GRACE.to_owned()).spawn(waiter)?,
        ];
        Ok(Self { jobs: Some(jobs), barrier: Some(barrier), done, threads })
    }

    /// Asks for slabs.
    pub fn grow(&self, batch: Vec<SlabIndex>) {
        self.job(Job::Grow(batch));
    }

    /// Gives slabs back. Done in order: slabs that are created again later are created after this.
    pub fn shrink(&self, slabs: Vec<MappedSlab>) {
        self.job(Job::Shrink(slabs));
    }

    fn job(&self, job: Job) {
        let sender = self.jobs.as_ref().expect("taken only when dropped");
        sender.send(job).expect("the growth thread ends only after this sender");
    }

    /// Asks for a grace period.
    pub fn barrier(&self) {
        let sender = self.barrier.as_ref().expect("taken only when dropped");
        sender.send(()).expect("the grace-period thread ends only after this sender");
    }

    /// Finished work, if there is any.
    pub fn finished(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }

    /// Waits for finished work.
    pub fn wait(&self) -> Done {
        self.done.recv().expect("a thread that was asked answers")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.jobs = None;
        self.barrier = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has printed why; the engine is going down anyway.
            let _ = thread.join();
        }
    }
}
