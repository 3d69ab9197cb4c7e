//! The outcome by a kernel's log, and the table of all.

use std::time::Duration;

use super::{CPUS, MARK, MEASURED, SILENCE, TESTS};

/// Outcome by a log.
#[derive(Default)]
pub struct BootReport {
    release: String,
    cpus: String,
    /// In the order of [`TESTS`].
    outcomes: [Outcome; TESTS.len()],
    complete: bool,
    /// Figures that the tests measured of the kernel.
    measured: Vec<String>,
}

/// Outcome of one binary by a log.
#[derive(Clone, Copy, Default)]
struct Outcome {
    /// Passed and failed tests, when it came to that.
    counts: Option<(u32, u32)>,
    exit: Option<u32>,
}

impl BootReport {
    /// Reads a log.
    pub fn parse(log: &str) -> Self {
        let mut report = Self::default();
        let mut counts = None;
        for line in log.lines() {
            if let Some((_, result)) = line.split_once("test result: ") {
                counts = Some((count(result, " passed"), count(result, " failed")));
            }
            // A test's name stands before, where it says nothing else.
            if let Some((_, measured)) = line.split_once(MEASURED) {
                report.measured.push(measured.trim().to_owned());
            }
            // What the kernel prints has no line of its own always.
            let Some((_, said)) = line.split_once(MARK) else { continue };
            let said = said.trim();
            if let Some(release) = said.strip_prefix("release=") {
                report.release = release.to_owned();
            } else if let Some(cpus) = said.strip_prefix("cpus=") {
                report.cpus = cpus.to_owned();
            } else if let Some((name, exit)) = said.split_once(" rc=") {
                if let Some(i) = TESTS.iter().position(|test| test.name == name) {
                    report.outcomes[i] = Outcome { counts: counts.take(), exit: exit.parse().ok() };
                }
            } else if said == "end" {
                report.complete = true;
            }
        }
        report
    }

    /// Figures that the tests measured.
    pub fn measured(&self) -> impl Iterator<Item = &str> {
        self.measured.iter().map(String::as_str)
    }

    /// Why this is a failure, if it is one.
    pub fn complaint(&self, release: &str) -> Option<String> {
        if self.release != release {
            return Some(if self.release.is_empty() {
                "the kernel didn't come up".to_owned()
            } else {
                format!("the kernel calls itself {}", self.release)
            });
        }
        if self.cpus != CPUS {
            return Some(format!("{CPUS} CPUs are needed, and nproc says {:?}", self.cpus));
        }
        let bad: Vec<String> = TESTS
            .iter()
            .zip(&self.outcomes)
            .filter(|(_, outcome)| !outcome.is_good())
            .map(|(test, outcome)| format!("{}: {}", test.name, outcome.shown()))
            .collect();
        if !bad.is_empty() {
            return Some(bad.join(", "));
        }
        (!self.complete)
            .then(|| format!("it ended, or printed nothing for {} s, before all was done", SILENCE.as_secs()))
    }

    /// Its line in the table.
    pub fn row(&self, release: &str, took: Duration) -> Vec<String> {
        let mut row = vec![release.to_owned()];
        row.extend(self.outcomes.iter().map(Outcome::shown));
        row.push(format!("{:.1} s", took.as_secs_f32()));
        row
    }
}

impl Outcome {
    /// A binary without tests is no success: then they are elsewhere now.
    fn is_good(&self) -> bool {
        self.exit == Some(0) && matches!(self.counts, Some((1.., 0)))
    }

    fn shown(&self) -> String {
        match (self.counts, self.exit) {
            (Some((0, 0)), Some(0)) => "no tests".to_owned(),
            (Some((passed, 0)), Some(0)) => format!("{passed} passed"),
            (Some((passed, failed)), Some(_)) if failed > 0 => format!("{passed} passed, {failed} FAILED"),
            (_, Some(exit)) => format!("ENDED with {exit}"),
            (_, None) => "NOT DONE".to_owned(),
        }
    }
}

/// The number before `what`.
fn count(result: &str, what: &str) -> u32 {
    let before = result.split(what).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The first line of the table.
pub fn header() -> Vec<String> {
    let mut header = vec!["Linux".to_owned()];
    header.extend(TESTS.iter().map(|test| test.name.to_owned()));
    header.push("duration".to_owned());
    header
}

/// A table in columns, with a space of two between them.
pub fn aligned(table: &[Vec<String>]) -> String {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> =
        (0..columns).map(|i| table.iter().map(|row| row[i].len()).max().unwrap_or(0)).collect();
    table
        .iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "6.1.0-56-cloud-amd64";

    /// Log of a kernel on which all passes.
    fn log() -> String {
        let mut log = format!("{MARK}release={RELEASE}\r\n{MARK}cpus=2\r\n");
        for test in &TESTS {
            log += "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\r\n";
            log += &format!("{MARK}{} rc=0\r\n", test.name);
        }
        log + MARK + "end\r\n"
    }

    fn complaint(log: &str) -> Option<String> {
        BootReport::parse(log).complaint(RELEASE)
    }

    #[test]
    fn a_log_that_says_all_is_a_success() {
        assert_eq!(complaint(&log()), None);
        let row = BootReport::parse(&log()).row(RELEASE, Duration::from_millis(14_300));
        assert_eq!(row, [&[RELEASE][..], &["12 passed"; TESTS.len()], &["14.3 s"]].concat());
    }

    #[test]
    fn what_was_measured_is_shown() {
        let report = BootReport::parse("test outer::batch ... measured: 64 records one by one\r\nok\r\n");
        assert_eq!(report.measured().collect::<Vec<_>>(), ["64 records one by one"]);
    }

    #[test]
    fn whatever_a_log_leaves_out_is_a_failure() {
        let log = log();
        let lines: Vec<&str> = log.lines().collect();
        for i in 0..lines.len() {
            let mut rest = lines.clone();
            rest.remove(i);
            assert!(complaint(&rest.join("\n")).is_some(), "without {}", lines[i]);
            assert!(complaint(&lines[..i].join("\n")).is_some(), "cut before {}", lines[i]);
        }
    }

    #[test]
    fn a_wrong_line_is_a_failure_that_says_what_is_wrong() {
        for (right, wrong, said) in [
            ("cpus=2", "cpus=1", "nproc says \"1\""),
            ("release=6.1.0-56", "release=6.1.0-55", "calls itself 6.1.0-55-cloud-amd64"),
            ("outer rc=0", "outer rc=137", "outer: ENDED with 137"),
            ("12 passed; 0 failed", "0 passed; 0 failed", "slotmesh-kernel: no tests"),
            ("12 passed; 0 failed", "9 passed; 3 failed", "slotmesh-kernel: 9 passed, 3 FAILED"),
        ] {
            let log = log();
            assert!(log.contains(right), "{right}");
            let said_now = complaint(&log.replacen(right, wrong, 1)).unwrap_or_default();
            assert!(said_now.contains(said), "{said_now} doesn't say {said}");
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let table = [["Linux", "outer"], ["6.1.0", "3 passed"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&table), "Linux  outer\n6.1.0  3 passed\n");
    }
}
