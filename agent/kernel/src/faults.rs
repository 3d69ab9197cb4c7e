//! Makes one bpf(2) call of this process fail, for tests.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

static ERRNO: AtomicI32 = AtomicI32::new(0);
static FAIL_AT: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);

/// From now on, the `nth` call (counted from 1, in all threads) fails with `errno`; 0 fails none.
pub fn arm(nth: u64, errno: i32) {
    ERRNO.store(errno, Ordering::Relaxed);
    FAIL_AT.store(nth, Ordering::Relaxed);
    SEEN.store(0, Ordering::SeqCst);
}

/// No call fails any more; how many were made since [`arm`].
pub fn disarm() -> u64 {
    FAIL_AT.store(0, Ordering::Relaxed);
    SEEN.load(Ordering::SeqCst)
}

/// Counts a call; the error it is to fail with.
pub(crate) fn due() -> Option<i32> {
    let nth = SEEN.fetch_add(1, Ordering::SeqCst) + 1;
    (nth == FAIL_AT.load(Ordering::Relaxed)).then(|| ERRNO.load(Ordering::Relaxed))
}
