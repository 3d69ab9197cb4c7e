//! Reads whole trees, VIP to last endpoint, and lingers on the way: a record that is reused too early is
//! met by a reader that still has its pointer.
//!
//! The version in a root record is read as soon as the handle is, then the program lingers, and all that
//! it reads afterwards must be of that version.

use core::{
    ffi::{c_long, c_void},
    mem::{offset_of, size_of},
};

use aya_ebpf::{
    bindings::TC_ACT_OK,
    helpers::{bpf_get_prandom_u32, generated::bpf_loop},
    macros::classifier,
    programs::TcContext,
};
use slotmesh_records::{
    Cluster, Endpoint, EndpointChunk, EndpointIndex, Endpoints, Handle, Listener, Record, RecordHeader,
    SlotPtr, Vip, VipKey, VipValue, choose,
};

use crate::{
    maps::{REPORT, TREES},
    place::{Place, tail},
    report::{
        self, CLUSTER, ENDPOINTS, Fault, LISTENER, MOST_ENDPOINTS, Owner, Report, Request, endpoint_count,
        is_of, mix,
    },
    slabs::VIPS,
};

const ETHERNET: usize = 14;

/// The numbers that records of these kinds have in `Handle::resource`.
const RESOURCE_CLUSTER: u32 = 1;
const RESOURCE_ENDPOINTS: u32 = 2;
const RESOURCE_LISTENER: u32 = 4;

#[classifier]
pub fn tree(ctx: TcContext) -> i32 {
    let (Ok(request), Some(report)) = (ctx.load::<Request>(ETHERNET), REPORT.get_ptr_mut(0)) else {
        return TC_ACT_OK as i32;
    };
    // SAFETY: the element lives as long as the map, and one reader at a time is all there is.
    let report = unsafe { &mut *report };
    report.reads += 1;
    // SAFETY: the helper has no preconditions.
    let (owner, _) = choose(unsafe { bpf_get_prandom_u32() }, request.owners);
    let Some(tree) = TREES.get(owner) else { return TC_ACT_OK as i32 };
    let mut reader = Reader { owner, request, report };
    match reader.read(tree) {
        Ok(records) => {
            reader.report.complete += 1;
            reader.report.records += u64::from(records);
        }
        Err(Stop::Null) => reader.report.null += 1,
        Err(Stop::Bad(bad)) => {
            let report = reader.report;
            report.bad += 1;
            if report.bad == 1 {
                report.fault = bad.fault as u32;
                report.owner = owner;
                report.slot = bad.slot.bits();
                report.index = bad.index;
                report.expected = bad.expected;
                report.found = bad.found;
            }
        }
    }
    TC_ACT_OK as i32
}

/// Why a tree wasn't read to its end.
enum Stop {
    Null,
    Bad(Bad),
}

/// What was wrong where.
struct Bad {
    fault: Fault,
    slot: SlotPtr,
    index: u32,
    expected: u64,
    found: u64,
}

#[inline(always)]
fn expect(fault: Fault, slot: SlotPtr, index: u32, expected: u64, found: u64) -> Result<(), Stop> {
    if expected == found { Ok(()) } else { Err(Stop::Bad(Bad { fault, slot, index, expected, found })) }
}

#[inline(always)]
fn valid<T>(read: Option<T>, slot: SlotPtr) -> Result<T, Stop> {
    read.ok_or(Stop::Bad(Bad { fault: Fault::Pointer, slot, index: 0, expected: 0, found: 0 }))
}

struct Reader<'a> {
    owner: u32,
    request: Request,
    report: &'a mut Report,
}

/// The root record of a current version.
struct Root {
    at: Place,
    slot: SlotPtr,
    version: u64,
}

