//! Stock `codex app-server`: a harness without a model (docs/codex-wire.md#harness).
//! It speaks JSON-RPC, one object per line, on stdin and stdout.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{CodexHome, Harness};
use crate::process::Process;

/// The name by which stock Codex refers to the executor of its environment
/// variables.
const REMOTE: &str = "remote";
/// Errors of a `disconnected` status that is not final. The first lasts for a few
/// milliseconds after the loss, the second from then on.
const RECOVERING: [&str; 2] =
    ["exec-server transport disconnected", "exec-server environment is recovering"];
/// Longest wait for a response that needs no executor.
const LOCAL_ANSWER: Duration = Duration::from_secs(10);
/// Longest wait for a response that may connect or recover first: recovery alone may
/// take 45 s.
const REMOTE_ANSWER: Duration = Duration::from_secs(60);
/// Time between two status requests; status changes are not announced.
const STATUS_POLL: Duration = Duration::from_millis(25);

/// A running stock harness.
pub struct AppServer {
    process: Process,
    last_id: u64,
    _home: CodexHome,
}

/// The state of its connection to the executor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Connecting for the first time.
    Pending,
    /// The executor has just answered.
    Ready,
    /// Lost the connection and is trying to get it back, for up to 45 s.
    Recovering,
    /// Gave up, for this reason. Only the next use starts another attempt.
    Disconnected(String),
}

impl AppServer {
    /// Starts it and initializes the JSON-RPC session. It connects to the executor
    /// in the background.
    pub async fn start(harness: &Harness) -> Result<Self> {
        let home = CodexHome::new()?;
        let mut command = home.command()?;
        command.arg("app-server").envs(harness.variables());
        let process = Process::spawn(command)?;
        let mut server = Self { process, last_id: 0, _home: home };
        let hello = json!({
            "clientInfo": {"name": "rendez-tests", "title": "Rendez tests", "version": "1"},
            "capabilities": {"experimentalApi": true},
        });
        server.request("initialize", hello, LOCAL_ANSWER).await?;
        server.send(&json!({"method": "initialized"})).await?;
        Ok(server)
    }

    /// Calls `method`. An error response becomes an error with the server's text.
    pub async fn request(
        &mut self,
        method: &str,
        params: Value,
        within: Duration,
    ) -> Result<Value> {
        self.last_id += 1;
        let id = self.last_id;
        self.send(&json!({"id": id, "method": method, "params": params})).await?;
        let answer = self.process.stdout_line(within, |line| answer_to(id, line)).await;
        answer.and_then(|answer| answer).with_context(|| format!("stock app-server: {method}"))
    }

    /// The state of its connection to the executor. Never starts an attempt.
    pub async fn environment_status(&mut self) -> Result<Status> {
        let params = json!({"environmentId": REMOTE});
        Status::parse(&self.request("environment/status", params, REMOTE_ANSWER).await?)
    }

    /// The executor's description of itself. Connects first if necessary.
    pub async fn environment_info(&mut self) -> Result<Value> {
        self.request("environment/info", json!({"environmentId": REMOTE}), REMOTE_ANSWER).await
    }

    /// Waits until the executor answers. Fails at once if the harness gives up.
    pub async fn ready(&mut self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            match self.environment_status().await? {
                Status::Ready => return Ok(()),
                Status::Disconnected(why) => bail!("stock harness gave up: {why}"),
                waiting if Instant::now() >= deadline => {
                    bail!("stock harness still {waiting:?} after {within:?}")
                }
                Status::Pending | Status::Recovering => sleep(STATUS_POLL).await,
            }
        }
    }

    /// The process: to stop it, to read its stderr.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn send(&mut self, message: &Value) -> Result<()> {
        self.process.write(format!("{message}\n").as_bytes()).await
    }
}

impl Status {
    fn parse(answer: &Value) -> Result<Self> {
        match answer["status"].as_str() {
            Some("pending") => Ok(Self::Pending),
            Some("ready") => Ok(Self::Ready),
            Some("disconnected") => match answer["error"].as_str().unwrap_or_default() {
                why if RECOVERING.contains(&why) => Ok(Self::Recovering),
                why => Ok(Self::Disconnected(why.to_owned())),
            },
            _ => bail!("not a status: {answer}"),
        }
    }
}

/// The response to request `id`, if `line` holds it. Other lines are notifications
/// and late responses.
fn answer_to(id: u64, line: &str) -> Option<Result<Value>> {
    let mut message: Value = serde_json::from_str(line).ok()?;
    // A request from the server has an id as well.
    if message["id"].as_u64() != Some(id) || message.get("method").is_some() {
        return None;
    }
    match message.get("error") {
        Some(error) => Some(Err(anyhow!("{error}"))),
        None => Some(Ok(message["result"].take())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_matched_by_id() {
        assert_eq!(answer_to(3, r#"{"id":3,"result":{"a":1}}"#).unwrap().unwrap(), json!({"a": 1}));
        assert_eq!(answer_to(3, r#"{"id":3,"result":null}"#).unwrap().unwrap(), Value::Null);
        for other in [
            r#"{"id":4,"result":{}}"#,
            r#"{"id":"3","result":{}}"#,
            r#"{"method":"configWarning","params":{}}"#,
            r#"{"id":3,"method":"item/approve","params":{}}"#,
            "not json",
            "",
        ] {
            assert!(answer_to(3, other).is_none(), "{other}");
        }
    }

    #[test]
    fn error_response_keeps_its_text() {
        let line = r#"{"error":{"code":-32603,"message":"failed to get info"},"id":3}"#;
        let error = answer_to(3, line).unwrap().unwrap_err();
        assert!(error.to_string().contains("failed to get info"), "{error}");
    }

    #[test]
    fn statuses_are_parsed() {
        let parse = |answer: Value| Status::parse(&answer).ok();
        assert_eq!(parse(json!({"status": "pending"})), Some(Status::Pending));
        assert_eq!(parse(json!({"status": "ready"})), Some(Status::Ready));
        assert_eq!(
            parse(json!({"status": "disconnected", "error": "why"})),
            Some(Status::Disconnected("why".to_owned()))
        );
        for why in RECOVERING {
            let answer = json!({"status": "disconnected", "error": why});
            assert_eq!(parse(answer), Some(Status::Recovering));
        }
        let why = format!("{}; failed to resume exec-server session: why", RECOVERING[0]);
        let answer = json!({"status": "disconnected", "error": why});
        assert_eq!(parse(answer), Some(Status::Disconnected(why)));
        assert_eq!(parse(json!({"status": "unknown", "error": "unknown environment id"})), None);
    }
}
