//! `slotmesh lint` as an editor and as CI use it: lines, forms and exit statuses.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  ports:
  - {name: http, port: 80}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: shop
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- addresses: [10.244.0.1]
";

/// On line 9 the name of a field is misspelt, on line 12 a Service is named that isn't there.
const ROUTE: &str = "\
# weights
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - route:
    - wieght: 90
      destination: {host: web}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: forgotten
spec:
  hosts: [web]
  http:
  - route:
    - destination:
        host: web
";

fn lint(args: &[&str], dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotmesh"));
    command.arg("lint").args(args).current_dir(dir).env_clear();
    command.output().expect("the binary starts")
}

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (text(&output.stdout), text(&output.stderr))
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("it is below the folder")).expect("a folder");
        fs::write(path, text).expect("it can be written");
    }
    dir
}

#[test]
fn manifests_without_a_fault_are_clean() {
    let dir = folder(&[("shop/web.yaml", SERVICE)]);
    let output = lint(&["--fail-on", "note", "shop"], dir.path());
    let (out, err) = said(&output);
    assert_eq!((output.status.code(), out.as_str()), (Some(0), ""), "{err}");
    assert_eq!(err, "1 file: nothing to say\n");
}

#[test]
fn faults_are_told_with_file_and_line_and_what_was_meant() {
    let dir = folder(&[("shop/web.yaml", SERVICE), ("shop/route.yaml", ROUTE)]);
    let output = lint(&["shop"], dir.path());
    let (out, err) = said(&output);
    assert_eq!(output.status.code(), Some(1), "{out}{err}");
    let line =
        |start: &str| out.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{out}"));
    let typo = line("shop/route.yaml:9: refused: VirtualService shop/web: ");
    assert!(typo.contains("did you mean `weight`?"), "{typo}");
    let lost = line("shop/route.yaml:17: refused: VirtualService default/forgotten: ");
    assert!(lost.contains("metadata.namespace isn't set"), "{lost}");
    assert!(!out.contains('\u{1b}'), "no colour where no terminal is: {out}");
    assert!(err.contains("2 files") && err.contains("2 refused"), "{err}");
}

#[test]
fn the_status_is_that_of_the_least_severity_asked_for() {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: \
                  shop}\nspec: {}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n";
    let dir = folder(&[("a.yaml", policy)]);
    let status = |args: &[&str]| lint(&[args, &["."]].concat(), dir.path()).status.code();
    assert_eq!(status(&[]), Some(0));
    assert_eq!(status(&["--fail-on", "not-supported"]), Some(1));
    let (out, _) = said(&lint(&["."], dir.path()));
    assert!(out.starts_with("./a.yaml:1: not supported: AuthorizationPolicy shop/deny: "), "{out}");
    assert!(!out.contains("ConfigMap"), "{out}");
    let (out, _) = said(&lint(&["--all", "."], dir.path()));
    assert!(out.contains("./a.yaml:6: note: ConfigMap default/c: "), "{out}");
}

#[test]
fn a_wrong_call_is_told_from_a_finding() {
    let dir = folder(&[]);
    for args in [&["never"][..], &[], &["--output", "xml", "."]] {
        let output = lint(args, dir.path());
        let (_, err) = said(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {err}");
        assert!(err.starts_with("error: "), "{args:?}: {err}");
    }
    let (_, err) = said(&lint(&["never"], dir.path()));
    assert!(err.contains("never") && err.contains("name a directory"), "{err}");
}

#[test]
fn programs_get_lists_and_github_gets_annotations() {
    let dir = folder(&[("web.yaml", SERVICE), ("route.yaml", ROUTE)]);
    let (out, _) = said(&lint(&["-o", "json", "."], dir.path()));
    let found: Vec<Value> = serde_json::from_str(&out).expect("JSON");
    let typo = found.iter().find(|found| found["name"] == "web").expect("the typo");
    assert_eq!(typo["line"], 9, "{typo}");
    assert_eq!(typo["severity"], "refused", "{typo}");
    assert_eq!(typo["field"], "spec.http[0].route[0].wieght", "{typo}");
    let (out, _) = said(&lint(&["--output", "github", "."], dir.path()));
    assert!(out.contains("::error file=./route.yaml,line=9,title=VirtualService shop/web::"), "{out}");
}

/// A cluster has controllers, and a pipe has no file.
#[test]
fn manifests_for_a_cluster_come_from_a_pipe() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  selector: {app: \
                   web}\n  ports: [{port: 80, name: http}]\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: \
                   web, namespace: shop}\nspec: {}\n";
    let piped = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slotmesh"));
        command.args(["lint", "--fail-on", "note"]).args(args).arg("-").env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let written = child.stdin.take().expect("piped").write_all(service.as_bytes());
        written.expect("it reads");
        child.wait_with_output().expect("it ends")
    };
    let (out, _) = said(&piped(&[]));
    assert!(out.contains("<stdin>:4: note: Service shop/web: spec.clusterIP: "), "{out}");
    assert!(out.contains("<stdin>:8: note: Deployment shop/web: "), "{out}");
    let output = piped(&["--for-cluster"]);
    let (out, err) = said(&output);
    assert_eq!((output.status.code(), out.as_str()), (Some(0), ""), "{err}");
}

/// The proxy's switch is that of `slotmesh up`: what has no effect without a proxy has one with it.
#[test]
fn what_is_said_depends_on_whether_a_proxy_acts() {
    let route = ROUTE.split("---").next().expect("a document").replace("wieght", "weight");
    let route = route.replace("  - route:", "  - match: [{uri: {prefix: /api}}]\n    route:");
    let dir = folder(&[("web.yaml", SERVICE), ("route.yaml", &route)]);
    let about = |args: &[&str]| {
        let (out, _) = said(&lint(&[args, &["."]].concat(), dir.path()));
        out.lines().filter(|line| line.contains("spec.http[0].match")).map(str::to_owned).collect::<Vec<_>>()
    };
    let without = about(&[]);
    assert!(without.iter().any(|line| line.starts_with("./route.yaml:8: not supported: ")), "{without:?}");
    assert!(about(&["--proxy"]).is_empty());
}
