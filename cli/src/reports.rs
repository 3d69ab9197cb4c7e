//! `/reports` of the admin interface: what users should know of their objects. And what else is told of the pipeline.

use axum::{Router, extract::State, response::Response, routing::get};
use serde::Serialize;
use slotmesh_agent::admin::json;
use slotmesh_compile::{Kind, ObjectRef, Report, Severity};
use slotmesh_operator::Status;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A report as `/reports` shows it.
#[derive(Debug, Serialize)]
struct ReportView<'a> {
    /// Kind, namespace and name in one, to be read.
    object: String,
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    file: Option<&'a str>,
    document: Option<usize>,
    line: Option<usize>,
    field: Option<&'a str>,
    severity: &'static str,
    reason: &'static str,
    message: &'a str,
    consequence: Option<&'a str>,
    hint: Option<&'a str>,
}

impl<'a> From<&'a Report> for ReportView<'a> {
    fn from(report: &'a Report) -> Self {
        let object = &report.object;
        let source = object.source.as_ref();
        Self {
            object: ObjectRef { source: None, ..object.clone() }.to_string(),
            kind: &object.kind,
            namespace: &object.namespace,
            name: &object.name,
            file: source.map(|source| &*source.file),
            document: source.and_then(|source| source.document),
            line: source.and_then(|source| source.line),
            field: report.field.as_deref().filter(|field| !field.is_empty()),
            severity: report.severity.as_str(),
            reason: report.reason.as_str(),
            message: &report.message,
            consequence: report.consequence.as_deref(),
            hint: report.hint(),
        }
    }
}

/// The page, and what it shows.
pub const PAGE: (&str, &str) = ("/reports", "what users should know of their objects, JSON");

/// The route `/reports`.
pub fn router(status: watch::Receiver<Status>) -> Router {
    async fn show(State(status): State<watch::Receiver<Status>>) -> Response {
        let reports = status.borrow().reports.clone();
        json(&reports.iter().map(ReportView::from).collect::<Vec<_>>())
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
