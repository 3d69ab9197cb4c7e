//! `slotmesh broker` as agent and proxy of a node meet it: by its sockets. It needs root, as only who has CAP_SYS_ADMIN enters
//! namespaces.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread::sleep,
    time::{Duration, Instant},
};

use slotmesh_broker::{Counterpart, Key, NamespaceAt, SocketFamily};

/// What everything that happens soon is given on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// A process that is killed when the test fails.
struct Broker(Child);

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Broker {
    fn start(dir: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_slotmesh"))
            .arg("broker")
            .arg("--steward-socket")
            .arg(dir.join("steward"))
            .arg("--proxy-socket")
            .arg(dir.join("proxy"))
            .args(["--proxy-socket-group", "65532"])
            .spawn()
            .expect("the binary starts");
        Self(child)
    }
}

fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(10));
    }
}

/// A connection to a broker that answers.
fn connect(path: PathBuf) -> Counterpart {
    until("the broker listens", || Counterpart::connect(&path).ok())
}

#[test]
fn agent_and_proxy_meet_the_broker_at_its_sockets_and_its_successor_in_the_same_place() {
    let dir = tempfile::tempdir().expect("a folder");
    let key = Key::new("pod").expect("a key");
    for signal in ["KILL", "TERM"] {
        let mut broker = Broker::start(dir.path());
        // What the one before has left there refuses.
        let steward = connect(dir.path().join("steward"));
        let own = NamespaceAt::Process(std::process::id());
        let (_, port) = steward.enrol(&key, &own, None).expect("it is this one's own");
        let proxy = connect(dir.path().join("proxy"));
        let (_, listening) = proxy.listener(&key).expect("the namespace is enrolled");
        assert_eq!(listening, port);
        assert_eq!(proxy.sockets(&key, SocketFamily::V6, 2).expect("it gives some").len(), 2);
        assert!(proxy.enrol(&key, &own, None).is_err(), "a proxy names no namespaces");
        for (name, group) in [("steward", None), ("proxy", Some(65_532))] {
            let found = fs::metadata(dir.path().join(name)).expect("it is there");
            assert_eq!(found.permissions().mode() & 0o777, 0o660, "{name}");
            assert!(group.is_none_or(|group| group == found.gid()), "{name} is of group {}", found.gid());
        }
        assert_ne!(port, 0);
        drop((steward, proxy));
        let kill = Command::new("kill").args(["-s", signal, &broker.0.id().to_string()]).status();
        assert!(kill.expect("kill starts").success());
        let status = until("its end", || broker.0.try_wait().expect("it is a child"));
        assert_eq!(status.success(), signal == "TERM", "{status}");
    }
}
