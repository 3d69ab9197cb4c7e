//! Waiting with a deadline, without blocking the runtime.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// Time that everything is given which should happen soon, on a busy machine. Kubernetes' own programs wait up to a
/// minute before they ask an API server again that was away.
pub const SOON: Duration = Duration::from_secs(180);

/// Asks `probe` every few milliseconds until it gives a value.
///
/// # Errors
/// When `probe` fails, or gave nothing for [`SOON`]; `what` then says what was waited for.
pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = probe().await? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {SOON:?} for {what}");
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Like [`until`], for a condition.
///
/// # Errors
/// As [`until`].
pub async fn until_true(what: &str, mut probe: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    until(what, async || Ok(probe().await?.then_some(()))).await
}
