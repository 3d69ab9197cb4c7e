//! Images of containers: a root file system and how it is started.
//!
//! ```text
//! images/shop.test%2Fecho%3A1/
//!   rootfs/       what the container sees
//!   config.json   {"Entrypoint": [...], "Cmd": [...], "Env": ["A=b"], "User": "65532", "WorkingDir": "/"}
//! ```
//!
//! The second is the part `config` of an OCI image's configuration. An image is made by a test, of files
//! of this machine ([`Images::make`]), or comes from an OCI layout ([`Images::import`]).

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How an image is started, in the words of the OCI image specification.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Start {
    /// The part that `command` replaces.
    pub entrypoint: Vec<String>,
    /// The part that `args` replaces.
    pub cmd: Vec<String>,
    /// Environment variables, `NAME=value`.
    pub env: Vec<String>,
    /// User and group by number, `65532:65532`; root where it is empty.
    pub user: String,
    /// Where it starts; `/` where it is empty.
    pub working_dir: String,
}

/// A folder of images.
#[derive(Clone, Debug)]
pub struct Images(PathBuf);

impl Images {
    /// Those in this folder, which is made where it isn't there.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn in_folder(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(Self(dir.to_owned()))
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Where an image is, or would be.
    pub fn path(&self, name: &str) -> PathBuf {
        // A colon separates the layers of an overlay.
        self.0.join(name.replace('%', "%25").replace('/', "%2F").replace(':', "%3A"))
    }

    /// The root file system of an image and how it is started.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn open(&self, name: &str) -> Result<(PathBuf, Start)> {
        let dir = self.path(name);
        let file = dir.join("config.json");
        let text = fs::read(&file).with_context(|| format!("there is no image {name} on this node"))?;
        let start = serde_json::from_slice(&text).with_context(|| file.display().to_string())?;
        Ok((dir.join("rootfs"), start))
    }

    /// Makes an image of programs and files of this machine: where they come from and where they go. The
    /// shared libraries that a program needs come along.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn make(&self, name: &str, files: &[(&Path, &str)], start: &Start) -> Result<()> {
        let dir = self.fresh(name)?;
        let root = dir.join("rootfs");
        for folder in ["dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        for (from, to) in files {
            copy(from, &root, Path::new(to))?;
            for library in libraries(from)? {
                copy(&library, &root, &library)?;
            }
        }
        self.finish(&dir, name, start)
    }

    /// Takes the first image of an OCI layout (a folder with `index.json`), as `buildah push IMAGE oci:DIR`
    /// writes it, under this name.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn import(&self, name: &str, layout: &Path) -> Result<()> {
        let json = |path: &Path| -> Result<Value> {
            let text = fs::read(path).with_context(|| path.display().to_string())?;
            Ok(serde_json::from_slice(&text)?)
        };
        let blob = |digest: &Value| -> Result<PathBuf> {
            let digest = digest.as_str().context("a descriptor has a digest")?;
            Ok(layout.join("blobs").join(digest.replace(':', "/")))
        };
        let index = json(&layout.join("index.json"))?;
        let manifest = json(&blob(&index["manifests"][0]["digest"])?)?;
        let mut config = json(&blob(&manifest["config"]["digest"])?)?["config"].take();
        // What isn't set may be absent or null.
        config.as_object_mut().context("an image has a config")?.retain(|_, value| !value.is_null());
        let dir = self.fresh(name)?;
        let root = dir.join("rootfs");
        fs::create_dir_all(&root)?;
        for layer in manifest["layers"].as_array().context("a manifest has layers")? {
            let file = blob(&layer["digest"])?;
            let output = Command::new("tar").arg("-xpf").arg(&file).arg("-C").arg(&root).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "unpack {}: {said}", file.display());
        }
        self.finish(&dir, name, &serde_json::from_value(config)?)
    }

    fn fresh(&self, name: &str) -> Result<PathBuf> {
        let mut part = self.path(name).into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        fs::create_dir_all(&part).with_context(|| format!("create {}", part.display()))?;
        Ok(part)
    }

    fn finish(&self, part: &Path, name: &str, start: &Start) -> Result<()> {
        fs::write(part.join("config.json"), serde_json::to_vec(start)?)?;
        let dir = self.path(name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::rename(part, &dir).with_context(|| format!("create {}", dir.display()))
    }
}

fn copy(from: &Path, root: &Path, to: &Path) -> Result<()> {
    let to = root.join(to.strip_prefix("/").unwrap_or(to));
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    // Large ones as links: nothing is ever written to an image.
    let real = fs::canonicalize(from).with_context(|| from.display().to_string())?;
    if to.exists() || fs::hard_link(&real, &to).is_ok() {
        return Ok(());
    }
    fs::copy(from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// The shared libraries that a program is linked with, and its loader.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let mut magic = [0; 4];
    let mut file = fs::File::open(program).with_context(|| program.display().to_string())?;
    if file.read_exact(&mut magic).is_err() || magic != *b"\x7fELF" {
        return Ok(Vec::new());
    }
    let output = Command::new("ldd").arg(program).output().context("run ldd")?;
    if !output.status.success() {
        // "not a dynamic executable": it needs none.
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layout as builders write it, with one layer.
    #[test]
    fn an_image_of_an_oci_layout_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("layout");
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir(dir.path().join("layer")).unwrap();
        fs::write(dir.path().join("layer/hello"), "there").unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-czf").arg(blobs.join("1")).arg("-C").arg(dir.path().join("layer")).arg("hello");
        assert!(tar.status().unwrap().success());
        let config = serde_json::json!({"config": {"Entrypoint": ["/hello"], "Cmd": null, "User": "65532"}});
        fs::write(blobs.join("2"), config.to_string()).unwrap();
        let manifest = serde_json::json!({
            "config": {"digest": "sha256:2"}, "layers": [{"digest": "sha256:1"}],
        });
        fs::write(blobs.join("3"), manifest.to_string()).unwrap();
        let index = serde_json::json!({"manifests": [{"digest": "sha256:3"}]});
        fs::write(layout.join("index.json"), index.to_string()).unwrap();

        let images = Images::in_folder(&dir.path().join("images")).unwrap();
        images.import("a.test/c", &layout).unwrap();
        let (root, start) = images.open("a.test/c").unwrap();
        assert_eq!(fs::read_to_string(root.join("hello")).unwrap(), "there");
        assert_eq!((start.entrypoint, start.user), (vec!["/hello".to_owned()], "65532".to_owned()));
    }

    #[test]
    fn an_image_of_a_program_runs_in_its_own_root() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::in_folder(dir.path()).unwrap();
        let start = Start { entrypoint: vec!["/bin/true".to_owned()], ..Start::default() };
        images.make("a.test/b:1", &[(Path::new("/bin/true"), "/bin/true")], &start).unwrap();
        let (root, read) = images.open("a.test/b:1").unwrap();
        assert_eq!(read.entrypoint, start.entrypoint);
        assert!(!root.to_str().unwrap().contains(':'));
        for library in libraries(Path::new("/bin/true")).unwrap() {
            assert!(root.join(library.strip_prefix("/").unwrap()).is_file(), "{library:?}");
        }
        assert!(images.open("a.test/b:2").unwrap_err().to_string().contains("a.test/b:2"));
    }
}
