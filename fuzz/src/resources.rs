//! Resources and manifests: bytes -> model -> records, and slabs that are damaged.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

use prost::Message as _;
use slotmesh_agent::{
    RecordType,
    config::{Message, Model, Settings},
    flatten::{self, EndpointsView},
};
use slotmesh_operator::fuzz::Manifests;
use slotmesh_records::SlotPtr;
use slotmesh_slots::{Config, Engine};
use slotmesh_xds::{Change, Resource, ResourceName, ResourceType, Version, envoy::envoy};

use crate::{
    Frames,
    memory::{self, Image},
    seeds::examples,
};

/// In the code of a frame of [`config`]: the resource of that name is removed.
pub const REMOVE: u8 = 0x80;
/// In the code of a frame of [`config`]: a cluster chooses from the load assignment by the source.
pub const HASHED: u8 = 0x40;

/// Frames of resources, written into one engine one after the other: what the decoder accepts can be
/// flattened, is current afterwards with its version, and leaves nothing behind when it is removed.
/// The three lowest bits of a frame's code are the type.
pub fn config(data: &[u8]) {
    let mut engine = memory::engine();
    let mut current: BTreeMap<(RecordType, String), Version> = BTreeMap::new();
    for (code, content) in Frames::new(data) {
        let ty = type_of(code);
        let Some(record) = RecordType::of(ty) else {
            if ty == ResourceType::Settings {
                settings(&resource(ty, "node", content));
            }
            continue;
        };
        if code & REMOVE != 0 {
            let name = String::from_utf8_lossy(content).into_owned();
            if let Some(handle) = engine.find(record.kind(), &name) {
                engine.remove(handle);
            }
            current.remove(&(record, name));
        } else if let Some(name) = name_of(record, content)
            && let Some(version) = write(&mut engine, &resource(ty, &name, content), code & HASHED != 0)
        {
            current.insert((record, name), version);
        }
        engine.poll();
        assert_eq!(in_force(&engine), current, "after a frame of type {ty}");
    }
    clear(&mut engine);
}

/// The type that the three lowest bits of a code name.
pub(crate) fn type_of(code: u8) -> ResourceType {
    ResourceType::ALL[usize::from(code & 7) % ResourceType::ALL.len()]
}

/// Settings that are accepted don't contradict themselves.
fn settings(resource: &Resource) {
    if let Ok(settings) = Settings::decode(resource, Config::default()) {
        assert_eq!(settings.slots.contradiction(), None);
    }
}

/// The name that a message tells: the control plane gives the resource the same.
fn name_of(ty: RecordType, content: &[u8]) -> Option<String> {
    use envoy::config::{cluster, endpoint, listener, route};
    Some(match ty {
        RecordType::Cluster => cluster::v3::Cluster::decode(content).ok()?.name,
        RecordType::Endpoints => endpoint::v3::ClusterLoadAssignment::decode(content).ok()?.cluster_name,
        RecordType::Route => route::v3::RouteConfiguration::decode(content).ok()?.name,
        RecordType::Listener => listener::v3::Listener::decode(content).ok()?.name,
    })
}

fn resource(ty: ResourceType, name: &str, content: &[u8]) -> Resource {
    Resource { ty, name: name.into(), version: Version::of(content), content: content.to_vec().into() }
}

/// Writes a resource, unless it is refused; the version that is current then.
fn write(engine: &mut Engine, resource: &Resource, hashed: bool) -> Option<Version> {
    let message = Message::decode(resource).ok()?;
    let model = Model::new(resource.name.as_str(), &message).ok()?;
    let view = EndpointsView { hashed, tables: None };
    flatten::flush(engine.draft(), resource.name.as_str(), resource.version.get(), &model, view).ok()?;
    Some(resource.version)
}

fn in_force(engine: &Engine) -> BTreeMap<(RecordType, String), Version> {
    let known = |(kind, name, version): (_, &str, _)| {
        let ty = RecordType::of_kind(kind).expect("only types of xDS were written");
        ((ty, name.to_owned()), Version::from_u64(version).expect("versions are never 0"))
    };
    engine.resources().map(known).collect()
}

/// Removes all resources: then only the superblock and the directory are left.
fn clear(engine: &mut Engine) {
    let all: Vec<_> = engine.resources().map(|(kind, name, _)| (kind, name.to_owned())).collect();
    for (kind, name) in all {
        let handle = engine.find(kind, &name).expect("a resource in force has a handle");
        engine.remove(handle);
    }
    engine.settle();
    let stats = engine.stats();
    assert_eq!((stats.handles, stats.quarantined), (0, 0), "{stats:?}");
    let used: u64 = stats.classes.iter().map(|(_, class)| class.used).sum();
    assert!(used <= 2, "{used} slots are left of the superblock and one page: {stats:?}");
}

