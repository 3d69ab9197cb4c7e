//! Rate, errors and duration of requests: by who asks, for which service, by which route, and with which class of codes.
//!
//! ```text
//!  origin of the connection -> source      cluster, else route configuration -> destination      rule -> route
//! ```
//!
//! Each worker has counts of its own, which it alone writes. The number of label sets is bounded for all workers
//! together: what comes when there is no room counts as `other`, so sums lose nothing. A set that nobody has used for an
//! hour makes room.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    fmt,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter},
    registry::Unit,
};
use tokio::time::Instant;

use crate::{connection::ClientContext, counts::Count, reply};

/// Upper bounds of the buckets of durations, in microseconds.
const BUCKETS: [u64; 12] =
    [500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000, 30_000_000];
/// Classes of codes. The first one: no answer, as the client has gone before.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
/// Label of what has no label set of its own.
const OTHER: &str = "other";
/// Label of a request that no rule has taken, and of one that no service was asked for.
const NONE: &str = "-";
/// Source of connections of which nobody has said whose they are.
const UNKNOWN: &str = "unknown";
/// Rounds of [`RequestSeries::tidy`] between two looks at all sets.
const LOOK: u32 = 60;
/// Rounds after which a set that isn't used makes room.
const UNUSED: u32 = 3_600;

/// Labels of a set of counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct SeriesKey {
    source: Arc<str>,
    destination: Arc<str>,
    route: Arc<str>,
}

/// Counts of a label set on a worker, by class.
#[derive(Debug, Default)]
pub(crate) struct SeriesCounts([ClassCounts; CLASSES.len()]);

#[derive(Debug, Default)]
struct ClassCounts {
    buckets: [Count; BUCKETS.len() + 1],
    micros: Count,
}

/// Room for label sets, of all workers.
#[derive(Debug)]
pub(crate) struct SeriesRoom {
    most: usize,
    /// How many workers have each.
    taken: Mutex<HashMap<SeriesKey, usize>>,
}

/// The label sets of a worker, as scrapes see them. Locked when a set comes or goes, and by scrapes.
#[derive(Debug, Default)]
pub(crate) struct SeriesTable(Mutex<BTreeMap<SeriesKey, Arc<SeriesCounts>>>);

/// The label sets of a worker, as its requests find them.
pub(crate) struct RequestSeries {
    room: Arc<SeriesRoom>,
    table: Arc<SeriesTable>,
    other: Arc<SeriesCounts>,
    sources: RefCell<HashMap<Arc<str>, Rc<SourceSeries>>>,
    round: Cell<u32>,
}

/// The label sets of a source, by route.
pub(crate) struct SourceSeries {
    name: Arc<str>,
    routes: RefCell<HashMap<Box<str>, Vec<KnownSeries>>>,
}

/// A label set that was asked for.
struct KnownSeries {
    destination: Arc<str>,
    counts: Arc<SeriesCounts>,
    /// There was room for it.
    own: bool,
    /// Round in which it was used last.
    used: u32,
}

impl SeriesRoom {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    fn take(&self, key: &SeriesKey) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let full = taken.len() >= self.most;
        match taken.get_mut(key) {
            Some(workers) => *workers += 1,
            None if full => return false,
            None => drop(taken.insert(key.clone(), 1)),
        }
        true
    }

    fn give_back(&self, key: &SeriesKey) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(workers) = taken.get_mut(key) {
            *workers -= 1;
            if *workers == 0 {
                taken.remove(key);
            }
        }
    }
}

