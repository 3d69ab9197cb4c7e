//! `/origins` of the admin interface: the objects because of which connections to an address go where they go.

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use slotmesh_admin::{EndpointOriginView, OriginView, OriginsView, paths};
use slotmesh_agent::admin::json;
use slotmesh_compile::{ObjectRef, Origins, Readiness};
use slotmesh_operator::{History, Inquiry};

use crate::reports::view;

/// The page, and its content.
pub const PAGE: (&str, &str) =
    (paths::ORIGINS, "/origins/LISTENER: the objects because of which it leads where it does, JSON");

/// The route `/origins/LISTENER`.
pub fn router(inquiry: Inquiry, history: History) -> Router {
    async fn show(
        State((inquiry, history)): State<(Inquiry, History)>,
        Path(listener): Path<String>,
    ) -> Response {
        match inquiry.origins(listener.as_str().into()).await {
            Some(origins) => json(&origins_view(&origins, &history)),
            None => (StatusCode::NOT_FOUND, format!("no listener {listener:?} is served\n")).into_response(),
        }
    }
    Router::new().route("/origins/{listener}", get(show)).with_state((inquiry, history))
}

/// The objects as both ends of the admin interface know them.
pub fn origins_view(origins: &Origins, history: &History) -> OriginsView {
    let called = |object: &ObjectRef| ObjectRef { source: None, ..object.clone() }.to_string();
    let file = |object: &ObjectRef| object.source.as_ref().map(|source| source.file.to_string());
    let line = |object: &ObjectRef| object.source.as_ref().and_then(|source| source.line);
    let objects = origins.objects.iter().map(|origin| OriginView {
        object: called(&origin.object),
        file: file(&origin.object),
        line: line(&origin.object),
        resource_version: history.resource_version(&origin.key),
        makes: origin.makes.iter().map(|(ty, name)| format!("{ty} {name}")).collect(),
        reports: origin.reports.iter().map(view).collect(),
    });
    let endpoints = origins.endpoints.iter().map(|endpoint| EndpointOriginView {
        address: endpoint.address.to_string(),
        slice: called(&endpoint.slice),
        pod: endpoint.pod.as_ref().map(ToString::to_string),
        readiness: match endpoint.readiness {
            Readiness::Ready => "ready",
            Readiness::Terminating => "terminating",
            Readiness::NotReady => "not ready",
        }
        .to_owned(),
    });
    OriginsView {
        service: origins.service.to_string(),
        objects: objects.collect(),
        endpoints: endpoints.collect(),
    }
}
