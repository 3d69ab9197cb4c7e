//! Requests as they are sent over a connection, and what comes back.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// A request.
#[derive(Clone, Debug)]
pub struct Sent {
    pub method: &'static str,
    pub host: String,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
}

/// Outcome of a request, without what Envoy adds to each.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Sorted; without those of every response.
    pub headers: Vec<(String, String)>,
    pub outcome: Outcome,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An upstream answered: number of the cluster, request line's method and path, and headers, sorted.
    Upstream { cluster: u16, method: String, path: String, headers: Vec<(String, String)> },
    /// Envoy itself answered.
    Local { body: String },
}

/// Headers of a response that say nothing of a route.
const OF_EVERY_RESPONSE: [&str; 5] = ["connection", "content-length", "date", "server", "transfer-encoding"];
/// Headers that Envoy gives each request; the length is the body's.
const OF_EVERY_REQUEST: [&str; 3] = ["content-length", "x-forwarded-proto", "x-request-id"];

/// A connection to a listener of Envoy's, made anew whenever Envoy has closed it.
pub struct Client {
    port: u16,
    stream: Option<BufReader<TcpStream>>,
}

impl Client {
    pub fn new(port: u16) -> Self {
        Self { port, stream: None }
    }

    pub fn exchange(&mut self, request: &Sent) -> Answer {
        let mut text = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", request.method, request.path, request.host);
        for (name, value) in &request.headers {
            text += &format!("{name}: {value}\r\n");
        }
        if request.method == "POST" {
            text += "content-length: 0\r\n";
        }
        text += "\r\n";
        let port = self.port;
        let mut stream = self.stream.take().unwrap_or_else(|| connect(port));
        stream.get_mut().write_all(text.as_bytes()).expect("the request is sent");
        let mut status_line = String::new();
        stream.read_line(&mut status_line).expect("a response");
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("{status_line:?} to {request:?}"));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") && head != "\r\n" {
            assert_ne!(stream.read_line(&mut head).expect("a head"), 0, "{head:?} to {request:?}");
        }
        let all = headers(&head);
        let value = |name: &str| all.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
        let length = value("content-length").map_or(0, |length| length.parse().expect("a number"));
        assert_eq!(value("transfer-encoding"), None, "no body here is long");
        let mut body = vec![0; length];
        stream.read_exact(&mut body).expect("the body");
        let body = String::from_utf8(body).expect("text");
        if value("connection") != Some("close") {
            self.stream = Some(stream);
        }
        let upstream = body.split_once("\r\n").filter(|_| status == 200 && body.ends_with("\r\n\r\n"));
        let outcome = match upstream {
            None => Outcome::Local { body },
            Some((cluster, head)) => {
                let (line, head) = head.split_once("\r\n").expect("a request line");
                let mut words = line.split(' ');
                let mut word = || words.next().expect("three words").to_owned();
                Outcome::Upstream {
                    cluster: cluster.parse().expect("a number"),
                    method: word(),
                    path: word(),
                    headers: without(headers(head), &OF_EVERY_REQUEST),
                }
            }
        };
        Answer { status, headers: without(all, &OF_EVERY_RESPONSE), outcome }
    }
}

fn connect(port: u16) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("Envoy listens");
    stream.set_nodelay(true).expect("an option");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("an option");
    BufReader::new(stream)
}

fn headers(head: &str) -> Vec<(String, String)> {
    let mut headers: Vec<_> = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    headers.sort();
    headers
}

/// Headers without those of these names.
pub fn without(mut headers: Vec<(String, String)>, names: &[&str]) -> Vec<(String, String)> {
    headers.retain(|(name, _)| !names.contains(&name.as_str()));
    headers.sort();
    headers
}
