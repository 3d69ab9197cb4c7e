//! Clients: as many connections as asked for, each with one request after the other, or at a pace.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::Notify,
    task::{LocalSet, spawn_local, yield_now},
};

use crate::sides;

/// The largest body that is asked for.
pub const MOST_BODY: usize = 100_000;
/// Streams of a connection of HTTP/2.
pub const STREAMS: usize = 10;

/// Requests of clients.
#[derive(Clone, Debug)]
pub struct Load {
    pub port: u16,
    pub path: String,
    pub connections: usize,
    pub manner: Manner,
    /// Address that they come from.
    pub from: Ipv4Addr,
}

/// Manner in which clients ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// HTTP/1.1, one request after the other on a connection that stays.
    KeptAlive,
    /// HTTP/1.1, a connection for each request.
    New,
    /// HTTP/2, [`STREAMS`] at a time on each connection.
    Http2,
    /// Calls of gRPC, in the same way.
    Grpc,
}

/// A load that goes on until it is stopped.
pub struct RunningLoad {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl RunningLoad {
    /// Requests that are answered.
    pub fn answers(&self) -> u64 {
        self.answers.load(Relaxed)
    }

    pub fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Relaxed);
        match self.thread.join() {
            Ok(done) => done,
            Err(_) => bail!("a client has panicked"),
        }
    }
}

/// Runs clients on a thread of their own.
fn on_thread<T: Send + 'static, F: Future<Output = anyhow::Result<T>>>(
    run: impl FnOnce() -> F + Send + 'static,
) -> std::io::Result<JoinHandle<anyhow::Result<T>>> {
    std::thread::Builder::new().name("clients".into()).spawn(move || {
        sides::bind_to_load()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, async { run().await })
    })
}

/// Starts a load.
pub fn start(load: Load) -> anyhow::Result<RunningLoad> {
    let stop: Arc<AtomicBool> = Arc::default();
    let answers: Arc<AtomicU64> = Arc::default();
    let (stopped, count) = (stop.clone(), answers.clone());
    let thread = on_thread(move || async move {
        let clients: Vec<_> = (0..load.connections)
            .map(|_| spawn_local(client(load.clone(), stopped.clone(), count.clone())))
            .collect();
        for client in clients {
            client.await??;
        }
        Ok(())
    })?;
    Ok(RunningLoad { stop, answers, thread })
}

async fn client(load: Load, stop: Arc<AtomicBool>, answers: Arc<AtomicU64>) -> anyhow::Result<()> {
    if matches!(load.manner, Manner::Http2 | Manner::Grpc) {
        return client_http2(load, stop, answers).await;
    }
    let request = request(&load.path);
    let mut buffer = vec![0; 32 << 10];
    let mut kept = None;
    while !stop.load(Relaxed) {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => connect(load.from, load.port).await?,
        };
        ask(&mut stream, &request, &mut buffer).await?;
        answers.fetch_add(1, Relaxed);
        if load.manner == Manner::KeptAlive {
            kept = Some(stream);
        } else {
            // No port waits for the last packets.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
    }
    Ok(())
}

