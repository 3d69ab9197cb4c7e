//! Clients that ask for too much, and how others fare meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{Client, Endpoint, File, Proxy, file, soon, until};
use slotmesh_proxy::ProxyLimits;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\n\r\n";
const MEGABYTE: usize = 1 << 20;

/// A request of somebody else is answered as ever.
async fn others_are_served(proxy: &Proxy) {
    let mut client = proxy.connect().await;
    for _ in 0..3 {
        client.send(GET).await;
        let (head, body) = client.answer().await;
        assert!(head.starts_with("http/1.1 200 "), "{head}{body}");
    }
}

/// Writes the same bytes again and again: up to so many, until nothing goes on, or until the other end has gone.
/// Returns how many were written, and if the other end has gone.
async fn write_on(stream: &mut TcpStream, bytes: &[u8], most: usize) -> (usize, bool) {
    let mut written = 0;
    while written < most {
        match timeout(Duration::from_secs(2), stream.write_all(bytes)).await {
            Ok(Ok(())) => written += bytes.len(),
            Ok(Err(_)) => return (written, true),
            Err(_elapsed) => return (written, false),
        }
    }
    (written, false)
}

async fn from_another_address(proxy: &Proxy) -> Client {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.2:0".parse().expect("an address")).expect("an address of loopback");
    Client::new(soon("a connection", socket.connect(proxy.address)).await.expect("it listens"))
}

#[tokio::test]
async fn a_flood_of_one_client_leaves_others_their_answers() {
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..256 {
        let mut client = from_another_address(&proxy).await;
        let (stop, answers) = (stop.clone(), answers.clone());
        flood.spawn(async move {
            while !stop.load(SeqCst) {
                client.send(GET.repeat(4)).await;
                for _ in 0..4 {
                    assert!(client.answer().await.0.starts_with("http/1.1 200 "));
                    answers.fetch_add(1, SeqCst);
                }
            }
        });
    }
    until("a flood", || answers.load(SeqCst) > 1_000).await;
    for _ in 0..5 {
        let before = answers.load(SeqCst);
        others_are_served(&proxy).await;
        until("it goes on", || answers.load(SeqCst) > before).await;
    }
    stop.store(true, SeqCst);
    while let Some(client) = soon("the end of the flood", flood.join_next()).await {
        client.expect("all of its requests were answered, too");
    }
    assert_eq!(proxy.metric("slotmesh_proxy_requests_shed_total"), 0);
}

#[tokio::test]
async fn a_head_of_100000_fields_is_refused_before_it_ends() {
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut client = proxy.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: web\r\n").await;
    let (mut reader, mut writer) = client.stream.into_split();
    let writing = tokio::spawn(async move {
        // It is cut off somewhere.
        drop(writer.write_all("x-a: 1\r\n".repeat(100_000).as_bytes()).await);
        writer
    });
    let mut answer = Vec::new();
    soon("the end of the connection", async { while let Ok(1..) = reader.read_buf(&mut answer).await {} })
        .await;
    assert!(answer.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&answer));
    drop(soon("the writer's end", writing).await);
    others_are_served(&proxy).await;
    assert_eq!(endpoint.connections(), 1);
}

#[tokio::test]
async fn many_slow_heads_hold_nobody_up() {
    let limits = ProxyLimits { head_time: Duration::from_secs(2), ..ProxyLimits::default() };
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::with_limits(&file(&[endpoint.port()]), limits).await;
    let mut slow = Vec::new();
    for _ in 0..500 {
        let mut client = from_another_address(&proxy).await;
        client.send("GET / HTTP/1.1\r\nhost: w").await;
        slow.push(client);
    }
    others_are_served(&proxy).await;
    // Each ends when its time is over.
    for client in &mut slow {
        assert_eq!(client.rest().await, "");
    }
}

/// Bytes that somebody takes who doesn't read: the buffers of all sockets on the way, and no more.
const STALLED: usize = 256 * MEGABYTE;

#[tokio::test]
async fn a_request_waits_for_an_endpoint_that_does_not_read() {
    let endpoint = Endpoint::raw(|client: Client, _| async move {
        std::future::pending::<()>().await;
        drop(client);
    })
    .await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut client = proxy.connect().await;
    client.send(format!("PUT / HTTP/1.1\r\nhost: web\r\ncontent-length: {}\r\n\r\n", 1024 * MEGABYTE)).await;
    let (written, gone) = write_on(&mut client.stream, &[b'x'; 64 << 10], STALLED).await;
    assert!(!gone && written < STALLED, "{written} bytes were taken");
}

#[tokio::test]
async fn a_response_waits_for_a_client_that_does_not_read() {
    let (told, mut written) = tokio::sync::mpsc::unbounded_channel();
    let endpoint = Endpoint::raw(move |mut client: Client, _| {
        let told = told.clone();
        async move {
            client.until("\r\n\r\n").await;
            client.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1024 * MEGABYTE)).await;
            let written = write_on(&mut client.stream, &[b'x'; 64 << 10], STALLED).await;
            told.send(written).expect("somebody waits");
        }
    })
    .await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut client = proxy.connect().await;
    client.send(GET).await;
    let (written, gone) = soon("a stop", written.recv()).await.expect("it tells");
    assert!(!gone && written < STALLED, "{written} bytes were taken");
    drop(client);
}

