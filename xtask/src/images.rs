//! Builds the container images: one static binary in an empty image, for the operator and for the agent.
//!
//! The binary is linked with glibc statically, so nothing else is in the image: no shell, no package
//! manager, nothing to patch but slotmesh. Layers and archives carry no time of day, so the same sources and
//! tools give the same digests. buildah works in a storage folder of its own below `target/images`; the
//! machine's images stay as they are.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::apt;
use crate::cmd::{self, clean_cargo, find_program, host_cargo, run_quietly, step};
use crate::workspace::Workspace;

/// The flags of `cargo xtask images`.
#[derive(Args)]
pub struct ImageFlags {
    /// Profile of the build: release for clusters; dev takes a fraction of the time
    #[arg(long, default_value = "release", value_name = "PROFILE")]
    profile: String,

    /// The repository before the images' names, as your registry wants it
    #[arg(long, env = "SLOTMESH_IMAGE_REPOSITORY", default_value = "slotmesh", value_name = "REPOSITORY")]
    repository: String,

    /// The Rust target; its linker and libraries must be installed
    #[arg(long, default_value_t = format!("{}-unknown-linux-gnu", std::env::consts::ARCH), value_name = "TRIPLE")]
    target: String,
}

/// An image: what sets it apart from the other.
struct Image {
    name: &'static str,
    /// Who runs it. The agent must be root to use the node's cgroups and BPF file system; the chart takes
    /// all capabilities but three from it.
    user: &'static str,
    command: &'static str,
}

const IMAGES: [Image; 2] = [
    Image { name: "operator", user: "65532:65532", command: "operator" },
    Image { name: "agent", user: "0:0", command: "agent" },
];

/// `cargo xtask images`
pub fn run(workspace: &Workspace, images: &ImageFlags) -> Result<()> {
    let ImageFlags { profile, repository, target } = images;
    if find_program("buildah").is_none() {
        apt::install(
            &["buildah"],
            false,
            "Without it, put the binary of `cargo build -p slotmesh` into an image by other means.",
        )?;
    }
    let binary = step(format!("building slotmesh ({profile}, static, {target})"), || {
        build(workspace, profile, target)
    })?;
    let dir = workspace.root().join("target/images");
    let storage = Storage { dir: dir.join("storage") };
    for image in &IMAGES {
        let reference = format!("{repository}/{}:{}", image.name, env!("CARGO_PKG_VERSION"));
        let archive = dir.join(format!("{}.tar", image.name));
        step(format!("{} -> {}", reference, archive.display()), || {
            image.write(&storage, &binary, target, &archive, &reference)
        })?;
    }
    fs::remove_dir_all(&storage.dir).with_context(|| format!("can't remove {}", storage.dir.display()))
}

/// Builds the binary and returns where it is.
fn build(workspace: &Workspace, profile: &str, target: &str) -> Result<PathBuf> {
    // Of its own: cargo would build everything anew whenever the flags change in the shared folder.
    let dir = workspace.root().join("target/static");
    cmd::run(
        clean_cargo(&host_cargo())
            .args(["build", "--locked", "-p", "slotmesh", "--profile", profile, "--target", target])
            .env("CARGO_TARGET_DIR", &dir)
            .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
            .current_dir(workspace.root()),
    )?;
    let folder = if profile == "dev" { "debug" } else { profile };
    let binary = dir.join(target).join(folder).join("slotmesh");
    if !is_static(&binary)? {
        bail!("{} asks for a dynamic loader, so it can't start in an empty image", binary.display());
    }
    Ok(binary)
}

/// True of an ELF file that names no program interpreter.
fn is_static(binary: &Path) -> Result<bool> {
    use object::read::elf::{ElfFile64, ProgramHeader as _};
    let bytes = fs::read(binary).with_context(|| format!("can't read {}", binary.display()))?;
    let elf: ElfFile64 =
        ElfFile64::parse(&*bytes).with_context(|| format!("{} is no ELF file", binary.display()))?;
    let endian = elf.endian();
    Ok(elf.elf_program_headers().iter().all(|header| header.p_type(endian) != object::elf::PT_INTERP))
}

/// Where buildah keeps its layers and containers.
struct Storage {
    dir: PathBuf,
}

impl Storage {
    fn buildah(&self) -> Command {
        let mut command = Command::new("buildah");
        command
            .args(["--storage-driver", "vfs", "--root"])
            .arg(self.dir.join("layers"))
            .arg("--runroot")
            .arg(self.dir.join("run"));
        command
    }
}

impl Image {
    fn write(
        &self,
        storage: &Storage,
        binary: &Path,
        target: &str,
        archive: &Path,
        reference: &str,
    ) -> Result<()> {
        let container = format!("slotmesh-{}", self.name);
        let buildah = |args: &[&OsStr]| run_quietly(storage.buildah().args(args));
        let strs = |args: &[&str]| run_quietly(storage.buildah().args(args));
        strs(&["from", "--arch", oci_architecture(target)?, "--name", &container, "scratch"])?;
        buildah(&[
            "copy".as_ref(),
            "--chown".as_ref(),
            "0:0".as_ref(),
            "--chmod".as_ref(),
            "0555".as_ref(),
            container.as_ref(),
            binary.as_os_str(),
            "/slotmesh".as_ref(),
        ])?;
        strs(&[
            "config",
            "--entrypoint",
            r#"["/slotmesh"]"#,
            "--cmd",
            self.command,
            "--user",
            self.user,
            "--label",
            &format!("org.opencontainers.image.title=slotmesh {}", self.name),
            "--label",
            concat!("org.opencontainers.image.version=", env!("CARGO_PKG_VERSION")),
            "--label",
            concat!("org.opencontainers.image.licenses=", env!("CARGO_PKG_LICENSE")),
            &container,
        ])?;
        if archive.exists() {
            fs::remove_file(archive).with_context(|| format!("can't replace {}", archive.display()))?;
        }
        let to = format!("oci-archive:{}:{reference}", archive.display());
        strs(&["commit", "--rm", "--timestamp", "0", &container, &to])
    }
}

/// The architecture's name in OCI images.
fn oci_architecture(target: &str) -> Result<&'static str> {
    match target.split('-').next() {
        Some("x86_64") => Ok("amd64"),
        Some("aarch64") => Ok("arm64"),
        _ => bail!("--target {target}: images are for x86_64 and aarch64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_have_their_oci_names() {
        assert_eq!(oci_architecture("x86_64-unknown-linux-gnu").unwrap(), "amd64");
        assert_eq!(oci_architecture("aarch64-unknown-linux-gnu").unwrap(), "arm64");
        assert!(oci_architecture("riscv64gc-unknown-linux-gnu").is_err());
    }

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        assert!(!is_static(&std::env::current_exe().unwrap()).unwrap());
    }
}
