//! What a build with another record layout writes of a cluster besides.

use slotmesh_records::{Added, Owned};
use slotmesh_slots::Records;

use super::{HEADER, write_text};
use crate::{
    RecordType,
    config::{Cluster, Source},
    packed::Packer,
};

/// Children first, as everywhere: the name, then the record that points at it.
pub(super) fn write_added<D: Records>(
    draft: &mut D,
    cluster: &Cluster<'_>,
) -> Result<Owned<Added>, D::Error> {
    let (name, endpoints) = match &cluster.source {
        // A handle is asked for as often as a record refers to it.
        Source::Assignment(name) => (*name, Some(draft.handle(RecordType::Endpoints.kind(), name)?.as_ref())),
        Source::Inline(_) | Source::Original => ("", None),
    };
    let mut text = Packer::default();
    text.text(name);
    let source = write_text(draft, &text)?;
    draft.write(&Added { header: HEADER, source, reserved: 0 }, endpoints.as_slice())
}
