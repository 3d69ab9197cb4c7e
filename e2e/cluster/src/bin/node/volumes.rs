//! A pod's volumes: folders and files of the node, kept up to date.
//!
//! Files that come from the API are written as a kubelet writes them: into a folder of their own, which
//! then takes the place of the old one in one step (`..data`), so that a reader sees all old or all new.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccount, Volume},
};
use kube::{Api, ResourceExt as _, api::PostParams};
use nix::mount::{MsFlags, mount};

use crate::{environment, kubelet::Kubelet};

/// Contents, and the mode that is asked for.
type Files = BTreeMap<String, (Vec<u8>, u32)>;

/// A pod's volumes.
#[derive(Debug)]
pub struct Volumes {
    dir: PathBuf,
    paths: BTreeMap<String, PathBuf>,
    /// By volume and file: when the token is asked for again.
    tokens: BTreeMap<(String, String), (Timestamp, Vec<u8>)>,
}

impl Volumes {
    /// Makes all volumes of a pod.
    pub async fn new(kubelet: &Kubelet, pod: &Pod) -> Result<Self> {
        let uid = pod.uid().context("a pod has a uid")?;
        let dir = Path::new("/var/lib/kubelet/pods").join(uid);
        let mut this = Self { dir, paths: BTreeMap::new(), tokens: BTreeMap::new() };
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let path = this.make(volume).with_context(|| format!("volume {}", volume.name))?;
            this.paths.insert(volume.name.clone(), path);
        }
        this.refresh(kubelet, pod).await?;
        Ok(this)
    }

    /// The pod's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a volume is.
    pub fn path(&self, name: &str) -> Result<&Path> {
        self.paths.get(name).map(PathBuf::as_path).with_context(|| format!("no volume {name}"))
    }

    fn make(&self, volume: &Volume) -> Result<PathBuf> {
        if let Some(host) = &volume.host_path {
            let path = PathBuf::from(&host.path);
            match host.type_.as_deref().unwrap_or_default() {
                "DirectoryOrCreate" => fs::create_dir_all(&path)?,
                "FileOrCreate" if !path.exists() => fs::write(&path, "")?,
                "Directory" => ensure!(path.is_dir(), "{} is no directory of this node", path.display()),
                "File" => ensure!(path.is_file(), "{} is no file of this node", path.display()),
                _ => ensure!(path.exists(), "{} isn't on this node", path.display()),
            }
            return Ok(path);
        }
        let path = self.dir.join("volumes").join(&volume.name);
        fs::create_dir_all(&path)?;
        if let Some(empty) = &volume.empty_dir {
            if empty.medium.as_deref() == Some("Memory") {
                mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        } else if volume.config_map.is_none()
            && volume.secret.is_none()
            && volume.projected.is_none()
            && volume.downward_api.is_none()
        {
            bail!("this kind of volume isn't known here");
        }
        Ok(path)
    }

    /// Brings up to date what comes from the API.
    pub async fn refresh(&mut self, kubelet: &Kubelet, pod: &Pod) -> Result<()> {
        let spec = pod.spec.as_ref().context("a pod has a spec")?;
        let group = spec.security_context.as_ref().and_then(|context| context.fs_group);
        for volume in spec.volumes.iter().flatten() {
            let files = self.files(kubelet, pod, volume).await;
            let Some(files) = files.with_context(|| format!("volume {}", volume.name))? else { continue };
            write(self.path(&volume.name)?, &files, group)
                .with_context(|| format!("volume {}", volume.name))?;
        }
        Ok(())
    }

    async fn files(&mut self, kubelet: &Kubelet, pod: &Pod, volume: &Volume) -> Result<Option<Files>> {
        const MODE: i32 = 0o644;
        let mut files = Files::new();
        if let Some(from) = &volume.config_map {
            let data = config_map(kubelet, pod, &from.name, from.optional).await?;
            select(&mut files, data, from.items.as_deref(), from.default_mode.unwrap_or(MODE))?;
        } else if let Some(from) = &volume.secret {
            let name = from.secret_name.clone().unwrap_or_default();
            let data = secret(kubelet, pod, &name, from.optional).await?;
            select(&mut files, data, from.items.as_deref(), from.default_mode.unwrap_or(MODE))?;
        } else if let Some(from) = &volume.downward_api {
            downward(&mut files, pod, from.items.as_deref(), from.default_mode.unwrap_or(MODE))?;
        } else if let Some(from) = &volume.projected {
            let mode = from.default_mode.unwrap_or(MODE);
            for source in from.sources.iter().flatten() {
                if let Some(from) = &source.config_map {
                    let data = config_map(kubelet, pod, &from.name, from.optional).await?;
                    select(&mut files, data, from.items.as_deref(), mode)?;
                }
                if let Some(from) = &source.secret {
                    let data = secret(kubelet, pod, &from.name, from.optional).await?;
                    select(&mut files, data, from.items.as_deref(), mode)?;
                }
                if let Some(from) = &source.downward_api {
                    downward(&mut files, pod, from.items.as_deref(), mode)?;
                }
                if let Some(from) = &source.service_account_token {
                    let key = (volume.name.clone(), from.path.clone());
                    let token =
                        self.token(kubelet, pod, key, from.audience.clone(), from.expiration_seconds).await?;
                    files.insert(from.path.clone(), (token, mode_of(mode)?));
                }
            }
        } else {
            return Ok(None);
        }
        Ok(Some(files))
    }

    /// A token for the pod's account, asked for again after four fifths of its life.
    async fn token(
        &mut self,
        kubelet: &Kubelet,
        pod: &Pod,
        key: (String, String),
        audience: Option<String>,
        seconds: Option<i64>,
    ) -> Result<Vec<u8>> {
        let now = Timestamp::now();
        if let Some((again, token)) = self.tokens.get(&key)
            && now < *again
        {
            return Ok(token.clone());
        }
        let spec = pod.spec.as_ref().context("a pod has a spec")?;
        let account = spec.service_account_name.as_deref().unwrap_or("default");
        let api: Api<ServiceAccount> =
            Api::namespaced(kubelet.client.clone(), &pod.namespace().unwrap_or_default());
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: audience.into_iter().collect(),
                expiration_seconds: Some(seconds.unwrap_or(3600)),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(pod.name_any()),
                    uid: pod.uid(),
                }),
            },
            ..TokenRequest::default()
        };
        let answer = api.create_token_request(account, &PostParams::default(), &request).await?;
        let status = answer.status.context("a token request is answered")?;
        let life = status.expiration_timestamp.0.duration_since(now);
        let again = now + Duration::try_from(life).unwrap_or_default().mul_f64(0.8);
        let token = status.token.into_bytes();
        self.tokens.insert(key, (again, token.clone()));
        Ok(token)
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        for path in self.paths.values().filter(|path| path.starts_with(&self.dir)) {
            let _ = nix::mount::umount(path);
        }
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != ErrorKind::NotFound
        {
            eprintln!("{} stays: {error}", self.dir.display());
        }
    }
}

