//! Endpoints that answer late, wrongly or not at all, and resources that change.

use std::{collections::HashMap, time::Duration};

use crate::support::{Client, Endpoint, File, Proxy, file, soon, until};
use slotmesh_proxy::{ProxyLimits, ProxyResource, ProxyResourceKind, bootstrap};

const GET: &str = "GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn routed(route: &str, ports: &[u16]) -> String {
    let routes = format!("- {{match: {{prefix: /}}, route: {{cluster: web, {route}}}}}");
    File { routes, ..File::default() }.text(ports)
}

/// A port on which nobody listens, and which nobody else is given meanwhile.
struct ClosedPort(tokio::net::TcpSocket);

impl ClosedPort {
    fn new() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        Self(socket)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().expect("it is bound").port()
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_503() {
    let closed = ClosedPort::new();
    let proxy = Proxy::start(&file(&[closed.port()])).await;
    assert!(proxy.ask(GET).await.starts_with("HTTP/1.1 503 "));
    assert_eq!(proxy.metric("slotmesh_proxy_upstream_connect_failures_total{cluster=\"web\"}"), 1);
}

#[tokio::test]
async fn what_cannot_be_read_is_502() {
    let endpoint = Endpoint::raw(|mut client, _| async move {
        client.until("\r\n\r\n").await;
        client.send("SSH-2.0-nothing\r\n\r\n").await;
        client.rest().await;
    })
    .await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let answer = proxy.ask(GET).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

#[tokio::test]
async fn time_limits_are_504() {
    let silent = Endpoint::raw(|mut client, _| async move { drop(client.rest().await) }).await;
    for route in [
        "timeout: 0.2s",
        "timeout: 0s, max_stream_duration: {max_stream_duration: 0.2s}",
        "timeout: 0s, idle_timeout: 0.2s",
    ] {
        let proxy = Proxy::start(&routed(route, &[silent.port()])).await;
        let answer = proxy.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{route}: {answer}");
        assert_eq!(proxy.metric("slotmesh_proxy_timeouts_total{cluster=\"web\"}"), 1);
        // Its connection isn't used again.
        until("no request in flight", || {
            proxy.metric("slotmesh_proxy_requests_active{cluster=\"web\"}") == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_response_that_stops_is_broken_off() {
    let endpoint = Endpoint::raw(|mut client, _| async move {
        client.until("\r\n\r\n").await;
        client.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
        client.rest().await;
    })
    .await;
    let proxy = Proxy::start(&routed("timeout: 0s, idle_timeout: 3s", &[endpoint.port()])).await;
    let answer = proxy.ask(GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nabc"), "{answer}");
}

/// The endpoint ends in a response: the client must not take the part for the whole.
#[tokio::test]
async fn an_endpoint_that_dies_in_a_response_is_noticed() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let endpoint = Endpoint::raw(move |mut client: Client, _| async move {
            client.until("\r\n\r\n").await;
            client.send(answer).await;
        })
        .await;
        let proxy = Proxy::start(&file(&[endpoint.port()])).await;
        let mut client = proxy.connect().await;
        client.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
        let got = client.rest().await;
        assert!(got.starts_with("HTTP/1.1 200 ") && got.contains("abc"), "{got}");
        assert!(!got.contains("0\r\n\r\n"), "no last chunk: {got}");
        assert_eq!(endpoint.connections(), 1, "what was answered in part isn't sent again");
        until("a count", || proxy.metric("slotmesh_proxy_upstream_resets_total{cluster=\"web\"}") == 1).await;
    }
}

#[tokio::test]
async fn a_connection_that_the_server_closed_meanwhile_is_made_anew() {
    // Each connection serves one request and is closed as the next one comes.
    let endpoint = Endpoint::raw(|mut client: Client, _| async move {
        client.until("\r\n\r\n").await;
        client.send(OK).await;
        client.until("\r\n\r\n").await;
    })
    .await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut client = proxy.connect().await;
    for _ in 0..5 {
        client.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
        let (head, _) = client.answer().await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
    }
    // One that may not be sent twice isn't.
    client.send("POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 0\r\n\r\n").await;
    let (head, body) = client.answer().await;
    assert!(head.starts_with("http/1.1 503 "), "{head}{body}");
}

#[tokio::test]
async fn requests_are_sent_again_as_the_policy_says() {
    let flaky =
        Endpoint::raw(|mut client: Client, number| async move {
            let head = client.until("\r\n\r\n").await;
            let body = client.until("body").await;
            assert!(head.starts_with("POST / ") && body == "body");
            match number {
                0 => client
                    .send(
                        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                    )
                    .await,
                1 => {}
                _ => client.send(OK).await,
            }
        })
        .await;
    let retry =
        "retry_policy: {retry_on: \"5xx,reset\", num_retries: 3, retry_back_off: {base_interval: 0.01s}}";
    let proxy = Proxy::start(&routed(retry, &[flaky.port()])).await;
    let answer = proxy.ask(POST).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(flaky.connections(), 3);
    assert_eq!(proxy.metric("slotmesh_proxy_retries_total{cluster=\"web\"}"), 2);
    // The budget of no retry at all.
    let cluster = "circuit_breakers: {thresholds: [{max_retries: 0}]}".into();
    let routes = format!("- {{match: {{prefix: /}}, route: {{cluster: web, {retry}}}}}");
    let closed = ClosedPort::new();
    let proxy = Proxy::start(&File { routes, cluster, ..File::default() }.text(&[closed.port()])).await;
    assert!(proxy.ask(POST).await.starts_with("HTTP/1.1 503 "));
    assert_eq!(proxy.metric("slotmesh_proxy_retries_denied_total{cluster=\"web\"}"), 1);
}

#[tokio::test]
async fn connects_that_fail_are_tried_at_another_endpoint() {
    let endpoint = Endpoint::echo().await;
    let retry = "retry_policy: {retry_on: connect-failure, num_retries: 5, retry_back_off: {base_interval: 0.001s}, \
                 retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {\"@type\": \
                 type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}]}";
    let closed = ClosedPort::new();
    let proxy = Proxy::start(&routed(retry, &[closed.port(), endpoint.port()])).await;
    for _ in 0..10 {
        assert!(proxy.ask(POST).await.starts_with("HTTP/1.1 200 "));
    }
    let failures = proxy.metric("slotmesh_proxy_upstream_connect_failures_total{cluster=\"web\"}");
    assert!(failures >= 4, "{failures} of 10 requests began at the endpoint that isn't there");
    assert_eq!(proxy.metric("slotmesh_proxy_retries_total{cluster=\"web\"}"), failures);
}

/// Retries are a share of the requests in flight: of one request 20 % is none, where nothing is granted besides.
#[tokio::test]
async fn a_budget_bounds_retries() {
    for (least, retries, denied) in [(0, 0, 1), (1, 2, 0)] {
        let cluster = format!(
            "circuit_breakers: {{thresholds: [{{retry_budget: {{budget_percent: {{value: 20}}, min_retry_concurrency: {least}}}}}]}}"
        );
        let routes = "- {match: {prefix: /}, route: {cluster: web, retry_policy: {retry_on: connect-failure, num_retries: 2, \
                      retry_back_off: {base_interval: 0.001s}}}}";
        let closed = ClosedPort::new();
        let text = File { routes: routes.into(), cluster, ..File::default() }.text(&[closed.port()]);
        let proxy = Proxy::start(&text).await;
        assert!(proxy.ask(GET).await.starts_with("HTTP/1.1 503 "));
        assert_eq!(
            proxy.metric("slotmesh_proxy_retries_total{cluster=\"web\"}"),
            retries,
            "at least {least}"
        );
        assert_eq!(
            proxy.metric("slotmesh_proxy_retries_denied_total{cluster=\"web\"}"),
            denied,
            "at least {least}"
        );
    }
}

#[tokio::test]
async fn an_attempt_has_a_time_of_its_own_and_a_body_too_large_is_sent_once() {
    let slow = Endpoint::raw(|mut client: Client, number| async move {
        client.until("body").await;
        if number > 0 {
            client.send(OK).await;
        }
        client.rest().await;
    })
    .await;
    let retry = "timeout: 0s, retry_policy: {retry_on: \"5xx\", num_retries: 20, per_try_timeout: 1s}";
    let proxy = Proxy::start(&routed(retry, &[slow.port()])).await;
    assert!(proxy.ask(POST).await.starts_with("HTTP/1.1 200 "));
    assert!(slow.connections() >= 2, "the first attempt was given up");
    let limits = ProxyLimits { buffered_bytes: 3, ..ProxyLimits::default() };
    let slow = Endpoint::raw(|mut client: Client, _| async move { drop(client.rest().await) }).await;
    let proxy = Proxy::with_limits(&routed(retry, &[slow.port()]), limits).await;
    assert!(proxy.ask(POST).await.starts_with("HTTP/1.1 504 "));
    assert_eq!(slow.connections(), 1);
}

#[tokio::test]
async fn a_mirror_gets_a_copy_and_delays_nothing() {
    let (told, mut copies) = tokio::sync::mpsc::unbounded_channel();
    let mirror = Endpoint::raw(move |mut client: Client, _| {
        let told = told.clone();
        async move {
            let copy = client.until("\r\n\r\n").await + &client.until("body").await;
            drop(told.send(copy));
            // It never answers.
            client.rest().await;
        }
    })
    .await;
    let endpoint = Endpoint::echo().await;
    let text = routed("request_mirror_policies: [{cluster: copy}]", &[endpoint.port()]);
    let copy = format!(
        "  - name: copy\n    load_assignment: {{cluster_name: copy, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]}}\n",
        mirror.port()
    );
    let proxy = Proxy::start(&(text + &copy)).await;
    assert!(proxy.ask(POST).await.contains(" 200 "));
    let copy = soon("a copy", copies.recv()).await.expect("a copy");
    assert!(copy.starts_with("POST / HTTP/1.1") && copy.contains("host: web-shadow\r\n"), "{copy}");
}

#[tokio::test]
async fn requests_are_spread_and_follow_the_endpoints() {
    let endpoints = [Endpoint::echo().await, Endpoint::echo().await, Endpoint::echo().await];
    let ports: Vec<u16> = endpoints.iter().map(Endpoint::port).collect();
    let proxy = Proxy::start(&file(&ports)).await;
    let mut client = proxy.connect().await;
    for _ in 0..30 {
        client.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
        assert!(client.answer().await.0.starts_with("http/1.1 200 "));
    }
    assert!(endpoints.iter().all(|endpoint| endpoint.connections() == 1), "each got some, on one connection");
    // Only one is left.
    let engine = proxy.engine();
    for resource in bootstrap::parse(&file(&ports[..1])).expect("a file") {
        if matches!(resource, ProxyResource::Cluster(_)) {
            engine.apply(&resource).expect("a cluster");
        }
    }
    engine.settled().await;
    let before: HashMap<u16, usize> = endpoints.iter().map(|of| (of.port(), of.connections())).collect();
    for _ in 0..10 {
        client.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
        assert!(client.answer().await.0.starts_with("http/1.1 200 "));
    }
    let after: HashMap<u16, usize> = endpoints.iter().map(|of| (of.port(), of.connections())).collect();
    assert_eq!(before, after);
    engine.remove(ProxyResourceKind::Cluster, "web");
    engine.settled().await;
    client.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
    assert!(client.answer().await.0.starts_with("http/1.1 503 "));
}

#[tokio::test]
async fn a_client_has_so_many_requests_at_a_time_and_others_go_on() {
    let silent = Endpoint::raw(|mut client, _| async move { drop(client.rest().await) }).await;
    let limits = ProxyLimits { requests_per_client: 2, waiting_per_client: 1, ..ProxyLimits::default() };
    let proxy = Proxy::with_limits(&file(&[silent.port()]), limits).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = proxy.connect().await;
        client.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
        held.push(client);
    }
    until("two requests", || silent.connections() == 2).await;
    // One waits, the other is shed: which is which is theirs to settle.
    let mut both = [proxy.connect().await, proxy.connect().await];
    for client in &mut both {
        client.send("GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await;
    }
    until("a shed request", || proxy.metric("slotmesh_proxy_requests_shed_total") == 1).await;
    let [one, other] = both;
    let shed = |mut client: Client| async move { client.rest().await };
    let answer = tokio::select! { answer = shed(one) => answer, answer = shed(other) => answer };
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    // From another address of loopback.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.2:0".parse().expect("an address")).expect("an address of loopback");
    let mut stream = socket.connect(proxy.address).await.expect("it listens");
    let asked = tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET / HTTP/1.1\r\nhost: web\r\n\r\n");
    asked.await.expect("it reads");
    until("a third request", || silent.connections() == 3).await;
}

#[tokio::test]
async fn clusters_have_limits() {
    let silent = Endpoint::raw(|mut client, _| async move { drop(client.rest().await) }).await;
    for thresholds in ["max_requests: 1", "max_connections: 1"] {
        let cluster = format!("circuit_breakers: {{thresholds: [{{{thresholds}}}]}}");
        let proxy = Proxy::start(&File { cluster, ..File::default() }.text(&[silent.port()])).await;
        let before = silent.connections();
        let mut held = proxy.connect().await;
        held.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
        until("a request", || silent.connections() == before + 1).await;
        let answer = proxy.ask(GET).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{thresholds}: {answer}");
    }
}

#[tokio::test]
async fn requests_in_flight_are_finished_and_the_rest_is_cut_off() {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let opened = gate.clone();
    let endpoint = Endpoint::raw(move |mut client: Client, _| {
        let gate = gate.clone();
        async move {
            client.until("\r\n\r\n").await;
            gate.acquire().await.expect("it is open").forget();
            client.send(OK).await;
        }
    })
    .await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut idle = proxy.connect().await;
    let mut busy = proxy.connect().await;
    busy.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
    until("a request", || endpoint.connections() == 1).await;
    let drained = tokio::spawn(proxy.drain(Duration::from_secs(30)));
    assert_eq!(idle.rest().await, "");
    opened.add_permits(1);
    let answer = busy.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    soon("the engine's end", drained).await.expect("no panic");
    // Nobody answers: the grace is over at once.
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut busy = proxy.connect().await;
    busy.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
    until("a request", || endpoint.connections() == 2).await;
    proxy.drain(Duration::ZERO).await;
    assert_eq!(busy.rest().await, "");
}
