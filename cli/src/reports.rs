//! `/reports` of the admin interface: what users should know of their objects.

use axum::{Json, Router, extract::State, routing::get};
use serde::Serialize;
use slotmesh_compile::{Report, Severity};
use slotmesh_operator::Status;
use tokio::sync::watch;

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

/// The route `/reports`.
pub fn router(status: watch::Receiver<Status>) -> Router {
    async fn show(State(status): State<watch::Receiver<Status>>) -> Json<Vec<ReportView>> {
        let reports = status.borrow().reports.clone();
        Json(reports.iter().map(ReportView::from).collect())
    }
    Router::new().route("/reports", get(show)).with_state(status)
}
