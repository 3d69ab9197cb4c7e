//! HTTP/1.1 of our own for scenarios: servers that say what they were sent, and a client that keeps its connection.
//!
//! Both are small on purpose: what a proxy changes on the way is seen byte by byte, and nothing is added by a library.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use socket2::Socket;

use crate::{cgroup::Cgroup, names::binary};

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most that a head may have, and a body.
const MOST: usize = 1 << 20;

/// A server: answers each request with what it was, as JSON: `name` of the server, `method`, `target`, `headers` (their
/// names in small letters), and the address of the `peer`. A target `/status/503` is answered with that status.
#[derive(Debug)]
pub struct HttpBackend {
    listener: Socket,
    thread: Option<JoinHandle<()>>,
}

impl HttpBackend {
    /// Starts one. `name` is given the address that a connection was made to.
    ///
    /// # Errors
    /// When the address can't be bound.
    pub fn start(at: SocketAddr, name: impl Fn(IpAddr) -> String + Clone + Send + 'static) -> Result<Self> {
        let accepting = TcpListener::bind(at).with_context(|| format!("bind {at}"))?;
        let listener = Socket::from(accepting.try_clone()?);
        let thread = thread::Builder::new().name(format!("http {at}")).spawn(move || {
            // Closing shuts the listener down, and accept fails.
            while let Ok((stream, peer)) = accepting.accept() {
                let name = name.clone();
                thread::spawn(move || drop(serve(&stream, peer, &name)));
            }
        })?;
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for HttpBackend {
    fn drop(&mut self) {
        drop(self.listener.shutdown(Shutdown::Both));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// Answers the requests of a connection until its end.
fn serve(stream: &TcpStream, peer: SocketAddr, name: &impl Fn(IpAddr) -> String) -> Result<()> {
    stream.set_nodelay(true)?;
    let name = name(stream.local_addr()?.ip());
    let mut reader = BufReader::new(stream);
    while let Some((first, headers)) = head(&mut reader)? {
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        body(&mut reader, &headers, false)?;
        let fields: serde_json::Map<_, _> =
            headers.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        let text = json!({
            "name": name, "method": method, "target": target, "headers": fields, "peer": peer.ip().to_string(),
        })
        .to_string();
        let status = target.strip_prefix("/status/").unwrap_or("200");
        let head = format!(
            "HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {}\r\nx-backend: {name}\r\n\r\n",
            text.len()
        );
        let text = if method == "HEAD" { "" } else { &text };
        let mut stream = stream;
        stream.write_all((head + text).as_bytes())?;
    }
    Ok(())
}

/// Header fields, with names in small letters.
type Headers = Vec<(String, String)>;

/// The first line of a message and its header fields; `None` where the connection has ended.
fn head(reader: &mut BufReader<&TcpStream>) -> Result<Option<(String, Headers)>> {
    let mut line = || -> Result<String> {
        let mut line = String::new();
        reader.by_ref().take(MOST as u64).read_line(&mut line)?;
        Ok(line)
    };
    let first = line()?;
    if first.is_empty() {
        return Ok(None);
    }
    let mut headers = Headers::new();
    loop {
        let line = line()?;
        ensure!(line.ends_with("\r\n"), "a head ends within {line:?}");
        let Some((name, value)) = line.trim_end().split_once(':') else {
            ensure!(line == "\r\n", "{line:?} is no header");
            return Ok(Some((first.trim_end().to_owned(), headers)));
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// The body of a message. `of_answer`: it may end with the connection.
fn body(reader: &mut BufReader<&TcpStream>, headers: &Headers, of_answer: bool) -> Result<Vec<u8>> {
    let of = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let mut all = Vec::new();
    if of("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim_end().split(';').next().unwrap_or_default(), 16)
                .with_context(|| format!("{line:?} begins no chunk"))?;
            ensure!(all.len() + size <= MOST, "a body is too long");
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            if size == 0 {
                return Ok(all);
            }
            all.extend_from_slice(&chunk[..size]);
        }
    }
    match of("content-length") {
        Some(length) => {
            let length: usize = length.parse().with_context(|| format!("{length:?} is no length"))?;
            ensure!(length <= MOST, "a body of {length} bytes is too long");
            all.resize(length, 0);
            reader.read_exact(&mut all)?;
        }
        None if of_answer => _ = reader.take(MOST as u64).read_to_end(&mut all)?,
        None => {}
    }
    Ok(all)
}

/// An answer to a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpAnswer {
    /// The status; 0 where the request failed.
    pub status: u16,
    /// Its header fields; of several of one name the last.
    pub headers: serde_json::Map<String, Value>,
    /// What the server saw, where the body is that.
    pub seen: Value,
    /// Why there is no answer.
    pub fault: String,
}

impl HttpAnswer {
    /// A line of text, which [`HttpAnswer::parse`] reads.
    pub fn line(&self) -> String {
        let Self { status, headers, seen, fault } = self;
        json!({"status": status, "headers": headers, "seen": seen, "fault": fault}).to_string()
    }

    /// An answer of a line.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(line: &str) -> Result<Self> {
        let mut of: Value = serde_json::from_str(line).with_context(|| format!("{line:?} is no answer"))?;
        let status = u16::try_from(of["status"].as_u64().unwrap_or_default())?;
        let headers = of["headers"].as_object().cloned().unwrap_or_default();
        let fault = of["fault"].as_str().unwrap_or_default().to_owned();
        Ok(Self { status, headers, seen: of["seen"].take(), fault })
    }

    /// A header field of the answer; empty where it has none of the name.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// Name of the server that answered; empty where none did.
    pub fn by(&self) -> &str {
        self.seen["name"].as_str().unwrap_or_default()
    }
}

/// A client that keeps its connection as long as it lasts.
#[derive(Debug)]
pub struct HttpClient {
    to: SocketAddr,
    stream: Option<TcpStream>,
    /// How many connections it has made.
    pub connections: u64,
}

impl HttpClient {
    /// One that has no connection yet.
    pub fn new(to: SocketAddr) -> Self {
        Self { to, stream: None, connections: 0 }
    }

    /// Sends a request without a body, and waits for its answer. `headers` must have a `host`.
    pub fn ask(&mut self, method: &str, target: &str, headers: &[(String, String)]) -> HttpAnswer {
        match self.try_ask(method, target, headers) {
            Ok(answer) => answer,
            Err(error) => {
                self.stream = None;
                HttpAnswer { fault: format!("{error:#}"), ..HttpAnswer::default() }
            }
        }
    }

    fn try_ask(&mut self, method: &str, target: &str, headers: &[(String, String)]) -> Result<HttpAnswer> {
        if self.stream.is_none() {
            let stream = TcpStream::connect_timeout(&self.to, PATIENCE).context("connect")?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            self.stream = Some(stream);
            self.connections += 1;
        }
        let stream = self.stream.as_ref().context("it is there")?;
        let mut text = format!("{method} {target} HTTP/1.1\r\n");
        headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        let mut to = stream;
        to.write_all((text + "\r\n").as_bytes()).context("send")?;
        // Nothing is left in it: the next answer comes after the next request.
        let mut reader = BufReader::new(stream);
        let Some((first, headers)) = head(&mut reader).context("read the head of the answer")? else {
            bail!("the connection ended before an answer came");
        };
        let status: u16 =
            first.split(' ').nth(1).unwrap_or_default().parse().with_context(|| format!("{first:?}"))?;
        let has_body = method != "HEAD" && status != 204 && status != 304;
        let body =
            if has_body { body(&mut reader, &headers, true).context("read the body")? } else { Vec::new() };
        ensure!(reader.buffer().is_empty(), "more than an answer came");
        if headers.iter().any(|(name, value)| name == "connection" && value.eq_ignore_ascii_case("close")) {
            self.stream = None;
        }
        let seen = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let headers = headers.into_iter().map(|(name, value)| (name, Value::from(value))).collect();
        Ok(HttpAnswer { status, headers, seen, fault: String::new() })
    }
}

/// The answers that a process in `cgroup` gets at `to`: it runs `http ask` with `arguments` and makes its socket there.
///
/// # Errors
/// When the program is missing or fails. A request that fails is an answer with a fault.
pub fn ask_from(cgroup: &Cgroup, to: SocketAddr, arguments: &[&str]) -> Result<Vec<HttpAnswer>> {
    let mut client = Command::new(binary("slotmesh-e2e", "http")?)
        .args(["ask", "--held", &to.to_string()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start a client")?;
    cgroup.add(client.id())?;
    client.stdin.take().context("its input is piped")?.write_all(b"go\n")?;
    let output = client.wait_with_output()?;
    ensure!(output.status.success(), "the client ended with {}", output.status);
    String::from_utf8(output.stdout)?.lines().map(HttpAnswer::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_keeps_its_connection_and_a_server_says_what_it_saw() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let _server = HttpBackend::start(free, |at| format!("at {at}")).unwrap();
        let mut client = HttpClient::new(free);
        let headers = [("host".to_owned(), "web".to_owned()), ("X-A".to_owned(), "1".to_owned())];
        let answer = client.ask("GET", "/a?b", &headers);
        assert_eq!((answer.status, answer.by(), answer.fault.as_str()), (200, "at 127.0.0.1", ""));
        assert_eq!(answer.header("x-backend"), "at 127.0.0.1");
        assert_eq!((&answer.seen["target"], &answer.seen["headers"]["x-a"]), (&json!("/a?b"), &json!("1")));
        assert_eq!(HttpAnswer::parse(&answer.line()).unwrap(), answer);
        assert_eq!(client.ask("POST", "/status/503", &headers).status, 503);
        let answer = client.ask("HEAD", "/", &headers);
        assert_eq!((answer.status, answer.seen), (200, Value::Null), "it has no body, and isn't waited for");
        assert_eq!(client.ask("GET", "/", &headers).status, 200);
        assert_eq!(client.connections, 1);
    }
}
