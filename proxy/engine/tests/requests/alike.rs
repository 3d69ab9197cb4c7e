//! The same bytes to an engine with the path of our own and to one with hyper alone: the same answers, and the same requests
//! at the endpoint.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use slotmesh_proxy::{EngineOptions, Http1Path};

use crate::support::{Client, Endpoint, File, Proxy, options};

/// A message as it is compared: its first line, its fields in small letters, its body.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    line: String,
    fields: BTreeSet<String>,
    body: String,
}

/// Reads a message; chunks become the body that they are.
async fn message(client: &mut Client, has_body: bool) -> Message {
    let head = client.until("\r\n\r\n").await;
    let (line, rest) = head.split_once("\r\n").expect("a line");
    let mut fields = BTreeSet::new();
    let (mut length, mut chunked) = (0, false);
    for field in rest.split("\r\n").filter(|field| !field.is_empty()) {
        let (name, value) = field.split_once(':').expect("a field");
        let (name, value) = (name.to_ascii_lowercase(), value.trim());
        match &*name {
            // Made anew each time.
            "date" | "x-request-id" => continue,
            "content-length" => length = value.parse().expect("a number"),
            "transfer-encoding" => chunked = true,
            _ => {}
        }
        fields.insert(format!("{name}: {value}"));
    }
    let mut body = String::new();
    if has_body && chunked {
        loop {
            let size = client.until("\r\n").await;
            let size = size.trim_end().split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).expect("a size");
            if size == 0 {
                while client.until("\r\n").await != "\r\n" {}
                break;
            }
            body += &client.exactly(size).await;
            assert_eq!(client.until("\r\n").await, "\r\n");
        }
    }
    if has_body && !chunked {
        body = client.exactly(length).await;
    }
    Message { line: line.into(), fields, body }
}

