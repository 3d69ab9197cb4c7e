//! What a record looks like, as constants: the base of flatten, recovery, dumping and the layout hash.

use bytemuck::{Pod, Zeroable};

use crate::{SlotPtr, model, pointer};

/// Identifies a record's type in its header. Zero is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct RecordKind(u16);

impl RecordKind {
    /// The kind with this number.
    pub const fn new(kind: u16) -> Self {
        Self(kind)
    }

    /// The number in the header.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// What every slot in use begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RecordHeader {
    /// The record's type.
    pub kind: RecordKind,
    /// The slot's size in units of 64 bytes, so that recovery can rebuild the slot classes.
    pub units: u16,
    /// The number of elements in the record's tail.
    pub count: u32,
    /// In the root record of a resource: the content hash of the resource (0: unknown). Else 0.
    pub version: u64,
}

/// What a field means to whoever walks the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Points {
    /// Plain data.
    Nothing,
    /// A child slot.
    Owned,
    /// A handle.
    Ref,
    /// A slot that the same version owns by another path.
    Within,
}

/// A field of a record or of a tail element.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The field's name.
    pub name: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// What it is.
    pub shape: &'static Shape,
}

/// The shape of a type that can be part of a record.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The type's name.
    pub name: &'static str,
    /// Its size in bytes.
    pub size: usize,
    /// Whether the value is a slot pointer.
    pub points: Points,
    /// Its fields, where it is a struct.
    pub fields: &'static [Field],
}

/// A type that can be part of a record.
pub trait Member: Pod {
    /// Its shape.
    const SHAPE: Shape;
}

/// A type that can be the content of a slot.
pub trait Record: Member {
    /// The type of the tail's elements; `()` without a tail.
    type Tail: Member;
    /// The number in [`RecordHeader::kind`].
    const KIND: RecordKind;
    /// The whole layout.
    const LAYOUT: Layout;
}

/// The layout of a record: a fixed part and the elements that follow it.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The number in [`RecordHeader::kind`].
    pub kind: RecordKind,
    /// The fixed part, header included.
    pub fixed: &'static Shape,
    /// An element of the tail.
    pub tail: Option<&'static Shape>,
}

macro_rules! plain {
    ($($ty:ty),*) => {$(
        impl Member for $ty {
            const SHAPE: Shape =
                Shape { name: stringify!($ty), size: size_of::<$ty>(), points: Points::Nothing, fields: &[] };
        }
    )*};
}

plain!(u8, u16, u32, u64, [u8; 3], [u32; 4], RecordHeader);

impl Member for () {
    const SHAPE: Shape = Shape { name: "()", size: 0, points: Points::Nothing, fields: &[] };
}

impl Member for SlotPtr {
    const SHAPE: Shape = Shape { name: "SlotPtr", size: 4, points: Points::Nothing, fields: &[] };
}

impl<T: 'static> Member for pointer::Owned<T> {
    const SHAPE: Shape = Shape { name: "Owned", size: 4, points: Points::Owned, fields: &[] };
}

impl<T: 'static> Member for pointer::Within<T> {
    const SHAPE: Shape = Shape { name: "Within", size: 4, points: Points::Within, fields: &[] };
}

impl<T: 'static> Member for pointer::Ref<T> {
    const SHAPE: Shape = Shape { name: "Ref", size: 4, points: Points::Ref, fields: &[] };
}

/// The layout of the records of this kind; `None` where no record has it.
pub fn layout_of(kind: RecordKind) -> Option<&'static Layout> {
    model::LAYOUTS.iter().find(|layout| layout.kind == kind)
}

/// A record whose bytes don't fit its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// No record has this kind.
    UnknownKind(RecordKind),
    /// The header, or the tail that it tells of, reaches past the slot's end.
    TooShort,
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::UnknownKind(kind) => write!(f, "no record has kind {}", kind.get()),
            Self::TooShort => f.write_str("the record reaches past the end of its slot"),
        }
    }
}

impl core::error::Error for Malformed {}

/// Where the pointers of a struct stand: what walking its shape finds, walked once by the compiler.
#[derive(Clone, Copy)]
struct Offsets {
    found: [(u16, Points); Self::MOST],
    len: usize,
}

impl Offsets {
    /// The most pointers of a struct; the compiler says where it is too few.
    const MOST: usize = 16;

    /// With those that lie within the version, or without.
    const fn of(self, shape: &Shape, base: usize, within: bool) -> Self {
        let mut offsets = self;
        if matches!(shape.points, Points::Owned | Points::Ref)
            || within && matches!(shape.points, Points::Within)
        {
            offsets.found[offsets.len] = (base as u16, shape.points);
            offsets.len += 1;
        }
        let mut i = 0;
        while i < shape.fields.len() {
            offsets = offsets.of(shape.fields[i].shape, base + shape.fields[i].offset, within);
            i += 1;
        }
        offsets
    }

    const NONE: Self = Self { found: [(0, Points::Nothing); Self::MOST], len: 0 };

    fn visit(&self, bytes: &[u8], visit: &mut impl FnMut(usize, Points, SlotPtr)) {
        for &(offset, points) in &self.found[..self.len] {
            let at = usize::from(offset);
            let ptr: SlotPtr = bytemuck::pod_read_unaligned(&bytes[at..at + size_of::<SlotPtr>()]);
            if !ptr.is_null() {
                visit(at, points, ptr);
            }
        }
    }
}

