//! The endpoints behind the proxies: as little as an answer takes. The last part of the path says how many bytes.

use std::{cell::RefCell, convert::Infallible, net::Ipv4Addr, rc::Rc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

use crate::{load::MOST_BODY, sides};

/// Ports of endpoints of HTTP/1 and of HTTP/2.
pub struct Endpoints {
    pub http1: [u16; 2],
    pub http2: [u16; 2],
}

/// Starts the endpoints, on a thread that ends with the process.
pub fn start() -> anyhow::Result<Endpoints> {
    let bind = || {
        let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_nonblocking(true)?;
        let port = socket.local_addr()?.port();
        anyhow::Ok((port, socket))
    };
    let [(a, one), (b, other), (c, third), (d, fourth)] = [bind()?, bind()?, bind()?, bind()?];
    std::thread::Builder::new().name("endpoints".into()).spawn(move || {
        sides::bind_to_load().expect("a processor");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        LocalSet::new().block_on(&runtime, async {
            for socket in [one, other] {
                spawn_local(accept(TcpListener::from_std(socket).expect("a socket"), false));
            }
            for socket in [third, fourth] {
                spawn_local(accept(TcpListener::from_std(socket).expect("a socket"), true));
            }
            std::future::pending::<()>().await;
        });
    })?;
    Ok(Endpoints { http1: [a, b], http2: [c, d] })
}

async fn accept(socket: TcpListener, http2: bool) {
    let answers = Answers::default();
    while let Ok((stream, _)) = socket.accept().await {
        stream.set_nodelay(true).expect("a socket");
        if http2 {
            let builder = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service_fn(answer)));
        } else {
            spawn_local(serve(stream, answers.clone()));
        }
    }
}

/// Body of an answer to a path.
fn size(path: &[u8]) -> usize {
    let digits = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

/// Answers by the size of their bodies.
type Answers = Rc<RefCell<Vec<(usize, Rc<[u8]>)>>>;

async fn serve(mut stream: TcpStream, answers: Answers) {
    let mut buffer = vec![0; 4_096];
    let mut filled = 0;
    loop {
        match stream.read(&mut buffer[filled..]).await {
            Ok(some @ 1..) => filled += some,
            _ => return,
        }
        while let Some(end) = buffer[..filled].windows(4).position(|end| end == b"\r\n\r\n") {
            let path = buffer[..end].split(|byte| *byte == b' ').nth(1).unwrap_or_default();
            let size = size(path);
            let known = answers.borrow().iter().find(|(of, _)| *of == size).map(|(_, answer)| answer.clone());
            let answer = known.unwrap_or_else(|| {
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {size}\r\n\r\n");
                let whole: Rc<[u8]> = [head.as_bytes(), &vec![b'x'; size]].concat().into();
                answers.borrow_mut().push((size, whole.clone()));
                whole
            });
            buffer.copy_within(end + 4..filled, 0);
            filled -= end + 4;
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }
}

/// An answer of gRPC: a message and a status.
async fn answer(
    request: Request<Incoming>,
) -> Result<Response<StreamBody<impl futures::Stream<Item = Result<Frame<Bytes>, Infallible>>>>, Infallible> {
    static BODY: [u8; MOST_BODY] = [b'x'; MOST_BODY];
    let size = size(request.uri().path().as_bytes()).min(MOST_BODY);
    // As servers do: where calls are answered before they have come, the rest of them is a fault of the caller.
    let message = request.into_body().collect().await;
    debug_assert!(message.is_ok(), "{message:?}");
    let trailers =
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let frames = [Ok(Frame::data(Bytes::from_static(&BODY[..size]))), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)));
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}
