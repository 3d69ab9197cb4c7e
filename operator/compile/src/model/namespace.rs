//! Namespaces: whether their Pods take part.

use k8s_openapi::api::core::v1;

use super::{DISABLED, ENABLED, MESH, Read, mesh_value};
use crate::{CompileOptions, ObjectName, report::Findings};

/// The part of a Namespace that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Namespace {
    pub(crate) takes_part: bool,
}

impl Read<v1::Namespace> for Namespace {
    fn read(
        object: &v1::Namespace,
        _: &ObjectName,
        options: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        let value = mesh_value(object);
        if let Some(value) = value.filter(|value| options.enrols() && ![ENABLED, DISABLED].contains(value)) {
            let message = format!(
                "the label {MESH} is {value:?}, which changes nothing: only {ENABLED:?} lets the pods of a namespace take part"
            );
            found.refuse(format!("metadata.labels[{MESH}]"), message);
        }
        Some(Self { takes_part: value == Some(ENABLED) })
    }
}
