//! Heads of HTTP/1.1 messages, read where they were received: nothing of them is copied until they are sent on.
//!
//! A request is *ordinary* where each byte of its head is where the grammar has it and no field asks for more than to be
//! sent on. Every other one is none for this path: who parses it next refuses it, or serves it.
//!
//! Invariant: an ordinary request has one host and at most one length, and ends where both parsers say.

use http::{HeaderName, HeaderValue, Method, StatusCode};
use httparse::{EMPTY_HEADER, Header, ParserConfig, Status};
use slotmesh_routing::{HeaderChanges, HeaderLookup};

/// Lines of a head that are told apart; one with more isn't read here.
pub(crate) const MOST_LINES: usize = 128;
/// Digits of a length: a number of them fits 64 bits.
const MOST_DIGITS: usize = 18;

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyLength {
    None,
    Sized(u64),
    Chunked,
    /// The connection ends with it.
    UntilClose,
}

/// A request that can be sent on by this path.
#[derive(Debug)]
pub(crate) struct OrdinaryRequest<'b> {
    pub method: Method,
    /// Path and query.
    pub target: &'b str,
    pub host: &'b str,
    /// Its fields, without the host's.
    pub fields: RawFields<'b>,
    pub length: BodyLength,
    /// Bytes of the head.
    pub head: usize,
    /// The client wants the connection to end with it.
    pub close: bool,
}

/// The head of a response.
#[derive(Debug)]
pub(crate) struct ResponseHead<'b> {
    pub status: StatusCode,
    pub reason: &'b str,
    pub fields: RawFields<'b>,
    pub length: BodyLength,
    /// Bytes of the head.
    pub head: usize,
    /// The connection can be used again when the body is over.
    pub reusable: bool,
}

/// A response that can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the response can't be read")]
pub(crate) struct UnreadableResponse;

/// A line of a head, by its places.
#[derive(Clone, Copy, Debug, Default)]
struct FieldLine {
    start: u16,
    name_end: u16,
    value: u16,
    value_end: u16,
    end: u16,
}

/// Fields of a head as they were received, and what is changed of them.
#[derive(Debug)]
pub(crate) struct RawFields<'b> {
    head: &'b [u8],
    lines: [FieldLine; MOST_LINES],
    count: usize,
    /// Lines that are gone, by bits.
    gone: u128,
    /// Line of the host, which is sent and isn't one of the fields.
    host: Option<usize>,
    added: Vec<(HeaderName, HeaderValue)>,
    /// Lines can be copied as they are.
    exact: bool,
}

impl<'b> RawFields<'b> {
    /// Lines of a head whose first line ends before the first of them.
    fn new(head: &'b [u8], first: usize, headers: &[Header<'b>]) -> Option<Self> {
        let base = head.as_ptr().addr();
        let place = |of: &[u8]| of.as_ptr().addr().checked_sub(base);
        let mut lines = [FieldLine::default(); MOST_LINES];
        if headers.len() > MOST_LINES || u16::try_from(head.len()).is_err() {
            return None;
        }
        let mut exact = head.ends_with(b"\r\n");
        let mut expected = first;
        for (number, header) in headers.iter().enumerate() {
            let (start, value) = (place(header.name.as_bytes())?, place(header.value)?);
            let (name_end, value_end) = (start + header.name.len(), value + header.value.len());
            let end = match headers.get(number + 1) {
                Some(next) => place(next.name.as_bytes())?,
                None => head.len().checked_sub(2)?,
            };
            exact &= start == expected && is_exact(head, name_end, value, value_end, end);
            expected = end;
            let short = |place: usize| u16::try_from(place).unwrap_or(u16::MAX);
            lines[number] = FieldLine {
                start: short(start),
                name_end: short(name_end),
                value: short(value),
                value_end: short(value_end),
                end: short(end),
            };
        }
        exact &= expected + 2 == head.len();
        Some(Self { head, lines, count: headers.len(), gone: 0, host: None, added: Vec::new(), exact })
    }

    fn name(&self, line: &FieldLine) -> &'b [u8] {
        &self.head[usize::from(line.start)..usize::from(line.name_end)]
    }

    fn value(&self, line: &FieldLine) -> &'b [u8] {
        &self.head[usize::from(line.value)..usize::from(line.value_end)]
    }

    fn is_gone(&self, number: usize) -> bool {
        self.gone >> number & 1 == 1
    }

    /// Takes away the line of the host.
    pub(crate) fn leave_host(&mut self) {
        if let Some(host) = self.host.take() {
            self.gone |= 1 << host;
        }
    }

    /// Writes the fields that there are, each with its line end.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut run: Option<(usize, usize)> = None;
        for (number, line) in self.lines[..self.count].iter().enumerate() {
            if self.is_gone(number) {
                continue;
            }
            if !self.exact {
                write_field(out, self.name(line), self.value(line));
                continue;
            }
            let (start, end) = (usize::from(line.start), usize::from(line.end));
            run = match run {
                Some((from, to)) if to == start => Some((from, end)),
                Some((from, to)) => {
                    out.extend_from_slice(&self.head[from..to]);
                    Some((start, end))
                }
                None => Some((start, end)),
            };
        }
        if let Some((from, to)) = run {
            out.extend_from_slice(&self.head[from..to]);
        }
        for (name, value) in &self.added {
            write_field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
}

