//! Debian packages: which are missing, and installing them without a question.
//!
//! Never removes a package to make room for another (`--no-remove`): a contributor's machine is not
//! ours. Package lists are fetched only when they don't know a package or when what they name is gone.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cmd::{find_program, run_quietly, stdout_of, step};
use crate::workspace::remove_dir;

/// Another apt or dpkg may be at work; it is waited for, but not for ever.
const WAIT_FOR_DPKG: &str = "DPkg::Lock::Timeout=300";

/// True where this machine manages its packages with apt.
pub fn is_available() -> bool {
    find_program("apt-get").is_some() && find_program("dpkg-query").is_some()
}

/// Those of `packages` that are not installed.
pub fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    // dpkg-query fails when it knows one of the names not at all, and still prints the others.
    let listing = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\\n"])
        .args(packages)
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    not_installed(packages, &listing)
}

fn not_installed<'a>(packages: &[&'a str], listing: &str) -> Vec<&'a str> {
    let installed: Vec<&str> = listing.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    packages.iter().copied().filter(|package| !installed.contains(package)).collect()
}

/// Installs packages, or brings them up to date. `stale`: the lists are known to be too old.
/// `otherwise`: what can be done where they are not to be had.
pub fn install(packages: &[&str], stale: bool, otherwise: &str) -> Result<()> {
    let by_hand = format!("apt-get update && apt-get install --no-install-recommends {}", packages.join(" "));
    if !is_root()? {
        bail!("installing packages needs root. Run this as root, or let an administrator run\n    {by_hand}");
    }
    let updated = stale || !unknown(packages).is_empty();
    if updated {
        update()?;
    }
    let unknown = unknown(packages);
    if !unknown.is_empty() {
        bail!(
            "not to be had from this machine's package sources: {}.\n\
             They are in Debian bookworm and its security updates. Is the network reachable (`apt-get update` \
             shows it), and do the sources name both bookworm and bookworm-security?\n\
             {otherwise}",
            unknown.join(", ")
        );
    }
    let attempt = || step(format!("installing {}", packages.join(", ")), || install_now(packages));
    let mut result = attempt();
    if result.is_err() && !updated {
        eprintln!("  the package lists may be out of date");
        update()?;
        result = attempt();
    }
    if let Err(error) = result {
        bail!("{error}: apt's reason stands above. To see it again:\n    {by_hand}");
    }
    Ok(())
}

fn install_now(packages: &[&str]) -> Result<()> {
    run_quietly(
        apt_get()
            .args(["install", "-y", "--no-install-recommends", "--no-remove", "-o", WAIT_FOR_DPKG])
            .args(packages),
    )
}

/// The newest package whose name starts and ends so, by the numbers in the name. `apt-get update` is the
/// caller's matter.
pub fn newest(prefix: &str, suffix: &str) -> Option<Candidate> {
    let names = stdout_of(Command::new("apt-cache").args(["pkgnames", prefix]))?;
    let names: Vec<&str> = names.lines().filter(|name| name.ends_with(suffix)).collect();
    newest_of(&policy(&names))
}

fn newest_of(policy: &str) -> Option<Candidate> {
    candidates(policy)
        .into_iter()
        .max_by_key(|(package, _)| numbers(package))
        .map(|(package, version)| Candidate { package: package.to_owned(), version: version.to_owned() })
}

/// A package, and the version of it that apt would fetch.
#[derive(Debug, PartialEq)]
pub struct Candidate {
    /// Its name.
    pub package: String,
    /// Its version.
    pub version: String,
}

impl Candidate {
    /// A file of the package, without installing it: in the cache folder, and fetched unless it is there.
    pub fn file(&self, cache: &Path, file: &str) -> Result<PathBuf> {
        let dir = self.files(cache, &[file])?;
        Ok(dir.join(Path::new(file).file_name().context("a file has a name")?))
    }

    /// The folder with these files of the package, likewise.
    pub fn files(&self, cache: &Path, files: &[&str]) -> Result<PathBuf> {
        let Self { package, version } = self;
        let dir = cache.join(format!("{package}_{version}"));
        let is_there = |file: &&str| Path::new(file).file_name().is_some_and(|name| dir.join(name).is_file());
        if !files.iter().all(is_there) {
            step(format!("fetching {package} (once per machine)"), || {
                // Complete or not there: an aborted one leaves a folder of another name.
                let part = cache.join(format!("{package}_{version}.part"));
                remove_dir(&part)?;
                let done = self.unpack(&part, &dir, files);
                remove_dir(&part)?;
                done
            })?;
        }
        Ok(dir)
    }

