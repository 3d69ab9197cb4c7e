//! The life of a process: which parts run in it, what ends it, and how long that may take.
//!
//! ```text
//!  signal ---> stop ---> parts end by themselves --- GRACE ---> what is left is dropped --- limit ---> exit
//!  a part that ends before --^                                        a second signal -----------------^
//! ```
//!
//! Invariants:
//! - A part that ends by itself ends the process, with an error that names the part.
//! - SIGINT, SIGTERM and SIGHUP begin the end. Whatever clients do, the process is gone by the limit; a second signal
//!   ends it at once. Both are watched on a thread of their own, which nothing else can hold up.

use std::{
    collections::{HashMap, HashSet},
    io,
    process::exit,
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// How long parts may take to end by themselves after the first signal.
pub const GRACE: Duration = Duration::from_secs(1);
/// When the process is gone, at the latest, after the first signal.
pub const LIMIT: Duration = Duration::from_secs(5);

/// The signals that end a process. SIGHUP is what a closed terminal sends.
const SIGNALS: [(SignalKind, &str); 3] = [
    (SignalKind::interrupt(), "SIGINT"),
    (SignalKind::terminate(), "SIGTERM"),
    (SignalKind::hangup(), "SIGHUP"),
];

/// Raises the soft limit of open files to the hard one: idle clients shall not use up what the process needs.
pub fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
}

/// Cancels the token that it returns at the first signal. From then on the process has `limit` to end.
///
/// The limit also holds when somebody else cancels the token.
///
/// # Errors
/// Where the signals can't be watched.
pub fn stop_on_signals(limit: Duration) -> io::Result<CancellationToken> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _runtime = runtime.enter();
        SIGNALS
            .into_iter()
            .map(|(kind, name)| Ok((signal(kind)?, kind, name)))
            .collect::<io::Result<Vec<_>>>()?
    };
    let stop = CancellationToken::new();
    let asked = stop.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                (_, name) = next(&mut signals) => {
                    tracing::info!(signal = name, "stopping; a second signal ends at once");
                    asked.cancel();
                }
                () = asked.cancelled() => {}
            }
            tokio::select! {
                (kind, name) = next(&mut signals) => {
                    tracing::warn!(signal = name, "ended at once by a second signal; what is pinned stays");
                    exit(128 + kind.as_raw_value());
                }
                () = sleep(limit) => {
                    tracing::error!(after = ?limit, "ended before everything was tidied up; what is pinned stays");
                    exit(1);
                }
            }
        });
    })?;
    Ok(stop)
}

/// The next signal of several.
async fn next(signals: &mut [(Signal, SignalKind, &'static str)]) -> (SignalKind, &'static str) {
    std::future::poll_fn(|context| {
        for (signal, kind, name) in &mut *signals {
            if signal.poll_recv(context).is_ready() {
                return std::task::Poll::Ready((*kind, *name));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// What runs in a process. None of it is to end before the process does.
pub struct Parts {
    tasks: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
    /// Those that serve until all others have ended.
    last: HashSet<Id>,
    stop: CancellationToken,
}

impl Parts {
    /// No parts yet. Those that are added end when `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        Self { tasks: JoinSet::new(), names: HashMap::new(), last: HashSet::new(), stop }
    }

    /// Runs a part that ends by itself once the process is to stop.
    pub fn add(
        &mut self,
        name: &'static str,
        part: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let id = self.tasks.spawn(part).id();
        self.names.insert(id, name);
    }

    /// Runs a part that is dropped when all others have ended.
    pub fn add_last(
        &mut self,
        name: &'static str,
        part: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let id = self.tasks.spawn(part).id();
        self.names.insert(id, name);
        self.last.insert(id);
    }

    /// Waits until the process is to stop.
    ///
    /// # Errors
    /// When a part ends before.
    pub async fn run(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Ok(()),
            Some(ended) = self.tasks.join_next_with_id() => {
                let (name, outcome) = self.name(ended);
                outcome.and_then(|()| Err(anyhow!("it has ended by itself"))).context(name)
            }
        }
    }

    /// Stops what runs, and drops what hasn't ended within `grace`.
    ///
    /// # Errors
    /// The first failure of a part.
    pub async fn end(mut self, grace: Duration) -> anyhow::Result<()> {
        self.stop.cancel();
        let deadline = Instant::now() + grace;
        let mut first = Ok(());
        while self.tasks.len() > self.last.len() {
            let Ok(Some(ended)) = timeout_at(deadline, self.tasks.join_next_with_id()).await else { break };
            let (name, outcome) = self.name(ended);
            first = first.and(outcome.context(name));
        }
        let left: Vec<_> =
            self.names.iter().filter(|(id, _)| !self.last.contains(id)).map(|(_, name)| *name).collect();
        if !left.is_empty() {
            tracing::warn!(after = ?grace, left = left.join(", "), "dropped before the end");
        }
        self.tasks.shutdown().await;
        first
    }

    fn name(
        &mut self,
        ended: Result<(Id, anyhow::Result<()>), JoinError>,
    ) -> (&'static str, anyhow::Result<()>) {
        let (id, outcome) = match ended {
            Ok(ended) => ended,
            Err(error) => (error.id(), Err(anyhow!("it has panicked; what it said stands above"))),
        };
        self.last.remove(&id);
        (self.names.remove(&id).unwrap_or("a part"), outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn forever() -> anyhow::Result<()> {
        std::future::pending().await
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_dies_ends_the_process_and_is_named() {
        let mut parts = Parts::new(CancellationToken::new());
        parts.add("lives", forever());
        parts.add("dies", async { Ok(()) });
        assert_eq!(format!("{:#}", parts.run().await.unwrap_err()), "dies: it has ended by itself");
        parts.add("fails", async { Err(anyhow!("no room")) });
        assert_eq!(format!("{:#}", parts.run().await.unwrap_err()), "fails: no room");
        parts.add("panics", async { panic!("as a bug would") });
        let panicked = format!("{:#}", parts.run().await.unwrap_err());
        assert!(panicked.starts_with("panics: it has panicked"), "{panicked}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_is_dropped_after_the_grace_and_failures_are_told() {
        let stop = CancellationToken::new();
        let mut parts = Parts::new(stop.clone());
        let (served, mut alive) = tokio::sync::mpsc::channel::<()>(1);
        parts.add("hangs", forever());
        parts.add_last("serves to the last", async move {
            served.closed().await;
            forever().await
        });
        let stopped = stop.clone();
        parts.add("fails at the end", async move {
            stopped.cancelled().await;
            Err(anyhow!("half written"))
        });
        let began = Instant::now();
        stop.cancel();
        parts.run().await.unwrap();
        let failure = parts.end(GRACE).await.unwrap_err();
        assert_eq!(format!("{failure:#}"), "fails at the end: half written");
        assert_eq!(began.elapsed(), GRACE);
        assert!(alive.recv().await.is_none(), "it is dropped");
    }

    #[tokio::test(start_paused = true)]
    async fn what_serves_to_the_last_keeps_nobody_waiting() {
        let mut parts = Parts::new(CancellationToken::new());
        parts.add_last("admin", forever());
        let began = Instant::now();
        parts.end(GRACE).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
