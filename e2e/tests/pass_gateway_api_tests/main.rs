//! Gateway API's own conformance tests of a mesh, unmodified, with its own resources and Istio's echo programs as pods.
//!
//! `list.txt` has each test with what is expected of it, with the proxy on the nodes. A test that ends otherwise fails the
//! run. `make conformance` runs it, and writes the report that the tests make to `docs/conformance/`.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use slotmesh_cluster::{
    Cluster,
    images::Start,
    scenarios::{self, Story},
};

#[path = "../pass_kubernetes_tests/mesh.rs"]
mod mesh;

/// All that the tests may ask of a mesh. What isn't in here isn't tested.
const FEATURES: [&str; 17] = [
    "Mesh",
    "HTTPRoute",
    "GRPCRoute",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteNamedRouteRule",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteParentRefPort",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
];

fn main() -> ExitCode {
    scenarios::main(2, prepare, &[("gateway_api_s_tests_of_a_mesh_end_as_list_txt_says", run)])
}

/// What `cargo xtask gateway-conformance` built.
fn built(name: &str) -> Result<PathBuf> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/gateway-conformance").join(name);
    fs::canonicalize(&file).with_context(|| format!("{name} is missing: run `make conformance`"))
}

fn prepare(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let crds = built("crds")?.display().to_string();
        cluster.kubectl(&["apply", "--server-side", "-f", &crds])?;
        make_image(cluster)?;
        mesh::install(cluster, &["--set=proxy.enabled=true"]).await
    })
}

/// The image of the tests' pods, under the name that they ask for.
fn make_image(cluster: &Cluster) -> Result<()> {
    let (client, server) = (built("echo-client")?, built("echo-server")?);
    let pair = cluster.control_plane().authority().server("echo", &["echo"], &[])?;
    // Whoever runs there isn't root.
    let dir = tempfile::tempdir()?;
    let readable = |from: &Path, name: &str| -> Result<PathBuf> {
        let file = dir.path().join(name);
        fs::copy(from, &file)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        Ok(file)
    };
    let (certificate, key) = (readable(&pair.certificate, "cert.crt")?, readable(&pair.key, "cert.key")?);
    let files = [
        (client.as_path(), "/usr/local/bin/client"),
        (server.as_path(), "/usr/local/bin/server"),
        (certificate.as_path(), "/cert.crt"),
        (key.as_path(), "/cert.key"),
    ];
    let start = Start {
        entrypoint: vec!["/usr/local/bin/server".into()],
        user: "1338:1338".into(),
        ..Start::default()
    };
    let manifests = fs::read_to_string(built("mesh.yaml")?)?;
    let mut images: Vec<_> =
        manifests.lines().filter_map(|line| line.trim().strip_prefix("image:")).map(str::trim).collect();
    images.dedup();
    ensure!(!images.is_empty(), "the tests' manifests name no image");
    for image in images {
        cluster.images().make(image, &files, &start)?;
    }
    Ok(())
}

fn run(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let expected = list()?;
        let report = cluster.control_plane().dir().join("gateway-api.yaml");
        let mut tests = Command::new(built("gateway.test")?);
        tests
            .env("KUBECONFIG", cluster.control_plane().kubeconfig())
            .env("HOME", cluster.control_plane().dir())
            .current_dir(cluster.control_plane().dir())
            .args(["-test.v", "-test.run=^TestConformance$", "-test.timeout=60m"])
            .args([
                "-conformance-profiles=MESH-HTTP,MESH-GRPC",
                "-namespace-labels=slotmesh.dev/mesh=enabled",
            ])
            .arg(format!("-supported-features={}", FEATURES.join(",")))
            .args(["-organization=slotmesh", "-project=slotmesh"])
            .arg(format!("-url={}", said_or("SLOTMESH_PROJECT_URL", "unpublished")))
            .arg(format!("-version={}", env!("CARGO_PKG_VERSION")))
            .arg(format!("-contact={}", said_or("SLOTMESH_PROJECT_CONTACT", "see SECURITY.md")))
            .arg(format!("-report-output={}", report.display()));
        let output = tokio::task::spawn_blocking(move || tests.output()).await??;
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let found = outcomes(&said);
        for (name, passed) in &found {
            println!("{} {name}", if *passed { "pass" } else { "FAIL" });
        }
        let unexpected: Vec<_> = found
            .iter()
            .filter(|(name, passed)| {
                expected
                    .get(*name)
                    .is_none_or(|expected| expected.is_some_and(|expected| expected != **passed))
            })
            .map(|(name, passed)| format!("{name} {}", if *passed { "passes" } else { "fails" }))
            .chain(
                expected
                    .keys()
                    .filter(|name| !found.contains_key(*name))
                    .map(|name| format!("{name} didn't run")),
            )
            .collect();
        if found.is_empty() || !unexpected.is_empty() {
            let kept = std::env::temp_dir().join("slotmesh-gateway-api-tests.txt");
            fs::write(&kept, &said)?;
            bail!("not as list.txt says: {unexpected:#?}\nall that the tests said is in {}", kept.display());
        }
        if let Some(to) = std::env::var_os("SLOTMESH_CONFORMANCE_REPORT") {
            fs::copy(&report, &to).with_context(|| format!("write {}", Path::new(&to).display()))?;
        }
        Ok(())
    })
}

/// What a report says of the project, which has no address that everybody could go to: whoever sends a report in sets it.
fn said_or(variable: &str, otherwise: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| otherwise.to_owned())
}

/// The tests that ran, by the lines in which Go says how each ended.
fn outcomes(said: &str) -> BTreeMap<String, bool> {
    let line = |line: &str| -> Option<(String, bool)> {
        let (passed, rest) = match line.trim().strip_prefix("--- PASS: TestConformance/") {
            Some(rest) => (true, rest),
            None => (false, line.trim().strip_prefix("--- FAIL: TestConformance/")?),
        };
        let name = rest.split(' ').next()?;
        // A test, and not one of its cases.
        (!name.contains('/')).then(|| (name.to_owned(), passed))
    };
    said.lines().filter_map(line).collect()
}

/// `name | pass`, or `name | fail | reason`, or `name | either | reason` (which is none).
fn list() -> Result<BTreeMap<String, Option<bool>>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pass_gateway_api_tests/list.txt");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    text.lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|line| {
            let columns: Vec<_> = line.split('|').map(str::trim).collect();
            match *columns.as_slice() {
                [name, "pass"] => Ok((name.to_owned(), Some(true))),
                [name, "fail", reason] if !reason.is_empty() => Ok((name.to_owned(), Some(false))),
                [name, "either", reason] if !reason.is_empty() => Ok((name.to_owned(), None)),
                _ => bail!("list.txt: {line:?} is no line of it"),
            }
        })
        .collect()
}
