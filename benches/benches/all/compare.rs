//! Every store with every flatten, on the same messages, in turn.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use slotmesh_agent::config::{Message, Model};
use slotmesh_bench::{Samples, report, show, verdict};
use slotmesh_kernel::bpf_calls;
use slotmesh_slots::{Config, Growth};

use crate::{
    effort,
    line::{LARGE, SMALL},
    messages::{Kind, Sample},
    sides::{self, Label, OURS, PRECREATED, Product, RECOVERABLE, Side},
};

/// How many other resources are present: ClusterFlushes, in every case.
const PRESENT: [u32; 4] = [0, 1_000, 10_000, 50_000];

/// What is done with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Op {
    Create,
    Update,
    Delete,
    CreateBytes,
    UpdateBytes,
}

impl Op {
    const ALL: [Self; 5] = [Self::Create, Self::Update, Self::Delete, Self::CreateBytes, Self::UpdateBytes];

    const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::CreateBytes => "create from bytes",
            Self::UpdateBytes => "update from bytes",
        }
    }
}

/// One side and what was measured of it.
struct Measured {
    side: Box<dyn Side>,
    label: Label,
    times: BTreeMap<(usize, u8, Op), Vec<Duration>>,
    calls: BTreeMap<(u8, Op), Vec<u64>>,
    /// Why it is out, and from which number of present resources on.
    out: Option<(usize, String)>,
}

/// What came of it.
pub struct Outcome {
    heading: Vec<Label>,
    samples: BTreeMap<(usize, u8, Op), Vec<Option<Samples>>>,
    calls: BTreeMap<(u8, Op), Vec<Option<u64>>>,
    out: Vec<(Label, usize, String)>,
    /// How long the precreated store took to start.
    precreated_start: Duration,
}

/// Names used by the measured operations: none of those present.
const MEASURED: u32 = 90_000;
/// Names of the operations that begin a turn.
const WARM: u32 = MEASURED + 1_000;

/// The name of the resource that is there all the time.
const KNOWN: u32 = MEASURED - 3;

/// Creates, updates and deletes with slab packed only, for a profiler: `profile cluster 3000000`.
pub fn profile(kind: &str, count: u32) -> anyhow::Result<()> {
    let kind = Kind::ALL.into_iter().find(|found| found.name().to_lowercase().starts_with(kind));
    let kind = kind.context("cluster, listener or route")?;
    let mut side = product()?;
    let first = Sample::new(kind, KNOWN);
    side.flush(&first.name, &first.message)?;
    let samples: Vec<Sample> = (0..32).map(|n| Sample::new(kind, MEASURED + n)).collect();
    let started = Instant::now();
    for i in 0..count {
        let sample = &samples[i as usize % samples.len()];
        side.flush(&sample.name, &sample.message)?;
        side.flush(&sample.name, &sample.message)?;
        side.remove(kind, &sample.name)?;
        side.poll()?;
    }
    println!("{} for create, update and delete", show(started.elapsed() / count));
    Ok(())
}

fn product() -> anyhow::Result<Product> {
    Product::new(Config {
        growth: Growth::Background,
        initial: 256,
        cap: 4_096,
        low_watermark: 128,
        high_watermark: 4_096,
        batch: 128,
        ..Config::default()
    })
}

/// Measures everything.
pub fn run() -> anyhow::Result<Outcome> {
    let largest = *PRESENT.last().context("at least one")?;
    eprintln!("preparing the stores …");
    let started = Instant::now();
    let precreated = sides::precreated::<SMALL>("published", "read_small")?;
    let precreated_start = started.elapsed();
    let mut all = Vec::new();
    let every: Vec<Box<dyn Side>> = vec![
        Box::new(product()?),
        sides::flat("packed")?,
        sides::flat_recoverable()?,
        sides::hash("packed", largest)?,
        sides::precreated::<LARGE>("packed", "read_large")?,
        sides::naive::<LARGE>("packed", "read_large")?,
        sides::slab_published(largest)?,
        sides::flat("published")?,
        sides::hash("published", largest)?,
        precreated,
        sides::naive::<SMALL>("published", "read_small")?,
    ];
    for side in every {
        let label = side.label();
        all.push(Measured { side, label, times: BTreeMap::new(), calls: BTreeMap::new(), out: None });
    }
    for measured in &mut all {
        for kind in Kind::ALL {
            let sample = Sample::new(kind, MEASURED - 1);
            let records = measured.side.read_back(&sample).with_context(|| format!("{}", measured.label))?;
            eprintln!("read back through a program: {} {}: {records} records", measured.label, kind.name());
        }
    }
    let mut present = 0;
    for (step, &wanted) in PRESENT.iter().enumerate() {
        for measured in &mut all {
            if measured.out.is_none()
                && let Err(reason) = fill(measured, present, wanted)
            {
                measured.out = Some((step, reason));
            }
        }
        present = wanted;
        for (k, kind) in Kind::ALL.into_iter().enumerate() {
            eprintln!("{} with {present} others present …", kind.name());
            measure(&mut all, step, k as u8, kind)?;
        }
    }
    Ok(outcome(all, precreated_start))
}

