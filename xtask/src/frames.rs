//! The stack that the eBPF programs need, as Linux 6.1 counts it.
//!
//! A program and the functions that it calls share 512 bytes, in at most 8 frames. Linux 6.1 rounds each frame up to 32
//! bytes, also one that is empty, as that of `memset`. Newer kernels count less, so a program that loads on the machine
//! where it is built may be refused on another one: this says so once it is built.
//!
//! A frame reaches as far as the lowest address that is formed from the frame pointer, R10.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionKind, SymbolKind};

/// The most that a program may take, with all that it calls.
const STACK: u32 = 512;
/// Each frame is a multiple of this.
const STEP: u32 = 32;
const MOST_FRAMES: usize = 8;
/// The section of functions that are called only.
const CALLED: &str = ".text";

const FRAME_POINTER: u8 = 10;
const CALL: u8 = 0x85;
const LOAD_IMM64: u8 = 0x18;
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x07;
/// In the source register of [`CALL`]: a function of the same object.
const TO_FUNCTION: u8 = 1;

/// A section and the offset there, where a function begins.
type Place = (usize, u64);

/// A function, and what it needs.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    /// In bytes, as it is.
    frame: u32,
    calls: BTreeSet<Place>,
}

/// The deepest chain of calls from one of the kernel's entries.
#[derive(Debug, PartialEq, Eq)]
struct Chain {
    /// In bytes, of all frames rounded up.
    depth: u32,
    /// Each function's name and its frame, as it is.
    frames: Vec<(String, u32)>,
}

/// Refuses an object of which a program takes more than Linux 6.1 lets it. Says how much the greediest one takes.
pub fn check(object: &Path) -> Result<String> {
    let bytes = fs::read(object).with_context(|| format!("can't read {}", object.display()))?;
    let chains = chains(&bytes).with_context(|| format!("{}", object.display()))?;
    let shown = |chain: &Chain| {
        let frames: Vec<_> = chain.frames.iter().map(|(name, frame)| format!("{name} ({frame})")).collect();
        format!("{} of {STACK} bytes of stack: {}", chain.depth, frames.join(", "))
    };
    let too_deep: Vec<_> = chains
        .iter()
        .filter(|chain| chain.depth > STACK || chain.frames.len() > MOST_FRAMES)
        .map(shown)
        .collect();
    ensure!(
        too_deep.is_empty(),
        "Linux 6.1 would refuse programs, which take with all that they call, each frame rounded up to {STEP} bytes:\n{}",
        too_deep.join("\n")
    );
    chains.iter().max_by_key(|chain| chain.depth).map(shown).context("there is no program")
}

/// That of each entry.
fn chains(bytes: &[u8]) -> Result<Vec<Chain>> {
    let (functions, entries) = functions(bytes)?;
    entries.iter().map(|entry| deepest(&functions, *entry, &mut Vec::new())).collect()
}

/// The deepest chain that begins with a function. `above` are those that lead to it.
fn deepest(functions: &BTreeMap<Place, Function>, at: Place, above: &mut Vec<Place>) -> Result<Chain> {
    let function = functions.get(&at).context("a call leads to no function")?;
    ensure!(!above.contains(&at), "{} calls itself", function.name);
    above.push(at);
    let mut below = Chain { depth: 0, frames: Vec::new() };
    for call in &function.calls {
        let chain = deepest(functions, *call, above)?;
        if chain.depth > below.depth {
            below = chain;
        }
    }
    above.pop();
    below.depth += function.frame.max(1).next_multiple_of(STEP);
    below.frames.insert(0, (function.name.clone(), function.frame));
    Ok(below)
}

/// The functions of an object, and those of them that the kernel enters.
fn functions(bytes: &[u8]) -> Result<(BTreeMap<Place, Function>, Vec<Place>)> {
    let object = object::File::parse(bytes)?;
    ensure!(
        object.is_little_endian(),
        "the programs are read where they are built, on little-endian machines"
    );
    let (mut functions, mut entries) = (BTreeMap::new(), Vec::new());
    for section in object.sections().filter(|section| section.kind() == SectionKind::Text) {
        let code = section.data()?;
        let mut targets = HashMap::new();
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
            let symbol = object.symbol_by_index(symbol)?;
            if let Some(section) = symbol.section_index() {
                let is_code = object.section_by_index(section)?.kind() == SectionKind::Text;
                targets.insert(offset, (section.0, symbol.address(), is_code));
            }
        }
        let here = object.symbols().filter(|symbol| {
            symbol.kind() == SymbolKind::Text
                && symbol.section_index() == Some(section.index())
                && symbol.size() != 0
        });
        for symbol in here {
            let (from, name) = (symbol.address(), symbol.name()?.to_owned());
            let code = code.get(from as usize..(from + symbol.size()) as usize).context("code is cut off")?;
            let place = (section.index().0, from);
            functions.insert(place, function(name, code, place, &targets)?);
            if section.name()? != CALLED {
                entries.push(place);
            }
        }
    }
    Ok((functions, entries))
}