/// Answers of the endpoint, by the path that is asked for, and if the connection ends with each.
const ANSWERS: [(&str, &str, bool); 14] = [
    ("/sized", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nx-a: 2\r\n\r\nhello", false),
    (
        "/empty",
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\nkeep-alive: timeout=5\r\n\r\n",
        false,
    ),
    (
        "/chunked",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n2\r\nde\r\n0\r\nx-t: 1\r\n\r\n",
        false,
    ),
    ("/close", "HTTP/1.1 200 Fine\r\nconnection: close, x-b\r\nx-b: 1\r\nx-c: 2\r\n\r\nall that comes", true),
    ("/old", "HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nold", true),
    ("/none", "HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n", false),
    ("/same", "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n", false),
    (
        "/interim",
        "HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        false,
    ),
    ("/missing", "HTTP/1.1 404 Not Found\r\nserver: x\r\ncontent-length: 2\r\n\r\nno", false),
    ("/lines", "HTTP/1.1 200 OK\ncontent-length: 2\nx-a:  b  \n\nok", false),
    ("/dated", "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\ncontent-length: 0\r\n\r\n", false),
    ("/garbage", "SSH-2.0-x\r\n\r\n", true),
    ("/two", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", true),
    ("/upgraded", "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", true),
];

type Seen = Arc<Mutex<Vec<Message>>>;

/// An endpoint that answers by the path, and notes what it is asked.
async fn endpoint() -> (Endpoint, Seen) {
    let seen = Seen::default();
    let noted = seen.clone();
    let endpoint = Endpoint::raw(move |mut client, _| {
        let noted = noted.clone();
        async move {
            while matches!(client.stream.peek(&mut [0]).await, Ok(1..)) {
                let request = message(&mut client, true).await;
                let path = request.line.split(' ').nth(1).unwrap_or_default();
                let path = path.split('?').next().unwrap_or_default().to_owned();
                let found = ANSWERS.iter().find(|(of, ..)| *of == path);
                let (_, answer, ends) = found.unwrap_or(&ANSWERS[0]);
                let head_only = request.line.starts_with("HEAD ");
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                let end = answer.find("\r\n\r\n").map_or(answer.len(), |end| end + 4);
                client.send(if head_only { &answer[..end] } else { answer }).await;
                if *ends {
                    return;
                }
            }
        }
    })
    .await;
    (endpoint, seen)
}

/// Requests of clients, each on a connection that is kept, and if their answer has a body.
fn requests() -> Vec<(String, bool)> {
    let mut all: Vec<(String, bool)> = ANSWERS
        .iter()
        .map(|(path, ..)| {
            (format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n"), !matches!(*path, "/none" | "/same"))
        })
        .collect();
    for (text, has_body) in [
        ("HEAD /sized HTTP/1.1\r\nhost: web\r\n\r\n", false),
        ("POST /sized?a=b HTTP/1.1\r\nhost: web\r\ncontent-length: 3\r\n\r\nabc", true),
        (
            "POST /sized HTTP/1.1\r\nhost: web\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nt: 1\r\n\r\n",
            true,
        ),
        (
            "GET /sized HTTP/1.1\r\nHost: Web.Example:8080\r\nX-Mine: a\r\nx-mine: b\r\ncookie: c=d\r\n\r\n",
            true,
        ),
        (
            "GET /sized HTTP/1.1\r\nhost: web\r\nconnection: keep-alive\r\nkeep-alive: 3\r\nproxy-connection: x\r\n\r\n",
            true,
        ),
        ("GET /sized HTTP/1.1\r\nhost: web\r\nconnection: x-mine\r\nx-mine: 1\r\nx-other: 2\r\n\r\n", true),
        (
            "GET /sized HTTP/1.1\r\nhost: web\r\nx-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\n\r\n",
            true,
        ),
        ("OPTIONS /sized HTTP/1.1\r\nhost: web\r\nte: trailers, gzip\r\n\r\n", true),
        ("GET http://other/sized HTTP/1.1\r\nhost: web\r\n\r\n", true),
        ("GET /edited HTTP/1.1\r\nhost: web\r\nx-gone: 1\r\nx-set: 0\r\n\r\n", true),
        ("GET /moved/on HTTP/1.1\r\nhost: web\r\n\r\n", true),
        ("GET /said HTTP/1.1\r\nhost: web\r\n\r\n", true),
        ("HEAD /said HTTP/1.1\r\nhost: web\r\n\r\n", false),
        ("GET /nowhere HTTP/1.1\r\nhost: web\r\n\r\n", true),
        ("GET /a/../sized HTTP/1.1\r\nhost: web\r\n\r\n", true),
        ("GET /%2e%2e/x%41|y HTTP/1.1\r\nhost: web\r\n\r\n", true),
    ] {
        all.push((text.to_owned(), has_body));
    }
    all
}

const ROUTES: &str = r#"- match: {prefix: /edited}
  route: {cluster: web, prefix_rewrite: /sized, host_rewrite_literal: new.example}
  request_headers_to_remove: [x-gone]
  request_headers_to_add: [{header: {key: x-set, value: "1"}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}, {header: {key: x-new, value: a}}]
  response_headers_to_remove: [x-a]
  response_headers_to_add: [{header: {key: x-back, value: b}}]
- {match: {prefix: /moved}, redirect: {prefix_rewrite: /to}}
- {match: {path: /said}, direct_response: {status: 418, body: {inline_string: short}}}
- {match: {path: /nowhere}, route: {cluster: nobody}}
- {match: {prefix: /}, route: {cluster: web}}"#;

async fn answers(http1: Http1Path) -> (Vec<Message>, Vec<Message>) {
    let (endpoint, seen) = endpoint().await;
    let manager = "use_remote_address: true\nnormalize_path: true\nmerge_slashes: true".into();
    let file = File { routes: ROUTES.into(), manager, ..File::default() }.text(&[endpoint.port()]);
    let proxy = Proxy::with(&file, EngineOptions { workers: 1, http1, ..options() }).await;
    let mut answers = Vec::new();
    for (request, has_body) in requests() {
        let mut client = proxy.connect().await;
        // Twice: the second one comes where the first was served.
        for _ in 0..2 {
            client.send(&request).await;
            answers.push(message(&mut client, has_body).await);
        }
    }
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (answers, seen)
}

#[tokio::test]
async fn both_paths_answer_alike() {
    let (own, own_seen) = answers(Http1Path::Own).await;
    let (by_hyper, hyper_seen) = answers(Http1Path::Hyper).await;
    let asked: Vec<_> = requests().into_iter().flat_map(|(request, _)| [request.clone(), request]).collect();
    for ((request, own), by_hyper) in asked.iter().zip(&own).zip(&by_hyper) {
        assert_eq!(own, by_hyper, "{request}");
    }
    for (own, by_hyper) in own_seen.iter().zip(&hyper_seen) {
        assert_eq!(own, by_hyper);
    }
    assert_eq!(own_seen.len(), hyper_seen.len());
}
