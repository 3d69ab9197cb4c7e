//! The command line as a user meets it: help, environment variables, refusals of flags.
//!
//! For these tests cargo builds the `slotmesh` binary, which the scenarios in e2e/ start, too.

use std::{
    fs,
    net::TcpListener,
    process::{Command, Output},
    thread::sleep,
    time::{Duration, Instant},
};

fn slotmesh(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotmesh"));
    command.args(args).env_clear().output().expect("the binary starts")
}

fn refusal(args: &[&str]) -> String {
    let output = slotmesh(args);
    assert!(!output.status.success(), "{args:?} is accepted");
    String::from_utf8(output.stderr).expect("UTF-8")
}

#[test]
fn every_flag_of_up_has_an_environment_variable() {
    let help = String::from_utf8(slotmesh(&["up", "--help"]).stdout).expect("UTF-8");
    let flags: Vec<&str> = help
        .lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with("--") || line.starts_with("-h"))
        .collect();
    let without: Vec<_> =
        flags.iter().filter(|flag| !flag.starts_with("-h") && !flag.starts_with("--help")).collect();
    assert!(without.len() >= 10, "{help}");
    let variables = help.matches("[env: SLOTMESH_").count();
    assert_eq!(variables, without.len(), "{help}");
}

/// What the chart sets of the operator is there, and what decides about objects is there for a directory, too.
#[test]
fn up_and_operator_know_what_the_chart_sets() {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/slotmesh/templates/operator/deployment.yaml");
    let chart = fs::read_to_string(chart).expect("the chart's template");
    let of = |word: &str| {
        let names = chart.match_indices("name: SLOTMESH_").map(|(at, _)| &chart[at + 6..]);
        let name =
            |rest: &str| rest.split(|c: char| c != '_' && !c.is_ascii_uppercase()).next().map(str::to_owned);
        names.filter_map(name).filter(|name| name.contains(word)).collect::<Vec<_>>()
    };
    let help = |command: &str| String::from_utf8(slotmesh(&[command, "--help"]).stdout).expect("UTF-8");
    let has = |help: &str, name: &str| help.contains(&format!("[env: {name}="));
    let (up, operator) = (help("up"), help("operator"));
    assert!(of("").len() >= 10, "{chart}");
    for name in of("") {
        assert!(has(&operator, &name), "{name}: {operator}");
    }
    let deciding: Vec<String> =
        ["ROOT_NAMESPACE", "ADDRESSES", "MAX_", "DOMAIN"].into_iter().flat_map(of).collect();
    assert!(deciding.len() >= 6, "{deciding:?}");
    for name in deciding {
        assert!(has(&up, &name), "{name}: {up}");
    }
    assert!(up.contains("\nObjects:\n") && operator.contains("\nObjects:\n"), "{up}");
}

#[test]
fn flags_that_contradict_each_other_are_refused_before_anything_is_created() {
    let dir = std::env::temp_dir();
    let dir = dir.to_str().expect("UTF-8");
    let up = |flags: &[&str]| refusal(&[&["up", "--manifests", dir], flags].concat());
    assert!(up(&["--slab-initial", "9", "--slab-cap", "8"]).contains("cap"));
    assert!(up(&["--slab-high-watermark", "1"]).contains("high watermark"));
    assert!(up(&["--slab-cap", "0"]).contains("--slab-cap"));
    assert!(up(&["--growth", "sometimes"]).contains("on-demand"));
    assert!(up(&["--workload", "shop=/x"]).contains("NAMESPACE/NAME=CGROUP"));
    let twice = up(&["--workload", "a/b=/x", "--workload", "a/b=/y"]);
    assert!(twice.contains("a/b"), "{twice}");
}

#[test]
fn a_slip_is_told_with_what_was_meant() {
    let dir = std::env::temp_dir();
    let dir = dir.to_str().expect("UTF-8");
    let up = |flags: &[&str]| refusal(&[&["up", "--manifests", dir], flags].concat());
    let verbose = up(&["--log", "verbose"]);
    assert!(verbose.contains("error, warn, info, debug, trace and off"), "{verbose}");
    assert!(up(&["--log", "slotmesh=infoo"]).contains("--log"));
    assert!(up(&["--log-format", "xml"]).contains("json"));
    let host = up(&["--admin", "localhost:15920"]);
    assert!(host.contains("127.0.0.1:15020") && host.contains("host names"), "{host}");
    assert!(up(&["--workload", "Shop/Client=/x"]).contains("lower-case"));
}

#[test]
fn help_is_in_groups_and_speaks_of_slabs() {
    let help = String::from_utf8(slotmesh(&["up", "--help"]).stdout).expect("UTF-8");
    for part in ["Memory:", "Data path:", "Log:", "Metrics and diagnosis:", "Examples:"] {
        assert!(help.lines().any(|line| line == part), "{part}: {help}");
    }
    assert!(!help.to_lowercase().contains("outer record"), "{help}");
}

#[test]
fn a_cleanup_says_where_it_looked() {
    let dir = tempfile::tempdir().expect("a folder");
    let root = dir.path().join("never");
    let output = slotmesh(&["agent", "--cleanup", "--pin-root", root.to_str().expect("UTF-8")]);
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{said}");
    assert!(said.contains("nothing of slotmesh was pinned there") && said.contains("never"), "{said}");
}

#[test]
fn a_missing_cluster_is_said_once() {
    let said = refusal(&["check"]);
    assert!(said.contains("no cluster:") && said.contains("KUBECONFIG"), "{said}");
    assert!(!said.contains("Caused by"), "{said}");
}

#[test]
fn a_missing_agent_is_told_with_its_address() {
    let text = refusal(&["slots", "--admin", "127.0.0.1:1"]);
    assert!(text.contains("127.0.0.1:1") && text.contains("--admin"), "{text}");
}

#[test]
fn a_variable_that_says_false_is_no_flag() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotmesh"));
    // The chart sets it so that a rollback takes back what an uninstall's hook has set.
    let output = command.arg("agent").env_clear().env("SLOTMESH_DRAIN", "false").output();
    let output = output.expect("the binary starts");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!output.status.success() && text.contains("--operator"), "{text}");
}

/// The first socket is the admin interface's; strace lets the kernel refuse it, as one without IPv6 does.
#[test]
fn all_addresses_are_those_of_ipv4_where_the_kernel_has_no_ipv6() {
    let dir = tempfile::tempdir().expect("a folder");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=socket", "-e", "inject=socket:error=EAFNOSUPPORT:when=1"])
        .arg("-o")
        .arg(dir.path().join("trace"))
        .args([env!("CARGO_BIN_EXE_slotmesh"), "agent", "--drain", "--pin-root"])
        .arg(dir.path().join("slotmesh"))
        .args(["--admin", &format!("[::]:{}", free.port())])
        .spawn()
        .expect("strace can't be started; run `make setup`");
    let deadline = Instant::now() + Duration::from_secs(60);
    let answered = loop {
        let answered = ureq::get(format!("http://{free}/readyz")).call().is_ok();
        if answered || Instant::now() > deadline {
            break answered;
        }
        sleep(Duration::from_millis(50));
    };
    let children = format!("/proc/{0}/task/{0}/children", strace.id());
    let children = fs::read_to_string(children).expect("it is a process");
    drop(Command::new("kill").args(children.split_whitespace()).status());
    drop(strace.wait());
    let trace = fs::read_to_string(dir.path().join("trace")).expect("strace writes");
    assert!(answered && trace.contains("AF_INET6") && trace.contains("(INJECTED)"), "{trace}");
}