async fn config_map(
    kubelet: &Kubelet,
    pod: &Pod,
    name: &str,
    optional: Option<bool>,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let api: Api<ConfigMap> = Api::namespaced(kubelet.client.clone(), &pod.namespace().unwrap_or_default());
    let found = match api.get_opt(name).await? {
        None if optional == Some(true) => return Ok(BTreeMap::new()),
        found => found.with_context(|| format!("configmap {name:?} not found"))?,
    };
    let text = found.data.unwrap_or_default().into_iter().map(|(name, text)| (name, text.into_bytes()));
    let binary = found.binary_data.unwrap_or_default().into_iter().map(|(name, bytes)| (name, bytes.0));
    Ok(text.chain(binary).collect())
}

async fn secret(
    kubelet: &Kubelet,
    pod: &Pod,
    name: &str,
    optional: Option<bool>,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let api: Api<Secret> = Api::namespaced(kubelet.client.clone(), &pod.namespace().unwrap_or_default());
    match api.get_opt(name).await? {
        None if optional == Some(true) => Ok(BTreeMap::new()),
        found => {
            let data = found.with_context(|| format!("secret {name:?} not found"))?.data.unwrap_or_default();
            Ok(data.into_iter().map(|(name, bytes)| (name, bytes.0)).collect())
        }
    }
}