impl Reader<'_> {
    /// How many records it has.
    #[inline(always)]
    fn read(&mut self, tree: &Owner) -> Result<u32, Stop> {
        let handle = entry(&tree.vip).ok_or(Stop::Null)?;
        let root = self.follow(handle, RESOURCE_LISTENER, tree.listener, LISTENER)?;
        let listener = self.record::<Listener>(&root, 1)?;
        let vip = valid(root.at.read::<Vip>(size_of::<Listener>()), root.slot)?;
        expect(Fault::Content, root.slot, 0, u64::from(tree.vip.tag()), u64::from(vip.key.tag()))?;

        let root = self.follow(listener.any.cluster.ptr(), RESOURCE_CLUSTER, tree.cluster, CLUSTER)?;
        let cluster = self.record::<Cluster>(&root, 0)?;
        let timeout = u64::from(mix(root.version, 0));
        expect(Fault::Content, root.slot, 0, timeout, u64::from(cluster.connect_timeout_ms))?;

        let root = self.follow(cluster.endpoints.ptr(), RESOURCE_ENDPOINTS, tree.endpoints, ENDPOINTS)?;
        let count = endpoint_count(root.version);
        let chunks = if count > EndpointChunk::CAPACITY {
            let chunks = count.div_ceil(EndpointChunk::CAPACITY);
            let index = self.record::<EndpointIndex>(&root, chunks)?;
            expect(Fault::Content, root.slot, 0, u64::from(count), u64::from(index.v6))?;
            chunks
        } else {
            let endpoints = self.record::<Endpoints>(&root, count)?;
            expect(Fault::Content, root.slot, 0, u64::from(count), u64::from(endpoints.v6))?;
            0
        };
        self.leaves(&root, count, chunks > 0)?;
        Ok(6 + chunks)
    }

    /// Handle -> root record of the current version.
    #[inline(always)]
    fn follow(&mut self, handle: SlotPtr, resource: u32, name: u64, numbers: u32) -> Result<Root, Stop> {
        self.linger();
        let at = valid(Place::of(handle), handle)?;
        let slot = at.load_current().ok_or(Stop::Null)?;
        let root = valid(Place::of(slot), slot)?;
        let version = valid(root.read::<u64>(offset_of!(RecordHeader, version)), slot)?;
        let header = valid(at.read::<RecordHeader>(0), handle)?;
        expect(Fault::Kind, handle, 0, Handle::KIND.get().into(), header.kind.get().into())?;
        let found = valid(at.read::<u32>(offset_of!(Handle, resource)), handle)?;
        expect(Fault::Kind, handle, 1, resource.into(), found.into())?;
        let found = valid(at.read::<u64>(offset_of!(Handle, name_hash)), handle)?;
        expect(Fault::Name, handle, 0, name, found)?;
        if !is_of(version, self.owner, numbers) {
            expect(Fault::Owner, slot, 0, report::version(self.owner, numbers, 0), version)?;
        }
        self.linger();
        Ok(Root { at: root, slot, version })
    }

    /// A root record, which must still be of the version that it was of at first.
    #[inline(always)]
    fn record<R: Record>(&mut self, root: &Root, count: u32) -> Result<R, Stop> {
        let header = valid(root.at.read::<RecordHeader>(0), root.slot)?;
        expect(Fault::Version, root.slot, 0, root.version, header.version)?;
        expect(Fault::Kind, root.slot, 0, R::KIND.get().into(), header.kind.get().into())?;
        expect(Fault::Content, root.slot, u32::MAX, count.into(), header.count.into())?;
        valid(root.at.read::<R>(0), root.slot)
    }

    /// All endpoints of a load assignment.
    #[inline(always)]
    fn leaves(&mut self, root: &Root, count: u32, chunked: bool) -> Result<(), Stop> {
        let mut leaves = Leaves {
            root: root.slot,
            owner: self.owner,
            version: root.version,
            chunked: chunked.into(),
            sum: 0,
            fault: 0,
            slot: SlotPtr::NULL,
            index: 0,
            expected: 0,
            found: 0,
        };
        let count = if count > MOST_ENDPOINTS { MOST_ENDPOINTS } else { count };
        let context = (&raw mut leaves).cast::<c_void>();
        // SAFETY: the callback takes what `context` points at, which outlives the call.
        unsafe { bpf_loop(count, leaf as *mut c_void, context, 0) };
        let fault = match leaves.fault {
            0 => return Ok(()),
            1 => Fault::Pointer,
            2 => Fault::Kind,
            4 => Fault::Owner,
            7 => Fault::Checksum,
            _ => Fault::Content,
        };
        let Leaves { slot, index, expected, found, .. } = leaves;
        Err(Stop::Bad(Bad { fault, slot, index, expected, found }))
    }

    /// Sometimes stays here for a while.
    #[inline(always)]
    fn linger(&mut self) {
        // SAFETY: the helper has no preconditions.
        let random = unsafe { bpf_get_prandom_u32() };
        if random & self.request.one_in.wrapping_sub(1) == 0 && self.request.linger > 0 {
            self.report.lingers += 1;
            let (turns, _) = choose(random, self.request.linger);
            // SAFETY: the callback uses no context.
            unsafe { bpf_loop(turns, idle as *mut c_void, core::ptr::null_mut(), 0) };
        }
    }
}