/// Frames of manifests, saved one after the other: what is compiled is what the agent accepts, and once
/// all files are gone, nothing is left.
pub fn manifests(data: &[u8]) {
    const FILES: [&str; 4] = ["a.yaml", "b.yaml", "c.yaml", "d.json"];
    let mut mesh =
        Mesh { manifests: Manifests::default(), engine: memory::engine(), served: BTreeSet::new() };
    for (code, text) in Frames::new(data) {
        let text = (code & REMOVE == 0).then(|| String::from_utf8_lossy(text));
        mesh.save(FILES[usize::from(code & 3)], text.as_deref());
    }
    for file in FILES {
        mesh.save(file, None);
    }
    assert!(mesh.served.is_empty(), "left without any file: {:?}", mesh.served);
    clear(&mut mesh.engine);
}

/// An operator without files and threads, and what its agent makes of what it says.
struct Mesh {
    manifests: Manifests,
    engine: Engine,
    served: BTreeSet<(ResourceType, ResourceName)>,
}

impl Mesh {
    fn save(&mut self, file: &str, text: Option<&str>) {
        for change in self.manifests.save(file, text) {
            match change {
                Change::Upsert(resource) => {
                    self.accept(&resource);
                    self.served.insert((resource.ty, resource.name));
                }
                Change::Remove(ty, name) => {
                    if let Some(ty) = RecordType::of(ty)
                        && let Some(handle) = self.engine.find(ty.kind(), name.as_str())
                    {
                        self.engine.remove(handle);
                    }
                    assert!(self.served.remove(&(ty, name)), "only what was served is removed");
                }
            }
        }
    }

    fn accept(&mut self, resource: &Resource) {
        let (ty, name) = (resource.ty, resource.name.as_str());
        if ty == ResourceType::Settings {
            // Whether they fit the agent's flags, the compiler can't know.
            return settings(resource);
        }
        let message = Message::decode(resource).expect("the operator encoded it");
        if let Err(error) = Model::new(name, &message) {
            panic!("the agent would refuse {ty} {name:?}: {error}");
        }
        // The engine is small, and a refused flush changes nothing.
        write(&mut self.engine, resource, false);
    }
}

/// The slabs of an agent that ended, with bytes changed: frames of a place (slab and byte, 4 bytes)
/// and what to write there. The engine refuses them, or takes them over and works.
///
/// A frame whose code is odd clears everything first; one whose highest bit is set names a root.
pub fn recovery(data: &[u8]) {
    let mut image = sound().clone();
    let mut roots = Vec::new();
    for (code, bytes) in Frames::new(data) {
        if code & 1 != 0 {
            image.iter_mut().for_each(|slab| slab.fill(0));
        }
        let Some((&[slab, _, low, high], bytes)) = bytes.split_first_chunk() else { continue };
        if code & 0x80 != 0 {
            let bits = u32::from(slab) << 10 | u32::from(u16::from_le_bytes([low, high]) & 1023);
            roots.push(SlotPtr::from_bits(bits));
            continue;
        }
        let slabs = image.len();
        let place = &mut image[usize::from(slab) % slabs][usize::from(u16::from_le_bytes([low, high]))..];
        let length = bytes.len().min(place.len());
        place[..length].copy_from_slice(&bytes[..length]);
    }
    let Ok((mut engine, recovered)) = memory::recover(&image, &roots) else { return };
    for orphan in recovered.orphans {
        engine.retire(orphan);
    }
    engine.settle();
    let names: BTreeSet<_> =
        recovered.resources.iter().map(|resource| (resource.kind, resource.name.clone())).collect();
    assert_eq!(names.len(), recovered.resources.len(), "no name twice");
    for resource in &recovered.resources {
        assert_eq!(engine.find(resource.kind, &resource.name), Some(resource.handle));
        let _ = engine.current(resource.handle);
    }
    let stats = engine.stats();
    let whole: u64 = stats
        .classes
        .iter()
        .map(|(class, slots)| (slots.used + slots.idle + slots.retired) / u64::from(class.slots_per_slab()))
        .sum();
    assert_eq!(whole + u64::from(stats.empty_slabs), u64::from(stats.slabs), "no slab is lost: {stats:?}");
    for resource in examples() {
        write(&mut engine, resource, true);
    }
    for resource in recovered.resources {
        engine.remove(resource.handle);
    }
    engine.settle();
}

/// Memory that an agent leaves that holds a few resources of each type.
fn sound() -> &'static Image {
    static SOUND: OnceLock<Image> = OnceLock::new();
    SOUND.get_or_init(|| {
        memory::image(|engine| {
            for resource in examples() {
                write(engine, resource, true).expect("an example is valid");
            }
        })
    })
}
