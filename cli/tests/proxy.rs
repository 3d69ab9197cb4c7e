//! `slotmesh proxy`, as somebody starts it who wants a second look.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

/// A process that is killed when the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn written(dir: &Path, routes: &str, port: u16) -> PathBuf {
    let file = dir.join("envoy.yaml");
    let text = format!(
        r#"
static_resources:
  listeners:
  - name: web
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          route_config:
            virtual_hosts: [{{name: all, domains: ["*"], routes: [{routes}]}}]
  clusters:
  - name: web
    load_assignment: {{cluster_name: web, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address:
      {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}
"#
    );
    std::fs::write(&file, text).expect("a file");
    file
}

fn ask(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn a_file_is_served_until_a_signal() {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = server.accept() {
            let mut lines = BufReader::new(stream.try_clone().expect("a copy")).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"));
        }
    });
    let dir = tempfile::tempdir().expect("a folder");
    let config = written(dir.path(), "{match: {prefix: /}, route: {cluster: web}}", port);
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotmesh"));
    command.args(["proxy", "--admin", "127.0.0.1:0", "--log-format", "json", "--config"]).arg(config);
    let mut running = Running(command.stderr(Stdio::piped()).spawn().expect("the binary starts"));
    let mut said = BufReader::new(running.0.stderr.take().expect("piped")).lines();
    let admin = said.find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(&line.expect("UTF-8")).expect("JSON");
        (line["message"] == "ready").then(|| line["admin"].as_str().expect("an address").to_owned())
    });
    let admin = admin.expect("it gets ready");
    let served = ask(&admin, "/config");
    let listener = served.lines().find_map(|line| line.strip_prefix("listener web ")).expect("it is listed");
    assert!(served.contains("cluster web"), "{served}");
    assert!(ask(listener, "/").ends_with("\r\n\r\nhello"));
    assert!(ask(&admin, "/readyz").contains(" 200 "));
    let metrics = ask(&admin, "/metrics");
    assert!(metrics.contains("slotmesh_proxy_responses_total{cluster=\"web\",code=\"200\"} 1"), "{metrics}");
    let kill = Command::new("kill").args(["-s", "TERM", &running.0.id().to_string()]).status();
    assert!(kill.expect("kill starts").success());
    assert!(running.0.wait().expect("it is a child").success());
}

#[test]
fn a_field_that_is_not_supported_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let check = |routes: &str| {
        let config = written(dir.path(), routes, 1);
        let mut command = Command::new(env!("CARGO_BIN_EXE_slotmesh"));
        let output = command.args(["proxy", "--check", "--config"]).arg(config).output();
        let output = output.expect("the binary starts");
        (output.status.success(), String::from_utf8(output.stderr).expect("UTF-8"))
    };
    assert_eq!(check("{match: {prefix: /}, route: {cluster: web}}"), (true, String::new()));
    let (ok, said) = check("{match: {prefix: /}, route: {cluster_header: x}}");
    assert!(!ok && said.contains("route_config.virtual_hosts[0].routes[0].route.cluster_header"), "{said}");
    let (ok, said) = check("{match: {prefx: /}, route: {cluster: web}}");
    assert!(!ok && said.contains("routes[0].match.prefx: not supported"), "{said}");
}

#[test]
fn the_proxy_of_a_node_waits_for_its_agent() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotmesh"));
    command.args(["proxy", "--admin", "127.0.0.1:0", "--log-format", "json", "--agent"]);
    command.arg(dir.path().join("agent.sock")).arg("--broker").arg(dir.path().join("broker.sock"));
    let mut running = Running(command.stderr(Stdio::piped()).spawn().expect("the binary starts"));
    let mut said = BufReader::new(running.0.stderr.take().expect("piped")).lines();
    let admin = said.find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(&line.expect("UTF-8")).expect("JSON");
        (line["message"] == "running").then(|| line["admin"].as_str().expect("an address").to_owned())
    });
    let admin = admin.expect("it runs");
    // What it says further is read, so that it never waits.
    thread::spawn(move || said.for_each(drop));
    assert!(ask(&admin, "/livez").contains(" 200 "));
    assert!(ask(&admin, "/readyz").contains(" 503 "), "nobody has said what to serve");
    let metrics = ask(&admin, "/metrics");
    for line in ["slotmesh_proxy_agent_connected 0", "slotmesh_proxy_resources{type=\"route\"} 0"] {
        assert!(metrics.lines().any(|found| found == line), "{line} isn't in\n{metrics}");
    }
    let kill = Command::new("kill").args(["-s", "TERM", &running.0.id().to_string()]).status();
    assert!(kill.expect("kill starts").success());
    assert!(running.0.wait().expect("it is a child").success());
    // One of the two alone, or a file as well, is refused.
    for wrong in
        [&["--agent", "a"][..], &["--broker", "b"], &["--agent", "a", "--broker", "b", "--config", "c"]]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_slotmesh")).arg("proxy").args(wrong).output();
        assert_eq!(output.expect("the binary starts").status.code(), Some(2), "{wrong:?}");
    }
}
