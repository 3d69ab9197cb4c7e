//! Faults, CORS and affinity, as clients and endpoints see them.

use std::{collections::BTreeSet, time::Duration};

use crate::support::{Client, Endpoint, File, Proxy};
use tokio::{net::TcpSocket, time::Instant};

/// A route to cluster `web` with a filter's settings, behind those of `before`.
fn filtered(before: &str, filter: &str, settings: &str) -> String {
    let package = filter.rsplit('.').next().expect("a name");
    let message = if package == "cors" { "CorsPolicy" } else { "HTTPFault" };
    format!(
        "{before}- match: {{prefix: /}}\n  route: {{cluster: web}}\n  typed_per_filter_config:\n    {filter}: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.http.{package}.v3.{message}, {settings}}}"
    )
}

async fn proxy(routes: String, endpoints: &[&Endpoint]) -> Proxy {
    let ports: Vec<u16> = endpoints.iter().map(|of| of.port()).collect();
    Proxy::start(&File { routes, ..File::default() }.text(&ports)).await
}

/// One request with these fields; the head of its answer in small letters, and the body.
async fn ask(client: &mut Client, method: &str, fields: &str) -> (String, String) {
    client.send(format!("{method} / HTTP/1.1\r\nhost: web\r\n{fields}\r\n")).await;
    client.answer().await
}

const FAULT: &str = "envoy.filters.http.fault";
const CORS: &str = "envoy.filters.http.cors";

#[tokio::test]
async fn aborts_are_by_share() {
    let endpoint = Endpoint::echo().await;
    for (share, status) in [("numerator: 100", "418"), ("numerator: 0", "200")] {
        let settings = format!("abort: {{http_status: 418, percentage: {{{share}}}}}");
        let proxy = proxy(filtered("", FAULT, &settings), &[&endpoint]).await;
        let mut client = proxy.connect().await;
        for _ in 0..5 {
            let (head, body) = ask(&mut client, "GET", "").await;
            assert!(head.starts_with(&format!("http/1.1 {status} ")), "{share}: {head}{body}");
        }
    }
    // Half of them, more or less: 400 throws of a coin are never all alike.
    let settings = "abort: {http_status: 503, percentage: {numerator: 5000, denominator: TEN_THOUSAND}}";
    let proxy = proxy(filtered("", FAULT, settings), &[&endpoint]).await;
    let mut client = proxy.connect().await;
    let mut aborted = 0;
    for _ in 0..400 {
        aborted += usize::from(ask(&mut client, "GET", "").await.0.starts_with("http/1.1 503 "));
    }
    assert!((100..300).contains(&aborted), "{aborted} of 400");
}

#[tokio::test]
async fn aborts_are_by_header_and_of_grpc() {
    let endpoint = Endpoint::echo().await;
    let settings = "abort: {header_abort: {}, percentage: {numerator: 100}}, headers: [{name: x-user, string_match: {exact: me}}]";
    let proxy = proxy(filtered("", FAULT, settings), &[&endpoint]).await;
    let mut client = proxy.connect().await;
    for (fields, has) in [
        ("x-user: me\r\nx-envoy-fault-abort-request: 429\r\n", "http/1.1 429 "),
        ("x-user: you\r\nx-envoy-fault-abort-request: 429\r\n", "http/1.1 200 "),
        ("x-user: me\r\n", "http/1.1 200 "),
    ] {
        let (head, _) = ask(&mut client, "GET", fields).await;
        assert!(head.starts_with(has), "{fields}: {head}");
    }
    let grpc = "x-user: me\r\nx-envoy-fault-abort-grpc-request: 7\r\ncontent-type: application/grpc\r\n";
    let (head, _) = ask(&mut client, "POST", &format!("{grpc}content-length: 0\r\n")).await;
    assert!(head.starts_with("http/1.1 200 ") && head.contains("grpc-status: 7"), "{head}");
}

#[tokio::test]
async fn delays_come_before_the_answer() {
    let endpoint = Endpoint::echo().await;
    let settings = "delay: {fixed_delay: 0.3s, percentage: {numerator: 100}}";
    let proxy = proxy(filtered("", FAULT, settings), &[&endpoint]).await;
    let mut client = proxy.connect().await;
    let began = Instant::now();
    let (head, _) = ask(&mut client, "GET", "").await;
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
}

