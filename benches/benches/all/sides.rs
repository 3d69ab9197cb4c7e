//! The writers that are compared: each a store with a flatten in front of it.

use std::{
    collections::HashSet,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use slotmesh_agent::{
    config::{Message, Model},
    flatten::{self, EndpointsView},
};
use slotmesh_kernel::{Lock, Outer, ensure_bpffs};
use slotmesh_slots::{Backing, Config, Engine};

use crate::{
    messages::{Kind, Sample},
    published,
    readback::{self, Reader},
    session::Session,
    store::{Flat, Hash, Id, Mapped, Naive, Precreated, Slabs, Store},
};

/// Records in the precreated store: the descriptors of their inner maps stay open, and 20,000 files is a
/// usual limit.
pub const PRECREATED: u32 = 16_384;

/// A writer.
pub trait Side {
    /// Its store and its flatten.
    fn label(&self) -> Label;
    /// Decoded message to current records.
    fn flush(&mut self, name: &str, message: &Message) -> anyhow::Result<()>;
    /// The resource is no more.
    fn remove(&mut self, kind: Kind, name: &str) -> anyhow::Result<()>;
    /// What is done between updates.
    fn poll(&mut self) -> anyhow::Result<()>;
    /// Writes a sample, reads its records back through a program and compares; how many records.
    fn read_back(&mut self, sample: &Sample) -> anyhow::Result<usize>;
    /// Waits until everything that was given up is idle again.
    fn settle(&mut self) -> anyhow::Result<()> {
        self.poll()
    }
}

/// Store and flatten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    pub store: &'static str,
    pub flatten: &'static str,
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.store, self.flatten)
    }
}

/// Ours.
pub const OURS: Label = Label { store: "slab", flatten: "packed" };

/// flat, with what a new agent needs to find it.
pub const RECOVERABLE: Label = Label { store: "flat recoverable", flatten: "packed" };

const fn number(kind: Kind) -> u32 {
    kind.ty().kind().0
}

/// The product: slot engine and packed flatten.
pub struct Product {
    engine: Engine,
    reader: Reader,
    _pins: Pins,
}

impl Product {
    pub fn new(config: Config) -> anyhow::Result<Self> {
        let pins = Pins::new("product")?;
        let (outer, arena) = Outer::open(&pins.dir, NonZeroUsize::MIN)?;
        let backing: Arc<dyn Backing> = Arc::new(outer);
        let (engine, _) = Engine::open(&backing, arena, config, &[], Arc::new(|| {}))?;
        let reader = Reader::new("read_slab", &[("OUTER", pins.dir.join("outer"))])?;
        Ok(Self { engine, reader, _pins: pins })
    }
}

impl Side for Product {
    fn label(&self) -> Label {
        OURS
    }

    fn flush(&mut self, name: &str, message: &Message) -> anyhow::Result<()> {
        let model = Model::new(name, message)?;
        flatten::flush(self.engine.draft(), name, 1, &model, EndpointsView::default())?;
        Ok(())
    }

    fn remove(&mut self, kind: Kind, name: &str) -> anyhow::Result<()> {
        if let Some(handle) = self.engine.find(kind.ty().kind(), name) {
            self.engine.remove(handle);
        }
        Ok(())
    }

    fn poll(&mut self) -> anyhow::Result<()> {
        self.engine.poll();
        Ok(())
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        self.engine.settle();
        Ok(())
    }

    fn read_back(&mut self, sample: &Sample) -> anyhow::Result<usize> {
        self.flush(&sample.name, &sample.message)?;
        let kind = sample.message.ty().kind();
        let handle = self.engine.find(kind, &sample.name).context("just flushed")?;
        let root = self.engine.current(handle);
        let read = self.reader.tree(root)?;
        // The same flatten into plain memory says what should be there.
        let mut session = Session::new(readback::Plain::default());
        session.log = Some(Vec::new());
        let model = Model::new(&sample.name, &sample.message)?;
        flatten::flush(session.draft(), &sample.name, 1, &model, EndpointsView::default())?;
        let written = session.log.take().unwrap_or_default();
        readback::same_but_for_pointers(&read, &written)?;
        let count = read.len();
        self.engine.remove(handle);
        Ok(count)
    }
}

/// A baseline store behind a flatten.
pub struct Baseline<S> {
    session: Session<S>,
    label: Label,
    reader: Reader,
    _pins: Pins,
}

impl<S: Store> Baseline<S> {
    fn is_packed(&self) -> bool {
        self.label.flatten == "packed"
    }
}

impl<S: Store> Side for Baseline<S> {
    fn label(&self) -> Label {
        self.label
    }

    fn flush(&mut self, name: &str, message: &Message) -> anyhow::Result<()> {
        if self.is_packed() {
            let model = Model::new(name, message)?;
            flatten::flush(self.session.draft(), name, 1, &model, EndpointsView::default())?;
            Ok(())
        } else {
            published::flush(&mut self.session, name, message)
        }
    }

    fn remove(&mut self, kind: Kind, name: &str) -> anyhow::Result<()> {
        self.session.remove(number(kind), name)
    }

    fn poll(&mut self) -> anyhow::Result<()> {
        self.session.store.poll()
    }

