//! Message framing of HTTP/1 requests, followed beside the parser: where each head begins and ends, and if a head says
//! twice how long its body is.
//!
//! hyper prefers `Transfer-Encoding` and drops `Content-Length`, so a request that carries both can't be told from an
//! honest one behind it. This machine sees the same bytes first, and notes such requests by their number on the
//! connection. It also knows if a head has begun and isn't complete, which tells a slow client from an idle one.
//!
//! It copies nothing but the beginning of each line, looks once at each byte of a head and skips bodies by their length.
//! It judges nothing that the parser judges: where it can't follow, the parser refuses the message.

/// Bytes of a line that are kept to be read: the names that matter are shorter.
const LINE: usize = 48;

/// Place in the stream of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In a head.
    Head,
    /// In a body of so many more bytes.
    Sized(u64),
    /// In the line that says a chunk's size.
    ChunkSize,
    /// In a chunk of so many more bytes, its line end included.
    Chunk(u64),
    /// In the trailers behind the last chunk.
    Trailers,
    /// Something that the parser refuses.
    Lost,
}

/// Follows the requests of a connection.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
    /// The beginning of the current line.
    line: [u8; LINE],
    /// Length of the current line so far.
    length: usize,
    /// Lines of the current head that are complete.
    lines: u32,
    content_length: Option<u64>,
    transfer_encoding: bool,
    /// Heads that are complete.
    heads: u64,
}

/// A head that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CompleteHead {
    /// Its number on the connection, from 0.
    pub number: u64,
    /// It has both `Content-Length` and `Transfer-Encoding`.
    pub ambiguous: bool,
}

impl Framing {
    /// Follows from the head with this number on.
    pub(crate) const fn starting_at(number: u64) -> Self {
        Self { heads: number, ..Self::new() }
    }

    pub(crate) const fn new() -> Self {
        Self {
            state: State::Head,
            line: [0; LINE],
            length: 0,
            lines: 0,
            content_length: None,
            transfer_encoding: false,
            heads: 0,
        }
    }

    /// Tells if a head has begun and isn't complete.
    pub(crate) fn within_head(&self) -> bool {
        self.state == State::Head && (self.length > 0 || self.lines > 0)
    }

    /// Number of messages that have come, where the last one has come whole.
    pub(crate) fn complete(&self) -> Option<u64> {
        (self.state == State::Head && self.length == 0 && self.lines == 0).then_some(self.heads)
    }

    /// Follows the next bytes, and reports each head that they complete.
    pub(crate) fn follow(&mut self, mut bytes: &[u8], mut complete: impl FnMut(CompleteHead)) {
        while !bytes.is_empty() {
            match self.state {
                State::Lost => return,
                State::Sized(left) => match skip(&mut bytes, left) {
                    0 => self.next_head(),
                    left => self.state = State::Sized(left),
                },
                State::Chunk(left) => match skip(&mut bytes, left) {
                    0 => self.state = State::ChunkSize,
                    left => self.state = State::Chunk(left),
                },
                State::Head | State::ChunkSize | State::Trailers => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let (part, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
                    self.keep(part);
                    bytes = rest;
                    if end.is_some() {
                        self.end_line(&mut complete);
                    }
                }
            }
        }
    }

    fn keep(&mut self, part: &[u8]) {
        if let Some(room) = self.line.get_mut(self.length..) {
            let kept = part.len().min(room.len());
            room[..kept].copy_from_slice(&part[..kept]);
        }
        self.length += part.len();
    }

    fn next_head(&mut self) {
        self.state = State::Head;
        self.lines = 0;
        self.content_length = None;
        self.transfer_encoding = false;
    }

