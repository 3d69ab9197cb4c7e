//! Cgroups of a test's own: workloads.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use slotmesh_agent::Workload;
use slotmesh_kernel::Host;

/// A cgroup that is removed when this is dropped.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = Host::probe().expect("root, BPF and cgroup v2").cgroup2;
        Self::at(root.join(format!("slotmesh-test-{}-{n}", std::process::id())))
    }

    pub(crate) fn at(path: PathBuf) -> Self {
        fs::create_dir(&path).expect("a cgroup can be created");
        Self(path)
    }

    pub(crate) fn workload(&self, name: &str) -> Workload {
        Workload { namespace: "test".to_owned(), name: name.to_owned(), cgroup: self.0.clone() }
    }

    /// Connects from within.
    pub(crate) fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.within(|| TcpStream::connect_timeout(&to, Duration::from_secs(3)))
    }

    /// Makes sockets within.
    pub(crate) fn within<T>(&self, run: impl FnOnce() -> T) -> T {
        // The whole process moves: one test at a time.
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = std::process::id().to_string();
        let old = fs::read_to_string("/proc/self/cgroup").expect("proc is mounted");
        let old = old.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup v2").to_owned();
        fs::write(self.0.join("cgroup.procs"), &pid).expect("a process can be moved");
        let made = run();
        let root = Host::probe().expect("as before").cgroup2;
        fs::write(root.join(old).join("cgroup.procs"), &pid).expect("and back");
        made
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that has just left counts for a moment.
        let deadline = Instant::now() + Duration::from_secs(1);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
