//! Reads records through a program, and compares them with what was written.

use std::{
    collections::{HashSet, VecDeque},
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context as _, ensure};
use aya::{EbpfLoader, programs::SchedClassifier};
use bytemuck::Zeroable as _;
use slotmesh_kernel::test_run;
use slotmesh_records::{
    RecordHeader, SlotPtr,
    layout::{Points, layout_of, pointers},
};

use crate::{
    line::Line,
    store::{Id, Store},
};

/// An Ethernet header, which a test run insists on.
const ETHERNET: usize = 14;
const LINE: usize = 64;

/// A program that reads lines of a store.
pub struct Reader(OwnedFd);

impl Reader {
    /// Loads the program over the maps that are pinned.
    pub fn new(program: &str, maps: &[(&str, PathBuf)]) -> anyhow::Result<Self> {
        let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/probes.bpf.o");
        let bytes = std::fs::read(object).with_context(|| format!("{object} (run `make ebpf`)"))?;
        let mut loader = EbpfLoader::new();
        for (map, path) in maps {
            loader.map_pin_path(map, path.clone());
        }
        let mut object = loader.load(&bytes)?;
        let found = object.program_mut(program).with_context(|| format!("no program {program}"))?;
        let found: &mut SchedClassifier = found.try_into()?;
        found.load().with_context(|| format!("the kernel refuses {program}"))?;
        Ok(Self(found.fd()?.as_fd().try_clone_to_owned()?))
    }

    fn line(&self, id: Id, line: u32) -> anyhow::Result<[u8; LINE]> {
        let mut packet = [0; ETHERNET + size_of::<Line>()];
        let question = Line { id, line, ..Line::zeroed() };
        packet[ETHERNET..].copy_from_slice(bytemuck::bytes_of(&question));
        test_run(self.0.as_fd(), &mut packet)?;
        let answer: Line = bytemuck::pod_read_unaligned(&packet[ETHERNET..]);
        ensure!(answer.found == 1, "the program finds no line {line} of record {id}");
        Ok(bytemuck::cast(answer.words))
    }

    /// The first `len` bytes of a record.
    pub fn record(&self, id: Id, len: usize) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len.next_multiple_of(LINE));
        for line in 0..len.div_ceil(LINE) {
            bytes.extend_from_slice(&self.line(id, line as u32)?);
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    /// The records of a version in slabs, found from its root as a program finds them.
    pub fn tree(&self, root: SlotPtr) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut records = Vec::new();
        let mut open = VecDeque::from([root]);
        while let Some(ptr) = open.pop_front() {
            let first = self.line(ptr.bits(), 0)?;
            let header: RecordHeader = bytemuck::pod_read_unaligned(&first[..size_of::<RecordHeader>()]);
            let layout = layout_of(header.kind).context("no record")?;
            let tail = layout.tail.map_or(0, |tail| tail.size * header.count as usize);
            let bytes = self.record(ptr.bits(), layout.fixed.size + tail)?;
            pointers(&bytes, |points, ptr| {
                if points == Points::Owned {
                    open.push_back(ptr);
                }
            })?;
            records.push(bytes);
        }
        Ok(records)
    }
}

/// Whether the records are the same, wherever they lie: where one that was `written` points at another,
/// the one that was `read` points at one of its tree, too. (The slot's size only the slot engine notes.)
pub fn same_but_for_pointers(read: &[Vec<u8>], written: &[(Id, Vec<u8>)]) -> anyhow::Result<()> {
    let targets = |records: &mut dyn Iterator<Item = &Vec<u8>>| {
        let mut found = HashSet::new();
        for record in records {
            pointers(record, |_, ptr| found.extend([ptr.bits()]))?;
        }
        anyhow::Ok(found)
    };
    let there = targets(&mut written.iter().map(|(_, bytes)| bytes))?;
    let here = targets(&mut read.iter())?;
    let word = |bytes: &[u8]| u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let same = |read: &Vec<u8>, written: &Vec<u8>| {
        let mut words = read.chunks(4).zip(written.chunks(4)).enumerate();
        read.len() == written.len()
            && words.all(|(i, (read, written))| match (i, written.len()) {
                (0, _) => read[..2] == written[..2],
                (_, 4) if there.contains(&word(written)) => here.contains(&word(read)),
                _ => read == written,
            })
    };
    ensure!(read.len() == written.len(), "{} records were written, {} read", written.len(), read.len());
    let mut left: Vec<&Vec<u8>> = written.iter().map(|(_, bytes)| bytes).collect();
    for record in read {
        let found = left.iter().position(|written| same(record, written));
        left.swap_remove(found.with_context(|| format!("was never written: {record:?}"))?);
    }
    Ok(())
}

/// A store that only numbers. The numbers are no values that records hold otherwise.
#[derive(Default)]
pub struct Plain(u32);

impl Plain {
    fn next(&mut self) -> Id {
        self.0 += 1;
        0xf000_0000 + self.0
    }
}

impl Store for Plain {
    fn write(&mut self, _head: &[u8], _tail: &[u8]) -> anyhow::Result<Id> {
        Ok(self.next())
    }

    fn give_up(&mut self, _id: Id) -> anyhow::Result<()> {
        Ok(())
    }

    fn handle(&mut self, _name: &str) -> anyhow::Result<Id> {
        Ok(self.next())
    }

    fn publish(&mut self, _handle: Id, _root: Id) -> anyhow::Result<()> {
        Ok(())
    }

    fn drop_handle(&mut self, _handle: Id) -> anyhow::Result<()> {
        Ok(())
    }
}
