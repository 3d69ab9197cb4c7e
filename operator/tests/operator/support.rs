//! A directory with an operator on it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use slotmesh_compile::{Object, Reason};
use slotmesh_operator::{Operator, OperatorOptions, Status};
use slotmesh_xds::{Change, ResourceType};
use tempfile::TempDir;

type Published = Arc<Mutex<BTreeMap<(ResourceType, String), Vec<u8>>>>;

/// A temporary directory and an operator that publishes what is in its folder `manifests`.
pub struct Site {
    _temp: TempDir,
    pub dir: PathBuf,
    pub operator: Operator,
    published: Published,
    batches: Arc<AtomicUsize>,
}

impl Site {
    /// Starts with these files.
    pub fn with(files: &[(&str, String)]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("manifests");
        fs::create_dir(&dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
        Self::on(temp, dir)
    }

    /// Starts on this directory.
    pub fn on(temp: TempDir, dir: PathBuf) -> Self {
        let published = Published::default();
        let sink = published.clone();
        let batches = Arc::<AtomicUsize>::default();
        let counted = batches.clone();
        let publish = move |changes: Vec<Change>| {
            let mut held = sink.lock().unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            for change in changes {
                match change {
                    Change::Upsert(r) => drop(held.insert((r.ty, r.name.to_string()), r.content.to_vec())),
                    Change::Remove(ty, name) => drop(held.remove(&(ty, name.to_string()))),
                }
            }
        };
        let operator = Operator::from_manifests(&dir, OperatorOptions::default(), publish).unwrap();
        let site = Self { _temp: temp, dir, operator, published, batches };
        site.until("the first sync", |site| site.status().synced);
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Puts a file in place in one step, so that no test depends on how busy the machine is.
    pub fn write(&self, name: &str, text: impl AsRef<str>) {
        replace(&self.path(name), text.as_ref());
    }

    pub fn status(&self) -> Status {
        self.operator.status().borrow().clone()
    }

    /// All reports as text, without the temporary directory; those of Services without endpoints are left out, as most
    /// have none here.
    pub fn reports(&self) -> Vec<String> {
        let dir = format!("{}/", self.dir.display());
        let status = self.status();
        let reports = status.reports.iter().filter(|r| r.reason != Reason::NoEndpoints);
        reports.map(|r| r.to_string().replace(&dir, "")).collect()
    }

    pub fn names(&self, ty: ResourceType) -> Vec<String> {
        self.published
            .lock()
            .unwrap()
            .keys()
            .filter(|(t, _)| *t == ty)
            .map(|(_, name)| name.clone())
            .collect()
    }

    /// How often anything was published.
    pub fn batches(&self) -> usize {
        self.batches.load(Ordering::SeqCst)
    }

    /// What is published of the type, with everything in it.
    pub fn all(&self) -> BTreeMap<(ResourceType, String), Vec<u8>> {
        self.published.lock().unwrap().clone()
    }

    pub fn has_listener(&self, name: &str) -> bool {
        self.names(ResourceType::Listener).iter().any(|n| n == name)
    }

    /// Whether an assignment holds this address.
    pub fn has_endpoint(&self, address: &str) -> bool {
        let held = self.published.lock().unwrap();
        held.iter().any(|((ty, _), content)| {
            *ty == ResourceType::Endpoints && content.windows(address.len()).any(|w| w == address.as_bytes())
        })
    }

    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !holds(self) {
            assert!(Instant::now() < end, "{what} did not come about; reports: {:#?}", self.reports());
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn until_said(&self, part: &str) {
        self.until(part, |site| site.reports().iter().any(|r| r.contains(part)));
    }

    /// Waits so long that a wrong reaction would have come.
    pub fn settle() {
        thread::sleep(Duration::from_millis(600));
    }
}

/// A YAML file of these objects.
pub fn yaml(objects: &[Object]) -> String {
    let mut text = String::new();
    for object in objects {
        let document = match object {
            Object::Service(o) => serde_yaml::to_string(&**o),
            Object::EndpointSlice(o) => serde_yaml::to_string(&**o),
            Object::Pod(o) => serde_yaml::to_string(&**o),
            Object::Namespace(o) => serde_yaml::to_string(&**o),
            Object::Node(o) => serde_yaml::to_string(&**o),
            Object::VirtualService(o) => serde_yaml::to_string(&**o),
            Object::DestinationRule(o) => serde_yaml::to_string(&**o),
            Object::ServiceEntry(o) => serde_yaml::to_string(&**o),
            Object::WorkloadEntry(o) => serde_yaml::to_string(&**o),
            Object::Sidecar(o) => serde_yaml::to_string(&**o),
            Object::GrpcRoute(o) => serde_yaml::to_string(&**o),
            Object::HttpRoute(o) => serde_yaml::to_string(&**o),
            Object::TlsRoute(o) => serde_yaml::to_string(&**o),
            Object::TcpRoute(o) => serde_yaml::to_string(&**o),
            Object::ReferenceGrant(o) => serde_yaml::to_string(&**o),
            Object::TrafficPolicy(o) => serde_yaml::to_string(&**o),
            Object::ServiceCidr(o) => serde_yaml::to_string(&**o),
            Object::SlotProfile(o) => serde_yaml::to_string(&**o),
        };
        write!(text, "---\n{}", document.unwrap()).unwrap();
    }
    text
}

/// Puts a file in place as many editors do.
pub fn replace(path: &Path, text: &str) {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, path).unwrap();
}
