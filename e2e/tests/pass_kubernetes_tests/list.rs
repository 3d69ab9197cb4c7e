//! The list of the tests, and what is expected of each.
//!
//! A line a test: `when | with slotmesh | without | name`, and `| reason` where it isn't expected to pass with
//! slotmesh, or doesn't run. `#` begins a remark.

use std::{collections::BTreeSet, fmt, fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};

/// The tests that the list is about, as a regular expression (Go's).
pub const FOCUS: &str = r"^Kubernetes e2e suite \[sig-network\] (Services|EndpointSlice|EndpointSliceMirroring|Traffic Distribution|Topology Hints|Networking Granular Checks: Services|\[Feature:IPv6DualStack\])";

/// When a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// With all tests of the workspace.
    Short,
    /// When all are asked for.
    All,
    Never,
}

/// How a test is expected to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Pass,
    Fail,
    /// It finds by itself that it can't run here.
    Skip,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Skip => "skip",
        })
    }
}

/// A test.
#[derive(Clone, Debug)]
pub struct Entry {
    pub when: When,
    pub with: Expected,
    pub without: Expected,
    pub name: String,
}

pub struct List {
    pub entries: Vec<Entry>,
}

impl List {
    pub fn read() -> Result<Self> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pass_kubernetes_tests/list.txt");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let mut entries = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            entries.push(entry(line).with_context(|| format!("list.txt:{}", number + 1))?);
        }
        let names: BTreeSet<_> = entries.iter().map(|entry| &entry.name).collect();
        ensure!(names.len() == entries.len(), "list.txt has a test twice");
        Ok(Self { entries })
    }

    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}

fn entry(line: &str) -> Result<Entry> {
    let columns: Vec<_> = line.split('|').map(str::trim).collect();
    let (when, with, without, name, reason) = match *columns.as_slice() {
        [when, with, without, name] => (when, with, without, name, ""),
        [when, with, without, name, reason] => (when, with, without, name, reason),
        _ => bail!("a line is `when | with | without | name`, perhaps with `| reason`"),
    };
    let expected = |word: &str| {
        Ok(match word {
            "pass" => Expected::Pass,
            "fail" => Expected::Fail,
            "skip" => Expected::Skip,
            other => bail!("{other:?} is neither pass, fail nor skip"),
        })
    };
    let when = match when {
        "short" => When::Short,
        "all" => When::All,
        "never" => When::Never,
        other => bail!("{other:?} is neither short, all nor never"),
    };
    let entry = Entry { when, with: expected(with)?, without: expected(without)?, name: name.to_owned() };
    let plain = entry.with == Expected::Pass && when != When::Never;
    ensure!(plain || !reason.is_empty(), "it needs a reason");
    Ok(entry)
}
