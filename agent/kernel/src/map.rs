//! Maps: create, open, read and write elements.

use std::{
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use aya_obj::generated::{bpf_map_info, bpf_map_type};
use bytemuck::Pod;

use crate::sys::{self, BpfError, attr, bpf, bpf_cmd, bpf_fd};

/// The map types that the agent creates itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_ARRAY`
    Array,
    /// `BPF_MAP_TYPE_HASH`
    Hash,
    /// `BPF_MAP_TYPE_LRU_HASH`: takes all its memory when it is made.
    LruHash,
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS`
    ArrayOfMaps,
    /// `BPF_MAP_TYPE_CGROUP_STORAGE`, keyed by cgroup id, so that all hooks of a cgroup share a value
    /// (kernel 5.9: a key of 8 bytes means "shared").
    CgroupStorage,
}

impl MapKind {
    const fn number(self) -> u32 {
        match self {
            Self::Array => bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
            Self::Hash => bpf_map_type::BPF_MAP_TYPE_HASH as u32,
            Self::LruHash => bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32,
            Self::ArrayOfMaps => bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32,
            Self::CgroupStorage => bpf_map_type::BPF_MAP_TYPE_CGROUP_STORAGE_DEPRECATED as u32,
        }
    }
}

/// The form that a map is to have.
#[derive(Clone, Copy, Debug)]
pub struct MapSpec {
    /// Up to 15 bytes, for bpftool.
    pub name: &'static str,
    /// The map type.
    pub kind: MapKind,
    /// Elements.
    pub max_entries: u32,
    /// `BPF_F_*`
    pub flags: u32,
}

/// A map with keys `K` and values `V`.
#[derive(Debug)]
pub struct Map<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> Map<K, V> {
    /// Creates a map; `inner` is the template of a map of maps.
    pub fn create(spec: &MapSpec, inner: Option<BorrowedFd<'_>>) -> Result<Self, BpfError> {
        let mut attr = attr();
        // SAFETY: the attribute is all zero, so every member of the union is initialised.
        let create = unsafe { &mut attr.__bindgen_anon_1 };
        create.map_type = spec.kind.number();
        create.key_size = size_of::<K>() as u32;
        create.value_size = size_of::<V>() as u32;
        create.max_entries = spec.max_entries;
        create.map_flags = spec.flags;
        create.inner_map_fd = inner.map_or(0, |fd| fd.as_raw_fd() as u32);
        for (to, from) in create.map_name.iter_mut().zip(spec.name.bytes().take(15)) {
            *to = from as libc::c_char;
        }
        let fd = bpf_fd("BPF_MAP_CREATE", bpf_cmd::BPF_MAP_CREATE, &mut attr)?;
        Ok(Self { fd, types: PhantomData })
    }

    /// Opens the map pinned at `path`, or creates it as `spec` says and pins it there.
    ///
    /// # Errors
    /// Also where what is pinned there is another kind of map, or of another size.
    pub fn open_or_create(
        path: &Path,
        spec: &MapSpec,
        inner: Option<BorrowedFd<'_>>,
    ) -> Result<Self, BpfError> {
        let (map, found) = Self::open_or_create_of_any_size(path, spec, inner)?;
        if found != spec.max_entries {
            return Err(another(path, &format!("it has {found} elements, not {}", spec.max_entries)));
        }
        Ok(map)
    }

    /// As [`open_or_create`](Self::open_or_create), but a map that is pinned may have another number of elements;
    /// how many it has.
    ///
    /// # Errors
    /// Also where what is pinned there is another kind of map.
    pub fn open_or_create_of_any_size(
        path: &Path,
        spec: &MapSpec,
        inner: Option<BorrowedFd<'_>>,
    ) -> Result<(Self, u32), BpfError> {
        if let Some(map) = Self::open(path)? {
            let info: bpf_map_info = sys::info(&map.fd)?;
            let (found, wanted) = (info.type_, spec.kind.number());
            if found != wanted {
                return Err(another(path, &format!("its type is {found}, not {wanted}")));
            }
            return Ok((map, info.max_entries));
        }
        let map = Self::create(spec, inner)?;
        map.pin(path)?;
        Ok((map, spec.max_entries))
    }

    /// Opens the map pinned at `path`; `None` where nothing is pinned there.
    ///
    /// # Errors
    /// Also where its keys or values have another size: the kernel would read or write past ours.
    pub fn open(path: &Path) -> Result<Option<Self>, BpfError> {
        let Some(fd) = sys::open(path)? else { return Ok(None) };
        let info: bpf_map_info = sys::info(&fd)?;
        let (found, wanted) =
            ((info.key_size, info.value_size), (size_of::<K>() as u32, size_of::<V>() as u32));
        if found != wanted {
            return Err(another(path, &format!("(key size, value size) is {found:?}, not {wanted:?}")));
        }
        Ok(Some(Self { fd, types: PhantomData }))
    }

    /// Pins the map.
    pub fn pin(&self, path: &Path) -> Result<(), BpfError> {
        sys::pin(&self.fd, path)
    }

    /// Inserts or replaces an element.
    pub fn update(&self, key: &K, value: &V) -> Result<(), BpfError> {
        let mut attr = self.element(key);
        attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_ref(value) as u64;
        bpf("BPF_MAP_UPDATE_ELEM", bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
    }

    /// Inserts or replaces many elements with one call.
    pub fn update_batch(&self, keys: &[K], values: &[V]) -> Result<(), BpfError> {
        assert_eq!(keys.len(), values.len());
        let mut attr = attr();
        attr.batch.map_fd = self.fd.as_raw_fd() as u32;
        attr.batch.keys = keys.as_ptr() as u64;
        attr.batch.values = values.as_ptr() as u64;
        attr.batch.count = keys.len() as u32;
        bpf("BPF_MAP_UPDATE_BATCH", bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr).map(drop)
    }

    /// Removes an element; whether it was there.
    pub fn delete(&self, key: &K) -> Result<bool, BpfError> {
        let mut attr = self.element(key);
        match bpf("BPF_MAP_DELETE_ELEM", bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) {
            Ok(_) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads an element.
    pub fn get(&self, key: &K) -> Result<Option<V>, BpfError> {
        let mut value = V::zeroed();
        let mut attr = self.element(key);
        attr.__bindgen_anon_2.__bindgen_anon_1.value = (&raw mut value) as u64;
        match bpf("BPF_MAP_LOOKUP_ELEM", bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All keys of a map that nobody else writes meanwhile.
    pub fn keys(&self) -> Result<Vec<K>, BpfError> {
        let mut keys: Vec<K> = Vec::new();
        loop {
            let mut next = K::zeroed();
            let mut attr = attr();
            attr.__bindgen_anon_2.map_fd = self.fd.as_raw_fd() as u32;
            attr.__bindgen_anon_2.key = keys.last().map_or(0, |key| std::ptr::from_ref(key) as u64);
            attr.__bindgen_anon_2.__bindgen_anon_1.next_key = (&raw mut next) as u64;
            match bpf("BPF_MAP_GET_NEXT_KEY", bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) {
                Ok(_) => keys.push(next),
                Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }

    /// All elements of a hash map, while others add some: each that was there before and stays is among
    /// them. One call for some thousands (`BPF_MAP_LOOKUP_BATCH`, kernel 5.6).
    pub fn entries(&self) -> Result<Vec<(K, V)>, BpfError> {
        let mut all = Vec::new();
        // The kernel's place in the map: the number of a bucket.
        let (mut place, mut after) = (0_u32, 0_u32);
        let mut first = true;
        let mut room = 4_096;
        loop {
            let (mut keys, mut values) = (vec![K::zeroed(); room], vec![V::zeroed(); room]);
            let mut attr = attr();
            attr.batch.map_fd = self.fd.as_raw_fd() as u32;
            attr.batch.in_batch = if first { 0 } else { (&raw mut place) as u64 };
            attr.batch.out_batch = (&raw mut after) as u64;
            attr.batch.keys = keys.as_mut_ptr() as u64;
            attr.batch.values = values.as_mut_ptr() as u64;
            attr.batch.count = room as u32;
            let result = bpf("BPF_MAP_LOOKUP_BATCH", bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
            let at_end = match result {
                Ok(_) => false,
                Err(error) if error.errno() == Some(libc::ENOENT) => true,
                // A bucket has more than there is room for.
                Err(error) if error.errno() == Some(libc::ENOSPC) => {
                    room *= 2;
                    continue;
                }
                Err(error) => return Err(error),
            };
            // SAFETY: the kernel has set the count, to at most what it was.
            let count = unsafe { attr.batch.count } as usize;
            all.extend(keys.into_iter().zip(values).take(count));
            if at_end {
                return Ok(all);
            }
            (place, first) = (after, false);
        }
    }

    fn element(&self, key: &K) -> sys::bpf_attr {
        let mut attr = attr();
        attr.__bindgen_anon_2.map_fd = self.fd.as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
        attr
    }
}

fn another(path: &Path, what: &str) -> BpfError {
    let text = format!("{} is another map: {what}", path.display());
    BpfError { call: "BPF_OBJ_GET", source: std::io::Error::other(text) }
}

impl<K, V> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