/// Brings a side from `from` to `to` resources present; the reason where it can't.
fn fill(measured: &mut Measured, from: u32, to: u32) -> Result<(), String> {
    if to > from && measured.label.store == "naive" {
        return Err("it would take minutes: 8 ms and more a record".to_owned());
    }
    for n in from..to {
        let sample = Sample::new(Kind::Cluster, n);
        if measured.side.flush(&sample.name, &sample.message).is_err() {
            return Err(format!(
                "its {} outer records are full at {n}; more descriptors than {PRECREATED} don't fit the limit of \
                 20,000 open files",
                PRECREATED / 2
            ));
        }
        if n % 64 == 0 {
            measured.side.poll().map_err(|error| error.to_string())?;
        }
    }
    measured.side.settle().map_err(|error| error.to_string())
}

/// All sides in turn, round by round.
fn measure(all: &mut [Measured], step: usize, k: u8, kind: Kind) -> anyhow::Result<()> {
    let names: u32 = if kind == Kind::Route { 8 } else { 32 };
    let samples: Vec<Sample> = (0..names).map(|n| Sample::new(kind, MEASURED + n)).collect();
    let warm: Vec<Sample> = (0..names).map(|n| Sample::new(kind, WARM + n)).collect();
    let rounds = effort(40);
    for measured in
        all.iter_mut().filter(|measured| measured.out.is_none() && measured.label.store != "naive")
    {
        // The clusters that listeners and routes name are known before them.
        let first = Sample::new(kind, KNOWN);
        if let Err(error) = measured.side.flush(&first.name, &first.message) {
            measured.out = Some((step, error.to_string()));
        }
    }
    for round in 0..rounds {
        for measured in all.iter_mut().filter(|measured| measured.out.is_none()) {
            let slow = measured.label.store == "naive";
            // A record of the naive side costs 8 ms: one round of one resource, decoded only.
            if slow && round >= 1 {
                continue;
            }
            let samples = if slow { &samples[..1] } else { &samples[..] };
            let ops: &[Op] = if slow { &Op::ALL[..3] } else { &Op::ALL };
            if let Err(error) = warm_up(measured, if slow { &[] } else { &warm }, kind)
                .and_then(|()| one_round(measured, samples, ops, step, k, kind))
            {
                measured.out = Some((step, error.to_string()));
            }
        }
    }
    Ok(())
}

/// The sides before it have left nothing of this one in the processor's caches: a turn begins with
/// operations that don't count.
fn warm_up(measured: &mut Measured, samples: &[Sample], kind: Kind) -> anyhow::Result<()> {
    for sample in samples {
        measured.side.flush(&sample.name, &sample.message)?;
        measured.side.flush(&sample.name, &sample.message)?;
    }
    for sample in samples {
        measured.side.remove(kind, &sample.name)?;
    }
    measured.side.poll()
}

