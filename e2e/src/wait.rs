//! Waiting with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// What everything that should happen soon is given on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// Asks `probe` every few milliseconds until it gives a value.
///
/// # Errors
/// When `probe` fails, or gave nothing for [`SOON`]; `what` then says what was waited for.
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {SOON:?} for {what}");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Like [`until`], for a condition.
///
/// # Errors
/// As [`until`].
pub fn until_true(what: &str, mut probe: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, || Ok(probe()?.then_some(())))
}
