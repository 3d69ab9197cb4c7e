//! Slabs of ordinary memory: the engine as a fuzzer runs it, without a kernel.

use std::{
    fs::File,
    io::Read as _,
    os::fd::AsFd as _,
    sync::{Arc, Mutex},
};

use slotmesh_kernel::{Arena, MappedSlab, Reservation};
use slotmesh_records::{SLAB_BYTES, SlabIndex, SlotPtr};
use slotmesh_slots::{Backing, BackingError, Config, Engine, Growth, RecoverError, Recovered};

/// The most slabs there are.
const SLABS: u32 = 8;

/// Few slabs, so that an input reaches the cap.
const CONFIG: Config = Config {
    growth: Growth::OnDemand,
    initial: 2,
    cap: SLABS,
    low_watermark: 1,
    high_watermark: 2,
    batch: 1,
    threads: std::num::NonZeroUsize::MIN,
};

/// The content of slabs, as an agent left it.
pub type Image = Vec<Vec<u8>>;

struct Memory {
    range: Arc<Reservation>,
    existing: Mutex<Vec<MappedSlab>>,
    /// Where an image is to be taken, the slabs' files.
    files: Option<Arc<Mutex<Vec<File>>>>,
}

impl Backing for Memory {
    fn create(&self, slabs: &[SlabIndex]) -> Result<Vec<MappedSlab>, BackingError> {
        let create = |&index: &SlabIndex| {
            let Some(files) = &self.files else { return self.range.map_anonymous(index) };
            let file = tempfile::tempfile()?;
            file.set_len(SLAB_BYTES as u64)?;
            let slab = self.range.map(index, file.as_fd())?;
            files.lock().expect("nothing panics with the files in hand").push(file);
            Ok(slab)
        };
        Ok(slabs.iter().map(create).collect::<Result<_, _>>()?)
    }

    fn remove(&self, slabs: Vec<MappedSlab>) -> Result<(), BackingError> {
        slabs.into_iter().try_for_each(|slab| self.range.unmap(slab))?;
        Ok(())
    }

    fn barrier(&self) -> Result<(), BackingError> {
        Ok(())
    }

    fn existing(&self) -> Result<Vec<MappedSlab>, BackingError> {
        Ok(std::mem::take(&mut *self.existing.lock().expect("only this takes them")))
    }
}

fn open(arena: Arena, memory: Memory, roots: &[SlotPtr]) -> Result<(Engine, Recovered), RecoverError> {
    let backing: Arc<dyn Backing> = Arc::new(memory);
    Engine::open(&backing, arena, CONFIG, roots, Arc::new(|| {}))
}

/// A new engine.
pub fn engine() -> Engine {
    let (range, arena) = Reservation::new(SLABS).expect("addresses can be reserved");
    let memory = Memory { range, existing: Mutex::default(), files: None };
    open(arena, memory, &[]).expect("memory can be had").0
}

/// Contents of the slabs after an engine did this.
pub fn image(work: impl FnOnce(&mut Engine)) -> Image {
    let files: Arc<Mutex<Vec<File>>> = Arc::default();
    let (range, arena) = Reservation::new(SLABS).expect("addresses can be reserved");
    let memory = Memory { range, existing: Mutex::default(), files: Some(files.clone()) };
    let (mut engine, _) = open(arena, memory, &[]).expect("files can be had");
    work(&mut engine);
    drop(engine);
    let mut files = files.lock().expect("the engine's threads have ended");
    let read = |file: &mut File| {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map(|_| bytes)
    };
    files.iter_mut().map(read).collect::<Result<_, _>>().expect("a file can be read")
}

/// An engine that finds these slabs.
///
/// # Errors
/// Where it refuses them.
pub fn recover(image: &Image, roots: &[SlotPtr]) -> Result<(Engine, Recovered), RecoverError> {
    let (range, mut arena) = Reservation::new(SLABS).expect("addresses can be reserved");
    let slab = |(index, bytes): (u32, &Vec<u8>)| {
        let index = SlabIndex::new(index).expect("an image is small");
        arena.adopt(&range.map_anonymous(index).expect("memory can be had"));
        let start = SlotPtr::new(index, 0).expect("a slab has a unit 0");
        arena.slot_mut(start, SLAB_BYTES).expect("adopted").copy_from_slice(bytes);
        arena.surrender(index)
    };
    let existing = Mutex::new((0..).zip(image).map(slab).collect());
    open(arena, Memory { range, existing, files: None }, roots)
}
