//! `slotmesh bugreport`: all that somebody needs who looks for a fault, in one archive, without secrets.
//!
//! ```text
//!  pages of agents and operator --+
//!  objects, events (API server) --+--> redacted --> tar.gz, with a list of what is in it
//!  logs of slotmesh's pods -------+
//! ```
//!
//! Invariant: nothing gets into the archive but through [`redacted`], and Secrets aren't asked for at all.

mod of_cluster;
mod redacted;

use std::{
    fs::{File, OpenOptions},
    io::Write,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use clap::Args;
use flate2::{Compression, write::GzEncoder};
use k8s_openapi::jiff::Timestamp;
use slotmesh_admin::paths;

use crate::{
    ask::{AdminSite, AskedAgent},
    flags::address,
    is_plugin,
    progress::ProgressSign,
    render::print,
};

/// Name of the list within the archive.
const CONTENTS: &str = "CONTENTS.txt";

/// The end of `slotmesh bugreport --help`.
const EXAMPLES: &str = "Examples:
  slotmesh bugreport                                # of `slotmesh up`, or the agent on this node
  kubectl slotmesh bugreport                        # of the cluster: operator, all agents, objects, events, logs
  kubectl slotmesh bugreport --node worker-1 --file report.tar.gz

Tokens, keys, passwords, certificates and values of headers that may hold such are removed. Names of objects, hosts and
addresses aren't: look through it before you hand it to somebody";

/// The flags of `slotmesh bugreport`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Bugreport {
    #[command(flatten)]
    asked: AskedAgent,

    /// Whoever compiles the objects: address of its admin interface [default: the agent's own, where `slotmesh up`
    /// answers, else 127.0.0.1:15021; in a cluster an operator of it]
    #[arg(long, env = "SLOTMESH_OPERATOR_ADMIN", value_name = "ADDRESS", value_parser = address)]
    served_by: Option<SocketAddr>,

    /// File that is written; there may be none of this name [default: slotmesh-bugreport-TIME.tar.gz]
    #[arg(long, env = "SLOTMESH_BUGREPORT", value_name = "PATH")]
    file: Option<PathBuf>,
}

/// An archive that is being written.
pub struct Archive<W: Write> {
    tar: tar::Builder<GzEncoder<W>>,
    /// Folder in which all of it lies.
    folder: String,
    seconds: u64,
    /// Lines of the list.
    listed: Vec<String>,
}

impl<W: Write> Archive<W> {
    fn new(to: W, folder: &str, seconds: u64) -> Self {
        let tar = tar::Builder::new(GzEncoder::new(to, Compression::default()));
        Self { tar, folder: folder.to_owned(), seconds, listed: Vec::new() }
    }

    /// Adds a file, without its secrets; where there is none, why.
    ///
    /// # Errors
    /// When the archive can't be written.
    pub fn add(&mut self, name: &str, content: anyhow::Result<String>) -> anyhow::Result<()> {
        match content {
            Ok(content) => {
                let (content, removed) = redacted::redacted(&content);
                let removed =
                    if removed == 0 { String::new() } else { format!(", {removed} secrets removed") };
                self.listed.push(format!("{name}: {} bytes{removed}", content.len()));
                self.append(name, &content)
            }
            Err(error) => {
                let (why, _) = redacted::redacted(&format!("{error:#}"));
                self.listed.push(format!("{name}: isn't there: {why}"));
                Ok(())
            }
        }
    }

    fn append(&mut self, name: &str, content: &str) -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.seconds);
        self.tar.append_data(&mut header, Path::new(&self.folder).join(name), content.as_bytes())?;
        Ok(())
    }

    /// Writes the list, and all that is left: what was written to.
    ///
    /// # Errors
    /// When it can't be written.
    fn end(mut self) -> anyhow::Result<(W, Vec<String>)> {
        let listed = std::mem::take(&mut self.listed);
        self.append(CONTENTS, &(listed.join("\n") + "\n"))?;
        Ok((self.tar.into_inner()?.finish()?, listed))
    }
}

/// Pages of an agent.
const OF_AGENT: [(&str, &str); 9] = [
    ("version.json", paths::VERSION),
    ("node.json", paths::NODE),
    ("slots.json", paths::SLOTS),
    ("workloads.json", paths::WORKLOADS),
    ("updates.json", paths::UPDATES),
    ("readyz.txt", "/readyz"),
    ("metrics.txt", "/metrics"),
    ("proxy-metrics.txt", "/proxy/metrics"),
    ("index.txt", "/"),
];
/// Pages of whoever compiles objects.
const OF_OPERATOR: [(&str, &str); 6] = [
    ("version.json", paths::VERSION),
    ("reports.json", paths::REPORTS),
    ("changes.json", paths::CHANGES),
    ("readyz.txt", "/readyz"),
    ("metrics.txt", "/metrics"),
    ("index.txt", "/"),
];
/// Types of resources.
const TYPES: [&str; 4] = ["listener", "route", "cluster", "endpoints"];

