//! The upstreams: each port answers with its number and the head that it saw.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    thread,
};

/// Serves on so many ports from this one on, as long as the process lives.
pub fn serve(first: u16, count: u16) {
    for number in 0..count {
        let listener = TcpListener::bind(("127.0.0.1", first + number)).expect("the port is free");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("a connection");
                thread::spawn(move || answer(number, stream));
            }
        });
    }
}

/// Answers requests without bodies until the connection ends.
fn answer(number: u16, stream: TcpStream) {
    let mut writer = stream.try_clone().expect("a descriptor");
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            match reader.read_line(&mut head) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        let body = format!("{number}\r\n{head}");
        let response = format!(
            "HTTP/1.1 200 OK\r\nx-resp: 1\r\nx-other: 2\r\nx-other: 3\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        if writer.write_all(response.as_bytes()).is_err() {
            return;
        }
    }
}
