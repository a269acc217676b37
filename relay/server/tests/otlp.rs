//! Traces reach a collector.
#![allow(clippy::unwrap_used, reason = "all of it is a test")]

use std::time::Duration;

use rendez_program::logging::{LogFormat, LogLevel, start_with};
use rendez_program::settings::Settings as _;
use rendez_program::signals::Shutdown;
use rendez_relay::{Config, Relay, Traces};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Reads one request, head and body.
async fn request(collector: &TcpListener) -> Vec<u8> {
    let (mut tcp, _) = collector.accept().await.unwrap();
    let mut bytes = Vec::new();
    loop {
        assert!(tcp.read_buf(&mut bytes).await.unwrap() > 0, "a whole request");
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        let Some((head, _)) = text.split_once("\r\n\r\n") else { continue };
        let (_, length) = head.split_once("content-length: ").unwrap();
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        if bytes.len() >= head.len() + 4 + length {
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            return bytes;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_traced_at_any_log_level() {
    let collector = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let mut config = Config {
        listen: ([127, 0, 0, 1], 0).into(),
        state: state.path().to_owned(),
        ..Config::default()
    };
    let url = format!("http://{}/v1/traces", collector.local_addr().unwrap());
    config.set("telemetry.otlp", &url).unwrap();
    let traces = Traces::start(&config).unwrap();
    start_with(LogLevel::Off, LogFormat::Human, traces.span_layer());
    let relay = Relay::bind(config).await.unwrap();
    let address = relay.local_addr();
    let stop = Shutdown::default();
    let serving = tokio::spawn(relay.serve(stop.clone()));
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let call = "POST /cloud/environment/box/register HTTP/1.1\r\nhost: relay\r\n\
                connection: close\r\ncontent-length: 0\r\n\r\n";
    tcp.write_all(call.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    stop.graceful.cancel();
    serving.await.unwrap();
    let finished = tokio::spawn(traces.finish());
    let sent = tokio::time::timeout(Duration::from_secs(60), request(&collector)).await.unwrap();
    finished.await.unwrap();
    let text = String::from_utf8_lossy(&sent);
    assert!(text.starts_with("POST /v1/traces HTTP/1.1"), "{text}");
    for expected in ["rendez-relay", "register", "status"] {
        assert!(text.contains(expected), "no {expected} in {text}");
    }
}
