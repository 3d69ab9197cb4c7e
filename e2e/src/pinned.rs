//! What lies pinned below a pin root: maps and links by their ids, and how the maps are defined.
//!
//! Where what lies is told in docs/architecture.md: records by their layout, state, links.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    maps::{HashMap, Map, MapData, MapError, MapInfo, MapType},
    programs::{
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
};
use aya_obj::{EbpfSectionKind, generated::bpf_map_type};

use crate::bpf::pins;

/// The size of a virtual address in the map of those: address, port, protocol, and a byte of zero.
const VIP_KEY: usize = 20;

/// A map as it was defined: what can't be changed of a map that is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Definition {
    kind: String,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

impl Definition {
    fn of(map: &MapInfo) -> Result<Self> {
        let sizes = [map.key_size(), map.value_size(), map.max_entries(), map.map_flags()];
        Ok(Self::new(map.map_type()?, sizes))
    }

    fn in_object(map: &aya_obj::Map) -> Result<Self> {
        let kind = bpf_map_type::try_from(map.map_type());
        let kind = MapType::try_from(kind.map_err(|_| anyhow!("{} is no kind of map", map.map_type()))?)?;
        Ok(Self::new(kind, [map.key_size(), map.value_size(), map.max_entries(), map.map_flags()]))
    }

    fn new(kind: MapType, [key_size, value_size, max_entries, flags]: [u32; 4]) -> Self {
        let key_size = self::key_size(kind, key_size);
        Self { kind: format!("{kind:?}"), key_size, value_size, max_entries, flags }
    }
}

/// Programs reach the storage of their attachment without a key; the kernel leaves its maker the choice
/// between two sizes.
fn key_size(kind: MapType, size: u32) -> u32 {
    if kind == MapType::CgroupStorage { 0 } else { size }
}

/// The maps that an eBPF object defines, by name; the one in a map of maps as `NAME/inner`. Constants, for
/// which the loader makes a map with each load, aren't among them.
///
/// # Errors
/// When it can't be read.
pub fn maps_in_object(object: &Path) -> Result<BTreeMap<String, Definition>> {
    let bytes = fs::read(object).with_context(|| format!("{} (run `make ebpf`)", object.display()))?;
    let mut maps = BTreeMap::new();
    for (name, map) in aya_obj::Object::parse(&bytes).context("parse an eBPF object")?.maps {
        if map.section_kind() != EbpfSectionKind::BtfMaps {
            continue;
        }
        if let Some(inner) = map.inner() {
            maps.insert(format!("{name}/inner"), Definition::in_object(&inner)?);
        }
        maps.insert(name, Definition::in_object(&map)?);
    }
    Ok(maps)
}

/// The ids of a pinned link, and of the program that it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkIds {
    /// The link's: the same as long as it isn't made anew.
    pub link: u32,
    /// The program's: changes with an upgrade in place.
    pub program: u32,
}

/// A pin root, looked at from outside.
#[derive(Clone, Debug)]
pub struct Pinned(PathBuf);

impl Pinned {
    /// What lies below this pin root.
    pub fn below(root: &Path) -> Self {
        Self(root.to_owned())
    }

    /// The directories of records, one for each layout that has any.
    ///
    /// # Errors
    /// When the pin root can't be read.
    pub fn layouts(&self) -> Result<BTreeSet<PathBuf>> {
        self.directories("records-")
    }

    /// The directory of records, where there is one layout only.
    ///
    /// # Errors
    /// When there are none or several.
    pub fn layout(&self) -> Result<PathBuf> {
        only(self.layouts()?)
    }

