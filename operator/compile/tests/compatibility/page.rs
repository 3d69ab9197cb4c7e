//! The tables of `docs/compatibility.md`: for each kind its fields, what comes of them, and the test that shows it.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use serde_json::Value;

use crate::{
    listing::ancestry,
    trial::{Outcome, Subject},
};

/// A line of a table.
struct Row {
    field: String,
    outcome: Outcome,
    /// The test that shows it, or who acts instead.
    shown: Option<String>,
}

/// The section of a kind. What can't be said is a fault.
pub fn section(subject: &Subject, faults: &mut Vec<String>) -> String {
    let mut text = format!("\n### {}\n\n`{}`\n\n", subject.kind, subject.api);
    text.push_str("| field | what comes of it | shown by, or what it means |\n| --- | --- | --- |\n");
    for Row { field, outcome, shown } in rows(subject, faults) {
        let last = match (&outcome, shown) {
            (_, Some(shown)) => shown,
            (Outcome::Refused(Some(consequence)), None) => consequence.replace('|', "\\|"),
            (_, None) => String::new(),
        };
        writeln!(text, "| {field} | {outcome} | {last} |").unwrap();
    }
    text
}

fn rows(subject: &Subject, faults: &mut Vec<String>) -> Vec<Row> {
    let leaves = outcomes(subject, faults);
    let mut rows = Vec::new();
    let mut left: Vec<&str> = leaves.iter().map(|(path, _)| path.as_str()).collect();
    while let Some(&path) = left.first() {
        let of_path = |at: &str| leaves.iter().filter(|(leaf, _)| is_within(leaf, at)).collect::<Vec<_>>();
        // The outermost field of whose leaves all have the same outcome, and none acts.
        let same = |at: &&str| {
            let within = of_path(at);
            *at != "spec"
                && within.len() > 1
                && within.iter().all(|(_, of)| *of != Outcome::Acts && *of == within[0].1)
        };
        let together = ancestry(path).into_iter().find(same);
        let at = together.unwrap_or(path);
        left.retain(|leaf| *leaf != path && together.is_none_or(|at| !is_within(leaf, at)));
        let and_all = if together.is_some() { " and all in it" } else { "" };
        let outcome = of_path(path)[0].1.clone();
        rows.push(row(subject, at, format!("`{at}`{and_all}"), outcome, faults));
        for trial in subject.trials.iter().filter(|trial| trial.told && is_within(&trial.path, at)) {
            match subject.outcome(&trial.path, &trial.value, &trial.before) {
                Ok(outcome) => {
                    let field = format!("`{}: {}`", trial.path, plain(&trial.value));
                    rows.push(row(subject, at, field, outcome, faults));
                }
                Err(fault) => faults.push(fault),
            }
        }
    }
    rows
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The outcome of each leaf, in the order in which they are listed.
fn outcomes(subject: &Subject, faults: &mut Vec<String>) -> Vec<(String, Outcome)> {
    let by_hand: BTreeMap<&str, _> =
        subject.trials.iter().filter(|trial| !trial.told).map(|trial| (&*trial.path, trial)).collect();
    for path in by_hand.keys() {
        if !subject.leaves.iter().any(|(leaf, _)| leaf == path) {
            faults.push(format!("{} has no field {path}", subject.kind));
        }
    }
    let outcome = |(path, value): &(String, Value)| match by_hand.get(path.as_str()) {
        Some(trial) => subject.outcome(path, &trial.value, &trial.before),
        None => subject.outcome(path, value, &[]),
    };
    let mut outcomes = Vec::new();
    for leaf in &subject.leaves {
        match outcome(leaf) {
            Ok(outcome) => outcomes.push((leaf.0.clone(), outcome)),
            Err(fault) => faults.push(fault),
        }
    }
    outcomes
}

fn is_within(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

fn row(subject: &Subject, path: &str, field: String, outcome: Outcome, faults: &mut Vec<String>) -> Row {
    let shown = match outcome {
        Outcome::Acts | Outcome::ActsByProxy => {
            test_of(subject, path).map_err(|fault| faults.push(fault)).ok()
        }
        Outcome::Refused(_) => None,
        Outcome::Nothing => {
            let mut noted = subject.noted.iter().filter(|(of, _)| is_within(path, of));
            let who = noted.next().map(|(_, who)| (*who).to_owned());
            who.or_else(|| {
                faults
                    .push(format!("{} {path} has no effect: say in `noted` why that is right", subject.kind));
                None
            })
        }
    };
    Row { field, outcome, shown }
}

/// The test that shows a field act, which is there.
fn test_of(subject: &Subject, path: &str) -> Result<String, String> {
    let fits = subject.shown.iter().filter(|(of, ..)| path.starts_with(of));
    let Some((_, file, test)) = fits.max_by_key(|(of, ..)| of.len()) else {
        return Err(format!("{} {path} acts, and no test shows it: name one in `shown`", subject.kind));
    };
    let text = fs::read_to_string(root().join(file)).map_err(|error| format!("{file}: {error}"))?;
    if !text.contains(&format!("fn {test}(")) {
        return Err(format!("{file} has no test {test}"));
    }
    Ok(format!("[{}](../{file})", test.replace('_', " ")))
}

/// The folder of the repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}