#[tokio::test]
async fn large_bodies_go_through_whole_in_both_directions() {
    const SIZE: usize = 32 * MEGABYTE;
    let endpoint = Endpoint::raw(|mut client: Client, _| async move {
        client.until("\r\n\r\n").await;
        let mut buffer = vec![0; 64 << 10];
        let mut sum = client.take_read().len();
        while sum < SIZE {
            let some = soon("the body", client.stream.read(&mut buffer)).await.expect("the body");
            assert!(some > 0 && buffer[..some].iter().all(|byte| *byte == b'x'));
            sum += some;
        }
        client.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n")).await;
        for _ in 0..SIZE / buffer.len() {
            client.send(vec![b'y'; buffer.len()]).await;
        }
        client.rest().await;
    })
    .await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut client = proxy.connect().await;
    client
        .send(format!("PUT / HTTP/1.1\r\nhost: web\r\nconnection: close\r\ncontent-length: {SIZE}\r\n\r\n"))
        .await;
    for _ in 0..SIZE / (64 << 10) {
        client.send(vec![b'x'; 64 << 10]).await;
    }
    let answer = client.rest().await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(body.len() == SIZE && body.bytes().all(|byte| byte == b'y'), "{} bytes", body.len());
}

/// HTTP/2, frame by frame.
mod frames {
    pub const HEADERS: u8 = 1;
    pub const RESET: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const CONTINUATION: u8 = 9;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    /// GET of `/` from `web`, over http.
    pub const GET: &[u8] = b"\x82\x84\x86\x01\x03web";

    pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("it is short").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    /// First bytes of a client.
    pub fn preface() -> Vec<u8> {
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(SETTINGS, 0, 0, &[])].concat()
    }

    /// Frames in what was read: kind, stream, payload.
    pub fn parse(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
        let mut found = Vec::new();
        while let Some((head, rest)) = bytes.split_at_checked(9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some((payload, rest)) = rest.split_at_checked(length) else { break };
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            found.push((head[3], stream, payload.to_vec()));
            bytes = rest;
        }
        found
    }
}
use frames::frame;

/// Requests that are taken back at once, faster than they can be begun.
#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut client = proxy.connect().await;
    client.send(frames::preface()).await;
    let mut all = Vec::new();
    for n in 0..20_000 {
        let stream = 2 * n + 1;
        all.extend(frame(frames::HEADERS, frames::END_HEADERS | frames::END_STREAM, stream, frames::GET));
        all.extend(frame(frames::RESET, 0, stream, &8_u32.to_be_bytes()));
    }
    let (mut reader, mut writer) = client.stream.into_split();
    let writing = tokio::spawn(async move {
        // It is cut off somewhere.
        drop(writer.write_all(&all).await);
        writer
    });
    let mut read = Vec::new();
    soon("the end of the connection", async { while let Ok(1..) = reader.read_buf(&mut read).await {} })
        .await;
    drop(soon("the writer's end", writing).await);
    others_are_served(&proxy).await;
    assert!(endpoint.connections() < 1_000, "{} connections were made for it", endpoint.connections());
}

/// Requests that are taken back once they are under way.
#[tokio::test]
async fn resets_of_requests_under_way_end_the_connection() {
    let silent = Endpoint::raw(|mut client: Client, _| async move { drop(client.rest().await) }).await;
    let proxy = Proxy::start(&file(&[silent.port()])).await;
    let mut client = proxy.connect().await;
    client.send(frames::preface()).await;
    let mut ended = false;
    for n in 0..2_000 {
        let stream = 2 * n + 1;
        let headers = frame(frames::HEADERS, frames::END_HEADERS | frames::END_STREAM, stream, frames::GET);
        let before = silent.connections();
        if client.stream.write_all(&headers).await.is_err() {
            ended = true;
            break;
        }
        let mut buffer = [0; 4_096];
        soon("the request, or the end", async {
            while silent.connections() == before && !ended {
                // Reads on, so that the end is seen.
                let read = timeout(Duration::from_millis(1), client.stream.read(&mut buffer)).await;
                if let Ok(Ok(0) | Err(_)) = read {
                    ended = true;
                }
            }
        })
        .await;
        if ended
            || client.stream.write_all(&frame(frames::RESET, 0, stream, &8_u32.to_be_bytes())).await.is_err()
        {
            ended = true;
            break;
        }
    }
    assert!(ended, "2,000 requests were taken back");
}

