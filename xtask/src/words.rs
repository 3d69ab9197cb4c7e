//! Checks the words that the code is written in: one meaning a word, and sentences that begin with their subject.
//!
//! | rule | what it counts | allowed |
//! | --- | --- | --- |
//! | `type` | public types of a name, in the workspace | 1 |
//! | `module` | modules of a name | 2 |
//! | `clause` | doc comments of a crate that open with a subordinate clause | 0 |
//! | `retired` | identifiers made with a word that another has replaced | 0 |
//!
//! What was there before the rules stands in `xtask/words.txt`, by number. That table only shrinks: a count above it
//! fails, and so does one below it, until `cargo xtask words --lower` has written the lower number down. Clauses are
//! many, and two changes that are made beside each other would trip over the number: they have room for ten to twenty.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::workspace::Workspace;

/// The flags of `cargo xtask words`.
#[derive(Args)]
pub struct Words {
    /// Write lower numbers into the table, where there are fewer now. It never raises one.
    #[arg(long)]
    lower: bool,
}

/// How a doc comment doesn't open: the reader has to reach its end to learn what it is about.
const CLAUSES: [&str; 4] = ["What ", "Whether ", "As what ", "How far "];

/// Words that others have replaced, and by which.
const RETIRED: [(&str, &str); 9] = [
    ("Desk", "NodeStatusReconciler"),
    ("Intake", "ListTracker"),
    ("Mailbox", "CoalescingQueue"),
    ("News", "StreamEvents"),
    ("Notices", "StatusUpdates"),
    ("Obituary", "PanicReporter"),
    ("Seat", "NodeClaim"),
    ("Undo", "RollbackGuard"),
    ("Verdicts", "ProgrammedIndex"),
];

/// Modules that each crate may have.
const COMMON_MODULES: [&str; 2] = ["tests", "support"];

/// A rule and what it is about: a name, a word, or a crate's folder.
type Key = (Rule, String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    Type,
    Module,
    Clause,
    Retired,
}

impl Rule {
    const ALL: [Self; 4] = [Self::Type, Self::Module, Self::Clause, Self::Retired];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Module => "module",
            Self::Clause => "clause",
            Self::Retired => "retired",
        }
    }

    /// How often something may be found that doesn't stand in the table.
    const fn allowed(self) -> usize {
        match self {
            Self::Type => 1,
            Self::Module => 2,
            Self::Clause | Self::Retired => 0,
        }
    }

    /// The number that the table may say where there are so many.
    const fn noted(self, now: usize) -> usize {
        match self {
            Self::Clause if now > 0 => (now / 10 + 2) * 10,
            _ => now,
        }
    }
}

/// `cargo xtask words`
pub fn run(workspace: &Workspace, words: &Words) -> Result<()> {
    let file = workspace.root().join("xtask/words.txt");
    let text = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
    let mut table = parse(&text).with_context(|| file.display().to_string())?;
    let found = survey(workspace.root())?;
    if words.lower {
        lower(&mut table, &found);
        fs::write(&file, written(&table)).with_context(|| format!("can't write {}", file.display()))?;
    }
    let complaints = compare(&table, &found);
    if complaints.is_empty() {
        let left: usize = table.keys().filter_map(|key| found.get(key)).map(Vec::len).sum();
        println!("words: nothing new, {left} exceptions left");
        return Ok(());
    }
    bail!("{}", complaints.join("\n"))
}

/// Where each thing that a rule counts was found.
type Found = BTreeMap<Key, Vec<String>>;

/// Looks through all sources.
fn survey(root: &Path) -> Result<Found> {
    let mut files = Vec::new();
    sources(root, &mut files)?;
    files.sort();
    let mut found = Found::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        look(&name, &text, &mut found);
    }
    Ok(found)
}

/// All files of Rust below a folder, without what is built or hidden.
fn sources(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        let kind = entry.file_type()?;
        if kind.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            sources(&path, files)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Counts what a file has.
fn look(file: &str, text: &str, found: &mut Found) {
    let product = file.split_once("/src/").is_some_and(|(_, rest)| !rest.ends_with("tests.rs"));
    let mut in_doc = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        let at = || format!("{file}:{number}");
        let mut put = |rule, what: &str| found.entry((rule, what.to_owned())).or_default().push(at());
        let doc = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        if let Some(sentence) = doc.filter(|_| !in_doc)
            && CLAUSES.iter().any(|clause| sentence.trim_start().starts_with(clause))
        {
            put(Rule::Clause, crate_of(file));
        }
        in_doc = doc.is_some();
        if line.starts_with("//") {
            continue;
        }
        if product {
            if let Some(name) = public_type(line) {
                put(Rule::Type, name);
            }
            if let Some(name) = module(line).filter(|name| !COMMON_MODULES.contains(name)) {
                put(Rule::Module, name);
            }
        }
        if let Some(name) = defined_type(line) {
            let parts = parts(name);
            for (word, _) in RETIRED.iter().filter(|(word, _)| parts.contains(word)) {
                put(Rule::Retired, word);
            }
        }
    }
}