/// Appends a field and its line end.
pub(crate) fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// True of a line with nothing but a colon and blanks beside name and value, and with CR LF at its end.
fn is_exact(head: &[u8], name_end: usize, value: usize, value_end: usize, end: usize) -> bool {
    let blank = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, b' ' | b'\t'));
    let Some(text_end) = end.checked_sub(2).filter(|text_end| *text_end >= value_end) else { return false };
    head.get(name_end) == Some(&b':')
        && head.get(name_end + 1..value).is_some_and(blank)
        && head.get(value_end..text_end).is_some_and(blank)
        && head.get(text_end..end) == Some(b"\r\n")
}

impl HeaderLookup for RawFields<'_> {
    fn values<'h>(&'h self, name: &'h HeaderName) -> impl Iterator<Item = &'h [u8]> {
        let received = self.lines[..self.count].iter().enumerate().filter_map(move |(number, line)| {
            let wanted = name.as_str();
            let found = usize::from(line.name_end - line.start) == wanted.len()
                && self.name(line).eq_ignore_ascii_case(wanted.as_bytes())
                && !self.is_gone(number)
                && self.host != Some(number);
            found.then(|| self.value(line))
        });
        received.chain(self.added.iter().filter(move |(of, _)| of == name).map(|(_, value)| value.as_bytes()))
    }
}

impl HeaderChanges for RawFields<'_> {
    fn take_away(&mut self, name: &HeaderName) {
        let wanted = name.as_str();
        for (number, line) in self.lines[..self.count].iter().enumerate() {
            if usize::from(line.name_end - line.start) == wanted.len()
                && self.host != Some(number)
                && self.name(line).eq_ignore_ascii_case(wanted.as_bytes())
            {
                self.gone |= 1 << number;
            }
        }
        self.added.retain(|(of, _)| of != name);
    }

    fn add(&mut self, name: HeaderName, value: HeaderValue) {
        self.added.push((name, value));
    }
}

/// A field that says something about the message or its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Special {
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    ContentType,
    /// One that asks for something that this path doesn't do.
    Odd,
}

fn special(name: &[u8]) -> Option<Special> {
    let all: &[(&[u8], Special)] = match name.len() {
        2 => &[(b"te", Special::Odd)],
        4 => &[(b"host", Special::Host)],
        6 => &[(b"expect", Special::Odd)],
        7 => &[(b"upgrade", Special::Odd), (b"trailer", Special::Odd)],
        10 => &[(b"connection", Special::Connection)],
        12 => &[(b"content-type", Special::ContentType)],
        14 => &[(b"content-length", Special::ContentLength), (b"http2-settings", Special::Odd)],
        17 => &[(b"transfer-encoding", Special::TransferEncoding)],
        _ => &[],
    };
    all.iter().find(|(of, _)| name.eq_ignore_ascii_case(of)).map(|(_, special)| *special)
}

