//! What a build with another record layout writes of a cluster besides.

use slotmesh_records::{Added, Handle, Owned, Ref};
use slotmesh_slots::Records;

use super::{HEADER, write_text};
use crate::{
    config::{Cluster, Source},
    packed::Packer,
};

/// Children first, as everywhere: the name, then the record that points at it.
pub(super) fn write_added<D: Records>(
    draft: &mut D,
    cluster: &Cluster<'_>,
    endpoints: Ref<Handle>,
) -> Result<Owned<Added>, D::Error> {
    let (name, tail) = match &cluster.source {
        Source::Assignment(name) => (*name, std::slice::from_ref(&endpoints)),
        Source::Inline(_) => ("", &[][..]),
    };
    let mut text = Packer::default();
    text.text(name);
    let source = write_text(draft, &text)?;
    draft.write(&Added { header: HEADER, source, reserved: 0 }, tail)
}
