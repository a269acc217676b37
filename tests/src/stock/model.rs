//! A fake of the model behind stock Codex: the Responses API on loopback.
//!
//! It requests one tool call after the other, each once the output of the previous
//! one is in the request, and then sends its message. Its responses depend on the
//! request alone, so a repeated request gets the same response.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Most requests kept. A turn makes one per tool call and one more. Further ones are
/// refused, which fails the turn.
const REQUESTS_MAX: usize = 64;

/// A tool call that the model makes.
#[derive(Debug, Clone)]
pub struct ToolCall {
    name: &'static str,
    arguments: Value,
}

impl ToolCall {
    /// Run `command_line` in the executor's shell.
    pub fn exec(command_line: &str) -> Self {
        Self { name: "exec_command", arguments: json!({"cmd": command_line}) }
    }

    /// The same, but wait longer for its end than the ten seconds after which the
    /// harness reports it as running.
    pub fn exec_and_wait(command_line: &str) -> Self {
        const MILLIS: u64 = 30_000;
        Self {
            name: "exec_command",
            arguments: json!({"cmd": command_line, "yield_time_ms": MILLIS}),
        }
    }

    /// The same with a terminal as the command's standard streams.
    pub fn exec_tty(command_line: &str) -> Self {
        Self { name: "exec_command", arguments: json!({"cmd": command_line, "tty": true}) }
    }
}

/// The output of a tool call, as the harness sends it to the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolOutput(String);

impl ToolOutput {
    /// All of it.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The command's output: stdout and stderr, each in order. The harness cuts out
    /// the middle of more than 10,000 tokens (about 40 kB).
    pub fn printed(&self) -> Option<&str> {
        self.0.split_once("\nOutput:\n").map(|(_head, printed)| printed)
    }

    /// The command's exit code, if it had ended.
    pub fn exit_code(&self) -> Option<i32> {
        let (head, _printed) = self.0.split_once("\nOutput:\n")?;
        head.lines().find_map(|line| line.strip_prefix("Process exited with code "))?.parse().ok()
    }
}

/// A running fake model. Stops when dropped.
pub struct FakeModel {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<io::Result<()>>,
}

struct Shared {
    calls: Vec<ToolCall>,
    message: String,
    requests: Mutex<Vec<Value>>,
}

impl FakeModel {
    /// Starts a model that makes `calls` and then sends `message`.
    pub async fn start(calls: Vec<ToolCall>, message: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no loopback port")?;
        let address = listener.local_addr()?;
        let shared =
            Arc::new(Shared { calls, message: message.to_owned(), requests: Mutex::default() });
        let router = Router::new().route("/v1/responses", post(respond)).with_state(shared.clone());
        let server = tokio::spawn(axum::serve(listener, router).into_future());
        Ok(Self { address, shared, server })
    }

    /// The base URL for the model provider's configuration.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// The bodies of the requests so far.
    pub fn requests(&self) -> Vec<Value> {
        self.shared.requests.lock().clone()
    }

    /// The outputs of the tool calls so far, in their order.
    pub fn outputs(&self) -> Vec<ToolOutput> {
        self.shared.requests.lock().last().map(outputs).unwrap_or_default()
    }
}

impl Drop for FakeModel {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    /// The events that answer `request`, the `number`-th one.
    fn answer(&self, number: usize, request: &Value) -> [Value; 3] {
        let response = format!("response-{number}");
        let done = outputs(request).len();
        let item = match self.calls.get(done) {
            Some(call) => json!({
                "type": "function_call",
                "call_id": format!("call-{done}"),
                "name": call.name,
                "arguments": call.arguments.to_string(),
            }),
            None => json!({
                "type": "message",
                "role": "assistant",
                "id": format!("message-{number}"),
                "content": [{"type": "output_text", "text": self.message}],
            }),
        };
        [
            json!({"type": "response.created", "response": {"id": response}}),
            json!({"type": "response.output_item.done", "item": item}),
            json!({"type": "response.completed", "response": {"id": response}}),
        ]
    }
}

