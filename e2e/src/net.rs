//! Network namespaces of one's own.

use std::{fs, panic, process::Command, thread};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::Uid,
};

use crate::{up, wait};

/// Runs a scenario in a network namespace that has a loopback interface and no way out.
///
/// The scenario has a thread of its own; threads and processes that it starts are in its namespace,
/// which goes with the last of them. When it fails, what the agents said is printed.
///
/// # Panics
/// When the scenario fails, or the machine doesn't allow it to be run (a test never passes silently).
pub fn isolated(scenario: impl FnOnce() -> Result<()> + Send + 'static) {
    let run = move || {
        let result = panic::catch_unwind(panic::AssertUnwindSafe(|| enter().and_then(|()| scenario())));
        if !matches!(result, Ok(Ok(()))) {
            up::print_logs();
        }
        result
    };
    let thread = thread::Builder::new().name("scenario".to_owned()).spawn(run);
    match thread.expect("a thread can be started").join() {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => panic!("{error:?}"),
        Ok(Err(payload)) | Err(payload) => panic::resume_unwind(payload),
    }
}

/// Moves the calling thread to a new network namespace with a loopback interface only.
///
/// # Errors
/// When this isn't root or the kernel refuses.
pub fn enter() -> Result<()> {
    ensure!(
        Uid::effective().is_root(),
        "this needs root: it creates cgroups and network namespaces and loads eBPF programs"
    );
    unshare(CloneFlags::CLONE_NEWNET).context("create a network namespace (unshare)")?;
    ip("link set lo up").map(drop)
}

/// Gives the loopback interface of this thread's namespace one more address, to which packets go when this returns.
///
/// The kernel takes an address at once, so servers can bind it, but makes its local route in the background, when it
/// gets the lock of all network settings. Until then the route of its prefix by `lo` is found, which rejects packets:
/// a connect would fail with its second SYN, after a second.
///
/// # Errors
/// When the kernel refuses.
pub fn add_loopback_v6(address: &str) -> Result<()> {
    ip(&format!("-6 addr add {address}/128 dev lo nodad"))?;
    wait::until_true(&format!("a local route to {address}"), || {
        Ok(!ip(&format!("-6 route show table local {address}"))?.is_empty())
    })
}

/// Runs `ip` with these arguments, in this thread's namespace, and returns what it prints.
///
/// # Errors
/// When it fails.
pub fn ip(arguments: &str) -> Result<String> {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .context("run ip (Debian package iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `inner` in a thread that sees the file systems as they are, but without those of a type.
///
/// # Errors
/// When the kernel refuses, or `inner` fails.
pub fn without_mounts<T: Send>(fs: &str, inner: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNS).context("create a mount namespace (unshare)")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make mounts private")?;
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
        for line in mounts.lines() {
            let Some((mount, of)) = line.split_once(" - ") else { continue };
            if of.split(' ').next() == Some(fs) {
                let point = mount.split(' ').nth(4).context("a mount has a mount point")?;
                umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("unmount {point}"))?;
            }
        }
        inner()
    };
    let ended = thread::scope(|scope| scope.spawn(run).join());
    ended.map_err(|_| anyhow!("a thread without {fs} panicked"))?
}