/// The folder of the crate that a file belongs to.
fn crate_of(file: &str) -> &str {
    let ends = ["/src/", "/tests/", "/benches/", "/examples/", "/fuzz_targets/", "/build.rs"];
    ends.iter().filter_map(|end| file.find(end)).min().map_or(file, |end| &file[..end])
}

/// The name of a type that a line makes public.
fn public_type(line: &str) -> Option<&str> {
    line.strip_prefix("pub ").and_then(named_type)
}

/// The name of a type that a line defines, whoever may see it.
fn defined_type(line: &str) -> Option<&str> {
    named_type(without_visibility(line))
}

fn without_visibility(line: &str) -> &str {
    let Some(rest) = line.strip_prefix("pub") else { return line };
    match rest.strip_prefix('(') {
        Some(rest) => rest.split_once(") ").map_or(line, |(_, rest)| rest),
        None => rest.trim_start(),
    }
}

fn named_type(line: &str) -> Option<&str> {
    let rest =
        ["struct ", "enum ", "trait ", "type ", "union "].iter().find_map(|word| line.strip_prefix(word))?;
    Some(identifier(rest)).filter(|name| !name.is_empty())
}

/// The name of a module with a file of its own.
fn module(line: &str) -> Option<&str> {
    let rest = without_visibility(line).strip_prefix("mod ")?;
    let name = identifier(rest);
    rest[name.len()..].starts_with(';').then_some(name)
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The words of a name in camel case.
fn parts(name: &str) -> BTreeSet<&str> {
    let mut starts: Vec<usize> =
        name.char_indices().filter(|(_, c)| c.is_uppercase()).map(|(i, _)| i).collect();
    starts.push(name.len());
    starts.windows(2).map(|pair| &name[pair[0]..pair[1]]).collect()
}

type Table = BTreeMap<Key, usize>;

/// Reads `RULE WHAT NUMBER` a line; empty lines and those with `#` say nothing.
fn parse(text: &str) -> Result<Table> {
    let mut table = Table::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        let read = match fields[..] {
            [rule, what, number] => Rule::ALL
                .into_iter()
                .find(|known| known.as_str() == rule)
                .zip(number.parse().ok())
                .map(|(rule, number)| ((rule, what.to_owned()), number)),
            _ => None,
        };
        let (key, number) = read.with_context(|| format!("{line:?} is no RULE WHAT NUMBER"))?;
        table.insert(key, number);
    }
    Ok(table)
}

fn written(table: &Table) -> String {
    let mut text = String::from(
        "# What was there before `cargo xtask words` asked, by number. It only shrinks: mend some and run\n\
         # `cargo xtask words --lower`. Nothing is added by hand.\n",
    );
    for ((rule, what), number) in table {
        text += &format!("{} {what} {number}\n", rule.as_str());
    }
    text
}

/// Takes lower numbers over.
fn lower(table: &mut Table, found: &Found) {
    for (key, number) in table.iter_mut() {
        *number = (*number).min(key.0.noted(found.get(key).map_or(0, Vec::len)));
    }
    table.retain(|(rule, _), number| *number > rule.allowed());
}