/// Reads a function's code. `targets` are the symbols that instructions of its section refer to, by their offset: the
/// section and address, and if that is code.
fn function(
    name: String,
    code: &[u8],
    (section, from): Place,
    targets: &HashMap<u64, (usize, u64, bool)>,
) -> Result<Function> {
    let (mut frame, mut calls) = (0, BTreeSet::new());
    // The registers that hold the frame pointer itself.
    let mut copies = [false; 16];
    let mut instructions = code.chunks_exact(8).enumerate();
    while let Some((i, bytes)) = instructions.next() {
        let at = from + 8 * i as u64;
        let &[op, registers, low, high, a, b, c, d] = bytes else { bail!("{name} is cut off") };
        let (to, source) = (registers & 0xf, registers >> 4);
        let (offset, value) = (i16::from_le_bytes([low, high]), i32::from_le_bytes([a, b, c, d]));
        let class = op & 0x7;
        let mut reaches = |down: i32| frame = frame.max(down.unsigned_abs());
        match (op, class) {
            (CALL, _) if source == TO_FUNCTION => {
                let beyond = (i64::from(value) + 1) * 8;
                let place = match targets.get(&at) {
                    Some(&(section, address, _)) => (section, address.wrapping_add_signed(beyond)),
                    None => (section, at.wrapping_add_signed(beyond)),
                };
                calls.insert(place);
            }
            (LOAD_IMM64, _) => {
                // A function that a helper calls. The second half is no instruction.
                if let Some(&(section, address, true)) = targets.get(&at) {
                    calls.insert((section, address.wrapping_add_signed(value.into())));
                }
                instructions.next();
                copies[usize::from(to)] = false;
            }
            (MOVE, _) => copies[usize::from(to)] = source == FRAME_POINTER || copies[usize::from(source)],
            (ADD, _) if copies[usize::from(to)] => {
                reaches(value.min(0));
                copies[usize::from(to)] = false;
            }
            // A load, and a store.
            (_, 1) => {
                if source == FRAME_POINTER {
                    reaches(offset.min(0).into());
                }
                copies[usize::from(to)] = false;
            }
            (_, 2 | 3) if to == FRAME_POINTER => reaches(offset.min(0).into()),
            (_, 4 | 7) => copies[usize::from(to)] = false,
            _ => {}
        }
    }
    Ok(Function { name, frame, calls })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTION: usize = 3;
    const TEXT: usize = 2;

    fn instruction(op: u8, to: u8, source: u8, offset: i16, value: i32) -> [u8; 8] {
        let [low, high] = offset.to_le_bytes();
        let [a, b, c, d] = value.to_le_bytes();
        [op, source << 4 | to, low, high, a, b, c, d]
    }

    fn read(code: &[[u8; 8]], targets: &[(u64, (usize, u64, bool))]) -> Function {
        let targets = targets.iter().copied().collect();
        function("f".to_owned(), &code.concat(), (SECTION, 64), &targets).unwrap()
    }

    #[test]
    fn a_frame_reaches_to_the_lowest_address_that_is_formed() {
        const STORE: u8 = 0x7b;
        const LOAD: u8 = 0x79;
        let stored = instruction(STORE, FRAME_POINTER, 1, -8, 0);
        assert_eq!(read(&[stored], &[]).frame, 8);
        assert_eq!(read(&[stored, instruction(LOAD, 2, FRAME_POINTER, -24, 0)], &[]).frame, 24);
        let copied = [instruction(MOVE, 2, FRAME_POINTER, 0, 0), instruction(ADD, 2, 0, 0, -40)];
        assert_eq!(read(&copied, &[]).frame, 40);
        // Of another register that is nothing, nor of one that was written since.
        assert_eq!(read(&[instruction(ADD, 2, 0, 0, -40)], &[]).frame, 0);
        let loaded = instruction(LOAD, 2, 1, 0, 0);
        assert_eq!(read(&[copied[0], loaded, copied[1]], &[]).frame, 0);
        assert_eq!(read(&[instruction(STORE, 1, 2, -80, 0)], &[]).frame, 0);
    }

    #[test]
    fn calls_are_found_and_helpers_are_none() {
        let helper = instruction(CALL, 0, 0, 0, 5);
        let near = instruction(CALL, 0, TO_FUNCTION, 0, 1);
        let far = instruction(CALL, 0, TO_FUNCTION, 0, -1);
        let named = instruction(LOAD_IMM64, 2, 0, 0, 16);
        let data = instruction(LOAD_IMM64, 3, 0, 0, 0);
        let rest = instruction(CALL, 0, TO_FUNCTION, 0, 99);
        let code = [helper, near, far, named, rest, data, rest];
        let targets = [(80, (TEXT, 400, true)), (88, (TEXT, 0, true)), (104, (9, 0, false))];
        let found = read(&code, &targets);
        assert_eq!(found.calls, BTreeSet::from([(SECTION, 88), (TEXT, 400), (TEXT, 16)]));
    }

    #[test]
    fn the_deepest_chain_counts_whole_steps() {
        let place = |address| (TEXT, address);
        let function = |name: &str, frame, calls: &[u64]| Function {
            name: name.to_owned(),
            frame,
            calls: calls.iter().map(|&address| place(address)).collect(),
        };
        let mut functions = BTreeMap::from([
            (place(0), function("program", 424, &[100, 200])),
            (place(100), function("wide", 40, &[])),
            (place(200), function("narrow", 32, &[300])),
            (place(300), function("memset", 0, &[])),
        ]);
        let chain = deepest(&functions, place(0), &mut Vec::new()).unwrap();
        assert_eq!(chain.depth, 448 + 64);
        functions.get_mut(&place(200)).unwrap().frame = 33;
        let chain = deepest(&functions, place(0), &mut Vec::new()).unwrap();
        assert_eq!(chain.depth, 448 + 64 + 32);
        let names: Vec<_> = chain.frames.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["program", "narrow", "memset"]);
        functions.get_mut(&place(300)).unwrap().calls.insert(place(200));
        assert!(deepest(&functions, place(0), &mut Vec::new()).is_err());
    }
}