    fn read_back(&mut self, sample: &Sample) -> anyhow::Result<usize> {
        self.session.log = Some(Vec::new());
        self.flush(&sample.name, &sample.message)?;
        let written: Vec<(Id, Vec<u8>)> = self.session.log.take().unwrap_or_default();
        for (id, bytes) in &written {
            let read = self.reader.record(*id, bytes.len())?;
            anyhow::ensure!(read == *bytes, "{}: record {id} isn't what was written", self.label);
        }
        let ids: HashSet<Id> = written.iter().map(|(id, _)| *id).collect();
        anyhow::ensure!(ids.len() == written.len(), "{}: two records in one place", self.label);
        self.session.remove(sample.message.ty().kind().0, &sample.name)?;
        Ok(written.len())
    }
}

/// A directory of pins that goes when dropped.
pub struct Pins {
    pub dir: PathBuf,
    _lock: Lock,
}

impl Pins {
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let dir = crate::pin_root(name);
        ensure_bpffs(&dir)?;
        let lock = Lock::take(&dir)?;
        Ok(Self { dir, _lock: lock })
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("{}: {error}", self.dir.display());
        }
    }
}

fn outer_in(dir: &Path) -> anyhow::Result<Arc<Outer>> {
    Ok(Arc::new(Outer::open(&dir.join("grace"), NonZeroUsize::MIN)?.0))
}

/// `n` ClusterFlushes present take so many records of up to 64 bytes, 256, 1,024, 4,096.
const fn hash_entries(flatten: &'static str, present: u32) -> [u32; 4] {
    match flatten.as_bytes() {
        b"packed" => [present + 20_000, 20_000, present + 10_000, 20_000],
        _ => [present * 46 + 100_000, present * 2 + 100_000, 4_096, 64],
    }
}

/// The naive side.
pub fn naive<const N: usize>(flatten: &'static str, program: &'static str) -> anyhow::Result<Box<dyn Side>> {
    let label = Label { store: "naive", flatten };
    let pins = Pins::new(&format!("naive-{flatten}"))?;
    let store = Naive::<N>::new()?;
    store.outer().pin(&pins.dir.join("outer"))?;
    let reader = Reader::new(program, &[(map_of(program), pins.dir.join("outer"))])?;
    Ok(Box::new(Baseline { session: Session::new(store), label, reader, _pins: pins }))
}

/// The precreated side.
pub fn precreated<const N: usize>(
    flatten: &'static str,
    program: &'static str,
) -> anyhow::Result<Box<dyn Side>> {
    let label = Label { store: "precreated", flatten };
    let pins = Pins::new(&format!("precreated-{flatten}"))?;
    let store = Precreated::<N>::new(PRECREATED / 2)?;
    store.outer().pin(&pins.dir.join("outer"))?;
    let reader = Reader::new(program, &[(map_of(program), pins.dir.join("outer"))])?;
    Ok(Box::new(Baseline { session: Session::new(store), label, reader, _pins: pins }))
}

fn map_of(program: &str) -> &'static str {
    if program == "read_small" { "SMALL_RECORDS" } else { "LARGE_RECORDS" }
}

/// The hash side, with room for so many clusters.
pub fn hash(flatten: &'static str, present: u32) -> anyhow::Result<Box<dyn Side>> {
    let label = Label { store: "hash", flatten };
    let pins = Pins::new(&format!("hash-{flatten}"))?;
    let store = Hash::new(hash_entries(flatten, present), present + 30_000)?;
    store.pin(&pins.dir)?;
    let pinned: Vec<_> =
        [("HASH_64", "h64"), ("HASH_256", "h256"), ("HASH_1024", "h1024"), ("HASH_4096", "h4096")]
            .map(|(map, file)| (map, pins.dir.join(file)))
            .into();
    let reader = Reader::new("read_hash", &pinned)?;
    Ok(Box::new(Baseline { session: Session::new(store), label, reader, _pins: pins }))
}

/// The flat side.
pub fn flat(flatten: &'static str) -> anyhow::Result<Box<dyn Side>> {
    let label = Label { store: "flat", flatten };
    let pins = Pins::new(&format!("flat-{flatten}"))?;
    let store = Mapped::new(Flat::new()?, outer_in(&pins.dir)?);
    store.memory.map.pin(&pins.dir.join("flat"))?;
    let reader = Reader::new("read_flat", &[("FLAT", pins.dir.join("flat"))])?;
    Ok(Box::new(Baseline { session: Session::new(store), label, reader, _pins: pins }))
}

/// The flat side with all that it knows in its records, so that a new agent could find it: the one property of the slot
/// engine for which it reads what it gives up.
pub fn flat_recoverable() -> anyhow::Result<Box<dyn Side>> {
    let label = RECOVERABLE;
    let pins = Pins::new("flat-recoverable")?;
    let store = Mapped::new(Flat::new()?, outer_in(&pins.dir)?);
    store.memory.map.pin(&pins.dir.join("flat"))?;
    let reader = Reader::new("read_flat", &[("FLAT", pins.dir.join("flat"))])?;
    Ok(Box::new(Baseline { session: Session::recoverable(store), label, reader, _pins: pins }))
}

/// Slabs with the published flatten, whose records the slot engine doesn't know.
pub fn slab_published(present: u32) -> anyhow::Result<Box<dyn Side>> {
    let label = Label { store: "slab", flatten: "published" };
    let pins = Pins::new("slab-published")?;
    let (outer, arena) = Outer::open(&pins.dir, NonZeroUsize::MIN)?;
    let outer = Arc::new(outer);
    // 46 records a cluster, most of one unit.
    let slabs = present * 50 / 1_024 + 600;
    let store = Mapped::new(Slabs::new(&outer, arena, slabs)?, outer);
    let reader = Reader::new("read_slab", &[("OUTER", pins.dir.join("outer"))])?;
    Ok(Box::new(Baseline { session: Session::new(store), label, reader, _pins: pins }))
}
