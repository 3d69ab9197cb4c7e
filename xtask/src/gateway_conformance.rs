//! Builds Gateway API's conformance tests and what their pods are made of, from a Go module of their own: it pins other
//! versions than that of the control plane.
//!
//! ```text
//! gateway-conformance-HASH/
//!   gateway.test           the tests
//!   echo-client, -server   the programs in their pods (Istio's)
//!   mesh.yaml              the pods and Services of the tests of a mesh
//!   crds/                  Gateway API's resources, of the standard channel
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cmd::{is_executable, stdout_of, step};
use crate::control_plane::{compile, fingerprint, go, lead};
use crate::setup;
use crate::workspace::{Workspace, cache_dir, remove_dir};

const NAME: &str = "gateway-conformance";
const TESTS: (&str, &str) = ("gateway.test", "sigs.k8s.io/gateway-api/conformance");
const PROGRAMS: [(&str, &str); 2] = [
    ("echo-client", "istio.io/istio/pkg/test/echo/cmd/client"),
    ("echo-server", "istio.io/istio/pkg/test/echo/cmd/server"),
];
/// The module of the resources.
const API: &str = "sigs.k8s.io/gateway-api";

/// `cargo xtask gateway-conformance`
pub fn run(workspace: &Workspace) -> Result<()> {
    let cache = cache_dir()?;
    let _alone = setup::lock(&cache)?;
    let module = workspace.root().join("e2e").join(NAME);
    let dir = cache.join(format!("{NAME}-{:016x}", fingerprint(&module, &["go.mod", "go.sum"])?));
    let complete = [TESTS].iter().chain(&PROGRAMS).all(|(name, _)| is_executable(&dir.join(name)));
    if !complete {
        let go = go(&module)?;
        step("building Gateway API's conformance tests (2 minutes, once per machine)", || {
            build(&go, &module, &dir)
        })?;
    }
    lead(&workspace.target(NAME), &dir)?;
    eprintln!("Gateway API's conformance tests: ready ({})", dir.display());
    Ok(())
}

fn build(go: &Path, module: &Path, dir: &Path) -> Result<()> {
    // Complete or not there: an aborted build leaves a folder of another name.
    let part = PathBuf::from(format!("{}.part", dir.display()));
    remove_dir(&part)?;
    let crds = part.join("crds");
    fs::create_dir_all(&crds).with_context(|| format!("can't create {}", crds.display()))?;
    compile(go, module, &["test", "-c"], TESTS.1, &part.join(TESTS.0), "-s -w")?;
    for (name, package) in PROGRAMS {
        compile(go, module, &["build"], package, &part.join(name), "-s -w")?;
    }
    let folder = |of: &str| -> Result<PathBuf> {
        let mut list = Command::new(go);
        list.args(["list", "-m", "-f", "{{.Dir}}", of]).env_remove("GOFLAGS").current_dir(module);
        let said = stdout_of(&mut list).with_context(|| format!("go doesn't tell where {of} is"))?;
        Ok(PathBuf::from(said.trim()))
    };
    let copy = |from: &Path, to: &Path| -> Result<()> {
        // Not its mode: modules can't be written.
        let bytes = fs::read(from).with_context(|| format!("can't read {}", from.display()))?;
        fs::write(to, bytes).with_context(|| format!("can't write {}", to.display()))
    };
    copy(&folder(TESTS.1)?.join("mesh/manifests.yaml"), &part.join("mesh.yaml"))?;
    let from = folder(API)?.join("config/crd/standard");
    for entry in fs::read_dir(&from).with_context(|| format!("can't list {}", from.display()))? {
        let entry = entry?;
        copy(&entry.path(), &crds.join(entry.file_name()))?;
    }
    remove_dir(dir)?;
    fs::rename(&part, dir).with_context(|| format!("can't create {}", dir.display()))
}