#[tokio::test]
async fn cors_answers_preflights_and_marks_answers() {
    let endpoint = Endpoint::echo().await;
    let settings = "allow_origin_string_match: [{exact: \"http://shop.test\"}], allow_methods: \"GET, PUT\", \
                    allow_headers: x-a, expose_headers: x-b, max_age: \"600\", allow_credentials: true";
    let proxy = proxy(filtered("", CORS, settings), &[&endpoint]).await;
    let mut client = proxy.connect().await;
    let preflight = "origin: http://shop.test\r\naccess-control-request-method: PUT\r\n";
    let (head, body) = ask(&mut client, "OPTIONS", preflight).await;
    assert!(head.starts_with("http/1.1 200 ") && body.is_empty(), "{head}{body}");
    for field in [
        "access-control-allow-origin: http://shop.test\r\n",
        "access-control-allow-methods: get, put\r\n",
        "access-control-allow-headers: x-a\r\n",
        "access-control-max-age: 600\r\n",
        "access-control-allow-credentials: true\r\n",
    ] {
        assert!(head.contains(field), "{field} isn't in {head}");
    }
    assert_eq!(endpoint.connections(), 0, "nobody else was asked");
    let (head, body) = ask(&mut client, "GET", "origin: http://shop.test\r\n").await;
    assert!(head.contains("access-control-allow-origin: http://shop.test\r\n"), "{head}");
    assert!(head.contains("access-control-expose-headers: x-b\r\n") && body.starts_with("GET / "), "{head}");
    for fields in ["origin: http://evil.test\r\n", ""] {
        let (head, body) = ask(&mut client, "GET", fields).await;
        assert!(body.starts_with("GET / ") && !head.contains("access-control"), "{fields}: {head}{body}");
    }
}

/// The endpoint that answers tells its number.
async fn numbered(number: usize) -> Endpoint {
    Endpoint::http(false, move |_| async move { http::Response::new(format!("{number}").into()) }).await
}

async fn hashing(policy: &str) -> (Proxy, Vec<Endpoint>) {
    let mut endpoints = Vec::new();
    for number in 0..5 {
        endpoints.push(numbered(number).await);
    }
    let ports: Vec<u16> = endpoints.iter().map(Endpoint::port).collect();
    let routes = format!("- {{match: {{prefix: /}}, route: {{cluster: web, hash_policy: [{policy}]}}}}");
    let cluster = "lb_policy: MAGLEV".into();
    (Proxy::start(&File { routes, cluster, ..File::default() }.text(&ports)).await, endpoints)
}

#[tokio::test]
async fn the_same_header_goes_to_the_same_endpoint() {
    let (proxy, _endpoints) = hashing("{header: {header_name: x-user}}").await;
    let mut client = proxy.connect().await;
    let mut met = BTreeSet::new();
    for user in 0..40 {
        let fields = format!("x-user: u{user}\r\n");
        let (_, first) = ask(&mut client, "GET", &fields).await;
        let (_, again) = ask(&mut client, "GET", &fields).await;
        assert_eq!(first, again, "{fields}");
        met.insert(first);
    }
    assert!(met.len() > 1, "all users met {met:?}");
}

#[tokio::test]
async fn a_cookie_is_made_for_whoever_has_none_and_leads_back() {
    let (proxy, _endpoints) = hashing("{cookie: {name: shard, ttl: 60s, path: /}}").await;
    let mut met = BTreeSet::new();
    for _ in 0..20 {
        let mut client = proxy.connect().await;
        // As the browser does: the head isn't in small letters here.
        client.send("GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await;
        let answer = client.rest().await;
        let line = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
        assert!(
            line.contains("Max-Age=60") && line.contains("Path=/") && line.contains("HttpOnly"),
            "{line}"
        );
        let cookie = line.split(';').next().expect("a pair");
        let first = answer.rsplit("\r\n").next().expect("a body").to_owned();
        let mut client = proxy.connect().await;
        for _ in 0..3 {
            let (head, body) = ask(&mut client, "GET", &format!("cookie: {cookie}\r\n")).await;
            assert_eq!(body, first, "{cookie}");
            assert!(!head.contains("set-cookie"), "{head}");
        }
        met.insert(first);
    }
    assert!(met.len() > 1, "all clients met {met:?}");
}

#[tokio::test]
async fn the_same_address_goes_to_the_same_endpoint() {
    let (proxy, _endpoints) = hashing("{connection_properties: {source_ip: true}}").await;
    let mut met = BTreeSet::new();
    for address in 2..30 {
        let mut bodies = BTreeSet::new();
        for _ in 0..2 {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.bind(([127, 0, 0, address], 0).into()).expect("an address of loopback");
            let stream = socket.connect(proxy.address).await.expect("it listens");
            let mut client = Client::new(stream);
            bodies.insert(ask(&mut client, "GET", "").await.1);
        }
        assert_eq!(bodies.len(), 1, "127.0.0.{address} met {bodies:?}");
        met.extend(bodies);
    }
    assert!(met.len() > 1, "all addresses met {met:?}");
}