impl RequestSeries {
    pub(crate) fn new(room: Arc<SeriesRoom>, table: Arc<SeriesTable>) -> Self {
        let other: Arc<SeriesCounts> = Arc::default();
        let key = SeriesKey { source: OTHER.into(), destination: OTHER.into(), route: OTHER.into() };
        table.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, other.clone());
        Self { room, table, other, sources: RefCell::default(), round: Cell::new(0) }
    }

    /// The label sets of a source. Nothing: nobody has said whose the connection is.
    pub(crate) fn source(&self, name: Option<&Arc<str>>) -> Rc<SourceSeries> {
        let name = name.map_or_else(|| UNKNOWN.into(), Arc::clone);
        let mut sources = self.sources.borrow_mut();
        let new = || Rc::new(SourceSeries { name: name.clone(), routes: RefCell::default() });
        sources.entry(name.clone()).or_insert_with(new).clone()
    }

    /// The counts of a label set.
    pub(crate) fn counts(
        &self,
        source: &SourceSeries,
        route: Option<&str>,
        destination: &Arc<str>,
    ) -> Arc<SeriesCounts> {
        let route = route.unwrap_or(NONE);
        let mut routes = source.routes.borrow_mut();
        let same = |known: &&mut KnownSeries| {
            Arc::ptr_eq(&known.destination, destination) || known.destination == *destination
        };
        if let Some(known) = routes.get_mut(route).and_then(|all| all.iter_mut().find(same)) {
            known.used = self.round.get();
            return known.counts.clone();
        }
        let key =
            SeriesKey { source: source.name.clone(), destination: destination.clone(), route: route.into() };
        let own = self.room.take(&key);
        let counts = if own { Arc::default() } else { self.other.clone() };
        if own {
            self.table.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, counts.clone());
        }
        let known = KnownSeries {
            destination: destination.clone(),
            counts: counts.clone(),
            own,
            used: self.round.get(),
        };
        routes.entry(route.into()).or_default().push(known);
        counts
    }

    /// Is called once a second: makes room where label sets aren't used any more.
    pub(crate) fn tidy(&self) {
        self.round.set(self.round.get().wrapping_add(1));
        if self.round.get().is_multiple_of(LOOK) {
            self.look();
        }
    }

    fn look(&self) {
        let now = self.round.get();
        self.sources.borrow_mut().retain(|_, source| {
            let mut routes = source.routes.borrow_mut();
            routes.retain(|route, all| {
                all.retain(|known| {
                    // One without room asks again when it is used.
                    if !known.own {
                        return false;
                    }
                    // A request that isn't over has it, too.
                    let free = Arc::strong_count(&known.counts) == 2;
                    if !free || now.wrapping_sub(known.used) < UNUSED {
                        return true;
                    }
                    let key = SeriesKey {
                        source: source.name.clone(),
                        destination: known.destination.clone(),
                        route: (&**route).into(),
                    };
                    self.table.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                    self.room.give_back(&key);
                    false
                });
                !all.is_empty()
            });
            !routes.is_empty() || Rc::strong_count(source) > 1
        });
    }
}

impl SeriesCounts {
    fn count(&self, class: usize, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let ClassCounts { buckets, micros: sum } = &self.0[class];
        buckets[BUCKETS.partition_point(|bound| *bound < micros)].one_more();
        sum.add(micros);
    }
}

/// A request, which is counted when this is dropped.
pub(crate) struct RequestRecord {
    context: Rc<ClientContext>,
    began: Instant,
    counts: Option<Arc<SeriesCounts>>,
    is_grpc: bool,
    class: usize,
}

impl RequestRecord {
    pub(crate) fn new(context: Rc<ClientContext>, is_grpc: bool) -> Self {
        Self::since(context, is_grpc, Instant::now())
    }

    /// Of a request that has begun before.
    pub(crate) fn since(context: Rc<ClientContext>, is_grpc: bool, began: Instant) -> Self {
        Self { context, began, counts: None, is_grpc, class: 0 }
    }

    /// Says by which rule it is decided, and for which service it is.
    pub(crate) fn decided(&mut self, route: Option<&str>, destination: &Arc<str>) {
        let context = &self.context;
        self.counts = Some(context.worker.series.counts(&context.source, route, destination));
    }

    /// Says how it is answered.
    pub(crate) fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status(status);
        self.ended(headers);
    }

    /// Says with which code it is answered, where no status of gRPC counts instead.
    pub(crate) fn status(&mut self, status: StatusCode) {
        self.class = usize::from(status.as_u16() / 100).min(CLASSES.len() - 1);
    }

    /// Says what came in the end. Of gRPC this is the status.
    pub(crate) fn ended(&mut self, trailers: &HeaderMap) {
        if let Some(class) = self.is_grpc.then(|| reply::grpc_class(trailers)).flatten() {
            self.class = class;
        }
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if self.counts.is_none() {
            let service = self.context.http().map_or_else(|| NONE.into(), |http| http.service.clone());
            self.decided(None, &service);
        }
        let took = self.began.elapsed();
        if self.class == 0 {
            self.context.state.take_back(took);
        }
        if let Some(counts) = &self.counts {
            counts.count(self.class, took);
        }
    }
}

/// The service of a cluster, by its name: `outbound|PORT|SUBSET|HOST` is of HOST, any other of its own name.
pub(crate) fn service_of_cluster(name: &str) -> Arc<str> {
    let parts: Vec<&str> = name.split('|').collect();
    match parts.as_slice() {
        ["outbound", _, _, host] => (*host).into(),
        _ => name.into(),
    }
}

