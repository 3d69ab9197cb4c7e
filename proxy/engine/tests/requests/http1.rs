//! HTTP/1.1 as clients write it, byte by byte.

use crate::support::{Endpoint, File, Proxy, file, soon, until};
use slotmesh_proxy::ProxyLimits;

#[tokio::test]
async fn requests_of_one_connection_are_answered_in_order() {
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut client = proxy.connect().await;
    // One after the other, then several at once.
    for path in ["/a", "/b"] {
        client.send(format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n")).await;
        let (head, body) = client.answer().await;
        assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
        assert!(body.starts_with(&format!("GET {path} HTTP/1.1\n")), "{body}");
    }
    client
        .send(
            "GET /1 HTTP/1.1\r\nhost: web\r\n\r\n\
             POST /2 HTTP/1.1\r\nhost: web\r\ncontent-length: 4\r\n\r\nbody\
             POST /3 HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n\
             GET /4 HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n",
        )
        .await;
    for (start, end) in
        [("GET /1 ", "\n\n"), ("POST /2 ", "body"), ("POST /3 ", "abcde"), ("GET /4 ", "\n\n")]
    {
        let (head, body) = client.answer().await;
        assert!(body.starts_with(start) && body.ends_with(end), "{head}{body}");
    }
    assert_eq!(client.rest().await, "");
    assert_eq!(endpoint.connections(), 1, "the connection to the endpoint is used again");
    assert_eq!(proxy.metric("slotmesh_proxy_responses_total{cluster=\"web\",code=\"200\"}"), 6);
    assert_eq!(proxy.metric("slotmesh_proxy_upstream_connects_total{cluster=\"web\"}"), 1);
}

#[tokio::test]
async fn fields_of_the_connection_stay_behind_and_those_about_the_client_are_made() {
    let endpoint = Endpoint::echo().await;
    let manager = "use_remote_address: true".into();
    let proxy = Proxy::start(&File { manager, ..File::default() }.text(&[endpoint.port()])).await;
    let answer = proxy
        .ask(
            "GET / HTTP/1.1\r\nHost: Web.example\r\nConnection: close, x-mine\r\nx-mine: 1\r\nKeep-Alive: 3\r\n\
             x-forwarded-for: 1.2.3.4\r\ncookie: a=1\r\ncookie: b=2\r\nte: trailers\r\nx-other: 2\r\nexpect: nothing\r\n\r\n",
        )
        .await;
    assert!(answer.contains("connection: close"), "{answer}");
    let fields: Vec<&str> = answer.split("\r\n\r\n").nth(1).expect("a body").lines().collect();
    for line in [
        "x-forwarded-for: 1.2.3.4,127.0.0.1",
        "x-forwarded-proto: http",
        "te: trailers",
        "cookie: a=1",
        "cookie: b=2",
        "x-other: 2",
        "host: Web.example",
    ] {
        assert!(fields.contains(&line), "{line} isn't in {fields:?}");
    }
    assert!(
        fields.iter().any(|line| line.starts_with("x-request-id: ") && line.len() == 14 + 36),
        "{fields:?}"
    );
    for gone in ["x-mine", "keep-alive", "connection", "expect"] {
        assert!(!fields.iter().any(|line| line.starts_with(&format!("{gone}:"))), "{gone} is in {fields:?}");
    }
}

#[tokio::test]
async fn trailers_and_chunks_go_through_in_both_directions() {
    let endpoint = Endpoint::raw(|mut peer, _| async move {
        let request = peer.until("\r\n\r\n").await;
        assert!(request.contains("transfer-encoding: chunked"), "{request}");
        let body = peer.until("0\r\n").await + &peer.until("\r\n\r\n").await;
        assert!(body.contains("abc") && body.contains("x-sum: 1"), "{body}");
        peer.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n").await;
        peer.send("5\r\nhello\r\n0\r\nx-end: 2\r\n\r\n").await;
    })
    .await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: web\r\nte: trailers\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n").await;
    client.send("3\r\nabc\r\n").await;
    client.send("0\r\nx-sum: 1\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await;
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    let body = client.until("x-end: 2\r\n\r\n").await;
    assert!(body.contains("hello"), "{body}");
}

#[tokio::test]
async fn a_body_is_asked_for_when_the_endpoint_reads_it() {
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut client = proxy.connect().await;
    client.send("PUT / HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").await;
    assert!(client.until("\r\n\r\n").await.starts_with("HTTP/1.1 100 Continue"));
    client.send("abc").await;
    let (head, body) = client.answer().await;
    assert!(
        head.starts_with("http/1.1 200") && body.ends_with("abc") && !body.contains("expect"),
        "{head}{body}"
    );
}

#[tokio::test]
async fn responses_without_a_body_keep_their_length() {
    let endpoint = Endpoint::raw(|mut peer, _| async move {
        loop {
            let request = peer.until("\r\n\r\n").await;
            let answer = match request.split(' ').next() {
                Some("HEAD") => "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n",
                Some("DELETE") => "HTTP/1.1 204 No Content\r\n\r\n",
                _ => "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n",
            };
            peer.send(answer).await;
        }
    })
    .await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut client = proxy.connect().await;
    for (method, start, has) in [
        ("HEAD", "HTTP/1.1 200 OK", "content-length: 1000"),
        ("DELETE", "HTTP/1.1 204 No Content", ""),
        ("GET", "HTTP/1.1 304 Not Modified", "etag: \"a\""),
    ] {
        client.send(format!("{method} / HTTP/1.1\r\nhost: web\r\n\r\n")).await;
        let head = client.until("\r\n\r\n").await;
        assert!(head.starts_with(start) && head.contains(has), "{head}");
    }
    assert_eq!(endpoint.connections(), 1);
}

/// Requests whose length isn't plain, and others that can't be trusted: 400, and the connection ends.
#[tokio::test]
async fn smuggled_requests_are_refused() {
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    for (what, request) in [
        (
            "both lengths",
            "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "the other way round",
            "POST / HTTP/1.1\r\nhost: web\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\n",
        ),
        ("two lengths", "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\na"),
        ("a length that is none", "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: +1\r\n\r\na"),
        (
            "an encoding that isn't the last",
            "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        ),
        (
            "an unknown encoding",
            "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        ("a folded line", "GET / HTTP/1.1\r\nhost: web\r\nx-a: 1\r\n  2\r\n\r\n"),
        ("a space before the colon", "GET / HTTP/1.1\r\nhost: web\r\nx-a : 1\r\n\r\n"),
        ("a bare CR", "GET / HTTP/1.1\r\nhost: web\r\nx-a: 1\rx-b: 2\r\n\r\n"),
        ("a zero byte", "GET / HTTP/1.1\r\nhost: web\r\nx-a: 1\0\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nhost: web\r\nhost: other\r\n\r\n"),
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("an empty host", "GET / HTTP/1.1\r\nhost:\r\n\r\n"),
        ("no version", "GET /\r\n\r\n"),
    ] {
        let answer = proxy.ask(format!("{request}GET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: {answer}");
    }
    // Chunk sizes are read once the body is: by then the endpoint is asked, and gets no whole request.
    for size in ["-1", "0x3", "fffffffffffffffff", " 3", "3;\n", "g"] {
        let request = format!(
            "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n{size}\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n"
        );
        let answer = proxy.ask(request).await;
        assert!(!answer.contains("smuggled") && !answer.contains(" 200 "), "{size:?}: {answer}");
    }
    assert!(proxy.ask("GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await.contains(" 200 "));
}

#[tokio::test]
async fn heads_are_bounded() {
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let many = "x-a: 1\r\n".repeat(101);
    let large = format!("x-a: {}\r\n", "a".repeat(70_000));
    let long = format!("GET /{} HTTP/1.1\r\nhost: web\r\n\r\n", "a".repeat(70_000));
    for request in [
        format!("GET / HTTP/1.1\r\nhost: web\r\n{many}\r\n"),
        format!("GET / HTTP/1.1\r\nhost: web\r\n{large}\r\n"),
        long,
    ] {
        let mut client = proxy.connect().await;
        // The answer may come before all is written.
        drop(
            soon("a write", tokio::io::AsyncWriteExt::write_all(&mut client.stream, request.as_bytes()))
                .await,
        );
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 431 ") || answer.starts_with("HTTP/1.1 414 "), "{answer}");
    }
}

#[tokio::test]
async fn versions_and_methods_that_are_not_served() {
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    assert!(proxy.ask("GET / HTTP/1.0\r\nhost: web\r\n\r\n").await.starts_with("HTTP/1.0 426 "));
    assert!(proxy.ask("CONNECT a:1 HTTP/1.1\r\nhost: web\r\n\r\n").await.starts_with("HTTP/1.1 405 "));
    let manager = "http_protocol_options: {accept_http_10: true}".into();
    let proxy = Proxy::start(&File { manager, ..File::default() }.text(&[endpoint.port()])).await;
    let answer = proxy.ask("GET / HTTP/1.0\r\nhost: web\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.contains("GET / HTTP/1.1"), "{answer}");
}

#[tokio::test]
async fn an_upgrade_is_passed_through() {
    let endpoint = Endpoint::raw(|mut peer, _| async move {
        let request = peer.until("\r\n\r\n").await.to_ascii_lowercase();
        assert!(request.contains("upgrade: websocket") && request.contains("connection: upgrade"), "{request}");
        peer.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: x\r\n\r\nhi").await;
        let said = peer.until("GET / HTTP/1.1\r\n").await;
        peer.send(format!("you said {said}")).await;
        assert_eq!(peer.rest().await, "bye");
    })
    .await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut client = proxy.connect().await;
    client.send("GET /chat HTTP/1.1\r\nhost: web\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: websocket"), "{head}");
    assert!(head.contains("connection: upgrade") && head.contains("sec-websocket-accept: x"), "{head}");
    client.until("hi").await;
    // What looks like a request is none any more.
    client.send("GET / HTTP/1.1\r\n").await;
    client.until("you said GET / HTTP/1.1\r\n").await;
    client.send("bye").await;
    tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.expect("half closed");
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn a_slow_head_is_not_waited_for() {
    let limits = ProxyLimits { head_time: std::time::Duration::from_secs(1), ..ProxyLimits::default() };
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::with_limits(&file(&[endpoint.port()]), limits).await;
    let mut slow = proxy.connect().await;
    slow.send("GET / HTTP/1.1\r\nhost: we").await;
    let mut idle = proxy.connect().await;
    idle.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
    idle.answer().await;
    assert_eq!(slow.rest().await, "");
    // One that is merely idle stays.
    idle.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
    assert!(idle.answer().await.0.starts_with("http/1.1 200"));
}

#[tokio::test]
async fn what_no_route_takes_is_not_found() {
    let routes = "- {match: {path: /here}, route: {cluster: web}}\n- {match: {path: /gone}, route: {cluster: nowhere}}\n\
                  - {match: {path: /moved}, redirect: {host_redirect: other.example}}\n\
                  - {match: {path: /said}, direct_response: {status: 418, body: {inline_string: short}}, \
                  response_headers_to_add: [{header: {key: x-a, value: b}}]}";
    let proxy = Proxy::start(&File { routes: routes.into(), ..File::default() }.text(&[])).await;
    let mut client = proxy.connect().await;
    for (path, status, has) in [
        ("/nothing", "404", "content-length: 0"),
        ("/here", "503", "content-type: text/plain"),
        ("/gone", "503", ""),
        ("/moved", "301", "location: http://other.example/moved"),
        ("/said", "418", "x-a: b"),
    ] {
        client.send(format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n")).await;
        let (head, body) = client.answer().await;
        assert!(
            head.starts_with(&format!("http/1.1 {status} ")) && head.contains(has),
            "{path}: {head}{body}"
        );
    }
    assert_eq!(proxy.metric("slotmesh_proxy_responses_total{cluster=\"-\",code=\"404\"}"), 1);
    assert_eq!(proxy.metric("slotmesh_proxy_responses_total{cluster=\"web\",code=\"503\"}"), 1);
}

#[tokio::test]
async fn upgrades_are_forbidden_by_the_route_or_refused_by_the_endpoint() {
    let endpoint = Endpoint::echo().await;
    let routes = "- {match: {path: /no}, route: {cluster: web, upgrade_configs: [{upgrade_type: websocket, enabled: false}]}}\n\
                  - {match: {prefix: /}, route: {cluster: web}}";
    let proxy =
        Proxy::start(&File { routes: routes.into(), ..File::default() }.text(&[endpoint.port()])).await;
    let ask = |path| {
        format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: WebSocket\r\n\r\n")
    };
    let mut client = proxy.connect().await;
    client.send(ask("/no")).await;
    assert!(client.answer().await.0.starts_with("http/1.1 403 "));
    // The endpoint answers as if it wasn't asked: the connection goes on with HTTP.
    let mut client = proxy.connect().await;
    for _ in 0..2 {
        client.send(ask("/yes")).await;
        let (head, body) = client.answer().await;
        assert!(head.starts_with("http/1.1 200 ") && body.contains("upgrade: WebSocket\n"), "{head}{body}");
    }
}

#[tokio::test]
async fn a_body_that_nobody_wants_is_not_asked_for() {
    let routes = "- {match: {prefix: /}, direct_response: {status: 403}}";
    let proxy = Proxy::start(&File { routes: routes.into(), ..File::default() }.text(&[])).await;
    let mut client = proxy.connect().await;
    client.send("PUT / HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").await;
    let (head, _) = client.answer().await;
    assert!(head.starts_with("http/1.1 403 "), "{head}");
}

/// Idle connections give their buffers back, and nobody notices.
#[tokio::test]
async fn a_connection_that_was_at_rest_is_served_again() {
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let at_rest = || proxy.metric("slotmesh_proxy_connections_at_rest");
    let mut client = proxy.connect().await;
    for round in 0..3 {
        let request = format!("POST /{round} HTTP/1.1\r\nhost: web\r\ncontent-length: 4\r\n\r\nbody");
        // In pieces, so that it isn't all there when somebody looks.
        for piece in
            [&request[..3], &request[3..30], &request[30..request.len() - 2], &request[request.len() - 2..]]
        {
            client.send(piece).await;
            tokio::task::yield_now().await;
        }
        let (head, body) = client.answer().await;
        assert!(
            head.starts_with("http/1.1 200 ") && body.starts_with(&format!("POST /{round} ")),
            "{head}{body}"
        );
        assert!(body.ends_with("\n\nbody"), "{body}");
        until("a rest", || at_rest() == 1).await;
    }
    // Several at once, and an empty line before the first.
    client.send("\r\nGET /a HTTP/1.1\r\nhost: web\r\n\r\nGET /b HTTP/1.1\r\nhost: web\r\n\r\n").await;
    for path in ["/a", "/b"] {
        assert!(client.answer().await.1.starts_with(&format!("GET {path} ")));
    }
    until("a rest", || at_rest() == 1).await;
    // One that waits for its answer has none.
    let silent = Endpoint::raw(|mut client, _| async move { drop(client.rest().await) }).await;
    let other = Proxy::start(&file(&[silent.port()])).await;
    let mut waiting = other.connect().await;
    waiting.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
    until("a request", || silent.connections() == 1).await;
    assert_eq!(other.metric("slotmesh_proxy_connections_at_rest"), 0);
    // The end is noticed, whichever side begins with it.
    tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.expect("half closed");
    assert_eq!(client.rest().await, "");
    let mut client = proxy.connect().await;
    client.send("GET /c HTTP/1.1\r\nhost: web\r\n\r\n").await;
    client.answer().await;
    until("a rest", || at_rest() == 1).await;
    proxy.drain(std::time::Duration::from_secs(30)).await;
    assert_eq!(client.rest().await, "");
}