fn request(path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nhost: web.shop.svc.cluster.local\r\nuser-agent: bench\r\naccept: */*\r\n\r\n"
    )
    .into_bytes()
}

async fn connect(from: Ipv4Addr, port: u16) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if from != Ipv4Addr::LOCALHOST {
        socket.bind((from, 0).into())?;
    }
    let stream = socket.connect(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request and its whole answer.
async fn ask(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> anyhow::Result<()> {
    stream.write_all(request).await?;
    let mut filled = 0;
    let end = loop {
        let some = stream.read(&mut buffer[filled..]).await?;
        ensure!(some > 0, "an answer ends within its head");
        filled += some;
        if let Some(end) = buffer[..filled].windows(4).position(|end| end == b"\r\n\r\n") {
            break end;
        }
    };
    let head = std::str::from_utf8(&buffer[..end]).context("a head")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok()).flatten()
    });
    let mut left =
        length.context("no length")?.checked_sub(filled - end - 4).context("too long an answer")?;
    while left > 0 {
        let some = stream.read(buffer).await?;
        ensure!(some > 0 && some <= left, "a body of another length");
        left -= some;
    }
    Ok(())
}

async fn client_http2(load: Load, stop: Arc<AtomicBool>, answers: Arc<AtomicU64>) -> anyhow::Result<()> {
    let stream = connect(load.from, load.port).await?;
    let (sender, connection) =
        http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let streams: Vec<_> = (0..STREAMS)
        .map(|_| {
            let (mut sender, stop, answers) = (sender.clone(), stop.clone(), answers.clone());
            let uri = format!("http://web.shop.svc.cluster.local{}", load.path);
            let grpc = load.manner == Manner::Grpc;
            spawn_local(async move {
                while !stop.load(Relaxed) {
                    let request = Request::builder().uri(&uri);
                    let request = match grpc {
                        true => request
                            .method("POST")
                            .header("content-type", "application/grpc")
                            .header("te", "trailers")
                            .body(Full::new(Bytes::from_static(&[0, 0, 0, 0, 3, b'a', b'b', b'c']))),
                        false => request.body(Full::default()),
                    };
                    let response = sender.send_request(request?).await?;
                    let (head, body) = response.into_parts();
                    let body = body.collect().await?;
                    let status = body.trailers().and_then(|all| all.get("grpc-status"));
                    ensure!(
                        head.status == 200 && (!grpc || status.is_some_and(|status| status == "0")),
                        "{head:?}"
                    );
                    answers.fetch_add(1, Relaxed);
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for stream in streams {
        stream.await??;
    }
    drop(sender);
    connection.await??;
    Ok(())
}

/// Times from when each request was due to the end of its answer, of so many requests a second for this time. Whoever
/// finds no free connection waits, and that counts.
pub fn paced(load: Load, per_second: f64, time: Duration) -> anyhow::Result<Vec<Duration>> {
    let thread = on_thread(move || async move {
        let due: Rc<RefCell<VecDeque<Instant>>> = Rc::default();
        let (called, over) = (Rc::new(Notify::new()), Rc::new(std::cell::Cell::new(false)));
        let mut clients = Vec::new();
        for _ in 0..load.connections {
            let (due, called, over) = (due.clone(), called.clone(), over.clone());
            let (mut stream, request) = (connect(load.from, load.port).await?, request(&load.path));
            clients.push(spawn_local(async move {
                let mut times = Vec::new();
                let mut buffer = vec![0; 32 << 10];
                loop {
                    let next = due.borrow_mut().pop_front();
                    match next {
                        Some(at) => {
                            ask(&mut stream, &request, &mut buffer).await?;
                            times.push(at.elapsed());
                        }
                        None if over.get() => return anyhow::Ok(times),
                        None => called.notified().await,
                    }
                }
            }));
        }
        let (began, each) = (Instant::now(), Duration::from_secs_f64(1.0 / per_second));
        let mut next = began;
        while began.elapsed() < time {
            while next <= Instant::now() {
                due.borrow_mut().push_back(next);
                called.notify_one();
                next += each;
            }
            // Timers are too coarse.
            yield_now().await;
        }
        over.set(true);
        let mut times = Vec::new();
        for client in clients {
            // Wakes one that waits, if it does.
            called.notify_waiters();
            called.notify_one();
            times.extend(client.await??);
        }
        ensure!(!times.is_empty(), "nothing was asked");
        Ok(times)
    })?;
    match thread.join() {
        Ok(times) => times,
        Err(_) => bail!("a client has panicked"),
    }
}

/// Times of requests of a few clients that pause after each one.
pub fn gentle(load: Load, time: Duration) -> anyhow::Result<Vec<Duration>> {
    let thread = on_thread(move || async move {
        let began = Instant::now();
        let clients: Vec<_> = (0..load.connections)
            .map(|_| {
                let load = load.clone();
                spawn_local(async move {
                    let mut stream = connect(load.from, load.port).await?;
                    let (request, mut buffer) = (request(&load.path), vec![0; 32 << 10]);
                    let mut times = Vec::new();
                    while began.elapsed() < time {
                        let asked = Instant::now();
                        ask(&mut stream, &request, &mut buffer).await?;
                        times.push(asked.elapsed());
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    anyhow::Ok(times)
                })
            })
            .collect();
        let mut times = Vec::new();
        for client in clients {
            times.extend(client.await??);
        }
        Ok(times)
    })?;
    match thread.join() {
        Ok(times) => times,
        Err(_) => bail!("a client has panicked"),
    }
}

/// Connections that have asked once, and ask no more while this is kept.
pub struct IdleConnections {
    _streams: Vec<TcpStream>,
    _runtime: tokio::runtime::Runtime,
}

impl IdleConnections {
    pub fn open(load: &Load) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let streams = runtime.block_on(async {
            let (request, mut buffer) = (request(&load.path), vec![0; 32 << 10]);
            let mut streams = Vec::new();
            for _ in 0..load.connections {
                let mut stream = connect(load.from, load.port).await?;
                ask(&mut stream, &request, &mut buffer).await?;
                streams.push(stream);
            }
            anyhow::Ok(streams)
        })?;
        Ok(Self { _streams: streams, _runtime: runtime })
    }
}