impl Bugreport {
    /// Writes the archive, and prints what is in it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { asked, served_by, file } = self;
        let now = SystemTime::now();
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let time = format!("{:.0}", Timestamp::try_from(now)?).replace(':', "");
        let folder = format!("slotmesh-bugreport-{time}");
        let file = file.unwrap_or_else(|| format!("{folder}.tar.gz").into());
        let mut options = OpenOptions::new();
        // What is in it is nobody else's.
        let to = options.write(true).create_new(true).mode(0o600).open(&file);
        let to = to.with_context(|| format!("{} can't be created", file.display()))?;
        let archive = collect(Archive::new(to, &folder, seconds), &asked, served_by)
            .with_context(|| format!("{} isn't whole", file.display()))?;
        let (written, listed) = archive.end()?;
        written.sync_all()?;
        let list: String = listed.iter().map(|line| format!("  {line}\n")).collect();
        print(&format!("{}:\n{list}", file.display()))
    }
}

fn collect(
    mut archive: Archive<File>,
    asked: &AskedAgent,
    served_by: Option<SocketAddr>,
) -> anyhow::Result<Archive<File>> {
    let version = format!("slotmesh {}\nkernel {}\n", env!("CARGO_PKG_VERSION"), crate::version::kernel());
    archive.add("client.txt", Ok(version))?;
    let nodes = match asked.nodes() {
        Ok(nodes) => nodes,
        Err(error) => {
            archive.add("agents", Err(error))?;
            Vec::new()
        }
    };
    let progress = ProgressSign::of_steps("collecting", nodes.len() + 2);
    for node in nodes {
        let name = node.as_deref().unwrap_or("this-node");
        progress.step(&format!("agent of {name}"));
        let folder = format!("agents/{name}");
        match asked.site_at(node.as_deref()) {
            Ok(site) => {
                pages(&mut archive, &folder, &site, &OF_AGENT)?;
                for ty in TYPES {
                    let records =
                        site.records(ty).and_then(|found| Ok(serde_json::to_string_pretty(&found)?));
                    archive.add(&format!("{folder}/{ty}.json"), records)?;
                }
            }
            Err(error) => archive.add(&folder, Err(error))?,
        }
    }
    progress.step("operator");
    match asked.servers(served_by) {
        Ok(sites) => {
            let answers = |site: &&AdminSite| matches!(site.bytes(paths::REPORTS), Ok(Some(_)));
            match sites.iter().find(answers) {
                Some(site) => {
                    pages(&mut archive, "operator", site, &OF_OPERATOR)?;
                    for ty in TYPES {
                        let served = site.text(&format!("{}/{ty}", paths::SERVED));
                        archive.add(&format!("operator/served-{ty}.json"), served)?;
                    }
                }
                None => {
                    archive.add("operator", Err(anyhow::anyhow!("nobody who compiles objects answers")))?
                }
            }
        }
        Err(error) => archive.add("operator", Err(error))?,
    }
    if is_plugin() || asked.node().is_some() {
        progress.step("objects and logs");
        of_cluster::collect(&mut archive, asked.namespace())?;
    }
    Ok(archive)
}

fn pages<W: Write>(
    archive: &mut Archive<W>,
    folder: &str,
    site: &AdminSite,
    pages: &[(&str, &str)],
) -> anyhow::Result<()> {
    for (name, path) in pages {
        archive.add(&format!("{folder}/{name}"), site.text(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn an_archive_lists_what_is_in_it_and_holds_no_secret() {
        let mut archive = Archive::new(Vec::new(), "report", 0);
        archive.add("log.txt", Ok("token=hunter2secret\n".to_owned())).unwrap();
        archive.add("gone.txt", Err(anyhow::anyhow!("password=hunter2secret is wrong"))).unwrap();
        let (bytes, listed) = archive.end().unwrap();
        assert_eq!(listed.len(), 2);
        let mut text = String::new();
        let mut names = Vec::new();
        let mut tar = tar::Archive::new(GzDecoder::new(bytes.as_slice()));
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            names.push(entry.path().unwrap().display().to_string());
            entry.read_to_string(&mut text).unwrap();
        }
        assert_eq!(names, ["report/log.txt", "report/CONTENTS.txt"]);
        assert!(
            !text.contains("hunter2") && text.contains("log.txt: ") && text.contains("1 secrets removed"),
            "{text}"
        );
        assert!(text.contains("gone.txt: isn't there: "), "{text}");
    }
}
