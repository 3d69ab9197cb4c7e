//! The file system of a node: its own, but for the programs of the machine.

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{chdir, pivot_root},
};
use slotmesh_cluster::node::{Config, IMAGES, MEMORY, PROGRAMS};

const NONE: Option<&str> = None;

/// Makes the node's root, and makes it the root of this process.
pub fn enter(config: &Config) -> Result<()> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("make mounts private")?;
    let root = config.root();
    fs::create_dir_all(&root)?;
    bind(&root, &root, false)?;
    let at = |path: &str| root.join(path.trim_start_matches('/'));
    for dir in ["dev", "etc", "old", "proc", "root", "run", "sys", "tmp", "usr", "var/lib", "var/log"] {
        fs::create_dir_all(root.join(dir)).with_context(|| dir.to_owned())?;
    }
    bind(Path::new("/usr"), &at("usr"), true)?;
    for name in ["bin", "lib", "lib32", "lib64", "sbin"] {
        if let Ok(to) = fs::read_link(Path::new("/").join(name))
            && !at(name).is_symlink()
        {
            symlink(to, at(name))?;
        }
    }
    etc(config, &at("etc"))?;
    for (from, to) in [(&config.programs, PROGRAMS), (&config.images, IMAGES)] {
        fs::create_dir_all(at(to))?;
        bind(from, &at(to), true)?;
    }
    devices(&at("dev"))?;
    filesystem("tmpfs", &at("run"), Some("mode=755"))?;
    fs::create_dir_all(at("run/netns"))?;
    filesystem("proc", &at("proc"), None)?;
    filesystem("sysfs", &at("sys"), None)?;
    filesystem("bpf", &at("sys/fs/bpf"), Some("mode=700"))?;
    filesystem("cgroup2", &at("sys/fs/cgroup"), None)?;
    if let Some(dir) = &config.memory {
        fs::create_dir_all(at(MEMORY))?;
        bind(dir, &at(MEMORY), false)?;
    }
    pivot_root(&root, &at("old")).context("pivot_root")?;
    chdir("/")?;
    umount2("/old", MntFlags::MNT_DETACH).context("leave the machine's file system")?;
    fs::remove_dir("/old")?;
    // As an init does it: what is mounted here appears in the pods that ask for it.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SHARED, NONE).context("make mounts shared")
}

fn etc(config: &Config, etc: &Path) -> Result<()> {
    let write = |name: &str, text: &str| {
        fs::write(etc.join(name), text).with_context(|| format!("write /etc/{name} of the node"))
    };
    write("hostname", &format!("{}\n", config.name))?;
    write("hosts", &format!("127.0.0.1 localhost\n{} {}\n", config.address, config.name))?;
    // As at a site: names outside of the cluster lead nowhere here.
    write("resolv.conf", &format!("nameserver {}\n", config.gateway))?;
    write("nsswitch.conf", "hosts: files dns\n")?;
    write("passwd", "root:x:0:0:root:/root:/bin/sh\n")?;
    write("group", "root:x:0:\n")?;
    for name in ["ld.so.cache", "protocols", "services"] {
        let from = Path::new("/etc").join(name);
        if from.is_file() {
            fs::copy(&from, etc.join(name))?;
        }
    }
    if Path::new("/etc/alternatives").is_dir() {
        fs::create_dir_all(etc.join("alternatives"))?;
        bind(Path::new("/etc/alternatives"), &etc.join("alternatives"), true)?;
    }
    fs::create_dir_all(etc.join("kubernetes"))?;
    for (from, to) in [
        (&config.kubeconfig, "kubelet.conf"),
        (&config.proxy_kubeconfig, "proxy.conf"),
        (&config.certificate, "kubelet.crt"),
        (&config.key, "kubelet.key"),
        (&config.authority, "ca.crt"),
    ] {
        fs::copy(from, etc.join("kubernetes").join(to)).with_context(|| from.display().to_string())?;
    }
    Ok(())
}

fn devices(dev: &Path) -> Result<()> {
    filesystem("tmpfs", dev, Some("mode=755"))?;
    for name in ["full", "null", "random", "tty", "urandom", "zero"] {
        fs::write(dev.join(name), "")?;
        bind(&Path::new("/dev").join(name), &dev.join(name), false)?;
    }
    for name in ["pts", "shm"] {
        fs::create_dir(dev.join(name))?;
    }
    for (name, to) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        symlink(to, dev.join(name))?;
    }
    filesystem("tmpfs", &dev.join("shm"), Some("mode=1777"))
}

fn filesystem(kind: &str, at: &Path, options: Option<&str>) -> Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("mount {kind} at {}", at.display()))
}

fn bind(from: &Path, to: &Path, read_only: bool) -> Result<()> {
    let told = || format!("bind {} to {}", from.display(), to.display());
    mount(Some(from), to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).with_context(told)?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NONE, to, NONE, flags, NONE).with_context(told)?;
    }
    Ok(())
}
