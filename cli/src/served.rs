//! `/served` of the admin interface: the names and versions of what is served, to be compared with what a node has.

use axum::{
    Router,
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use slotmesh_admin::{ServedView, paths};
use slotmesh_agent::admin::json;
use slotmesh_serve::{NodeName, Store};
use slotmesh_xds::ResourceType;

/// The page, and its content.
pub const PAGE: (&str, &str) = (
    paths::SERVED,
    "/served/TYPE lists names and versions of what is served to agents, with ?node=NAME to that of a node, JSON",
);

/// The route `/served/TYPE`.
pub fn router(store: Store) -> Router {
    async fn show(State(store): State<Store>, Path(ty): Path<String>, RawQuery(asked): RawQuery) -> Response {
        let Some(ty) = ResourceType::RECORDS.into_iter().find(|known| known.as_str() == ty) else {
            return (StatusCode::NOT_FOUND, format!("no type {ty:?}\n")).into_response();
        };
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
    Router::new().route("/served/{type}", get(show)).with_state(store)
}