    /// The maps of the state that outlives layouts: id and definition, by name of the pin.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn state(&self) -> Result<BTreeMap<PathBuf, (u32, Definition)>> {
        maps(&self.state_dir()?)
    }

    /// The links: by workload and hook, and those that count down by cgroup.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn links(&self) -> Result<BTreeMap<PathBuf, LinkIds>> {
        let mut links = BTreeMap::new();
        for dir in [self.directories("links-")?, self.directories("releases-")?].iter().flatten() {
            for pin in pins(dir)? {
                let link: FdLink =
                    PinnedLink::from_pin(&pin).with_context(|| pin.display().to_string())?.into();
                let info = link.info()?;
                links.insert(pin, LinkIds { link: info.id(), program: info.program_id() });
            }
        }
        Ok(links)
    }

    /// The ids of all maps that the programs at its links use.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn maps_of_programs(&self) -> Result<BTreeSet<u32>> {
        let programs: BTreeSet<u32> = self.links()?.values().map(|ids| ids.program).collect();
        let (mut maps, mut seen) = (BTreeSet::new(), BTreeSet::new());
        // A program of another test may go while they are listed.
        for program in loaded_programs().flatten().filter(|program| programs.contains(&program.id())) {
            seen.insert(program.id());
            maps.extend(program.map_ids()?.context("the kernel tells a program's maps")?);
        }
        ensure!(seen == programs, "programs {programs:?} are linked, {seen:?} are loaded");
        Ok(maps)
    }

    /// How many connections count of each cluster, by the hash of its name.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn active(&self) -> Result<BTreeMap<u64, u64>> {
        let map: HashMap<MapData, u64, [u64; 4]> = open(&self.state_dir()?.join("clusters"))?.try_into()?;
        let lanes: HashMap<MapData, [u64; 2], [u64; 2]> =
            open(&self.state_dir()?.join("lanes"))?.try_into()?;
        let mut counts = BTreeMap::new();
        // An element that goes meanwhile has no connections.
        for key in map.keys() {
            let key = key?;
            *counts.entry(key).or_default() += map.get(&key, 0).map_or(0, |[active, ..]| count(active));
        }
        for key in lanes.keys() {
            let key = key?;
            *counts.entry(key[0]).or_default() += lanes.get(&key, 0).map_or(0, |[active, _]| count(active));
        }
        Ok(counts)
    }

    /// How many connections count at each endpoint where any do.
    ///
    /// # Errors
    /// When the map can't be read.
    pub fn at_endpoints(&self) -> Result<Vec<u64>> {
        let map: HashMap<MapData, [u64; 4], [u64; 2]> =
            open(&self.state_dir()?.join("endpoints"))?.try_into()?;
        let counts = map.iter().map(|found| found.map(|(_, [active, _])| count(active)));
        let counts: Vec<u64> =
            counts.collect::<Result<_, MapError>>().context("read the counts of endpoints")?;
        Ok(counts.into_iter().filter(|&count| count != 0).collect())
    }

    fn state_dir(&self) -> Result<PathBuf> {
        only(self.directories("state-")?)
    }

    fn directories(&self, prefix: &str) -> Result<BTreeSet<PathBuf>> {
        let entries = fs::read_dir(&self.0).with_context(|| self.0.display().to_string())?;
        let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<BTreeSet<_>>>()?;
        let named =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        Ok(paths.into_iter().filter(named).collect())
    }
}

/// The number in a count: the upper half tells whose it is, and is 0 of one that is being removed.
fn count(bits: u64) -> u64 {
    if bits >> 32 == 0 { 0 } else { bits & u64::from(u32::MAX) }
}

/// How many addresses the records of a layout are reached by.
///
/// # Errors
/// When the map can't be read; it isn't there at first.
pub fn vips(layout: &Path) -> Result<usize> {
    let map: HashMap<MapData, [u8; VIP_KEY], u64> = open(&layout.join("vips"))?.try_into()?;
    Ok(map.keys().collect::<Result<Vec<_>, _>>()?.len())
}

/// The maps pinned below a directory: id and definition, by path in it.
///
/// # Errors
/// When they can't be read.
pub fn maps(dir: &Path) -> Result<BTreeMap<PathBuf, (u32, Definition)>> {
    let maps = pins(dir)?.into_iter().map(|pin| {
        let map = MapInfo::from_pin(&pin).with_context(|| pin.display().to_string())?;
        Ok((pin.strip_prefix(dir)?.to_owned(), (map.id(), Definition::of(&map)?)))
    });
    maps.collect()
}

fn open(pin: &Path) -> Result<Map> {
    let map = MapData::from_pin(pin).with_context(|| pin.display().to_string())?;
    Ok(Map::from_map_data(map)?)
}

fn only(found: BTreeSet<PathBuf>) -> Result<PathBuf> {
    ensure!(found.len() == 1, "there is not one, but {found:?}");
    found.into_iter().next().context("there is one")
}
