//! The reader: the probe `tree`, run through BPF_PROG_TEST_RUN.

use std::path::{Path, PathBuf};

use aya::{
    Ebpf, EbpfLoader,
    maps::Array,
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use slotmesh_records::SlotPtr;

use crate::report::{Fault, Owner, Report, Request};

/// An Ethernet header, which a test run insists on.
const ETHERNET: usize = 14;
/// Runs in one call: more would stretch the grace periods.
const REPEAT: u32 = 200;
/// Turns of the loop in which it lingers at most: some 10 us, at about 1 ns a turn.
const LINGER: u32 = 65_536;
/// It lingers at one of that many loads.
const ONE_IN: u32 = 256;

const OWNER_WORDS: usize = size_of::<Owner>() / 8;
const REPORT_WORDS: usize = size_of::<Report>() / 8;

/// See the module's comment.
pub(crate) struct Reader {
    object: Ebpf,
    packet: Vec<u8>,
}

/// The probes' object, where `cargo xtask ebpf` leaves it; `SLOTMESH_PROBES_OBJECT` names another.
fn object() -> PathBuf {
    std::env::var_os("SLOTMESH_PROBES_OBJECT").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/probes.bpf.o"),
        PathBuf::from,
    )
}

impl Reader {
    /// Loads the probe over the maps pinned in `root`, to read the trees of `owners`.
    pub(crate) fn load(root: &Path, owners: &[Owner]) -> Self {
        let file = object();
        let bytes = std::fs::read(&file)
            .unwrap_or_else(|error| panic!("{}: {error}; run `make ebpf`", file.display()));
        let mut object = EbpfLoader::new()
            .map_pin_path("OUTER", root.join("outer"))
            .map_pin_path("VIPS", root.join("vips"))
            .load(&bytes)
            .expect("the probes load (root and BPF)");
        let mut trees: Array<_, [u64; OWNER_WORDS]> =
            object.map_mut("TREES").expect("the probes have it").try_into().expect("an array");
        for (i, owner) in owners.iter().enumerate() {
            trees.set(i as u32, bytemuck::cast::<_, [u64; OWNER_WORDS]>(*owner), 0).expect("in range");
        }
        program(&mut object).load().expect("the verifier accepts the probe");
        let request = Request { owners: owners.len() as u32, linger: LINGER, one_in: ONE_IN, reserved: 0 };
        let mut packet = vec![0; ETHERNET];
        packet.extend_from_slice(bytemuck::bytes_of(&request));
        // The least that a test run takes for a packet.
        packet.resize(64, 0);
        Self { object, packet }
    }

    /// Two hundred reads; what was found since the start.
    pub(crate) fn read(&mut self) -> Report {
        let options = TestRunOptions { data_in: Some(&self.packet), repeat: REPEAT, ..TestRunOptions::new() };
        program(&mut self.object).test_run(options).expect("the kernel runs the probe");
        let report: Array<_, [u64; REPORT_WORDS]> =
            self.object.map("REPORT").expect("the probes have it").try_into().expect("an array");
        bytemuck::cast(report.get(&0, 0).expect("the element is there"))
    }
}

fn program(object: &mut Ebpf) -> &mut SchedClassifier {
    object.program_mut("tree").expect("the probes have it").try_into().expect("a classifier")
}

/// The first bad tree of a report, in words.
pub(crate) fn describe(report: &Report) -> String {
    const FAULTS: [Fault; 7] = [
        Fault::Pointer,
        Fault::Kind,
        Fault::Name,
        Fault::Owner,
        Fault::Version,
        Fault::Content,
        Fault::Checksum,
    ];
    let fault = FAULTS.into_iter().find(|&fault| fault as u32 == report.fault);
    let fault = fault.map_or_else(|| "nothing".to_owned(), |fault| format!("{fault:?}"));
    let Report { owner, slot, index, expected, found, .. } = report;
    let slot = SlotPtr::from_bits(*slot);
    format!("{fault} of tree {owner} at slot {slot:?}, element {index}: {found:#x} instead of {expected:#x}")
}
