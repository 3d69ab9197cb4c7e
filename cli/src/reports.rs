//! `/reports` of the admin interface: what users should know of their objects. And what else is told of the pipeline.

use axum::{Router, extract::State, response::Response, routing::get};
use serde::Serialize;
use slotmesh_agent::admin::json;
use slotmesh_compile::{Report, Severity};
use slotmesh_operator::Status;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A report as `/reports` shows it.
#[derive(Debug, Serialize)]
struct ReportView {
    object: String,
    field: Option<String>,
    file: Option<String>,
    severity: &'static str,
    message: String,
}

impl From<&Report> for ReportView {
    fn from(report: &Report) -> Self {
        Self {
            object: report.object.to_string(),
            field: report.field.clone(),
            file: report.object.source.as_ref().map(ToString::to_string),
            severity: match report.severity {
                Severity::Refused => "refused",
                Severity::NotSupported => "not supported",
                Severity::Note => "note",
            },
            message: report.message.clone(),
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

/// How much there is to say, in a few words.
pub fn summary(status: &Status) -> String {
    let count = |severity| status.reports.iter().filter(|report| report.severity == severity).count();
    let said = [
        (Severity::Refused, "refused"),
        (Severity::NotSupported, "not supported"),
        (Severity::Note, "notes"),
    ]
    .map(|(severity, word)| (count(severity), word));
    let said: Vec<String> = said
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    if said.is_empty() { "no reports".to_owned() } else { format!("{} (see /reports)", said.join(", ")) }
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
    fn nothing_to_say_is_said() {
        assert_eq!(summary(&Status::default()), "no reports");
    }
}
