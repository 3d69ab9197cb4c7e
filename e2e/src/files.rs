//! A directory of manifests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tempfile::TempDir;

/// A directory of manifests that goes when this is dropped.
#[derive(Debug)]
pub struct ManifestDir {
    /// The directory that is followed is inside, so that it can go and come.
    outer: TempDir,
    dir: PathBuf,
}

impl ManifestDir {
    /// An empty directory.
    ///
    /// # Errors
    /// When it can't be created.
    pub fn new() -> Result<Self> {
        let outer =
            tempfile::Builder::new().prefix("slotmesh-e2e-").tempdir().context("create a directory")?;
        let dir = outer.path().join("manifests");
        fs::create_dir(&dir)?;
        Ok(Self { outer, dir })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A place beside the directory.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.outer.path().join(name)
    }

    /// Writes a file of these objects at once, as editors do (by renaming), whether it is there or not.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, name: &str, objects: &[Value]) -> Result<()> {
        self.write_text(name, &yaml(objects)?)
    }

    /// Writes a file with this text, as [`ManifestDir::write`].
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_text(&self, name: &str, text: &str) -> Result<()> {
        let new = self.dir.join(format!(".{name}.new"));
        let path = self.dir.join(name);
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// When it isn't there.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }
}

fn yaml(objects: &[Value]) -> Result<String> {
    let documents = objects.iter().map(serde_yaml::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(documents.join("---\n"))
}