/// Differences from the table.
fn compare(table: &Table, found: &Found) -> Vec<String> {
    let keys: BTreeSet<&Key> = table.keys().chain(found.keys()).collect();
    let mut complaints = Vec::new();
    for key @ (rule, what) in keys {
        let places = found.get(key).map_or(&[][..], Vec::as_slice);
        let allowed = table.get(key).copied().unwrap_or(rule.allowed());
        let now = places.len().max(rule.allowed());
        if now > allowed {
            let places = places.join(", ");
            complaints.push(match rule {
                Rule::Type => format!("{now} public types are called {what}, where {allowed} may be: {places}"),
                Rule::Module => format!("{now} modules are called {what}, where {allowed} may be: {places}"),
                Rule::Clause => format!(
                    "{now} doc comments of {what} open with a subordinate clause ({}), where {allowed} may; begin \
                     with a noun or a verb: {places}",
                    CLAUSES.map(|clause| format!("{clause}…")).join(", ")
                ),
                Rule::Retired => {
                    let better = RETIRED.iter().find(|(word, _)| word == what).map_or("", |(_, better)| better);
                    format!("{now} types are named with {what}, where {allowed} may be; better {better}: {places}")
                }
            });
        } else if rule.noted(now) < allowed {
            complaints.push(format!(
                "{} {what}: the table says {allowed}, there are {now}; run `cargo xtask words --lower`",
                rule.as_str()
            ));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Found {
        let mut found = Found::new();
        for (file, text) in files {
            look(file, text, &mut found);
        }
        found
    }

    fn complaints(table: &str, files: &[(&str, &str)]) -> Vec<String> {
        compare(&parse(table).unwrap(), &found(files))
    }

    #[test]
    fn a_second_public_type_of_a_name_is_told_with_both_places() {
        let twice = [("a/src/lib.rs", "pub struct Host<'a> {"), ("b/src/x.rs", "\n    pub enum Host {")];
        assert_eq!(
            complaints("", &twice),
            ["2 public types are called Host, where 1 may be: a/src/lib.rs:1, b/src/x.rs:2"]
        );
        assert!(complaints("type Host 2\n", &twice).is_empty());
        let once =
            [("a/src/lib.rs", "pub struct Host;"), ("b/src/x.rs", "pub(crate) struct Host;\nstruct Host;")];
        assert!(complaints("", &once).is_empty());
        assert!(
            complaints("", &[("a/tests/x.rs", "pub struct Host;"), ("a/src/y.rs", "pub type Host = u8;")])
                .is_empty()
        );
    }

    #[test]
    fn a_third_module_of_a_name_is_told() {
        let files =
            ["a", "b", "c"].map(|name| (format!("{name}/src/lib.rs"), "pub(crate) mod report;\nmod tests;"));
        let files: Vec<(&str, &str)> = files.iter().map(|(file, text)| (file.as_str(), *text)).collect();
        assert_eq!(complaints("", &files).len(), 1);
        assert!(complaints("", &files[..2]).is_empty());
        assert!(complaints("", &[("a/src/lib.rs", "mod report {\nmodel;")]).is_empty());
    }

    #[test]
    fn only_the_first_line_of_a_doc_comment_is_its_opening() {
        let text = "//! What it holds.\n\n/// Number of them.\n/// What else there is.\nfn a() {}\n// Whether.\n/// Whether it is.\n";
        assert_eq!(
            found(&[("operator/compile/tests/a/b.rs", text)])[&(Rule::Clause, "operator/compile".into())],
            ["operator/compile/tests/a/b.rs:1", "operator/compile/tests/a/b.rs:7"]
        );
    }

    #[test]
    fn a_retired_word_counts_where_a_name_is_made_of_it_not_where_it_begins_like_it() {
        let text = "struct NodeDesk;\npub(super) enum Seat {}\nstruct Seated;\nstruct Newsletter;\nlet desk = Desk::new();";
        let found = found(&[("a/src/lib.rs", text)]);
        assert_eq!(found[&(Rule::Retired, "Desk".into())].len(), 1);
        assert_eq!(found[&(Rule::Retired, "Seat".into())].len(), 1);
        assert!(!found.contains_key(&(Rule::Retired, "News".into())));
    }

    #[test]
    fn the_table_shrinks_and_never_grows() {
        let now = found(&[("a/src/lib.rs", "/// What a is.\nstruct A;\n/// What b is.\nstruct B;")]);
        let mut table = parse("clause a 30\nclause gone 2\ntype A 2\n").unwrap();
        assert_eq!(compare(&table, &now).len(), 3, "a number that is too high fails");
        lower(&mut table, &now);
        assert!(compare(&table, &now).is_empty());
        assert_eq!(table, parse("clause a 20\n").unwrap());
        let mut table = parse("clause a 1\n").unwrap();
        lower(&mut table, &now);
        assert_eq!(table, parse("clause a 1\n").unwrap());
    }

    #[test]
    fn a_line_that_is_none_is_refused() {
        for line in ["type Host", "type Host many", "kind Host 2", "type Host 2 3"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert_eq!(parse(&written(&parse("type Host 2").unwrap())).unwrap().len(), 1);
    }
}
