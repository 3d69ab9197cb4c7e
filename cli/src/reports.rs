//! What users should know of their objects: `/reports` of the admin interface, and `slotmesh reports`, which asks for it.
//! And what else is told of the pipeline.

use axum::{Router, extract::State, response::Response, routing::get};
use clap::Args;
use slotmesh_admin::{ReportSeverity, ReportView, paths};
use slotmesh_agent::admin::json;
use slotmesh_compile::{Kind, ObjectRef, Report, Severity};
use slotmesh_operator::Status;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    ask::AskedOperator,
    render::{Columns, OutputForm, Paint, or_dash, print},
};

/// A report as the admin interface and `slotmesh lint` show it.
pub fn view(report: &Report) -> ReportView {
    let object = &report.object;
    let source = object.source.as_ref();
    ReportView {
        object: ObjectRef { source: None, ..object.clone() }.to_string(),
        kind: object.kind.to_string(),
        namespace: object.namespace.to_string(),
        name: object.name.to_string(),
        file: source.map(|source| source.file.to_string()),
        document: source.and_then(|source| source.document),
        line: report.line.or_else(|| source.and_then(|source| source.line)),
        field: report.field.clone().filter(|field| !field.is_empty()),
        severity: match report.severity {
            Severity::Refused => ReportSeverity::Refused,
            Severity::NotSupported => ReportSeverity::NotSupported,
            Severity::Note => ReportSeverity::Note,
        },
        reason: report.reason.as_str().to_owned(),
        message: report.message.clone(),
        consequence: report.consequence.clone(),
        hint: report.hint().map(str::to_owned),
    }
}

/// The flags of `slotmesh reports`.
#[derive(Debug, Args)]
pub struct Reports {
    /// Tell of objects of this namespace only
    #[arg(value_name = "NAMESPACE")]
    of: Option<String>,

    #[command(flatten)]
    asked: AskedOperator,

    /// Form of the answer
    #[arg(long, short, env = "SLOTMESH_OUTPUT", default_value = "table")]
    output: OutputForm,
}

impl Reports {
    /// Prints what whoever compiles the objects says of them.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { of, asked, output } = self;
        let mut found: Vec<ReportView> = asked.ask(paths::REPORTS)?;
        found.retain(|found| of.as_ref().is_none_or(|namespace| found.namespace == *namespace));
        found.sort_by(|a, b| (a.severity, &a.object, &a.field).cmp(&(b.severity, &b.object, &b.field)));
        let table = |wide| table(&found, wide);
        print(&output.of(&found, table)?)?;
        if found.is_empty() {
            eprintln!("no reports");
        }
        Ok(())
    }
}

fn table(found: &[ReportView], wide: bool) -> Columns {
    let mut header = vec!["SEVERITY", "OBJECT"];
    if wide {
        header.extend(["REASON", "FILE"]);
    }
    header.push("MESSAGE");
    let mut table = Columns::new(header).paint("SEVERITY", |severity| match severity {
        "refused" => Some(Paint::Red),
        "not supported" => Some(Paint::Yellow),
        _ => None,
    });
    for found in found {
        let mut row = vec![found.severity.to_string(), found.object.clone()];
        if wide {
            let line = found.line.map_or(String::new(), |line| format!(":{line}"));
            let file = found.file.as_ref().map(|file| format!("{file}{line}"));
            row.extend([found.reason.clone(), or_dash(file)]);
        }
        row.push(found.text());
        table.row(row);
    }
    table
}

/// The page, and what it shows.
pub const PAGE: (&str, &str) = (paths::REPORTS, "what users should know of their objects, JSON");

/// The route `/reports`.
pub fn router(status: watch::Receiver<Status>) -> Router {
    async fn show(State(status): State<watch::Receiver<Status>>) -> Response {
        let reports = status.borrow().reports.clone();
        json(&reports.iter().map(view).collect::<Vec<_>>())
    }
    Router::new().route(PAGE.0, get(show)).with_state(status)
}

/// How much there is, and how much there is to say of it, in a few words.
pub fn summary(status: &Status) -> String {
    let routes = |kind: &Kind| *kind == Kind::VirtualService || kind.as_str().ends_with("Route");
    let held = |of: &dyn Fn(&Kind) -> bool| -> usize {
        status.objects.iter().filter(|(kind, _)| of(kind)).map(|(_, count)| count).sum()
    };
    let some = |count: usize, one: &str, many: &str| match count {
        1 => format!("1 {one}"),
        count => format!("{count} {many}"),
    };
    let objects = [
        some(held(&|kind| *kind == Kind::Service), "Service", "Services"),
        some(held(&routes), "route", "routes"),
    ];
    let said = Severity::ALL.map(|severity| {
        let count = status.reports.iter().filter(|report| report.severity == severity).count();
        let word = match severity {
            Severity::Refused => "refused",
            Severity::NotSupported => "not supported",
            Severity::Note => "worth knowing",
        };
        (count > 0).then(|| format!("{count} {word}"))
    });
    let said: Vec<String> = said.into_iter().flatten().collect();
    let said =
        if said.is_empty() { "no reports".to_owned() } else { format!("{} (see /reports)", said.join(", ")) };
    format!("{}; {said}", objects.join(", "))
}

/// Ends when the compile thread does, which is before the process only where something is wrong.
pub async fn compile_thread_ended(
    mut status: watch::Receiver<Status>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        () = async { while status.changed().await.is_ok() {} } => {
            Err(anyhow::anyhow!("it has ended; what it said stands above"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_compile_thread_that_is_gone_is_noticed() {
        let (sender, status) = watch::channel(Status::default());
        let watched = tokio::spawn(compile_thread_ended(status, CancellationToken::new()));
        sender.send_replace(Status { synced: true, ..Status::default() });
        tokio::task::yield_now().await;
        assert!(!watched.is_finished());
        drop(sender);
        assert!(watched.await.unwrap().is_err());
    }

    #[test]
    fn what_there_is_and_what_is_to_be_said_of_it_is_summed_up() {
        let mut status = Status::default();
        assert_eq!(summary(&status), "0 Services, 0 routes; no reports");
        status.objects =
            [(Kind::Service, 3), (Kind::VirtualService, 1), (Kind::HttpRoute, 1), (Kind::Pod, 9)].into();
        let object = ObjectRef { kind: "Pod".into(), namespace: "".into(), name: "".into(), source: None };
        let report = Report::new(object, None, Severity::NotSupported, String::new());
        status.reports = std::sync::Arc::new([report].into());
        assert_eq!(summary(&status), "3 Services, 2 routes; 1 not supported (see /reports)");
    }
}