/// The service of a route configuration, by its name: `PORT|HOST` and `PORT|HOST|CLASS` are of HOST, any other of its own
/// name.
pub(crate) fn service_of_routes(name: &str) -> Arc<str> {
    match name.split('|').nth(1) {
        Some(host) => host.into(),
        None if name.is_empty() => NONE.into(),
        None => name.into(),
    }
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct SeriesLabels {
    source_workload: String,
    destination_service: String,
    route: String,
    code_class: &'static str,
}

/// Sums of a label set and class over the workers.
#[derive(Clone, Copy, Default)]
struct ClassSums {
    buckets: [u64; BUCKETS.len() + 1],
    micros: u64,
}

/// Writes the counts of all workers.
pub(crate) fn encode<'t>(
    tables: impl Iterator<Item = &'t SeriesTable>,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let mut sums: BTreeMap<SeriesKey, [ClassSums; CLASSES.len()]> = BTreeMap::new();
    for table in tables {
        let all = table.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (key, counts) in all {
            for (sum, counts) in sums.entry(key).or_default().iter_mut().zip(&counts.0) {
                sum.buckets.iter_mut().zip(&counts.buckets).for_each(|(sum, count)| *sum += count.get());
                sum.micros += counts.micros.get();
            }
        }
    }
    let mut rows: Vec<(SeriesLabels, u64, ClassSums)> = Vec::new();
    for (key, classes) in sums {
        for (code_class, sum) in CLASSES.into_iter().zip(classes) {
            let count: u64 = sum.buckets.iter().sum();
            if count > 0 {
                let labels = SeriesLabels {
                    source_workload: key.source.to_string(),
                    destination_service: key.destination.to_string(),
                    route: key.route.to_string(),
                    code_class,
                };
                rows.push((labels, count, sum));
            }
        }
    }
    let help = "Requests by who asks, the service, the rule and the class of the code";
    let mut family = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
    for (labels, count, _) in &rows {
        ConstCounter::new(*count).encode(family.encode_family(labels)?)?;
    }
    let help = "Time from a request's head to the end of its response";
    let kind = MetricType::Histogram;
    let mut family = encoder.encode_descriptor("request_duration", help, Some(&Unit::Seconds), kind)?;
    for (labels, count, sum) in &rows {
        let bounds = BUCKETS.iter().map(|micros| seconds(*micros)).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(sum.buckets).collect();
        family.encode_family(labels)?.encode_histogram::<NoLabelSet>(
            seconds(sum.micros),
            *count,
            &buckets,
            None,
        )?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "sums and bounds of durations")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_worker(room: &Arc<SeriesRoom>) -> (RequestSeries, Arc<SeriesTable>) {
        let table: Arc<SeriesTable> = Arc::default();
        (RequestSeries::new(room.clone(), table.clone()), table)
    }

    /// Requests of each label set: its labels, and how many.
    fn counts(tables: &[&SeriesTable]) -> Vec<(String, u64)> {
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        for table in tables {
            for (key, counts) in &*table.0.lock().unwrap() {
                let sum: u64 = counts.0.iter().flat_map(|class| &class.buckets).map(Count::get).sum();
                let SeriesKey { source, destination, route } = key;
                *sums.entry(format!("{source} {destination} {route}")).or_default() += sum;
            }
        }
        sums.into_iter().filter(|(_, sum)| *sum > 0).collect()
    }

    fn one(series: &RequestSeries, source: &str, route: &str) {
        let source = series.source(Some(&source.into()));
        series.counts(&source, Some(route), &"web".into()).count(2, Duration::ZERO);
    }

    #[test]
    fn what_there_is_no_room_for_counts_as_other() {
        let room = SeriesRoom::new(2);
        let ((first, one_table), (second, other_table)) = (of_worker(&room), of_worker(&room));
        for route in ["a", "b", "c", "d"] {
            one(&first, "shop", route);
            one(&second, "shop", route);
        }
        let found = counts(&[&one_table, &other_table]);
        let expected = [("other other other", 4), ("shop web a", 2), ("shop web b", 2)];
        assert_eq!(found, expected.map(|(labels, count)| (labels.to_owned(), count)));
    }

    #[test]
    fn what_is_not_used_makes_room_and_what_is_used_stays() {
        let room = SeriesRoom::new(2);
        let (series, table) = of_worker(&room);
        let source = series.source(Some(&"shop".into()));
        let held = series.counts(&source, Some("held"), &"web".into());
        one(&series, "shop", "unused");
        for _ in 0..UNUSED + LOOK {
            series.tidy();
        }
        one(&series, "shop", "new");
        held.count(2, Duration::ZERO);
        let expected = [("shop web held", 1), ("shop web new", 1)];
        assert_eq!(counts(&[&table]), expected.map(|(labels, count)| (labels.to_owned(), count)));
        drop((held, source));
        for _ in 0..UNUSED + LOOK {
            series.tidy();
        }
        assert!(series.sources.borrow().is_empty() && room.taken.lock().unwrap().is_empty());
    }

    #[test]
    fn services_are_told_from_names() {
        assert_eq!(
            &*service_of_cluster("outbound|80|v1|web.shop.svc.cluster.local"),
            "web.shop.svc.cluster.local"
        );
        assert_eq!(&*service_of_cluster("web"), "web");
        assert_eq!(&*service_of_routes("80|web.shop.svc.cluster.local|class"), "web.shop.svc.cluster.local");
        assert_eq!(&*service_of_routes("web"), "web");
        assert_eq!(&*service_of_routes(""), "-");
    }
}
