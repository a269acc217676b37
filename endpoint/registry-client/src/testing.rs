//! A registry with scripted responses, for tests.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A status that makes the registry never respond to the call.
pub const HANG: u16 = 0;

/// One received request.
#[derive(Debug, Clone)]
pub struct Request {
    /// The path of its URL.
    pub path: String,
    headers: Vec<(String, String)>,
    /// The raw body.
    pub body: Vec<u8>,
}

impl Request {
    /// Returns the value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(theirs, _)| theirs.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// An HTTP server on loopback that reads one request per connection.
pub struct FakeRegistry {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct Script {
    /// Status and body by the last segment of the path, used for every call.
    answers: HashMap<String, (u16, String)>,
    requests: Vec<Request>,
    /// Connections whose call gets no response.
    held: Vec<TcpStream>,
}

impl FakeRegistry {
    /// Listens on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let server = tokio::spawn(serve(listener, script.clone()));
        Self { address, script, server }
    }

    /// Returns the base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the response to `call` from now on.
    pub fn answer(&self, call: &str, status: u16, body: &str) {
        self.script.lock().unwrap().answers.insert(call.to_owned(), (status, body.to_owned()));
    }

    /// Returns all requests received so far.
    pub fn requests(&self) -> Vec<Request> {
        self.script.lock().unwrap().requests.clone()
    }

    /// Stops listening.
    pub async fn stop(self) {
        self.server.abort();
        let _ = self.server.await;
    }
}

async fn serve(listener: TcpListener, script: Arc<Mutex<Script>>) {
    loop {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let request = read(&mut tcp).await;
        let call = request.path.rsplit('/').next().unwrap().to_owned();
        let (status, body) = {
            let mut script = script.lock().unwrap();
            script.requests.push(request);
            script.answers.get(&call).cloned().unwrap_or((503, String::new()))
        };
        if status == HANG {
            script.lock().unwrap().held.push(tcp);
            continue;
        }
        let length = if status == 204 {
            String::new()
        } else {
            format!("content-length: {}\r\n", body.len())
        };
        let answer = format!("HTTP/1.1 {status} X\r\n{length}connection: close\r\n\r\n{body}");
        tcp.write_all(answer.as_bytes()).await.unwrap();
    }
}

async fn read(tcp: &mut TcpStream) -> Request {
    let mut bytes = Vec::new();
    let head = loop {
        assert_ne!(tcp.read_buf(&mut bytes).await.unwrap(), 0, "half a request");
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let mut lines = text.split("\r\n");
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let headers: Vec<_> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut request = Request { path, headers, body: bytes[head + 4..].to_vec() };
    let length = request.header("content-length").unwrap_or("0").parse().unwrap();
    while request.body.len() < length {
        assert_ne!(tcp.read_buf(&mut request.body).await.unwrap(), 0, "half a body");
    }
    request
}
