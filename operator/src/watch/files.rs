//! Which manifest files a directory holds.
//!
//! Hidden files and folders are left out (editors and mounted ConfigMaps keep their own things
//! there), and so are links to folders, which may lead round in a circle. Links to files are followed.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// A value that changes when a file's content may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    inode: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl Signature {
    fn of(meta: &Metadata) -> Self {
        Self { inode: (meta.dev(), meta.ino()), size: meta.len(), changed: (meta.ctime(), meta.ctime_nsec()) }
    }
}

/// The content of a directory.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// The manifest files.
    pub(crate) files: BTreeMap<PathBuf, Signature>,
    /// The folders that can't be read. What is in them isn't known.
    pub(crate) unreadable: Vec<(PathBuf, io::Error)>,
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().first() == Some(&b'.')
}

/// Tells whether a path below the directory names a manifest. A file for kustomize is none.
pub(crate) fn is_manifest(below: &Path) -> bool {
    let manifest = below.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
    let kustomization = below.file_stem().is_some_and(|stem| stem == "kustomization");
    manifest && !kustomization && !below.iter().any(is_hidden)
}

/// Tells whether an event about this path below the directory can matter to the manifests that are there.
///
/// Mounted ConfigMaps change by exchanging the link `..data`.
pub(crate) fn may_matter(below: &Path) -> bool {
    below.iter().all(|name| !is_hidden(name) || name == "..data")
}

/// The identity of a directory; `None` when there is none of this name.
pub(crate) fn identity(dir: &Path) -> Option<(u64, u64)> {
    fs::metadata(dir).ok().filter(Metadata::is_dir).map(|meta| (meta.dev(), meta.ino()))
}

/// Tells whether a path lies in a folder that the scan leaves out because it is a link.
pub(crate) fn is_behind_link(dir: &Path, path: &Path) -> bool {
    let is_link = |folder: &Path| fs::symlink_metadata(folder).is_ok_and(|meta| meta.is_symlink());
    path.ancestors().skip(1).take_while(|folder| *folder != dir).any(is_link)
}

/// Tells whether this is a file that was just made and has no content yet.
pub(crate) fn is_new_and_empty(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == 0 && meta.nlink() == 1)
}

/// Finds all manifest files below a directory.
pub(crate) fn scan(dir: &Path) -> Scan {
    let mut scan = Scan::default();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        match fs::read_dir(&folder).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => {
                for entry in entries.iter().filter(|entry| !is_hidden(&entry.file_name())) {
                    let path = entry.path();
                    match entry.file_type() {
                        Ok(ty) if ty.is_dir() => folders.push(path),
                        Ok(_) if is_manifest(Path::new(&entry.file_name())) => {
                            // A file that went meanwhile is announced by an event of its own.
                            if let Ok(meta) = fs::metadata(&path)
                                && meta.is_file()
                            {
                                scan.files.insert(path, Signature::of(&meta));
                            }
                        }
                        _ => {}
                    }
                }
            }
            // The folder went meanwhile, and its files with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => scan.unreadable.push((folder, error)),
        }
    }
    scan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["sub/deep", ".git", "..2026"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for file in [
            "a.yaml",
            "b.yml",
            "c.json",
            "d.txt",
            ".e.yaml",
            "f.yaml~",
            "sub/deep/g.yaml",
            ".git/h.yaml",
            "kustomization.yaml",
        ] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        std::os::unix::fs::symlink("..2026/i.yaml", dir.path().join("i.yaml")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("circle")).unwrap();
        fs::write(dir.path().join("..2026/i.yaml"), "").unwrap();
        let found = scan(dir.path());
        let names: Vec<_> = found.files.keys().map(|p| p.strip_prefix(dir.path()).unwrap()).collect();
        let expected = ["a.yaml", "b.yml", "c.json", "i.yaml", "sub/deep/g.yaml"].map(Path::new);
        assert_eq!(names, expected);
        assert!(may_matter(Path::new("..data")) && !may_matter(Path::new(".a.yaml.swp")));
    }
}
