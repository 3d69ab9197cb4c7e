//! What a process costs: memory and processor time, as the kernel tells.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

/// A field of `/proc/PID/status`, in bytes: VmRSS, VmHWM, RssAnon.
pub fn memory(pid: u32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| path.clone())?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kilobytes = value.and_then(|value| value.trim().strip_suffix(" kB")).context("a size in kB")?;
    Ok(kilobytes.parse::<u64>()? * 1_024)
}

/// The processor time that the threads which it has now have used.
pub fn cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/task");
    let mut total = 0;
    for task in fs::read_dir(&path).with_context(|| path.clone())? {
        // A thread may end meanwhile.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        total += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(Duration::from_nanos(total))
}

/// Bytes as people read them.
pub fn show_bytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
