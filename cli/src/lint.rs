//! `slotmesh lint`: what `slotmesh up` would say of manifests.
//!
//! The manifests are read and compiled by the pipeline that `slotmesh up` runs, with nobody to publish to: so it says
//! the same, and needs no right.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use slotmesh_admin::{ReportSeverity, ReportView};
use slotmesh_compile::{Reason, Report};
use slotmesh_operator::{
    Operator, OperatorOptions,
    watch::{LocalNode, ManifestTexts},
};

use crate::{
    compile::CompileFlags,
    domain::DomainFlag,
    render::{Paint, print},
    reports::view,
};

/// Exit status where something is found.
const FOUND: u8 = 1;
/// Exit status where the command line is wrong, as clap has it.
const USAGE: u8 = 2;

/// The end of `slotmesh lint --help`.
const EXAMPLES: &str = "Examples:
  slotmesh lint ./shop
  kustomize build overlays/prod | slotmesh lint --for-cluster -
  slotmesh lint --fail-on not-supported --output github ./shop

Exit status: 0 nothing at or above --fail-on, 1 something, 2 wrong usage";

/// The flags of `slotmesh lint`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Lint {
    /// Directories of manifests (YAML or JSON, with subdirectories), files of them, or - for standard input
    #[arg(required = true, value_name = "DIR")]
    paths: Vec<PathBuf>,

    /// Form of what is found
    #[arg(long, short, env = "SLOTMESH_LINT_OUTPUT", default_value = "text")]
    output: LintForm,

    /// The least severity that makes the exit status 1
    #[arg(long, env = "SLOTMESH_FAIL_ON", default_value = "refused", value_name = "SEVERITY")]
    fail_on: FailOn,

    /// The manifests are meant for a cluster, which gives Services their addresses and makes Pods and EndpointSlices: say
    /// nothing of those that are missing
    #[arg(long, env = "SLOTMESH_FOR_CLUSTER")]
    for_cluster: bool,

    /// Also name the objects that slotmesh doesn't read
    #[arg(long, env = "SLOTMESH_LINT_ALL")]
    all: bool,

    #[command(flatten)]
    compile: CompileFlags,

    #[command(flatten)]
    domain: DomainFlag,
}

/// Form of what is found.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LintForm {
    /// A line each: FILE:LINE: SEVERITY: OBJECT: MESSAGE
    Text,
    /// A list of all, with fields and reasons
    Json,
    /// Annotations of a workflow of GitHub
    Github,
}

/// The least severity that fails.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FailOn {
    /// What isn't in force
    Refused,
    /// Fields without effect, too
    NotSupported,
    /// Everything that is said
    Note,
}

impl FailOn {
    fn covers(self, severity: ReportSeverity) -> bool {
        let least = match self {
            Self::Refused => ReportSeverity::Refused,
            Self::NotSupported => ReportSeverity::NotSupported,
            Self::Note => ReportSeverity::Note,
        };
        severity <= least
    }
}

impl Lint {
    /// Prints what there is to say.
    ///
    /// # Errors
    /// When it can't be printed.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self { paths, output, fail_on, for_cluster, all, compile, domain } = self;
        domain.on_a_machine().set();
        let mut texts = ManifestTexts::default();
        for path in &paths {
            if let Err(error) = add(&mut texts, path) {
                eprintln!("error: {error:#}");
                return Ok(ExitCode::from(USAGE));
            }
        }
        let options = OperatorOptions {
            compile: compile.options(),
            node: Some(LocalNode::default()),
            ..OperatorOptions::default()
        };
        let operator = Operator::from_texts(&texts, options, |_: Vec<_>| {})?;
        let status = operator.status();
        // Now all is compiled.
        drop(operator);
        let status = status.borrow().clone();
        let matters = |report: &&Report| {
            (all || report.reason != Reason::Foreign) && !(for_cluster && is_a_clusters_matter(report))
        };
        let mut found: Vec<ReportView> = status
            .reports
            .iter()
            .filter(matters)
            .map(|report| ReportView { line: texts.line(report), ..view(report) })
            .collect();
        let place = |found: &ReportView| (found.file.clone(), found.line, found.severity);
        found.sort_by_key(place);
        print(&match output {
            LintForm::Text => found.iter().map(line).collect::<String>(),
            LintForm::Json => serde_json::to_string_pretty(&found)? + "\n",
            LintForm::Github => found.iter().map(annotation).collect::<String>(),
        })?;
        eprintln!("{}", summary(texts.len(), &found));
        let fails = found.iter().any(|found| fail_on.covers(found.severity));
        Ok(if fails { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
    }
}

fn add(texts: &mut ManifestTexts, path: &Path) -> anyhow::Result<()> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text)?;
        texts.add_text("<stdin>", text);
    } else {
        texts.add(path)?;
    }
    Ok(())
}

