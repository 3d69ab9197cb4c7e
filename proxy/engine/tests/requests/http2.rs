//! HTTP/2 with prior knowledge, and gRPC.

use std::{convert::Infallible, time::Duration};

use crate::support::{Endpoint, File, HTTP2_CLUSTER, Proxy, echo, file, soon};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::{client::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

type Sender = http2::SendRequest<Full<Bytes>>;

async fn connect(proxy: &Proxy) -> Sender {
    let stream = TcpStream::connect(proxy.address).await.expect("it listens");
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

fn request(path: &str) -> http::request::Builder {
    Request::builder().uri(format!("http://web{path}"))
}

fn empty() -> Full<Bytes> {
    Full::default()
}

fn http2_file(port: u16) -> String {
    File { cluster: HTTP2_CLUSTER.into(), ..File::default() }.text(&[port])
}

async fn text(response: Response<hyper::body::Incoming>) -> String {
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    String::from_utf8(body.to_vec()).expect("text")
}

#[tokio::test]
async fn streams_go_to_endpoints_of_http1() {
    let endpoint = Endpoint::echo().await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut sender = connect(&proxy).await;
    let requests = (0..20).map(|n| {
        let request = request(&format!("/{n}")).header("cookie", "a=1").header("cookie", "b=2");
        sender.send_request(request.body(Full::new("body".into())).expect("a request"))
    });
    let requests: Vec<_> = requests.collect();
    for (n, response) in requests.into_iter().enumerate() {
        let response = soon("a response", response).await.expect("a response");
        assert_eq!(response.status(), StatusCode::OK);
        let text = text(response).await;
        assert!(text.starts_with(&format!("GET /{n} HTTP/1.1\n")) && text.ends_with("\n\nbody"), "{text}");
        assert!(text.contains("cookie: a=1; b=2\n") && text.contains("host: web\n"), "{text}");
    }
}

#[tokio::test]
async fn streams_go_to_endpoints_of_http2() {
    let endpoint = Endpoint::http(true, echo).await;
    let proxy = Proxy::start(&http2_file(endpoint.port())).await;
    let mut sender = connect(&proxy).await;
    let response =
        soon("a response", sender.send_request(request("/a").body(empty()).expect("a request"))).await;
    let text = text(response.expect("a response")).await;
    assert!(text.starts_with("GET http://web/a HTTP/2.0\n"), "{text}");
    // And from HTTP/1.
    let answer = proxy.ask("GET /b HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("GET http://web/b HTTP/2.0"), "{answer}");
    assert_eq!(endpoint.connections(), 1, "both are streams of one connection");
}

#[tokio::test]
async fn trailers_of_grpc_arrive() {
    let endpoint = Endpoint::raw(|client, _| async move {
        let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
            assert_eq!(request.headers()["te"], "trailers");
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let trailers = HeaderMap::from_iter([(
                HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("5"),
            )]);
            let frames = [Ok::<_, Infallible>(Frame::data(body)), Ok(Frame::trailers(trailers))];
            let body = StreamBody::new(futures::stream::iter(frames));
            let response = Response::builder().header("content-type", "application/grpc").body(body);
            Ok::<_, Infallible>(response.expect("a response"))
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(builder.serve_connection(TokioIo::new(client.stream), service).await);
    })
    .await;
    let proxy = Proxy::start(&http2_file(endpoint.port())).await;
    let mut sender = connect(&proxy).await;
    let call = request("/shop.Cart/Add").method("POST").header("content-type", "application/grpc");
    let call = call.header("te", "trailers").body(Full::new("message".into())).expect("a request");
    let response = soon("a response", sender.send_request(call)).await.expect("a response");
    let body = soon("the body", response.into_body().collect()).await.expect("a body");
    assert_eq!(body.trailers().expect("trailers")["grpc-status"], "5");
    assert_eq!(body.to_bytes(), "message");
}

#[tokio::test]
async fn callers_of_grpc_get_statuses_of_theirs() {
    let routes = "- {match: {prefix: /late}, route: {cluster: web, max_stream_duration: {grpc_timeout_header_max: 0s}}}\n\
                  - {match: {prefix: /deadline}, route: {cluster: web, timeout: 0s, max_grpc_timeout: 0s}}\n\
                  - {match: {prefix: /web}, route: {cluster: nowhere}}";
    let silent = Endpoint::raw(|mut client, _| async move { drop(client.rest().await) }).await;
    let text = File { routes: routes.into(), cluster: HTTP2_CLUSTER.into(), ..File::default() }
        .text(&[silent.port()]);
    let proxy = Proxy::start(&text).await;
    let mut sender = connect(&proxy).await;
    for (path, status) in [("/nothing", "12"), ("/web", "14"), ("/late", "4"), ("/deadline", "4")] {
        let call = request(path).method("POST").header("content-type", "application/grpc+proto");
        let call = call.header("grpc-timeout", "50m").body(empty()).expect("a request");
        let response = soon(path, sender.send_request(call)).await.expect("a response");
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(response.headers()["grpc-status"], status, "{path}");
        assert_eq!(response.headers()["content-type"], "application/grpc", "{path}");
    }
}

#[tokio::test]
async fn a_client_may_have_so_many_streams() {
    let endpoint = Endpoint::echo().await;
    let manager = "http2_protocol_options: {max_concurrent_streams: 7}".into();
    let proxy = Proxy::start(&File { manager, ..File::default() }.text(&[endpoint.port()])).await;
    let stream = TcpStream::connect(proxy.address).await.expect("it listens");
    let handshake = http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(stream));
    let (_sender, connection) = handshake.await.expect("HTTP/2");
    let mut connection = Box::pin(connection);
    let told = async {
        // Nobody wakes a task when the server tells.
        while connection.current_max_send_streams() != 7 {
            let mut polled =
                std::pin::pin!(tokio::time::timeout(Duration::from_millis(5), connection.as_mut()));
            assert!(polled.as_mut().await.is_err(), "the connection stays");
        }
    };
    soon("the bound", told).await;
}

#[tokio::test]
async fn a_second_connection_is_made_when_all_streams_are_taken() {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let opened = gate.clone();
    let endpoint = Endpoint::raw(move |client, _| {
        let gate = gate.clone();
        async move {
            let service = service_fn(move |_| {
                let gate = gate.clone();
                async move {
                    gate.acquire().await.expect("it is open").forget();
                    Ok::<_, Infallible>(Response::new(empty()))
                }
            });
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let builder = builder.max_concurrent_streams(2);
            drop(builder.serve_connection(TokioIo::new(client.stream), service).await);
        }
    })
    .await;
    let proxy = Proxy::start(&http2_file(endpoint.port())).await;
    let mut sender = connect(&proxy).await;
    // One first, so that the endpoint's bound is known.
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn(sender.send_request(request("/").body(empty()).expect("a request")));
    opened.add_permits(1);
    let first = soon("a response", waiting.join_next()).await.expect("a task").expect("no panic");
    assert_eq!(first.expect("a response").status(), StatusCode::OK);
    for _ in 0..6 {
        waiting.spawn(sender.send_request(request("/").body(empty()).expect("a request")));
    }
    crate::support::until("three connections", || endpoint.connections() == 3).await;
    opened.add_permits(6);
    while let Some(response) = soon("a response", waiting.join_next()).await {
        assert_eq!(response.expect("no panic").expect("a response").status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_goaway_lets_streams_finish() {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let opened = gate.clone();
    let endpoint = Endpoint::http(false, move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.expect("it is open").forget();
            Response::new(Full::new(Bytes::from_static(b"late")))
        }
    })
    .await;
    let proxy = Proxy::start(&file(&[endpoint.port()])).await;
    let mut sender = connect(&proxy).await;
    let address = proxy.address;
    let response = tokio::spawn(sender.send_request(request("/").body(empty()).expect("a request")));
    crate::support::until("a connection to the endpoint", || endpoint.connections() == 1).await;
    let drained = tokio::spawn(proxy.drain(Duration::from_secs(30)));
    soon("the end of new connections", async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    opened.add_permits(1);
    let response = soon("a response", response).await.expect("no panic").expect("a response");
    assert_eq!(text(response).await, "late");
    soon("the engine's end", drained).await.expect("no panic");
}
