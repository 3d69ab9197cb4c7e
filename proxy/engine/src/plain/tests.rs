//! Requests as the path of our own reads them, against hyper: where it reads one, hyper reads the same.

use std::{cell::RefCell, convert::Infallible, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use slotmesh_routing::{HeaderChanges as _, HeaderLookup as _};
use tokio::io::AsyncWriteExt as _;

use super::{
    chunks::{BadChunk, ChunkFollower},
    head::{self, BodyLength, OrdinaryRequest},
    plan::whole_body,
};
use crate::framing::Framing;

const USUAL: &str =
    "GET /a/b?c=d HTTP/1.1\r\nHost: web.example:80\r\nAccept:*/*\r\nX-Empty: \r\nx-a:  1 \r\nx-A: 2\r\n\r\n";

#[test]
fn an_ordinary_request_is_read_where_it_is() {
    let mut request = head::request(USUAL.as_bytes(), 100).unwrap();
    assert_eq!(
        (request.method.as_str(), request.target, request.host),
        ("GET", "/a/b?c=d", "web.example:80")
    );
    assert_eq!((request.length, request.head, request.close), (BodyLength::None, USUAL.len(), false));
    let fields = &mut request.fields;
    let name = HeaderName::from_static("x-a");
    assert_eq!(fields.values(&name).collect::<Vec<_>>(), [b"1", b"2"]);
    assert_eq!(fields.values(&HeaderName::from_static("x-empty")).collect::<Vec<_>>(), [b""]);
    assert!(!fields.has(&header::HOST), "the host isn't one of them");
    fields.take_away(&name);
    assert!(!fields.has(&name));
    fields.add(name.clone(), HeaderValue::from_static("3"));
    let mut out = Vec::new();
    fields.write(&mut out);
    let lines = "Host: web.example:80\r\nAccept:*/*\r\nX-Empty: \r\nx-a: 3\r\n";
    assert_eq!(String::from_utf8_lossy(&out), lines);
    fields.leave_host();
    fields.set(name, HeaderValue::from_static("4"));
    out.clear();
    fields.write(&mut out);
    assert_eq!(String::from_utf8_lossy(&out), "Accept:*/*\r\nX-Empty: \r\nx-a: 4\r\n");
}

#[test]
fn the_body_ends_where_the_head_says() {
    for (fields, length) in [
        ("content-length: 0\r\n", BodyLength::None),
        ("Content-Length: 12\r\n", BodyLength::Sized(12)),
        ("Transfer-Encoding: Chunked\r\n", BodyLength::Chunked),
        ("connection: keep-alive\r\n", BodyLength::None),
    ] {
        let text = format!("POST / HTTP/1.1\r\nhost: web\r\n{fields}\r\n");
        let request = head::request(text.as_bytes(), 100).unwrap();
        assert_eq!((request.length, request.close), (length, false), "{fields}");
    }
    assert!(head::request(b"GET / HTTP/1.1\r\nhost: web\r\nConnection: Close\r\n\r\n", 100).unwrap().close);
}

#[test]
fn what_is_odd_is_none() {
    for text in [
        "",
        "GET",
        "GET / HTTP/1.1\r\nhost: web\r\n",
        "\r\nGET / HTTP/1.1\r\nhost: web\r\n\r\n",
        "GET / HTTP/1.0\r\nhost: web\r\n\r\n",
        "GET  / HTTP/1.1\r\nhost: web\r\n\r\n",
        "GET / HTTP/1.1\nhost: web\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\n\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost:\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\nhost: web\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a@b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web:port\r\n\r\n",
        "GET http://web/ HTTP/1.1\r\nhost: web\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: web\r\n\r\n",
        "CONNECT web:80 HTTP/1.1\r\nhost: web\r\n\r\n",
        "GET /a#b HTTP/1.1\r\nhost: web\r\n\r\n",
        "GET /a|b HTTP/1.1\r\nhost: web\r\n\r\n",
        "GET /\u{e9} HTTP/1.1\r\nhost: web\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\nx-a : 1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\nx-a: 1\r\n  2\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\nx-a: 1\rx-b: 2\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\nx-a: 1\0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\nconnection: close, x-a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\nupgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\nte: trailers\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: web\r\ncontent-type: application/grpc\r\n\r\n",
        "PUT / HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n",
        "PUT / HTTP/1.1\r\nhost: web\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        "PUT / HTTP/1.1\r\nhost: web\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
        "PUT / HTTP/1.1\r\nhost: web\r\ncontent-length: 1, 1\r\n\r\n",
        "PUT / HTTP/1.1\r\nhost: web\r\ncontent-length: +1\r\n\r\n",
        "PUT / HTTP/1.1\r\nhost: web\r\ncontent-length: \r\n\r\n",
        "PUT / HTTP/1.1\r\nhost: web\r\ncontent-length: 9999999999999999999\r\n\r\n",
        "PUT / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        "PUT / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
    ] {
        assert!(head::request(text.as_bytes(), 100).is_none(), "{text:?}");
    }
    let many = |lines| format!("GET / HTTP/1.1\r\nhost: web\r\n{}\r\n", "x: 1\r\n".repeat(lines));
    assert!(head::request(many(9).as_bytes(), 10).is_some());
    assert!(head::request(many(10).as_bytes(), 10).is_none());
}

#[test]
fn a_response_says_how_it_ends() {
    for (text, to_head, length, reusable) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", false, BodyLength::Sized(3), true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", true, BodyLength::None, true),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\n",
            false,
            BodyLength::Sized(3),
            false,
        ),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\n", false, BodyLength::None, true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", false, BodyLength::Chunked, true),
        ("HTTP/1.1 200 OK\r\n\r\n", false, BodyLength::UntilClose, false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\n", false, BodyLength::Sized(3), false),
        (
            "HTTP/1.0 200 OK\r\ncontent-length: 3\r\nconnection: keep-alive\r\n\r\n",
            false,
            BodyLength::Sized(3),
            true,
        ),
        // Lines that end with LF alone are written anew.
        ("HTTP/1.1 200\ncontent-length:3\n\n", false, BodyLength::Sized(3), true),
    ] {
        let read = head::response(text.as_bytes(), to_head, 100).unwrap().unwrap();
        assert_eq!((read.length, read.reusable, read.head), (length, reusable, text.len()), "{text:?}");
        let mut out = Vec::new();
        read.fields.write(&mut out);
        assert!(out.is_empty() || out.ends_with(b"\r\n"), "{text:?}");
    }
    assert!(head::response(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n", false, 100).unwrap().is_none());
    for text in [
        "SSH-2.0-nothing\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a : 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx-a: 1\r\n 2\r\n\r\n",
    ] {
        assert!(head::response(text.as_bytes(), false, 100).is_err(), "{text:?}");
    }
}

/// Bytes that are passed on of a body that comes in pieces, and the bytes that are of it.
fn follow(pieces: &[&[u8]]) -> Result<(Vec<u8>, usize, bool), BadChunk> {
    let mut chunks = ChunkFollower::new();
    let (mut passed, mut sum) = (Vec::new(), 0);
    for piece in pieces {
        let some = chunks.follow(piece, |range| passed.extend_from_slice(&piece[range]))?;
        sum += some;
        if some < piece.len() {
            break;
        }
    }
    Ok((passed, sum, chunks.is_over()))
}

#[test]
fn chunks_that_are_none_are_refused() {
    for body in [
        "-1\r\nabc",
        "0x3\r\nabc",
        " 3\r\nabc",
        "3 \r\nabc",
        "3\nabc",
        "g\r\n",
        "\r\n",
        ";a\r\n",
        "3\r\nabcd\r\n",
        "3\r\nabc\n",
        "3\r\nabc0\r\n",
        "3;a\nb\r\nabc\r\n",
        "3\r\r\nabc",
        "fffffffffffffffff\r\n",
        "0\r\n\n",
        "0\r\nx: 1\n\r\n",
        "0\r\n\rx",
        "3;\0\r\n",
    ] {
        assert_eq!(follow(&[body.as_bytes()]), Err(BadChunk), "{body:?}");
    }
    let endless = format!("1;{}", "a".repeat(20_000));
    assert_eq!(follow(&[endless.as_bytes()]), Err(BadChunk));
    let endless = format!("0\r\n{}", "x: 1\r\n".repeat(20_000));
    assert_eq!(follow(&[endless.as_bytes()]), Err(BadChunk));
}

const CHUNKS: &[u8] = b"5;ext=\"a\"\r\nhello\r\n00A\r\n0123456789\r\n0\r\nx-sum: 1\r\ny: 2\r\n\r\nGET /next";
const PASSED: &[u8] = b"5\r\nhello\r\n00A\r\n0123456789\r\n0\r\n\r\n";

/// Texts of which requests are made, good and bad.
fn pieces() -> impl Strategy<Value = Vec<&'static str>> {
    const LINES: [&str; 26] = [
        "host: web\r\n",
        "Host: other:81\r\n",
        "x-a: 1\r\n",
        "x-a:2\r\n",
        "X-B:   \r\n",
        "x-c: a\tb \r\n",
        "cookie: a=1\r\n",
        "content-length: 3\r\n",
        "content-length: 0\r\n",
        "Content-Length: 5\r\n",
        "transfer-encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "connection: close\r\n",
        "connection: keep-alive\r\n",
        "connection: x-a\r\n",
        "te: trailers\r\n",
        "x-d: \u{e9}\r\n",
        "x e: 1\r\n",
        " x-f: 1\r\n",
        "x-g: 1\n",
        "x-h\r\n",
        ": 1\r\n",
        "expect: x\r\n",
        "content-type: text/plain\r\n",
        "x-i: \"a,b\"\r\n",
        "keep-alive: 3\r\n",
    ];
    const STARTS: [&str; 9] = [
        "GET / HTTP/1.1\r\n",
        "POST /a?b=%20 HTTP/1.1\r\n",
        "HEAD /x/../y HTTP/1.1\r\n",
        "PUT //a;b HTTP/1.1\r\n",
        "NEW /a HTTP/1.1\r\n",
        "GET  / HTTP/1.1\r\n",
        "GET / HTTP/1.0\r\n",
        "GET http://web/a HTTP/1.1\r\n",
        "GET /a b HTTP/1.1\r\n",
    ];
    const BODIES: [&str; 6] =
        ["", "abc", "hello", "3\r\nabc\r\n0\r\n\r\n", "1;x\r\na\r\n0\r\nt: 1\r\n\r\n", "0\r\n\r\n"];
    (0..STARTS.len(), proptest::collection::vec(0..LINES.len(), 0..6), 0..BODIES.len(), any::<bool>())
        .prop_map(|(start, lines, body, host)| {
            let mut all = vec![STARTS[start]];
            all.extend(host.then_some("host: web\r\n"));
            all.extend(lines.into_iter().map(|line| LINES[line]));
            all.extend(["\r\n", BODIES[body]]);
            all
        })
}

