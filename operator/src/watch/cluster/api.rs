//! Where in the API the objects of a kind are, as the table of kinds has it.

use kube::core::ApiResource;
use slotmesh_compile::Kind;
use slotmesh_crds::own;

/// Tells whether every API server has the kind.
pub(super) fn is_built_in(kind: Kind) -> bool {
    matches!(kind.spec().group, "" | "discovery.k8s.io")
}

/// Tells whether nothing is served before the kind is listed: without it, what is served would be wrong.
pub(super) fn is_needed(kind: Kind) -> bool {
    is_built_in(kind) || kind.spec().group == own::GROUP
}

/// The `apiVersion` of a kind's objects in one of its versions.
pub(in crate::watch) fn api_version(kind: Kind, version: &str) -> String {
    let group = kind.spec().group;
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// The resource of a kind in one of its versions.
pub(super) fn resource(kind: Kind, version: &str) -> ApiResource {
    let spec = kind.spec();
    ApiResource {
        group: spec.group.to_owned(),
        version: version.to_owned(),
        api_version: api_version(kind, version),
        kind: spec.name.to_owned(),
        plural: spec.plural.to_owned(),
    }
}

/// The resource of a kind in each version that is read, the best first.
pub(crate) fn resources(kind: Kind) -> impl Iterator<Item = ApiResource> {
    kind.spec().versions.iter().map(move |version| resource(kind, version))
}
