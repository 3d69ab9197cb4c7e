//! The commands of README.md's section for owners of clusters, which are run as they stand there.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use slotmesh_cluster::{Cluster, programs::Program};

const SECTION: &str = "### From install to a canary";

/// A command line.
#[derive(Clone, Debug)]
pub struct Line(String);

/// All of the section's, in its order.
pub fn commands() -> Result<Vec<Line>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let section = text.split_once(SECTION).with_context(|| format!("README.md has no {SECTION:?}"))?.1;
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut found: Vec<Line> = Vec::new();
    let mut goes_on = false;
    for line in section.lines() {
        let part = if goes_on { Some(line.trim_start_matches('>')) } else { line.strip_prefix("$ ") };
        let Some(part) = part else { continue };
        if !goes_on {
            found.push(Line(String::new()));
        }
        goes_on = part.ends_with('\\');
        let command = found.last_mut().context("a command was begun")?;
        command.0.push_str(part.trim_end_matches('\\'));
    }
    ensure!(found.len() == 5, "README.md promises five commands, and has {}: {found:?}", found.len());
    Ok(found)
}

impl Line {
    /// Runs it as the cluster's administrator, in the root of the checkout: what it printed.
    pub fn run(&self, cluster: &Cluster) -> Result<String> {
        let mut path: Vec<PathBuf> = Vec::new();
        for program in [Program::Kubectl, Program::Helm] {
            path.extend(program.path()?.parent().map(Path::to_owned));
        }
        path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        let plane = cluster.control_plane();
        let output = Command::new("sh")
            .args(["-ec", &self.0])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .env("PATH", env::join_paths(path)?)
            .env("KUBECONFIG", plane.kubeconfig())
            .env("HOME", plane.dir())
            .output()
            .context("run sh")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "$ {}: {}", self.0, said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
