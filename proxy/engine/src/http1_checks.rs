//! Bytes of HTTP/1 from outside, for the fuzzers: reads them, and panics where an invariant doesn't hold.

use slotmesh_routing::HeaderLookup as _;

use crate::{
    framing::Framing,
    plain::{
        chunks::ChunkFollower,
        head::{self, BodyLength},
        plan::whole_body,
    },
};

/// Lines of a head that may be there.
const LINES: usize = 100;

/// Reads the request that bytes begin with. Where it is an ordinary one it ends where [`Framing`] says too, has one length,
/// and is read alike when it is written.
pub fn request(bytes: &[u8]) {
    let Some(request) = head::request(bytes, LINES) else { return };
    let Some(body) = whole_body(&bytes[request.head..], request.length) else { return };
    let whole = &bytes[..request.head + body];
    let mut framing = Framing::new();
    let mut ambiguous = false;
    framing.follow(whole, |head| ambiguous |= head.ambiguous);
    assert!(!ambiguous, "two lengths");
    assert_eq!(framing.complete(), Some(1), "another end");
    let mut written = format!("{} {} HTTP/1.1\r\n", request.method, request.target).into_bytes();
    request.fields.write(&mut written);
    written.extend_from_slice(b"\r\n");
    let again = head::request(&written, LINES).expect("what is written is ordinary, too");
    assert_eq!((again.head, again.host, again.length), (written.len(), request.host, request.length));
    for name in [http::header::ACCEPT, http::header::COOKIE, http::header::CONTENT_LENGTH] {
        assert!(request.fields.values(&name).eq(again.fields.values(&name)), "{name}");
    }
}

/// Reads the response that bytes begin with, as one to `HEAD` and to another method.
pub fn response(bytes: &[u8]) {
    for to_head in [false, true] {
        let Ok(Some(response)) = head::response(bytes, to_head, LINES) else { continue };
        assert!(response.head <= bytes.len(), "longer than what came");
        assert!(!to_head || response.length == BodyLength::None, "a body that nobody has asked for");
        let mut written = b"HTTP/1.1 200 OK\r\n".to_vec();
        response.fields.write(&mut written);
        written.extend_from_slice(b"\r\n");
        let again = head::response(&written, true, LINES).expect("what is written can be read");
        assert!(again.is_some_and(|again| again.head == written.len()), "another end");
    }
}

/// Follows a body in chunks, whole and cut in two: the same is passed on, and read once more it is passed on as it is.
pub fn chunks(bytes: &[u8], cut: usize) {
    let follow = |pieces: &[&[u8]]| {
        let mut chunks = ChunkFollower::new();
        let mut passed = Vec::new();
        for piece in pieces {
            chunks.follow(piece, |range| passed.extend_from_slice(&piece[range]))?;
        }
        Ok::<_, crate::plain::chunks::BadChunk>((passed, chunks.is_over()))
    };
    let whole = follow(&[bytes]);
    let (front, back) = bytes.split_at(cut.min(bytes.len()));
    let in_two = follow(&[front, back]);
    assert_eq!(whole.is_ok(), in_two.is_ok());
    if let (Ok(whole), Ok(in_two)) = (whole, in_two) {
        assert_eq!(whole, in_two);
        assert_eq!(follow(&[&whole.0]).as_ref(), Ok(&whole));
    }
}