    fn unpack(&self, part: &Path, dir: &Path, wanted: &[&str]) -> Result<()> {
        let Self { package, version } = self;
        let (tree, kept) = (part.join("tree"), part.join("kept"));
        fs::create_dir_all(&kept).with_context(|| format!("can't create {}", kept.display()))?;
        run_quietly(apt_get().arg("download").arg(format!("{package}={version}")).current_dir(part))?;
        let files = fs::read_dir(part)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        let mut packages = files.iter().filter(|path| path.extension().is_some_and(|end| end == "deb"));
        let (Some(found), None) = (packages.next(), packages.next()) else {
            bail!("apt-get download left no {package}, or several: {files:?}")
        };
        run_quietly(Command::new("dpkg-deb").arg("-x").arg(found).arg(&tree))?;
        for file in wanted {
            let name = Path::new(file).file_name().context("a file has a name")?;
            fs::rename(tree.join(file), kept.join(name))
                .with_context(|| format!("{package} has no {file}"))?;
        }
        remove_dir(dir)?;
        fs::rename(&kept, dir).with_context(|| format!("can't write {}", dir.display()))
    }
}

fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Finds and gets a package, with newer package lists where the ones that are there know none that can be had.
/// `what` is its name, for messages.
pub fn fetch<T>(
    what: &str,
    find: impl Fn() -> Option<Candidate>,
    get: impl Fn(&Candidate) -> Result<T>,
) -> Result<T> {
    if let Some(candidate) = find()
        && let Ok(got) = get(&candidate)
    {
        return Ok(got);
    }
    refresh(&format!("the package lists know no {what} that can be fetched"))?;
    let Some(candidate) = find() else {
        bail!(
            "no {what} is to be had from this machine's package sources. It is in Debian bookworm and its \
             security updates: do the sources name both?"
        );
    };
    get(&candidate)
}

/// The version of a package that apt would fetch; `None` where the lists know none.
pub fn candidate(package: &str) -> Option<Candidate> {
    newest_of(&policy(&[package]))
}

/// Fetches the package lists, or says who has to.
fn refresh(why: &str) -> Result<()> {
    if !is_root()? {
        bail!("{why}. Run this as root, or let an administrator run\n    apt-get update");
    }
    update()
}

/// Fetches the package lists. apt doesn't wait for another apt at this step, so we do.
fn update() -> Result<()> {
    step("fetching the package lists", || {
        let attempt = || run_quietly(apt_get().args(["update", "-o", WAIT_FOR_DPKG]));
        attempt().or_else(|_| {
            eprintln!("  trying once more in 10 s: another apt may be at work");
            std::thread::sleep(std::time::Duration::from_secs(10));
            attempt()
        })
    })
}

/// Those packages for which the lists name no version.
fn unknown<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    without_candidate(packages, &policy(packages))
}

fn policy(packages: &[&str]) -> String {
    stdout_of(Command::new("apt-cache").env("LC_ALL", "C").arg("policy").args(packages)).unwrap_or_default()
}

fn without_candidate<'a>(packages: &[&'a str], policy: &str) -> Vec<&'a str> {
    let known = candidates(policy);
    packages.iter().copied().filter(|package| known.iter().all(|(name, _)| name != package)).collect()
}

/// Names and versions.
fn candidates(policy: &str) -> Vec<(&str, &str)> {
    let mut known = Vec::new();
    let mut package = "";
    for line in policy.lines() {
        if let Some(candidate) = line.strip_prefix("  Candidate: ") {
            if candidate != "(none)" {
                known.push((package, candidate));
            }
        } else if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            package = name;
        }
    }
    known
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command
}

fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_state_installed_counts() {
        let listing = "strace installed\nllvm-22-dev config-files\nzlib1g-dev not-installed\n";
        assert_eq!(
            not_installed(&["strace", "llvm-22-dev", "zlib1g-dev", "rustc-web"], listing),
            ["llvm-22-dev", "zlib1g-dev", "rustc-web"]
        );
    }

    #[test]
    fn a_package_without_candidate_is_unknown_like_one_not_listed_at_all() {
        let policy = "strace:\n  Installed: (none)\n  Candidate: 6.1-0.1\n  Version table:\n     \
                      6.1-0.1 500\nrustc-web:\n  Installed: (none)\n  Candidate: (none)\n";
        assert_eq!(
            without_candidate(&["strace", "rustc-web", "llvm-22-dev"], policy),
            ["rustc-web", "llvm-22-dev"]
        );
    }

    #[test]
    fn the_newest_is_told_by_numbers_and_only_among_what_can_be_fetched() {
        let policy = "linux-image-6.1.0-9-cloud-amd64:\n  Candidate: 6.1.27-1\n\
                      linux-image-6.1.0-56-cloud-amd64:\n  Candidate: 6.1.192-2\n\
                      linux-image-6.1.0-0.deb11.99-cloud-amd64:\n  Candidate: 6.1.199-1~deb11u1\n\
                      linux-image-6.1.0-57-cloud-amd64:\n  Candidate: (none)\n";
        let newest = newest_of(policy).unwrap();
        assert_eq!((&*newest.package, &*newest.version), ("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"));
        assert_eq!(newest_of(""), None);
    }
}