fn one_round(
    measured: &mut Measured,
    samples: &[Sample],
    ops: &[Op],
    step: usize,
    k: u8,
    kind: Kind,
) -> anyhow::Result<()> {
    for &op in ops {
        // A message has just been decoded when it is flushed. Else the first side would fetch the messages for all.
        for sample in samples {
            drop(Model::new(&sample.name, &sample.message)?);
        }
        // What is created from bytes was deleted before, in the order of `Op::ALL`.
        for sample in samples {
            let before = bpf_calls();
            let started = Instant::now();
            match op {
                Op::Create | Op::Update => measured.side.flush(&sample.name, &sample.message)?,
                Op::Delete => measured.side.remove(kind, &sample.name)?,
                Op::CreateBytes | Op::UpdateBytes => {
                    measured.side.flush(&sample.name, &Message::decode(&sample.resource)?)?;
                }
            }
            let took = started.elapsed();
            let calls = bpf_calls() - before;
            measured.times.entry((step, k, op)).or_default().push(took);
            if step == 0 {
                measured.calls.entry((k, op)).or_default().push(calls);
            }
            measured.side.poll()?;
        }
    }
    if ops.contains(&Op::UpdateBytes) {
        for sample in samples {
            measured.side.remove(kind, &sample.name)?;
        }
    }
    measured.side.poll()
}

fn outcome(all: Vec<Measured>, precreated_start: Duration) -> Outcome {
    let mut outcome = Outcome {
        heading: all.iter().map(|measured| measured.label).collect(),
        samples: BTreeMap::new(),
        calls: BTreeMap::new(),
        out: Vec::new(),
        precreated_start,
    };
    let columns = all.len();
    for (i, measured) in all.into_iter().enumerate() {
        for (key, times) in measured.times {
            outcome.samples.entry(key).or_insert_with(|| vec![None; columns])[i] = Some(Samples::new(times));
        }
        for (key, mut calls) in measured.calls {
            // The grace-period thread's calls fall into single operations: the median is the operation's own.
            calls.sort_unstable();
            outcome.calls.entry(key).or_insert_with(|| vec![None; columns])[i] = Some(calls[calls.len() / 2]);
        }
        if let Some((step, reason)) = measured.out {
            outcome.out.push((measured.label, step, reason));
        }
    }
    outcome
}

impl Outcome {
    fn column(&self, label: Label) -> usize {
        self.heading.iter().position(|&found| found == label).expect("a side of this run")
    }

    fn ours(&self, step: usize, k: u8, op: Op) -> Option<&Samples> {
        self.samples.get(&(step, k, op))?[self.column(OURS)].as_ref()
    }

    /// Prints everything.
    pub fn print(&self) {
        report::line("\n## Updates: time from message to current records, p50 (p99)\n");
        let mut heading = vec!["message, operation, others present".to_owned()];
        heading.extend(self.heading.iter().map(ToString::to_string));
        let mut rows = Vec::new();
        for (k, kind) in Kind::ALL.into_iter().enumerate() {
            for op in Op::ALL {
                for (step, present) in PRESENT.iter().enumerate() {
                    let mut row = vec![format!("{}, {}, {present}", kind.name(), op.name())];
                    let cells = self.samples.get(&(step, k as u8, op));
                    row.extend((0..self.heading.len()).map(
                        |i| match cells.and_then(|cells| cells[i].as_ref()) {
                            Some(found) => format!("{} ({})", show(found.p50()), show(found.quantile(0.99))),
                            None => "n/a".to_owned(),
                        },
                    ));
                    rows.push(row);
                }
            }
        }
        report::table(&heading, &rows);
        report::line("");
        for (label, step, reason) in &self.out {
            report::line(&format!(
                "- {label}, from {} others present: n/a, because {reason}.",
                PRESENT[*step]
            ));
        }
        report::line(
            "- naive, from bytes: n/a, because decoding takes microseconds and an update hundreds of milliseconds; \
             one iteration each.",
        );

        report::line("\n## How many times slab packed, no others present (same run, p50)\n");
        self.by_side(|k, op, i| {
            let (ours, other) = (self.ours(0, k, op)?, self.samples.get(&(0, k, op))?[i].as_ref()?);
            let ratio = other.ratio(ours);
            Some(if ratio < 10.0 { format!("{ratio:.2}") } else { format!("{ratio:.0}") })
        });
        report::line("\n## bpf(2) calls per operation\n");
        self.by_side(|k, op, i| Some(self.calls.get(&(k, op))?[i]?.to_string()));
    }

