//! A program of somebody else, attached beside slotmesh's.

use std::{fs::File, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, SockOps},
};
use slotmesh_agent::Pins;

use crate::cgroup::Cgroup;

/// The probe `foreign`, until it is dropped.
pub(crate) struct Foreign {
    _object: Ebpf,
}

impl Foreign {
    pub(crate) fn attach(pins: &Pins, to: &Cgroup) -> Self {
        let file = std::env::var_os("SLOTMESH_PROBES_OBJECT").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/probes.bpf.o"),
            Into::into,
        );
        let bytes = std::fs::read(&file)
            .unwrap_or_else(|error| panic!("{}: {error}; run `make ebpf`", file.display()));
        let mut object = EbpfLoader::new()
            .map_pin_path("OUTER", pins.records().join("outer"))
            .map_pin_path("VIPS", pins.records().join("vips"))
            .load(&bytes)
            .expect("the probes load (root and BPF)");
        let program: &mut SockOps =
            object.program_mut("foreign").expect("the probes have it").try_into().expect("sock_ops");
        program.load().expect("the verifier accepts the probe");
        let cgroup = File::open(&to.0).expect("the cgroup is there");
        program.attach(cgroup, CgroupAttachMode::Single).expect("it can be attached");
        Self { _object: object }
    }
}