/// VIP -> listener handle, as the product's look-up does it.
#[inline(always)]
fn entry(vip: &VipKey) -> Option<SlotPtr> {
    let value = |vip| {
        let value = VIPS.get_ptr(vip)?;
        // SAFETY: the helper's pointer is valid for this run.
        Some(VipValue::from_bits(unsafe { value.read_volatile() }))
    };
    value(vip)?.listener(vip).or_else(|| value(vip)?.listener(vip))
}

unsafe extern "C" fn idle(_turn: u32, _context: *mut c_void) -> c_long {
    0
}

/// What [`leaf`] works on.
struct Leaves {
    root: SlotPtr,
    owner: u32,
    version: u64,
    chunked: u32,
    sum: u32,
    /// A [`Fault`], 0 where there is none.
    fault: u32,
    slot: SlotPtr,
    index: u32,
    expected: u64,
    found: u64,
}

/// Checks endpoint `index`; 1 ends the loop.
unsafe extern "C" fn leaf(index: u32, context: *mut c_void) -> c_long {
    // SAFETY: `leaves` passes exactly this, and waits.
    let leaves = unsafe { &mut *context.cast::<Leaves>() };
    match check(index, leaves) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

#[inline(always)]
fn check(index: u32, leaves: &mut Leaves) -> Result<(), ()> {
    let (slot, found) = read_leaf(index, leaves)?;
    let mut sum = leaves.sum;
    let expected = report::endpoint(leaves.owner, leaves.version, index, &mut sum);
    let words: [(Fault, u32, u32); 8] = [
        (Fault::Owner, expected.addr[0], found.addr[0]),
        (Fault::Content, expected.addr[1], found.addr[1]),
        (Fault::Content, expected.addr[2], found.addr[2]),
        (Fault::Content, expected.addr[3], found.addr[3]),
        (Fault::Content, expected.port.into(), found.port.into()),
        (Fault::Content, expected.threshold, found.threshold),
        (Fault::Content, expected.weight, found.weight),
        (Fault::Checksum, expected.alias, found.alias),
    ];
    leaves.sum = sum;
    for (fault, expected, found) in words {
        if expected != found {
            return wrong(leaves, fault, slot, index, expected.into(), found.into());
        }
    }
    Ok(())
}

/// As the product's look-up finds it.
#[inline(always)]
fn read_leaf(index: u32, leaves: &mut Leaves) -> Result<(SlotPtr, Endpoint), ()> {
    let root = leaves.root;
    let Some(at) = Place::of(root) else { return pointer(leaves, root, index) };
    if leaves.chunked == 0 {
        let Some(found) = at.read::<Endpoint>(tail::<Endpoints, Endpoint>(index)) else {
            return pointer(leaves, root, index);
        };
        return Ok((root, found));
    }
    let of = tail::<EndpointIndex, SlotPtr>(index / EndpointChunk::CAPACITY);
    let Some(slot) = at.read::<SlotPtr>(of) else { return pointer(leaves, root, index) };
    let Some(chunk) = Place::of(slot) else { return pointer(leaves, slot, index) };
    let Some(header) = chunk.read::<RecordHeader>(0) else { return pointer(leaves, slot, index) };
    if header.kind.get() != EndpointChunk::KIND.get() {
        let (expected, found) = (EndpointChunk::KIND.get(), header.kind.get());
        wrong(leaves, Fault::Kind, slot, index, expected.into(), found.into())?;
    }
    let at = tail::<EndpointChunk, Endpoint>(index % EndpointChunk::CAPACITY);
    let Some(found) = chunk.read::<Endpoint>(at) else { return pointer(leaves, slot, index) };
    Ok((slot, found))
}

#[inline(always)]
fn pointer<T>(leaves: &mut Leaves, slot: SlotPtr, index: u32) -> Result<T, ()> {
    wrong(leaves, Fault::Pointer, slot, index, 0, 0)?;
    Err(())
}

#[inline(always)]
fn wrong(
    leaves: &mut Leaves,
    fault: Fault,
    slot: SlotPtr,
    index: u32,
    expected: u64,
    found: u64,
) -> Result<(), ()> {
    leaves.fault = fault as u32;
    leaves.slot = slot;
    leaves.index = index;
    leaves.expected = expected;
    leaves.found = found;
    Err(())
}