    fn by_side(&self, cell: impl Fn(u8, Op, usize) -> Option<String>) {
        let mut heading = vec!["message, operation".to_owned()];
        heading.extend(self.heading.iter().map(ToString::to_string));
        let mut rows = Vec::new();
        for (k, kind) in Kind::ALL.into_iter().enumerate() {
            for op in Op::ALL {
                let mut row = vec![format!("{}, {}", kind.name(), op.name())];
                row.extend(
                    (0..self.heading.len()).map(|i| cell(k as u8, op, i).unwrap_or_else(|| "n/a".to_owned())),
                );
                rows.push(row);
            }
        }
        report::table(&heading, &rows);
    }

    /// Holds the figures against the targets.
    pub fn judge(&self) {
        report::section("Targets of slab packed");
        report::row(
            &format!("precreated: start with {} records", PRECREATED / 2),
            &show(self.precreated_start),
            "",
        );
        for (k, kind) in Kind::ALL.into_iter().enumerate() {
            for op in Op::ALL {
                let Some(ours) = self.ours(0, k as u8, op) else { continue };
                let (p50, p99) = (ours.p50().as_nanos(), ours.quantile(0.99).as_nanos());
                let (met, target) = match (kind, op) {
                    (Kind::Route, Op::CreateBytes | Op::UpdateBytes) => continue,
                    (Kind::Route, _) => (p50 <= 10_000, "10 us p50"),
                    (_, Op::CreateBytes | Op::UpdateBytes) => (p50 <= 6_000, "6 us p50"),
                    _ => (p50 <= 1_500 && p99 <= 10_000, "1.5 us p50, 10 us p99"),
                };
                report::row(
                    &format!("{} {}", kind.name(), op.name()),
                    &format!("{} ({})", show(ours.p50()), show(ours.quantile(0.99))),
                    &verdict(met, target),
                );
            }
        }
        let calls = self.calls.values().filter_map(|calls| calls[self.column(OURS)]).max().unwrap_or(0);
        report::row("bpf(2) calls of an update, the most", &calls.to_string(), &verdict(calls == 0, "0"));
        self.against(Label { store: "naive", flatten: "published" }, "at least 100000", |least| least >= 1e5);
        self.against(Label { store: "precreated", flatten: "published" }, "at least 12", |least| {
            least >= 12.0
        });
        self.within(Label { store: "flat", flatten: "packed" });
        self.within(RECOVERABLE);
        self.flat_with_size();
    }

    /// The least of the ratios, over the three messages created, updated and deleted.
    fn against(&self, other: Label, target: &str, met: impl Fn(f64) -> bool) {
        let column = self.column(other);
        let ratios = self.samples.iter().filter(|((step, _, op), _)| *step == 0 && *op <= Op::Update);
        let ratios = ratios.filter_map(|(&(step, k, op), cells)| {
            Some((cells[column].as_ref()?.ratio(self.ours(step, k, op)?), k, op))
        });
        if let Some((least, k, op)) = ratios.min_by(|a, b| a.0.total_cmp(&b.0)) {
            let what = format!(
                "{other} / slab packed, the least ({} {})",
                Kind::ALL[usize::from(k)].name(),
                op.name()
            );
            report::row(&what, &format!("{least:.0}"), &verdict(met(least), target));
        }
    }

    fn within(&self, other: Label) {
        let column = self.column(other);
        let ratios = self.samples.iter().filter(|((step, _, op), _)| *step == 0 && *op <= Op::Delete);
        let ratios = ratios.filter_map(|(&(step, k, op), cells)| {
            Some((self.ours(step, k, op)?.ratio(cells[column].as_ref()?), k, op))
        });
        for (ratio, k, op) in ratios {
            let kind = Kind::ALL[usize::from(k)].name();
            let what = format!("slab / {}, {kind} {}", other.store, op.name());
            report::row(&what, &format!("{ratio:.2}"), &verdict(ratio <= 1.3, "at most 1.3"));
        }
    }

    fn flat_with_size(&self) {
        let last = PRESENT.len() - 1;
        for (k, kind) in Kind::ALL.into_iter().enumerate() {
            for op in [Op::Create, Op::Update, Op::Delete] {
                let (Some(few), Some(many)) = (self.ours(0, k as u8, op), self.ours(last, k as u8, op))
                else {
                    continue;
                };
                let ratio = many.ratio(few);
                let what = format!("{} present / 0, {} {}", PRESENT[last], kind.name(), op.name());
                report::row(&what, &format!("{ratio:.2}"), &verdict(ratio <= 1.3, "at most 1.3"));
            }
        }
    }
}