#[tokio::test]
async fn a_head_without_end_ends_the_connection() {
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    for payload in [vec![0; 16], [b"\x00\x01a\x7f\xf0\x3f".as_slice(), &[b'x'; 8_000]].concat(), Vec::new()] {
        let mut client = proxy.connect().await;
        client.send(frames::preface()).await;
        client.send(frame(frames::HEADERS, frames::END_STREAM, 1, frames::GET)).await;
        let more = frame(frames::CONTINUATION, 0, 1, &payload);
        let more = more.repeat((64 << 10) / more.len());
        let (written, gone) = write_on(&mut client.stream, &more, 64 * MEGABYTE).await;
        assert!(gone, "{written} bytes of a head were taken");
        others_are_served(&proxy).await;
    }
}

/// A few bytes that stand for a head of 64 MB.
#[tokio::test]
async fn a_head_that_unpacks_to_much_is_refused() {
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut client = proxy.connect().await;
    client.send(frames::preface()).await;
    // A field of 4,000 bytes goes into the table, and is named 15,000 times.
    let mut block = frames::GET.to_vec();
    block.extend_from_slice(b"\x40\x01a\x7f\xa1\x1e");
    block.extend_from_slice(&[b'x'; 4_000]);
    block.extend_from_slice(&[0xbe; 15_000]);
    let (first, rest) = block.split_at(10_000);
    client.send(frame(frames::HEADERS, frames::END_STREAM, 1, first)).await;
    client.send(frame(frames::CONTINUATION, frames::END_HEADERS, 1, rest)).await;
    // 431 on its stream, a reset of it, or the end of the connection.
    let mut read = Vec::new();
    soon("an answer", async {
        loop {
            let of_it = |(kind, stream, _): &(u8, u32, Vec<u8>)| {
                *stream == 1 && matches!(*kind, frames::HEADERS | frames::RESET)
            };
            if frames::parse(&read).iter().any(of_it) {
                return;
            }
            match client.stream.read_buf(&mut read).await {
                Ok(1..) => {}
                _ => return,
            }
        }
    })
    .await;
    assert_eq!(endpoint.connections(), 0, "nobody was asked");
    others_are_served(&proxy).await;
}

/// Frames that are to be answered, from a client that doesn't read the answers.
#[tokio::test]
async fn answers_that_nobody_reads_are_bounded() {
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    for what in [frame(frames::PING, 0, 0, &[7; 8]), frame(frames::SETTINGS, 0, 0, &[])] {
        let mut client = proxy.connect().await;
        client.send(frames::preface()).await;
        let many = what.repeat((64 << 10) / what.len());
        let (written, gone) = write_on(&mut client.stream, &many, STALLED).await;
        assert!(gone || written < STALLED, "{written} bytes were taken");
        others_are_served(&proxy).await;
    }
}

/// A message that is longer than it says, and other ways to hide a request in another one.
#[tokio::test]
async fn requests_do_not_hide_in_chunks() {
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let hidden = "GET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n";
    for (what, body) in [
        ("line ends without CR", "3\nabc\n0\n\n".to_owned()),
        ("a chunk that is longer than it says", "3\r\nabcdef\r\n0\r\n\r\n".to_owned()),
        ("a chunk that is shorter than it says", "f\r\nabc\r\n0\r\n\r\n".to_owned()),
        ("no line end behind a chunk", "3\r\nabc0\r\n\r\n".to_owned()),
        ("an extension without end", format!("3;{}\r\nabc\r\n0\r\n\r\n", "a".repeat(1 << 20))),
        ("many extensions", format!("{}0\r\n\r\n", format!("1;{}\r\na\r\n", "b".repeat(1_000)).repeat(100))),
        ("trailers without end", format!("3\r\nabc\r\n0\r\n{}\r\n", "x-a: 1\r\n".repeat(20_000))),
    ] {
        let mut client = proxy.connect().await;
        let head = "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n";
        // It may be cut off while it is written.
        drop(soon(what, client.stream.write_all(format!("{head}{body}{hidden}").as_bytes())).await);
        drop(client.stream.shutdown().await);
        let answer = client.rest().await;
        assert!(!answer.contains("GET /smuggled"), "{what}: {answer}");
    }
    // A short extension is nobody's business, and goes no further.
    let request = "POST / HTTP/1.1\r\nhost: web\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n";
    let answer = proxy.ask(request).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\n\nabc"), "{answer}");
    others_are_served(&proxy).await;
}

/// A client that writes without reading is cut off: it takes nothing for the stream idle timeout.
#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_off() {
    let endpoint = Endpoint::raw(|mut client: Client, _| async move {
        client.until("\r\n\r\n").await;
        client.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1024 * MEGABYTE)).await;
        write_on(&mut client.stream, &[b'x'; 64 << 10], 1024 * MEGABYTE).await;
        client.rest().await;
    })
    .await;
    let manager = "stream_idle_timeout: 1s".into();
    let proxy = Proxy::start(&File { manager, ..File::default() }.text(&[endpoint.port()])).await;
    let mut client = proxy.connect().await;
    client.send(GET).await;
    until("its connection's end", || proxy.metric("slotmesh_proxy_connections_open") == 0).await;
    drop(client);
}
