//! The access log: a line for the end of each connection, or for a share of them, on standard output.
//!
//! The programs put ends into a ring buffer; a thread of its own takes them out, chooses and writes. Where it doesn't keep up
//! they are lost, and counted in the kernel. What is left out by the filter has been read, and costs no line.

mod filter;
mod form;

use std::{
    collections::{HashMap, HashSet},
    io::{self, Write},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

pub use filter::{Filter, FilterError};
use form::Entry;
pub use form::LogForm;
use slotmesh_kernel::monotonic;
use slotmesh_records::{ConnectionEnd, TrafficSettings};
use tokio_util::sync::CancellationToken;

use super::TrafficReader;
use crate::{agent::Handle, datapath::Ends};

/// How often the ring buffer is looked at. It has room for what comes in a hundred such times, at 50,000 a second.
const EVERY: Duration = Duration::from_millis(2);
/// How often, while nothing comes.
const QUIET: Duration = Duration::from_millis(20);
/// Names are asked for anew after this long: workloads come and go.
const NAMES: Duration = Duration::from_secs(1);
/// How many events are taken before lines are handed over.
const AT_ONCE: usize = 1_024;

/// How connections are logged.
#[derive(Clone, Debug)]
pub struct AccessLog {
    /// The form of a line.
    pub form: LogForm,
    /// The share of connections that are logged, from 0 to 1.
    pub share: f64,
    /// Those that are logged.
    pub filter: Filter,
}

impl AccessLog {
    /// The share as the programs have it.
    fn told(&self) -> u32 {
        if self.share >= 1.0 {
            return TrafficSettings::ALL;
        }
        // At least one of all there can be, so that a share above 0 isn't 0.
        let told = (self.share.max(0.0) * f64::from(u32::MAX)) as u32;
        if self.share > 0.0 { told.clamp(1, TrafficSettings::ALL - 1) } else { 0 }
    }
}

/// Starts the access log of an agent, on a thread that ends with `stop`. `out` is given whole lines.
///
/// # Errors
/// Where there can't be another thread, the kernel refuses, or there is an access log already.
pub fn start(
    agent: &Handle,
    log: AccessLog,
    out: impl Write + Send + 'static,
    stop: CancellationToken,
) -> io::Result<JoinHandle<()>> {
    let absent = || io::Error::new(io::ErrorKind::NotFound, "there are no programs");
    let (traffic, datapath) =
        (agent.traffic.clone().ok_or_else(absent)?, agent.datapath().cloned().ok_or_else(absent)?);
    let taken = || io::Error::new(io::ErrorKind::AlreadyExists, "there is an access log already");
    let ends = datapath.take_ends().ok_or_else(taken)?;
    traffic.tell(log.told()).map_err(io::Error::other)?;
    let names = Names {
        agent: agent.clone(),
        traffic: traffic.clone(),
        known: HashMap::new(),
        clusters: HashMap::new(),
        next: Instant::now(),
    };
    let writer = LogWriter { ends, log, names, out, lost: 0, said: Instant::now() };
    std::thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run(&traffic, &stop))
}

/// Names of both ends, as they were found last.
struct Names {
    agent: Handle,
    traffic: Arc<TrafficReader>,
    known: HashMap<u32, [String; 2]>,
    clusters: HashMap<u64, String>,
    next: Instant,
}

impl Names {
    /// Finds what these ends need. A cluster that isn't in force any more keeps its name.
    fn find(&mut self, ends: &[ConnectionEnd]) {
        let now = Instant::now();
        let is_missing = ends.iter().any(|end| !self.known.contains_key(&end.source));
        if is_missing || self.next <= now {
            // Those that have gone may still have connections that end.
            self.known.extend(self.traffic.sources());
            self.next = now + NAMES;
        }
        let missing: HashSet<u64> = ends
            .iter()
            .map(|end| end.cluster)
            .filter(|cluster| *cluster != 0 && !self.clusters.contains_key(cluster))
            .collect();
        if !missing.is_empty() {
            self.clusters.extend(self.agent.cluster_names_blocking(missing));
        }
    }
}

struct LogWriter<W> {
    ends: Ends,
    log: AccessLog,
    names: Names,
    out: W,
    lost: u64,
    said: Instant,
}

/// How often it is said that ends were lost.
const SAY: Duration = Duration::from_secs(10);

impl<W: Write> LogWriter<W> {
    fn run(mut self, traffic: &TrafficReader, stop: &CancellationToken) {
        self.lost = traffic.told().map_or(0, |told| told.lost);
        let mut events = Vec::with_capacity(AT_ONCE);
        let mut is_last = false;
        loop {
            events.clear();
            self.ends.take(&mut events, AT_ONCE);
            if let Err(error) = self.write(&events) {
                tracing::error!(%error, "the access log can't be written; it ends");
                break;
            }
            self.say(traffic);
            if events.len() == AT_ONCE {
                continue;
            }
            if is_last {
                break;
            }
            if stop.is_cancelled() {
                // What has been told until now.
                is_last = true;
                continue;
            }
            std::thread::sleep(if events.is_empty() { QUIET } else { EVERY });
        }
        if let Err(error) = traffic.tell(0) {
            tracing::warn!(%error, "the programs go on telling of connections");
        }
    }

    fn write(&mut self, events: &[ConnectionEnd]) -> io::Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        self.names.find(events);
        let (now, wall) = (monotonic(), SystemTime::now());
        let mut lines = String::with_capacity(events.len() * 256);
        for end in events {
            let at = wall - now.saturating_sub(Duration::from_nanos(end.at));
            let (source, cluster) =
                (self.names.known.get(&end.source), self.names.clusters.get(&end.cluster));
            let entry = Entry::new(end, at, source, cluster.map(String::as_str));
            if self.log.filter.lets(&entry) {
                self.log.form.write(&entry, &mut lines);
            }
        }
        self.out.write_all(lines.as_bytes())?;
        self.out.flush()
    }

    /// Says now and then how many were lost.
    fn say(&mut self, traffic: &TrafficReader) {
        if self.said.elapsed() < SAY {
            return;
        }
        self.said = Instant::now();
        let lost = traffic.told().map_or(self.lost, |told| told.lost);
        if lost > self.lost {
            tracing::warn!(
                lost = lost - self.lost,
                "the access log lacks connections: they ended faster than they could be written"
            );
            self.lost = lost;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_what_the_programs_draw_against() {
        let told = |share| AccessLog { form: LogForm::Json, share, filter: Filter::default() }.told();
        assert_eq!([told(0.0), told(1.0), told(2.0), told(-1.0)], [0, u32::MAX, u32::MAX, 0]);
        assert_eq!(told(1e-12), 1, "a little isn't nothing");
        assert_eq!(told(0.999_999_999_9), u32::MAX - 1, "nearly all aren't all");
        assert!((i64::from(told(0.01)) - 42_949_672).abs() < 2);
    }
}
