//! `/served` of the admin interface: what is served, to be compared with what a node has.

use axum::{
    Router,
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use slotmesh_admin::{ServedView, paths};
use slotmesh_agent::{RecordType, admin::json, in_force_as_compiled};
use slotmesh_serve::{NodeName, Store};
use slotmesh_xds::ResourceType;

/// The page, and its content.
pub const PAGE: (&str, &str) = (
    paths::SERVED,
    "/served/TYPE lists names and versions of what is served to agents, with ?node=NAME to that of a node; \
     /served/TYPE/NAME shows a resource as a node would have it, with the endpoints of all nodes' callers, JSON",
);

/// The routes `/served/TYPE` and `/served/TYPE/NAME`.
pub fn router(store: Store) -> Router {
    Router::new()
        .route("/served/{type}", get(list))
        .route("/served/{type}/{name}", get(show))
        .with_state(store)
}

fn known(ty: &str) -> Option<ResourceType> {
    RecordType::RESOURCES.into_iter().find(|known| known.as_str() == ty)
}

fn unknown(ty: &str) -> Response {
    (StatusCode::NOT_FOUND, format!("no type {ty:?}\n")).into_response()
}

async fn list(State(store): State<Store>, Path(ty): Path<String>, RawQuery(asked): RawQuery) -> Response {
    let Some(ty) = known(&ty) else { return unknown(&ty) };
    // A node's name has no character that would be escaped.
    let node = asked.as_deref().and_then(|asked| asked.strip_prefix("node=")).map(NodeName::from);
    let mut served: Vec<ServedView> = store
        .served(ty, node.as_ref())
        .into_iter()
        .map(|(name, version)| ServedView { name: name.to_string(), version: version.to_string() })
        .collect();
    served.sort_by(|a, b| a.name.cmp(&b.name));
    json(&served)
}

async fn show(State(store): State<Store>, Path((ty, name)): Path<(String, String)>) -> Response {
    let Some(ty) = known(&ty) else { return unknown(&ty) };
    let Some(resource) = store.get(ty, &name.as_str().into()) else {
        return (StatusCode::NOT_FOUND, format!("no {ty} {name:?} is served\n")).into_response();
    };
    match in_force_as_compiled(&resource, None) {
        Ok(shown) => json(&shown),
        // An agent refuses it likewise.
        Err(invalid) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{invalid}\n")).into_response(),
    }
}