/// Tells whether a report is about what controllers of a cluster make, and nobody in a directory.
fn is_a_clusters_matter(report: &Report) -> bool {
    let field = report.field.as_deref().unwrap_or_default();
    report.reason == Reason::NoEndpoints
        || (report.object.kind == "Service" && field == "spec.clusterIP" && report.reason == Reason::Note)
        || (report.reason == Reason::Note && is_of_a_controller(&report.object.kind))
        || (report.object.kind == "Pod" && field == "status.podIP")
}

/// Tells whether a controller makes Pods of objects of this kind.
fn is_of_a_controller(kind: &str) -> bool {
    matches!(
        kind,
        "Deployment"
            | "StatefulSet"
            | "DaemonSet"
            | "ReplicaSet"
            | "ReplicationController"
            | "Job"
            | "CronJob"
    )
}

/// `shop/web.yaml:12: refused: Service shop/web: …`
fn line(found: &ReportView) -> String {
    let place = match (&found.file, found.line) {
        (Some(file), Some(line)) => format!("{file}:{line}: "),
        (Some(file), None) => format!("{file}: "),
        (None, _) => String::new(),
    };
    let paint = match found.severity {
        ReportSeverity::Refused => Paint::Red,
        ReportSeverity::NotSupported => Paint::Yellow,
        ReportSeverity::Note => Paint::Faint,
    };
    let severity = paint.on(&found.severity.to_string());
    format!("{place}{severity}: {}: {}\n", found.object, found.text())
}

/// A command of a workflow, by which GitHub shows the message at the line.
fn annotation(found: &ReportView) -> String {
    let command = match found.severity {
        ReportSeverity::Refused => "error",
        ReportSeverity::NotSupported => "warning",
        ReportSeverity::Note => "notice",
    };
    let mut properties = Vec::new();
    if let Some(file) = &found.file {
        properties.push(format!("file={}", escaped(file, true)));
    }
    if let Some(line) = found.line {
        properties.push(format!("line={line}"));
    }
    properties.push(format!("title={}", escaped(&found.object, true)));
    format!("::{command} {}::{}\n", properties.join(","), escaped(&found.text(), false))
}

/// A text within a workflow's command: the message, or a property of it.
fn escaped(text: &str, property: bool) -> String {
    let text = text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    if property { text.replace(':', "%3A").replace(',', "%2C") } else { text }
}

/// How much was looked at, and how much was found.
fn summary(files: usize, found: &[ReportView]) -> String {
    let mut counts = BTreeMap::<ReportSeverity, usize>::new();
    found.iter().for_each(|found| *counts.entry(found.severity).or_default() += 1);
    let mut text = format!("{files} file{}: ", if files == 1 { "" } else { "s" });
    if counts.is_empty() {
        text += "nothing to say";
    }
    for (i, (severity, count)) in counts.iter().enumerate() {
        let word = match severity {
            ReportSeverity::Note => "worth knowing".to_owned(),
            severity => severity.to_string(),
        };
        let comma = if i == 0 { "" } else { ", " };
        _ = write!(text, "{comma}{count} {word}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> ReportView {
        ReportView {
            object: "Service shop/web".to_owned(),
            kind: "Service".to_owned(),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            file: Some("a,b:c.yaml".to_owned()),
            document: Some(1),
            line: Some(7),
            field: Some("spec.ports".to_owned()),
            severity: ReportSeverity::Refused,
            reason: "Invalid".to_owned(),
            message: "100% wrong\nindeed".to_owned(),
            consequence: None,
            hint: None,
        }
    }

    #[test]
    fn what_ends_a_command_of_a_workflow_is_escaped() {
        let expected =
            "::error file=a%2Cb%3Ac.yaml,line=7,title=Service shop/web::spec.ports: 100%25 wrong%0Aindeed\n";
        assert_eq!(annotation(&found()), expected);
    }

    #[test]
    fn each_severity_fails_with_those_below_it() {
        use ReportSeverity::{NotSupported, Note, Refused};
        let covered =
            |fail_on: FailOn| [Refused, NotSupported, Note].map(|severity| fail_on.covers(severity));
        assert_eq!(covered(FailOn::Refused), [true, false, false]);
        assert_eq!(covered(FailOn::NotSupported), [true, true, false]);
        assert_eq!(covered(FailOn::Note), [true; 3]);
    }

    #[test]
    fn a_summary_counts_by_severity() {
        assert_eq!(summary(1, &[]), "1 file: nothing to say");
        let note = ReportView { severity: ReportSeverity::Note, ..found() };
        assert_eq!(summary(2, &[note, found()]), "2 files: 1 refused, 1 worth knowing");
    }
}