fn mode_of(mode: i32) -> Result<u32> {
    u32::try_from(mode).context("a mode")
}

fn select(
    files: &mut Files,
    mut data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: i32,
) -> Result<()> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (name, bytes) in data {
            files.insert(name, (bytes, mode_of(mode)?));
        }
        return Ok(());
    };
    for item in items {
        let bytes = data.remove(&item.key).with_context(|| format!("no key {:?}", item.key))?;
        files.insert(item.path.clone(), (bytes, mode_of(item.mode.unwrap_or(mode))?));
    }
    Ok(())
}

fn downward(files: &mut Files, pod: &Pod, items: Option<&[DownwardAPIVolumeFile]>, mode: i32) -> Result<()> {
    let spec = pod.spec.as_ref().context("a pod has a spec")?;
    for item in items.unwrap_or_default() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(from), _) => environment::field(pod, &from.field_path, None)?,
            (_, Some(from)) => environment::resource(
                &spec.containers,
                spec.containers.first().context("a pod has containers")?,
                from,
            )?,
            _ => bail!("{} comes from nothing", item.path),
        };
        files.insert(item.path.clone(), (text.into_bytes(), mode_of(item.mode.unwrap_or(mode))?));
    }
    Ok(())
}

/// Makes a volume hold exactly these files, in one step; nothing is done when it does already.
fn write(volume: &Path, files: &Files, group: Option<i64>) -> Result<()> {
    let data = volume.join("..data");
    let old = fs::read_link(&data).ok();
    let same = |dir: &PathBuf| {
        files
            .iter()
            .all(|(name, (bytes, _))| fs::read(volume.join(dir).join(name)).is_ok_and(|is| &is == bytes))
            && fs::read_dir(volume).is_ok_and(|found| found.count() == tops(files).len() + 2)
    };
    if old.as_ref().is_some_and(same) {
        return Ok(());
    }
    let name = format!("..{}", Timestamp::now().as_nanosecond());
    let dir = volume.join(&name);
    fs::create_dir(&dir)?;
    for (file, (bytes, mode)) in files {
        let path = dir.join(file);
        let parent = path.parent().context("a file is in a folder")?;
        fs::create_dir_all(parent)?;
        fs::write(&path, bytes)?;
        let readable = if group.is_some() { 0o040 } else { 0 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode | readable))?;
        if let Some(group) = group {
            chown(&path, None, Some(u32::try_from(group)?))?;
        }
    }
    let new = volume.join("..data_new");
    symlink(&name, &new)?;
    fs::rename(&new, &data)?;
    for top in tops(files) {
        if !volume.join(&top).is_symlink() {
            symlink(Path::new("..data").join(&top), volume.join(&top))?;
        }
    }
    for entry in fs::read_dir(volume)?.flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        if !found.starts_with("..") && !tops(files).contains(&found) {
            fs::remove_file(entry.path())?;
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(volume.join(old))?;
    }
    Ok(())
}

/// The first parts of the files' names.
fn tops(files: &Files) -> std::collections::BTreeSet<String> {
    files.keys().filter_map(|name| name.split('/').next()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_together() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path();
        let files = |all: &[(&str, &str)]| -> Files {
            all.iter().map(|(name, text)| ((*name).to_owned(), (text.as_bytes().to_vec(), 0o640))).collect()
        };
        write(volume, &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(fs::read_to_string(volume.join("sub/b")).unwrap(), "2");
        assert_eq!(fs::metadata(volume.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let first = fs::read_link(volume.join("..data")).unwrap();
        write(volume, &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(fs::read_link(volume.join("..data")).unwrap(), first, "nothing changed");
        write(volume, &files(&[("a", "3")]), None).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "3");
        assert!(!volume.join("sub").exists() && !volume.join(first).exists());
    }
}
