//! Manifests that are read once, by who doesn't follow them.
//!
//! Invariant: what is said of them is what is said of a directory that is followed: the files are the same, and so are
//! their order, their reading and what is made of them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use slotmesh_compile::{ObjectRef, Report, Severity};

use super::{
    LocalNode, Update,
    files::scan,
    lines::line_of,
    manifests::{first_update, store_with},
    parse::parse,
    store::Store,
};
use crate::Error;

/// Texts of manifest files by the names that reports call them by.
#[derive(Debug, Default)]
pub struct ManifestTexts {
    /// In the order of names; why not where one can't be read.
    texts: BTreeMap<Arc<str>, Result<String, String>>,
    /// Folders that can't be read, and why.
    folders: BTreeMap<PathBuf, String>,
}

impl ManifestTexts {
    /// Reads what a path names: all manifests below a directory, or one file whatever it is called.
    ///
    /// # Errors
    /// When there is no such path.
    pub fn add(&mut self, path: &Path) -> Result<(), Error> {
        let missing = |source| Error::NoManifests { path: path.to_owned(), source };
        if fs::metadata(path).map_err(missing)?.is_dir() {
            let found = scan(path);
            self.folders.extend(found.unreadable.into_iter().map(|(dir, error)| (dir, error.to_string())));
            found.files.into_keys().for_each(|file| self.read(&file));
        } else {
            self.read(path);
        }
        Ok(())
    }

    /// Takes a text that is in no file.
    pub fn add_text(&mut self, name: &str, text: String) {
        self.texts.insert(name.into(), Ok(text));
    }

    fn read(&mut self, path: &Path) {
        let text = fs::read(path).and_then(|bytes| {
            let not_text = |_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text");
            String::from_utf8(bytes).map_err(not_text)
        });
        self.texts.insert(path.to_string_lossy().into(), text.map_err(|error| error.to_string()));
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// Tells whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// The line that a report is about: that of its field, or of the nearest one above it that is there, else that on
    /// which its document begins; `None` where the report is about no file or about a whole one.
    pub fn line(&self, report: &Report) -> Option<usize> {
        let source = report.object.source.as_ref()?;
        let of_field = || {
            let text = self.texts.get(&source.file)?.as_ref().ok()?;
            line_of(&source.file, text, source.document?, report.field.as_deref()?)
        };
        report.line.or_else(of_field).or(source.line)
    }

    /// All that they say, for the pipeline.
    pub(crate) fn update(&self, node: Option<&LocalNode>) -> Update {
        let mut store = node.map(store_with).unwrap_or_default();
        for (name, text) in &self.texts {
            match text {
                Ok(text) => store.set(name, parse(name, text)),
                Err(error) => store.unreadable(name, error),
            }
        }
        let (changed, mut appeared, disappeared) = Store::changes(&mut store);
        appeared.extend(self.folders.iter().map(|(dir, error)| {
            let name = dir.to_string_lossy().into();
            let object = ObjectRef { kind: "Directory".into(), namespace: "".into(), name, source: None };
            let message = format!("the directory can't be read: {error}");
            Report::new(object, None, Severity::Refused, message)
        }));
        first_update(&changed, appeared, disappeared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Operator, OperatorOptions};

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: \
                           {clusterIP: 10.96.0.10, ports: [{port: 80}]}\n";
    const ROUTE: &str = "# a canary\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, \
                         namespace: shop}\nspec:\n  hosts: [web]\n  http:\n  - route:\n    - destination:\n        host: \
                         web\n        subset: v9\n";

    /// All reports, each with its file and line.
    fn said(texts: &ManifestTexts) -> Vec<String> {
        let options = OperatorOptions { node: Some(LocalNode::default()), ..OperatorOptions::default() };
        let operator = Operator::from_texts(texts, options, |_: Vec<_>| {}).unwrap();
        let status = operator.status();
        drop(operator);
        assert!(status.borrow().synced);
        let line = |report: &Report| {
            let file = report.object.source.as_ref().map(|source| source.file.clone()).unwrap_or_default();
            format!("{file}:{}: {}", texts.line(report).unwrap_or_default(), report.message)
        };
        status.borrow().reports.iter().map(line).collect()
    }

    #[test]
    fn what_is_said_of_a_followed_directory_is_said_with_the_field_s_line() {
        let mut texts = ManifestTexts::default();
        texts.add_text("a.yaml", format!("{SERVICE}---\n{ROUTE}"));
        let said = said(&texts);
        let subset: Vec<_> = said.iter().filter(|said| said.contains("v9")).collect();
        assert_eq!(subset.len(), 1, "{said:?}");
        assert!(subset[0].starts_with("a.yaml:16: "), "{said:?}");
    }

    #[test]
    fn files_are_read_whatever_they_are_called_and_folders_by_their_manifests() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("b.yaml", SERVICE), ("c.txt", "kind: [")] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let mut texts = ManifestTexts::default();
        texts.add(dir.path()).unwrap();
        assert_eq!(texts.len(), 1);
        texts.add(&dir.path().join("c.txt")).unwrap();
        assert_eq!(texts.len(), 2);
        fs::write(dir.path().join("latin.yaml"), [0xe4]).unwrap();
        texts.add(dir.path()).unwrap();
        let said = said(&texts);
        let broken = said.iter().find(|said| said.contains("c.txt:2: "));
        assert!(broken.is_some() && said.iter().any(|said| said.contains("not UTF-8")), "{said:?}");
        let missing = texts.add(&dir.path().join("d")).unwrap_err().to_string();
        assert!(missing.contains("name a directory"), "{missing}");
    }
}