/// A length as it is written: digits and nothing else.
fn length(value: &[u8]) -> Option<u64> {
    let plain = !value.is_empty() && value.len() <= MOST_DIGITS && value.iter().all(u8::is_ascii_digit);
    plain.then(|| value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// Reads the head of a request that bytes begin with: `None` where it isn't whole, or isn't ordinary. `most`: lines that
/// it may have.
pub(crate) fn request(bytes: &[u8], most: usize) -> Option<OrdinaryRequest<'_>> {
    let mut headers = [EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    let Ok(Status::Complete(head)) = parsed.parse(bytes) else { return None };
    let (Some(method), Some(target), Some(1)) = (parsed.method, parsed.path, parsed.version) else {
        return None;
    };
    if !target.starts_with('/') || !is_plain_target(target) || parsed.headers.len() > most {
        return None;
    }
    let first = method.len() + target.len() + b"  HTTP/1.1\r\n".len();
    let line = bytes.get(..first)?;
    if !line.starts_with(method.as_bytes()) || !line.ends_with(b" HTTP/1.1\r\n") {
        return None;
    }
    let method = Method::from_bytes(method.as_bytes()).ok().filter(|method| method != Method::CONNECT)?;
    let mut fields = RawFields::new(&bytes[..head], first, parsed.headers).filter(|fields| fields.exact)?;
    let (mut host, mut sized, mut chunked, mut close) = (None, None, false, false);
    for number in 0..fields.count {
        let line = fields.lines[number];
        let value = fields.value(&line);
        match special(fields.name(&line)) {
            None => {}
            Some(Special::Odd) => return None,
            Some(Special::Host) => {
                let text = std::str::from_utf8(value).ok().filter(|text| is_plain_host(text))?;
                if host.replace(text).is_some() {
                    return None;
                }
                fields.host = Some(number);
            }
            Some(Special::ContentLength) => {
                let before = sized.replace(length(value)?);
                if before.is_some() {
                    return None;
                }
            }
            Some(Special::TransferEncoding) => {
                let before = std::mem::replace(&mut chunked, true);
                if before || !value.eq_ignore_ascii_case(b"chunked") {
                    return None;
                }
            }
            Some(Special::Connection) => {
                for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    if token.eq_ignore_ascii_case(b"close") {
                        close = true;
                    } else if !token.eq_ignore_ascii_case(b"keep-alive") {
                        return None;
                    }
                }
            }
            Some(Special::ContentType) => {
                // Its answer may be in trailers.
                let start = value.get(..16);
                if start.is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc")) {
                    return None;
                }
            }
        }
    }
    let length = match (sized, chunked) {
        (Some(_), true) => return None,
        (None, true) => BodyLength::Chunked,
        (None | Some(0), false) => BodyLength::None,
        (Some(length), false) => BodyLength::Sized(length),
    };
    Some(OrdinaryRequest { method, target, host: host?, fields, length, head, close })
}

/// Reads the head of a response that bytes begin with: `None` where it isn't whole. `to_head`: the request was `HEAD`.
pub(crate) fn response(
    bytes: &[u8],
    to_head: bool,
    most: usize,
) -> Result<Option<ResponseHead<'_>>, UnreadableResponse> {
    let mut headers = [const { std::mem::MaybeUninit::uninit() }; MOST_LINES];
    let mut parsed = httparse::Response::new(&mut []);
    let read = ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, &mut headers);
    let head = match read {
        Ok(Status::Complete(head)) => head,
        Ok(Status::Partial) => return Ok(None),
        Err(_) => return Err(UnreadableResponse),
    };
    let (Some(minor), Some(code)) = (parsed.version, parsed.code) else { return Err(UnreadableResponse) };
    let status = StatusCode::from_u16(code).map_err(|_| UnreadableResponse)?;
    if parsed.headers.len() > most {
        return Err(UnreadableResponse);
    }
    let base = bytes.as_ptr().addr();
    let first =
        parsed.headers.first().map_or(head.saturating_sub(2), |first| first.name.as_ptr().addr() - base);
    let fields = RawFields::new(&bytes[..head], first, parsed.headers).ok_or(UnreadableResponse)?;
    let (mut sized, mut chunked, mut close, mut keep_alive) = (None, false, false, false);
    for line in &fields.lines[..fields.count] {
        let value = fields.value(line);
        match special(fields.name(line)) {
            Some(Special::ContentLength) => {
                let before = sized.replace(length(value).ok_or(UnreadableResponse)?);
                if before.is_some() {
                    return Err(UnreadableResponse);
                }
            }
            Some(Special::TransferEncoding) => {
                let before = std::mem::replace(&mut chunked, true);
                if before || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(UnreadableResponse);
                }
            }
            Some(Special::Connection) => {
                let has = |token: &[u8]| {
                    value.split(|byte| *byte == b',').any(|of| of.trim_ascii().eq_ignore_ascii_case(token))
                };
                close |= has(b"close");
                keep_alive |= has(b"keep-alive");
            }
            _ => {}
        }
    }
    let without = to_head || status.is_informational() || matches!(code, 204 | 304);
    let length = match (sized, chunked) {
        (Some(_), true) => return Err(UnreadableResponse),
        _ if without => BodyLength::None,
        (None, true) => BodyLength::Chunked,
        (Some(0), false) => BodyLength::None,
        (Some(length), false) => BodyLength::Sized(length),
        (None, false) => BodyLength::UntilClose,
    };
    let reusable = !close && (minor == 1 || keep_alive) && length != BodyLength::UntilClose;
    Ok(Some(ResponseHead {
        status,
        reason: parsed.reason.unwrap_or_default(),
        fields,
        length,
        head,
        reusable,
    }))
}

/// True of a path and query that any parser reads as they stand.
pub(crate) fn is_plain_target(target: &str) -> bool {
    target.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@?%".contains(&byte))
}

/// True of a name or address and perhaps a port.
pub(crate) fn is_plain_host(host: &str) -> bool {
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let digits = |port: &str| (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        && port.is_none_or(digits)
}