async fn respond(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return (StatusCode::BAD_REQUEST, "not JSON").into_response();
    };
    let mut requests = shared.requests.lock();
    if requests.len() >= REQUESTS_MAX {
        return (StatusCode::TOO_MANY_REQUESTS, "the fake model has had enough").into_response();
    }
    let events = shared.answer(requests.len(), &request);
    requests.push(request);
    ([(header::CONTENT_TYPE, "text/event-stream")], server_sent(&events)).into_response()
}

/// The outputs of tool calls that a request repeats to the model.
fn outputs(request: &Value) -> Vec<ToolOutput> {
    let items = request["input"].as_array().map(Vec::as_slice).unwrap_or_default();
    let outputs = items.iter().filter(|item| item["type"] == "function_call_output");
    outputs
        .map(|item| match &item["output"] {
            Value::String(text) => ToolOutput(text.clone()),
            other => ToolOutput(other.to_string()),
        })
        .collect()
}

/// Events in the format of server-sent events. JSON has no raw line ends, so
/// each event's data is one line.
fn server_sent(events: &[Value]) -> String {
    let encode = |event: &Value| {
        let name = event["type"].as_str().unwrap_or_default();
        format!("event: {name}\ndata: {event}\n\n")
    };
    events.iter().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    #[test]
    fn events_are_encoded_as_server_sent_events() {
        let events = [json!({"type": "a", "text": "two\nlines"}), json!({"type": "b"})];
        let encoded = server_sent(&events);
        let expected = "event: a\ndata: {\"text\":\"two\\nlines\",\"type\":\"a\"}\n\n\
                        event: b\ndata: {\"type\":\"b\"}\n\n";
        assert_eq!(encoded, expected);
    }

    #[test]
    fn tool_output_is_parsed() {
        let text = "Chunk ID: 1\nWall time: 0.0 seconds\nProcess exited with code 7\n\
                    Original token count: 6\nOutput:\nhi\nProcess exited with code 1\n";
        let output = ToolOutput(text.to_owned());
        assert_eq!(output.exit_code(), Some(7));
        assert_eq!(output.printed(), Some("hi\nProcess exited with code 1\n"));
        let running = ToolOutput("Process running with session ID 4\nOutput:\n".to_owned());
        assert_eq!(running.exit_code(), None);
        assert_eq!(ToolOutput("exec_command failed".to_owned()).printed(), None);
    }

    async fn ask(model: &FakeModel, body: &str) -> String {
        let exchange = async {
            let mut socket = TcpStream::connect(model.address).await.unwrap();
            let head = "POST /v1/responses HTTP/1.1\r\nHost: model\r\nConnection: close\r\n";
            let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            answer
        };
        timeout(Duration::from_secs(10), exchange).await.unwrap()
    }

    #[tokio::test]
    async fn model_makes_calls_in_order_then_replies() {
        let calls = vec![ToolCall::exec("first"), ToolCall::exec_tty("second")];
        let model = FakeModel::start(calls, "the end").await.unwrap();
        let mut input = vec![json!({"type": "message"})];
        for expected in ["first", "second", "the end"] {
            let request = json!({"input": input}).to_string();
            // A repeated request does not advance it.
            for _ in 0..2 {
                let answer = ask(&model, &request).await;
                assert!(answer.contains("text/event-stream"), "{answer}");
                assert!(answer.contains(expected), "{answer}");
            }
            input.push(json!({"type": "function_call_output", "output": format!("of {expected}")}));
        }
        let outputs = model.outputs();
        assert_eq!(
            outputs.iter().map(ToolOutput::text).collect::<Vec<_>>(),
            ["of first", "of second"]
        );
        assert_eq!(model.requests().len(), 6);
    }

    #[tokio::test]
    async fn request_without_json_is_refused() {
        let model = FakeModel::start(vec![], "").await.unwrap();
        assert!(ask(&model, "nonsense").await.starts_with("HTTP/1.1 400"));
    }
}