/// A record's pointers, and the sizes that bound them.
#[derive(Clone, Copy)]
struct Walk {
    fixed: usize,
    element: usize,
    in_fixed: Offsets,
    in_element: Offsets,
    all_in_fixed: Offsets,
    all_in_element: Offsets,
}

/// Kinds are below this.
const KINDS: usize = 64;

/// By kind.
static WALKS: [Option<Walk>; KINDS] = {
    let mut walks = [None; KINDS];
    let mut i = 0;
    while i < model::LAYOUTS.len() {
        let layout = &model::LAYOUTS[i];
        let (element, in_element, all_in_element) = match layout.tail {
            Some(tail) => (tail.size, Offsets::NONE.of(tail, 0, false), Offsets::NONE.of(tail, 0, true)),
            None => (0, Offsets::NONE, Offsets::NONE),
        };
        walks[layout.kind.get() as usize] = Some(Walk {
            fixed: layout.fixed.size,
            element,
            in_fixed: Offsets::NONE.of(layout.fixed, 0, false),
            in_element,
            all_in_fixed: Offsets::NONE.of(layout.fixed, 0, true),
            all_in_element,
        });
        i += 1;
    }
    walks
};

/// Calls `visit` for each slot pointer that is not null in the record at the start of `slot`, but for those that
/// lie [within](Points::Within) the version.
///
/// # Errors
/// Where the bytes are no record; nothing was visited then.
pub fn pointers(slot: &[u8], mut visit: impl FnMut(Points, SlotPtr)) -> Result<RecordHeader, Malformed> {
    let (header, walk, record) = record(slot)?;
    let (fixed, tail) = record.split_at(walk.fixed);
    let mut visit = |_, points, ptr| visit(points, ptr);
    walk.in_fixed.visit(fixed, &mut visit);
    if walk.in_element.len > 0 {
        for bytes in tail.chunks_exact(walk.element) {
            walk.in_element.visit(bytes, &mut visit);
        }
    }
    Ok(header)
}

/// Calls `visit` for each slot pointer of any sort that is not null in the record at the start of `slot`, with
/// where it stands. How many bytes the record has.
///
/// # Errors
/// Where the bytes are no record; nothing was visited then.
pub fn all_pointers(slot: &[u8], mut visit: impl FnMut(usize, SlotPtr)) -> Result<usize, Malformed> {
    let (_, walk, record) = record(slot)?;
    let (fixed, tail) = record.split_at(walk.fixed);
    walk.all_in_fixed.visit(fixed, &mut |at, _, ptr| visit(at, ptr));
    if walk.all_in_element.len > 0 {
        for (i, bytes) in tail.chunks_exact(walk.element).enumerate() {
            let before = walk.fixed + i * walk.element;
            walk.all_in_element.visit(bytes, &mut |at, _, ptr| visit(before + at, ptr));
        }
    }
    Ok(record.len())
}

/// The record at the start of `slot`.
fn record(slot: &[u8]) -> Result<(RecordHeader, &'static Walk, &[u8]), Malformed> {
    let header: RecordHeader =
        bytemuck::try_pod_read_unaligned(slot.get(..size_of::<RecordHeader>()).ok_or(Malformed::TooShort)?)
            .map_err(|_| Malformed::TooShort)?;
    let walk = WALKS.get(usize::from(header.kind.get())).and_then(Option::as_ref);
    let walk = walk.ok_or(Malformed::UnknownKind(header.kind))?;
    let bytes = walk.fixed + walk.element * header.count as usize;
    Ok((header, walk, slot.get(..bytes).ok_or(Malformed::TooShort)?))
}

/// Changes with any change of any record's layout. Records of another layout are never read: they lie
/// under another pin root.
///
/// It can't see what a number means: whoever changes `VipKey::tag`, the encoding of `VipValue`,
/// `choose`, `HostIndex::places`, the places of a `HashTable`, the numbers in `balance`, what
/// [`Text`](crate::Text) holds, the size of a unit or the numbers of resource types raises the number in its seed.
pub const LAYOUT_HASH: u64 = {
    let mut hash = fnv1a(FNV_OFFSET, b"slotmesh records 3");
    let mut i = 0;
    while i < model::LAYOUTS.len() {
        let layout = &model::LAYOUTS[i];
        hash = fnv1a(hash, &layout.kind.get().to_le_bytes());
        hash = shape_hash(hash, layout.fixed);
        if let Some(tail) = layout.tail {
            hash = shape_hash(hash, tail);
        }
        i += 1;
    }
    shape_hash(hash, &<crate::VipKey as Member>::SHAPE)
};

const fn shape_hash(mut hash: u64, shape: &Shape) -> u64 {
    hash = fnv1a(hash, shape.name.as_bytes());
    hash = fnv1a(hash, &(shape.size as u64).to_le_bytes());
    let mut i = 0;
    while i < shape.fields.len() {
        let field = &shape.fields[i];
        hash = fnv1a(hash, field.name.as_bytes());
        hash = fnv1a(hash, &(field.offset as u64).to_le_bytes());
        hash = shape_hash(hash, field.shape);
        i += 1;
    }
    hash
}

pub(crate) const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits: usable in constants and small enough for an eBPF program.
pub(crate) const fn fnv1a(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    hash
}
