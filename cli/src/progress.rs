//! A sign of life for whatever takes more than a second: on standard error, and on a terminal only.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Redraws a second.
const TICK: Duration = Duration::from_millis(120);

/// Shows what is being done until it is dropped.
#[derive(Debug)]
pub struct ProgressSign(ProgressBar);

impl ProgressSign {
    /// Something of which nobody knows how long it takes.
    pub fn of(what: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, target());
        bar.set_style(style("{spinner} {msg}"));
        Self::start(bar, what)
    }

    /// So many steps.
    pub fn of_steps(what: &str, steps: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(steps as u64), target());
        bar.set_style(style("{spinner} {msg} [{bar:30}] {pos}/{len}"));
        Self::start(bar, what)
    }

    fn start(bar: ProgressBar, what: &str) -> Self {
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// One step more is done.
    pub fn step(&self, what: &str) {
        self.0.set_message(what.to_owned());
        self.0.inc(1);
    }
}

impl Drop for ProgressSign {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn target() -> ProgressDrawTarget {
    if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_terminal_nothing_is_drawn_and_all_steps_count() {
        let progress = ProgressSign::of_steps("asking", 3);
        progress.step("one");
        progress.step("two");
        assert_eq!(progress.0.position(), 2);
        assert!(progress.0.is_hidden() || io::stderr().is_terminal());
    }
}
