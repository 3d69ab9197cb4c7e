//! How a process ends: by a signal, whatever its clients do. An agent that has cleaned up and stays is enough for that:
//! it needs no right.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// What everything that happens soon is given on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// A process that is killed when the test fails.
struct Drained(Child, SocketAddr, #[expect(dead_code, reason = "held until the end")] tempfile::TempDir);

impl Drop for Drained {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drained {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let admin = free.expect("a free port");
        let child = Command::new(env!("CARGO_BIN_EXE_slotmesh"))
            .args(["agent", "--drain", "--admin", &admin.to_string(), "--pin-root"])
            .arg(dir.path().join("pins"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let drained = Self(child, admin, dir);
        until("it answers", || ureq::get(format!("http://{admin}/livez")).call().is_ok());
        drained
    }

    fn signal(&self, name: &str) {
        let kill = Command::new("kill").args(["-s", name, &self.0.id().to_string()]).status();
        assert!(kill.expect("kill starts").success());
    }
}

fn until(what: &str, mut probe: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !probe() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn half_a_request_keeps_nobody_from_ending() {
    for signal in ["TERM", "INT", "HUP"] {
        let mut drained = Drained::start();
        let mut client = TcpStream::connect(drained.1).expect("it listens");
        client.write_all(b"GET /livez HTTP/1.1\r\nhost: slot").expect("it reads");
        drained.signal(signal);
        until("its end", || drained.0.try_wait().expect("it is a child").is_some());
        let status = drained.0.wait().expect("it has ended");
        assert!(status.success(), "{signal}: {status}");
        let mut said = String::new();
        drained.0.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
        assert!(said.contains(&format!("SIG{signal}")), "{said}");
    }
}

#[test]
fn the_limit_of_descriptors_is_raised_to_what_is_allowed() {
    let drained = Drained::start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", drained.0.id())).expect("it runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("there is a limit");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[3], words[4], "{line}");
}

#[test]
fn the_log_is_json_where_that_is_asked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO_BIN_EXE_slotmesh"))
        .args(["agent", "--cleanup", "--log-format", "json", "--pin-root"])
        .arg(dir.path().join("pins"))
        .output()
        .expect("the binary starts");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!said.is_empty());
    for line in said.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(
            line["level"] == "INFO" && line["message"].is_string() && line["pin_root"].is_string(),
            "{line}"
        );
    }
}
