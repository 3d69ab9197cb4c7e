//! Bodies in chunks, followed to their end and passed on as they came, without extensions and trailers.
//!
//! Strict: sizes are hexadecimal digits and nothing else, lines end with CR LF, and a chunk is as long as it says.
//! Whoever reads more freely is given nothing that could be read in two ways.
//!
//! Invariant: what is passed on is a body in chunks with the same data; in whatever pieces it came.

use std::ops::Range;

/// Digits of a chunk's size.
const MOST_DIGITS: u8 = 15;
/// Bytes of extensions and trailers that a body may have, which aren't passed on.
const MOST_BESIDES: usize = 16 << 10;

/// A body in chunks that isn't one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body isn't in chunks as it says")]
pub(crate) struct BadChunk;

/// Place in a body in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkPlace {
    /// In the digits of a size, of which so many have come.
    Size(u64, u8),
    /// In what may follow a size, up to the line's end.
    Extension(u64),
    /// Before the LF of a size's line.
    SizeLf(u64),
    /// In a chunk, of so many more bytes.
    Data(u64),
    /// Behind a chunk: before CR and LF.
    DataCr,
    DataLf,
    /// At the beginning of a line behind the last chunk.
    Behind,
    /// In a trailer, and before its LF.
    Trailer,
    TrailerLf,
    /// Before the last LF.
    LastLf,
    Over,
}

/// Follows a body in chunks.
#[derive(Clone, Debug)]
pub(crate) struct ChunkFollower {
    place: ChunkPlace,
    /// Bytes of extensions and trailers so far.
    besides: usize,
}

impl ChunkFollower {
    pub(crate) const fn new() -> Self {
        Self { place: ChunkPlace::Size(0, 0), besides: 0 }
    }

    /// True when all of the body has come.
    pub(crate) fn is_over(&self) -> bool {
        self.place == ChunkPlace::Over
    }

    /// Follows the next bytes up to the body's end, reports the ranges that are passed on, and returns how many bytes
    /// are of the body.
    ///
    /// # Errors
    /// Where it isn't in chunks. What was reported before is part of a body that has no end.
    pub(crate) fn follow(
        &mut self,
        bytes: &[u8],
        mut pass: impl FnMut(Range<usize>),
    ) -> Result<usize, BadChunk> {
        let mut at = 0;
        // Beginning of what is passed on next.
        let mut from = 0;
        while at < bytes.len() && !self.is_over() {
            let byte = bytes[at];
            self.place = match self.place {
                ChunkPlace::Size(size, digits) => match (byte, char::from(byte).to_digit(16)) {
                    (_, Some(digit)) if digits < MOST_DIGITS => {
                        ChunkPlace::Size(size << 4 | u64::from(digit), digits + 1)
                    }
                    (b'\r', _) if digits > 0 => ChunkPlace::SizeLf(size),
                    (b';', _) if digits > 0 => {
                        report(from..at, &mut pass);
                        from = at + 1;
                        self.besides()?;
                        ChunkPlace::Extension(size)
                    }
                    _ => return Err(BadChunk),
                },
                ChunkPlace::Extension(size) => match byte {
                    b'\r' => {
                        from = at;
                        ChunkPlace::SizeLf(size)
                    }
                    _ => {
                        from = at + 1;
                        self.beside(byte)?;
                        ChunkPlace::Extension(size)
                    }
                },
                ChunkPlace::SizeLf(size) if byte == b'\n' => match size {
                    0 => ChunkPlace::Behind,
                    size => ChunkPlace::Data(size),
                },
                ChunkPlace::Data(left) => {
                    let some = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    at += some;
                    self.place = match left - some as u64 {
                        0 => ChunkPlace::DataCr,
                        left => ChunkPlace::Data(left),
                    };
                    continue;
                }
                ChunkPlace::DataCr if byte == b'\r' => ChunkPlace::DataLf,
                ChunkPlace::DataLf if byte == b'\n' => ChunkPlace::Size(0, 0),
                ChunkPlace::Behind if byte == b'\r' => ChunkPlace::LastLf,
                ChunkPlace::Behind => {
                    report(from..at, &mut pass);
                    from = at + 1;
                    self.beside(byte)?;
                    ChunkPlace::Trailer
                }
                ChunkPlace::Trailer => {
                    from = at + 1;
                    match byte {
                        b'\r' => ChunkPlace::TrailerLf,
                        _ => {
                            self.beside(byte)?;
                            ChunkPlace::Trailer
                        }
                    }
                }
                ChunkPlace::TrailerLf if byte == b'\n' => {
                    from = at + 1;
                    ChunkPlace::Behind
                }
                ChunkPlace::LastLf if byte == b'\n' => ChunkPlace::Over,
                _ => return Err(BadChunk),
            };
            at += 1;
        }
        report(from..at, &mut pass);
        Ok(at)
    }

    /// Counts a byte that isn't passed on.
    fn beside(&mut self, byte: u8) -> Result<(), BadChunk> {
        if byte != b'\t' && byte.is_ascii_control() {
            return Err(BadChunk);
        }
        self.besides()
    }

    fn besides(&mut self) -> Result<(), BadChunk> {
        self.besides += 1;
        if self.besides > MOST_BESIDES { Err(BadChunk) } else { Ok(()) }
    }
}

fn report(range: Range<usize>, pass: &mut impl FnMut(Range<usize>)) {
    if !range.is_empty() {
        pass(range);
    }
}