type Seen = (String, String, HeaderMap, Bytes);

/// The first request that hyper reads, if it reads one whole.
fn by_hyper(bytes: &[u8]) -> Option<Seen> {
    let seen = Rc::new(RefCell::new(None));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let told = seen.clone();
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        client.write_all(bytes).await.unwrap();
        let service = service_fn(move |request: Request<Incoming>| {
            let told = told.clone();
            async move {
                let (parts, body) = request.into_parts();
                if let Ok(body) = body.collect().await {
                    let (method, uri) = (parts.method.to_string(), parts.uri.to_string());
                    told.borrow_mut().get_or_insert((method, uri, parts.headers, body.to_bytes()));
                }
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
            }
        });
        let serving = http1::Builder::new().serve_connection(TokioIo::new(server), service);
        // What isn't whole is waited for; time is made.
        drop(tokio::time::timeout(Duration::from_secs(1), serving).await);
    });
    seen.take()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// The oracle: whatever is ordinary here is the same request to hyper, with the same end.
    #[test]
    fn hyper_reads_the_same_request(pieces in pieces()) {
        let text = pieces.concat();
        let bytes = text.as_bytes();
        if let Some(request) = head::request(bytes, 100)
            && let Some(body) = whole_body(&bytes[request.head..], request.length)
        {
            let (method, uri, headers, data) = by_hyper(bytes).expect("hyper reads it");
            let OrdinaryRequest { method: own, target, host, fields, head, .. } = request;
            prop_assert_eq!((own.as_str(), target), (&*method, &*uri));
            prop_assert_eq!(host.as_bytes(), headers[header::HOST].as_bytes());
            let mut written = Vec::new();
            fields.write(&mut written);
            let lines = written.iter().filter(|byte| **byte == b'\n').count();
            prop_assert_eq!(lines, headers.len());
            for name in headers.keys().filter(|name| *name != header::HOST) {
                let theirs: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
                prop_assert_eq!(fields.values(name).collect::<Vec<_>>(), theirs);
            }
            if request.length == BodyLength::Chunked {
                let (passed, ..) = follow(&[&bytes[head..head + body]]).expect("it is whole");
                let again = [b"PUT / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n", &*passed].concat();
                prop_assert_eq!(by_hyper(&again).expect("hyper reads it").3, data);
            } else {
                prop_assert_eq!(&bytes[head..head + body], &*data);
            }
            // Whoever follows the requests beside the parser sees one, with one length, and its end.
            let mut framing = Framing::new();
            let mut ambiguous = false;
            framing.follow(&bytes[..head + body], |head| ambiguous |= head.ambiguous);
            prop_assert_eq!((ambiguous, framing.complete()), (false, Some(1)));
        }
    }

    #[test]
    fn chunks_may_come_in_any_pieces(cuts in proptest::collection::vec(0..CHUNKS.len(), 0..8)) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([CHUNKS.len()]) {
            pieces.push(&CHUNKS[from..cut]);
            from = cut;
        }
        prop_assert_eq!(follow(&pieces), Ok((PASSED.to_vec(), CHUNKS.len() - "GET /next".len(), true)));
    }

    /// A part of a body is never taken for the whole.
    #[test]
    fn a_part_of_a_body_has_no_end(end in 0..CHUNKS.len() - "GET /next".len()) {
        let (_, sum, over) = follow(&[&CHUNKS[..end]]).unwrap();
        prop_assert_eq!((sum, over), (end, false));
    }
}