    fn end_line(&mut self, complete: &mut impl FnMut(CompleteHead)) {
        let length = std::mem::take(&mut self.length);
        let line = self.line;
        let line = &line[..length.min(LINE)];
        let empty = matches!(line, b"\n" | b"\r\n");
        match self.state {
            State::Head if !empty => {
                if self.lines > 0 {
                    self.header(line);
                }
                self.lines += 1;
            }
            // Empty lines in front of a request are skipped.
            State::Head if self.lines == 0 => {}
            State::Head => {
                let ambiguous = self.transfer_encoding && self.content_length.is_some();
                complete(CompleteHead { number: self.heads, ambiguous });
                self.heads += 1;
                match (self.transfer_encoding, self.content_length) {
                    (true, _) => self.state = State::ChunkSize,
                    (false, Some(length)) if length > 0 => self.state = State::Sized(length),
                    (false, _) => self.next_head(),
                }
            }
            State::ChunkSize => self.state = after_chunk_size(line),
            State::Trailers if empty => self.next_head(),
            State::Trailers | State::Sized(_) | State::Chunk(_) | State::Lost => {}
        }
    }

    fn header(&mut self, line: &[u8]) {
        if after_name(line, b"transfer-encoding").is_some() {
            self.transfer_encoding = true;
        } else if let Some(value) = after_name(line, b"content-length") {
            let value = std::str::from_utf8(value).unwrap_or_default().trim();
            match value.parse() {
                Ok(length) => self.content_length = Some(length),
                Err(_) => self.state = State::Lost,
            }
        }
    }
}

/// Takes up to `left` bytes away, and returns how many are left of that.
fn skip(bytes: &mut &[u8], left: u64) -> u64 {
    let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    *bytes = &bytes[skipped..];
    left - skipped as u64
}

/// The value of a header line with this name, which is of lower case.
fn after_name<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    (start.eq_ignore_ascii_case(name)).then(|| value.strip_prefix(b":")).flatten()
}

fn after_chunk_size(line: &[u8]) -> State {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let size = std::str::from_utf8(&line[..digits]).ok().and_then(|hex| u64::from_str_radix(hex, 16).ok());
    match size {
        Some(0) => State::Trailers,
        // The chunk, and CR LF.
        Some(size) => size.checked_add(2).map_or(State::Lost, State::Chunk),
        None => State::Lost,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The heads of a stream that comes in pieces.
    fn heads(pieces: &[&[u8]]) -> (Vec<bool>, Framing) {
        let mut framing = Framing::new();
        let mut found = Vec::new();
        for piece in pieces {
            framing.follow(piece, |head| {
                assert_eq!(head.number, found.len() as u64);
                found.push(head.ambiguous);
            });
        }
        (found, framing)
    }

    const STREAM: &[u8] = b"\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n\
        POST / HTTP/1.1\r\nContent-Length: 40\r\n\r\ntransfer-encoding: chunked\r\n\r\nGET / HTTP/1\
        PUT / HTTP/1.1\r\nTRANSFER-ENCODING: chunked\r\n\r\n6;a=b\r\nab\r\ncd\r\n0\r\nx: y\r\n\r\n\
        POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n\
        GET /content-length: HTTP/1.1\r\nhost: a\r\n\r\n";

    #[test]
    fn bodies_are_skipped_and_two_lengths_found() {
        let stream = STREAM.strip_prefix(b"\r\n").unwrap();
        for stream in [STREAM, stream] {
            let (found, framing) = heads(&[stream]);
            assert_eq!(found, [false, false, false, true, false], "{framing:?}");
            assert!(!framing.within_head());
        }
    }

    #[test]
    fn a_head_that_has_begun_is_known() {
        for begun in ["G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nhost: a\r\n\r"] {
            assert!(heads(&[begun.as_bytes()]).1.within_head(), "{begun:?}");
        }
        for not in ["", "\r\n", "POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\na", "GET / HTTP/1.1\r\n\r\n"] {
            assert!(!heads(&[not.as_bytes()]).1.within_head(), "{not:?}");
        }
    }

    #[test]
    fn the_longest_chunk_loses_the_way_and_nothing_else() {
        let (found, framing) = heads(&[
            b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
        ]);
        assert_eq!((found, framing.state), (vec![false], State::Lost));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(cuts in proptest::collection::vec(0..STREAM.len(), 0..8)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&STREAM[from..cut]);
                from = cut;
            }
            pieces.push(&STREAM[from..]);
            prop_assert_eq!(heads(&pieces).0, [false, false, false, true, false]);
        }
    }
}
