//! What people and Prometheus ask of an agent holds up no update.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use slotmesh_agent::admin::Admin;
use slotmesh_slots::Config;
use slotmesh_xds::ResourceType::Endpoints;
use tokio::sync::oneshot;

use crate::{Bench, config::endpoints};

/// Who asks at the same time.
const CLIENTS: usize = 40;
/// Requests of all of them, of which nine in ten show all endpoints.
const GETS: usize = 400;
/// Endpoints of what is asked for.
const COUNT: u32 = 5_000;

/// The whole answer to a request.
fn get(at: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(at).expect("the server listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

/// Serves until the sender is dropped.
fn serve(admin: &Admin) -> (SocketAddr, oneshot::Sender<()>, thread::JoinHandle<()>) {
    let router = admin.open_routes().merge(admin.local_routes());
    let (stop, stopped) = oneshot::channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = listener.local_addr().expect("it has one");
    listener.set_nonblocking(true).expect("it can be");
    let server = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let serving = async { axum::serve(listener, router).await.expect("it serves") };
            tokio::select! {
                () = serving => {}
                _ = stopped => {}
            }
        });
    });
    (at, stop, server)
}

/// Updates become current while hundreds of large requests are being answered, and not after them.
#[test]
fn updates_go_on_while_resources_and_metrics_are_asked_for() {
    let bench = Bench::new(Config { initial: 16, ..Config::default() });
    let list: Vec<(SocketAddr, u32)> =
        (0..COUNT).map(|i| (SocketAddr::from(((0x0a00_0000 + i).to_be_bytes(), 80)), 1)).collect();
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("large", &list)]), []);
    let (at, stop, server) = serve(&Admin::new(bench.agent().handle(), 10));
    let answered = Arc::new(AtomicUsize::new(0));
    let ask = |client: usize| {
        let answered = answered.clone();
        thread::spawn(move || {
            for i in 0..GETS / CLIENTS {
                let is_metrics = (client + i).is_multiple_of(10);
                let path = if is_metrics { "/metrics" } else { "/resources/endpoints/large" };
                let answer = get(at, path);
                assert!(
                    answer.starts_with("HTTP/1.1 200"),
                    "{path}: {}",
                    answer.lines().next().unwrap_or_default()
                );
                assert!(is_metrics || answer.contains("10.0.19.135"), "the last endpoint is shown");
                answered.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let clients: Vec<_> = (0..CLIENTS).map(ask).collect();
    // Each update that ends before the last answer has been let through between requests.
    let (mut between, mut number) = (0, 0_u16);
    while !clients.iter().all(thread::JoinHandle::is_finished) {
        number = number.wrapping_add(1);
        let [high, low] = number.to_be_bytes();
        let to = SocketAddr::from(([10, 9, high, low], 80));
        assert_eq!(bench.upsert(Endpoints, vec![endpoints("small", &[(to, 1)])]), []);
        between += usize::from(answered.load(Ordering::SeqCst) < GETS);
    }
    clients.into_iter().for_each(|client| client.join().expect("all is answered"));
    assert_eq!(answered.load(Ordering::SeqCst), GETS);
    drop(stop);
    server.join().expect("the server ends");
    assert!(between >= GETS / 4, "{between} updates while {GETS} requests were answered");
}
