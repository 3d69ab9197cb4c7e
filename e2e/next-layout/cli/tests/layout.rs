//! What `slotmesh-next` has more than `slotmesh`: one record type, and one field of another.
//!
//! For this test cargo builds the `slotmesh-next` binary, which the scenarios in e2e/ upgrade to.

use std::collections::{BTreeMap, BTreeSet};

/// All record types of a build: the names of their fields, by the name of the type.
macro_rules! records_of {
    ($records:ident) => {
        (0..64)
            .filter_map(|kind| $records::layout::layout_of($records::RecordKind::new(kind)))
            .map(|layout| {
                let fields = layout.fixed.fields.iter().map(|field| field.name);
                (layout.fixed.name, fields.filter(|&name| name != "reserved").collect())
            })
            .collect::<BTreeMap<&str, BTreeSet<&str>>>()
    };
}

#[test]
fn it_has_one_record_type_and_one_field_more_and_so_another_layout() {
    let (before, mut after) = (records_of!(slotmesh_records), records_of!(slotmesh_records_next));
    assert!(after.remove("Added").is_some(), "{after:?}");
    assert!(after.get_mut("Cluster").is_some_and(|fields| fields.remove("added")), "{after:?}");
    assert_eq!(before, after);
    assert!(before.len() >= 14, "{before:?}");
    assert_ne!(slotmesh_records::LAYOUT_HASH, slotmesh_records_next::LAYOUT_HASH);
    assert_eq!(slotmesh_records::STATE_VERSION, slotmesh_records_next::STATE_VERSION);
}
