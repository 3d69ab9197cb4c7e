//! The date that responses carry, written once a second.

use std::{
    cell::RefCell,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Value of a `date` field, for the second in which it was written.
#[derive(Debug, Default)]
pub(crate) struct DateLine(RefCell<(u64, String)>);

impl DateLine {
    /// Appends the field with the time that it is now.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut written = self.0.borrow_mut();
        if written.0 != now {
            let moment = UNIX_EPOCH + Duration::from_secs(now);
            *written = (now, format!("date: {}\r\n", httpdate::fmt_http_date(moment)));
        }
        out.extend_from_slice(written.1.as_bytes());
    }
}
