//! Running processes (docs/codex-wire.md#processes).
//!
//! The client names a process; the name is valid in its session. Each event of a
//! process has a number, from 1 without holes, over [`Output`], [`Exited`] and
//! [`ClosedNotification`]. Notifications come in that order; [`Read`] repeats the
//! events that are still kept. [`Exited`] may come before the last output;
//! [`ClosedNotification`] is always last.
//!
//! Our extensions, announced in `initialize`:
//! [`CloseStdin`], and every [`SignalName`] but `interrupt`.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::path::PathUri;
use super::{Method, Notification, message_bytes};

/// Names a process in its session. Any text, chosen by the client; the empty
/// one too.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessId(pub String);

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `process/start`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    /// A new name; one that is known, even of a closed process, is refused.
    pub process_id: ProcessId,
    /// Data of the stock harness about the call; not interpreted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
    /// The program and its arguments, at least one. A program without a slash
    /// is looked up in the PATH that the child gets.
    pub argv: Vec<String>,
    /// The working directory; must exist.
    pub cwd: PathUri,
    /// The variables to take from the executor's own environment; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_policy: Option<EnvPolicy>,
    /// Variables on top of the policy's.
    pub env: BTreeMap<String, String>,
    /// Run in a terminal of 24 rows and 80 columns; all output is then of
    /// [`Stream::Pty`] and stdin is open.
    pub tty: bool,
    /// Give the child a stdin to [`Write`] to; otherwise its stdin is empty.
    #[serde(default)]
    pub pipe_stdin: bool,
    /// The name that the child sees as its own, instead of `argv[0]`.
    #[serde(default)]
    pub arg0: Option<String>,
    /// Stock sandbox rules. An executor that cannot enforce them must refuse.
    #[serde(default)]
    pub sandbox: Option<Value>,
    /// The network rules must hold.
    #[serde(default)]
    pub enforce_managed_network: bool,
    /// Stock network rules. An executor that cannot enforce them must refuse.
    #[serde(default)]
    pub managed_network: Option<Value>,
    /// The stock proxy that the process must use. An executor that cannot provide it
    /// must refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_proxy: Option<Value>,
    /// The stock shell state to start from. An executor that cannot restore it must
    /// refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell_snapshot: Option<Value>,
    /// Requests a window of so many bytes for writes that wait, up to
    /// [`crate::limits::STDIN_WINDOW_MAX_BYTES`]: long paths need more than the
    /// default. Only for executors that announced it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin_window: Option<u64>,
}

impl Start {
    /// A process without stdin, terminal, inherited variables and sandbox.
    pub fn new(process_id: ProcessId, argv: Vec<String>, cwd: PathUri) -> Self {
        Self {
            process_id,
            metadata: None,
            argv,
            cwd,
            env_policy: None,
            env: BTreeMap::new(),
            tty: false,
            pipe_stdin: false,
            arg0: None,
            sandbox: None,
            enforce_managed_network: false,
            managed_network: None,
            network_proxy: None,
            shell_snapshot: None,
            stdin_window: None,
        }
    }
}

impl Method for Start {
    const NAME: &'static str = "process/start";
    type Params = Self;
    type Reply = StartReply;
}

/// The answer to [`Start`]. Notifications may come before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartReply {
    /// As in the call.
    pub process_id: ProcessId,
    /// The sandbox of the process: `none`, or a stock name like `linuxSeccomp`.
    #[serde(default = "sandbox_none")]
    pub sandbox_type: String,
    /// Bytes of writes that may wait, if the call asked for them; absent:
    /// [`crate::limits::STDIN_QUEUED_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin_window: Option<u64>,
}

/// [`StartReply::sandbox_type`] of a process without a sandbox.
pub const SANDBOX_NONE: &str = "none";

fn sandbox_none() -> String {
    SANDBOX_NONE.to_owned()
}

/// Which of the executor's variables a child gets. Order: inherit, default
/// excludes, `exclude`, `set`, `include_only`; then [`Start::env`] on top.
/// Patterns know `*` and `?` and ignore case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvPolicy {
    /// The variables to begin with.
    pub inherit: Inherit,
    /// Keep variables whose names look like credentials.
    pub ignore_default_excludes: bool,
    /// Patterns of names to drop.
    pub exclude: Vec<String>,
    /// Variables to set.
    pub set: BTreeMap<String, String>,
    /// If not empty: patterns of the only names to keep.
    pub include_only: Vec<String>,
}

impl EnvPolicy {
    /// All variables of the executor, unfiltered.
    pub fn inherit_all() -> Self {
        Self {
            inherit: Inherit::All,
            ignore_default_excludes: true,
            exclude: vec![],
            set: BTreeMap::new(),
            include_only: vec![],
        }
    }
}

/// The variables that an [`EnvPolicy`] begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Inherit {
    /// HOME, PATH, SHELL, USER and the like.
    Core,
    /// All of the executor's variables.
    All,
    /// None of them.
    None,
}

/// `process/write`: bytes for the child's stdin or terminal.
///
/// The answer comes when the bytes are handed to the operating system, so a
/// child that does not read delays it. Writes to one process are applied in
/// the order of their requests; at most
/// [`crate::limits::WRITES_UNANSWERED_PER_PROCESS`] may wait at our executor,
/// and bytes of [`StartReply::stdin_window`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Write {
    /// The process.
    pub process_id: ProcessId,
    /// The bytes.
    #[serde(with = "message_bytes")]
    pub chunk: Vec<u8>,
    /// Makes the write repeatable: a second one with the same id is answered
    /// like the first and not applied. Not empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_id: Option<String>,
}

impl Method for Write {
    const NAME: &'static str = "process/write";
    type Params = Self;
    type Reply = WriteReply;
}

/// The answer to [`Write`] and [`CloseStdin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WriteReply {
    /// The outcome.
    pub status: WriteStatus,
}

/// The outcome of a [`Write`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WriteStatus {
    /// Applied, now or earlier.
    Accepted,
    /// No process has this name.
    UnknownProcess,
    /// The process has no stdin, closed it, or ended.
    StdinClosed,
    /// The process is being started; try again after its [`StartReply`].
    Starting,
}

/// `process/closeStdin`, ours: the child reads end-of-file after what was
/// written before. On a terminal the end-of-file character is typed instead.
///
/// Idempotent: a repetition is [`WriteStatus::Accepted`] again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CloseStdin {
    /// The process.
    pub process_id: ProcessId,
    /// As in [`Write`]; not needed, because closing is idempotent anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_id: Option<String>,
}

impl Method for CloseStdin {
    const NAME: &'static str = "process/closeStdin";
    type Params = Self;
    type Reply = WriteReply;
}

/// `process/signal`: to the process and its process group. For unknown and ended
/// processes, nothing happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Signal {
    /// The process.
    pub process_id: ProcessId,
    /// The signal.
    pub signal: SignalName,
}

impl Method for Signal {
    const NAME: &'static str = "process/signal";
    type Params = Self;
    type Reply = Empty;
}

/// A signal for [`Signal`]. Stock executors support only `interrupt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SignalName {
    /// SIGINT; on a terminal to the foreground job.
    Interrupt,
    /// SIGTERM
    Terminate,
    /// SIGKILL
    Kill,
    /// SIGHUP
    Hangup,
}

/// An empty answer: `{}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Empty {}

/// `process/terminate`: kills the process and its group (exit code 137).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Terminate {
    /// The process.
    pub process_id: ProcessId,
}

impl Method for Terminate {
    const NAME: &'static str = "process/terminate";
    type Params = Self;
    type Reply = TerminateReply;
}

/// The answer to [`Terminate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminateReply {
    /// Whether the process was running.
    pub running: bool,
}

/// `process/read`: output that is still kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Read {
    /// The process.
    pub process_id: ProcessId,
    /// Only chunks with a higher number; all if absent.
    #[serde(default)]
    pub after_seq: Option<u64>,
    /// Stop before more than this many bytes, but return at least one chunk.
    #[serde(default)]
    pub max_bytes: Option<u64>,
    /// If there is nothing, wait this many milliseconds for any new event.
    #[serde(default)]
    pub wait_ms: Option<u64>,
}

impl Method for Read {
    const NAME: &'static str = "process/read";
    type Params = Self;
    type Reply = ReadReply;
}

/// The answer to [`Read`].
///
/// A hole in the chunks' numbers, beyond those of the exit and the close, means
/// that output was dropped: a detached client missed more than the executor
/// keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadReply {
    /// In the order of their numbers.
    pub chunks: Vec<Chunk>,
    /// One above the last returned number if `maxBytes` cut the answer, otherwise
    /// the next unused number.
    pub next_seq: u64,
    /// The process ended.
    pub exited: bool,
    /// Its exit code; 128 + n if signal n ended it.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Its outputs are closed: no output follows.
    pub closed: bool,
    /// Why the executor lost the process, if it did.
    #[serde(default)]
    pub failure: Option<String>,
    /// The sandbox stopped it.
    #[serde(default)]
    pub sandbox_denied: bool,
}

/// One piece of output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Its number.
    pub seq: u64,
    /// The stream that it was written to.
    pub stream: Stream,
    /// At most [`crate::limits::PROCESS_CHUNK_MAX_BYTES`], or what the client
    /// takes ([`super::session::ClientExtensions::max_chunk`]).
    #[serde(with = "message_bytes")]
    pub chunk: Bytes,
}

/// An output stream of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The terminal, where both are one.
    Pty,
}

/// `process/output`: a piece of output, as it appears.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The process.
    pub process_id: ProcessId,
    /// The event's number.
    pub seq: u64,
    /// The stream that it was written to.
    pub stream: Stream,
    /// At most [`crate::limits::PROCESS_CHUNK_MAX_BYTES`], or what the client
    /// takes ([`super::session::ClientExtensions::max_chunk`]).
    #[serde(with = "message_bytes")]
    pub chunk: Bytes,
}

impl Notification for Output {
    const NAME: &'static str = "process/output";
}

/// `process/exited`: the process ended; output may follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exited {
    /// The process.
    pub process_id: ProcessId,
    /// The event's number.
    pub seq: u64,
    /// The exit code; 128 + n if signal n ended it.
    pub exit_code: i32,
    /// The sandbox stopped it. Always sent: a stock harness that misses it
    /// asks again.
    #[serde(default)]
    pub sandbox_denied: bool,
}

impl Notification for Exited {
    const NAME: &'static str = "process/exited";
}

/// `process/closed`: all outputs are closed; the last event of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClosedNotification {
    /// The process.
    pub process_id: ProcessId,
    /// The event's number.
    pub seq: u64,
}

impl Notification for ClosedNotification {
    const NAME: &'static str = "process/closed";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::{Json, notification};
    use serde_json::{from_slice, from_value, json};

    fn to_value<T: Serialize>(value: T) -> serde_json::Result<Value> {
        Json::of(&value).parse()
    }

    fn id(text: &str) -> ProcessId {
        ProcessId(text.into())
    }

    /// Parses `value` and asserts that it comes out again just so.
    fn golden<T: serde::de::DeserializeOwned + Serialize>(value: Value) -> T {
        let parsed: T = from_value(value.clone()).unwrap();
        assert_eq!(to_value(&parsed).unwrap(), value);
        parsed
    }

    #[test]
    fn start_has_the_stock_shape() {
        let start: Start = golden(json!({
            "processId": "94428-620d", "metadata": {"threadId": "t", "toolCallId": "call1"},
            "argv": ["/bin/bash", "-lc", "echo hi"], "cwd": "file:///tmp",
            "envPolicy": {"inherit": "all", "ignoreDefaultExcludes": true,
                "exclude": ["CODEX_VERSION"], "set": {}, "includeOnly": []},
            "env": {"TERM": "dumb"}, "tty": false, "pipeStdin": false, "arg0": null,
            "sandbox": null, "enforceManagedNetwork": false, "managedNetwork": null
        }));
        assert_eq!(start.env_policy.unwrap().inherit, Inherit::All);
        let reply: StartReply = golden(json!({"processId": "94428-620d", "sandboxType": "none"}));
        assert_eq!(reply.sandbox_type, SANDBOX_NONE);
    }

    #[test]
    fn minimal_start_parses() {
        let start: Start = from_value(json!({
            "processId": "", "argv": [], "cwd": "file:///", "env": {}, "tty": true
        }))
        .unwrap();
        assert_eq!(start.process_id, id(""));
        assert!(start.tty && !start.pipe_stdin && !start.enforce_managed_network);
        assert_eq!((start.env_policy, start.sandbox, start.managed_network), (None, None, None));
        for missing in ["processId", "argv", "cwd", "env", "tty"] {
            let mut value = json!({
                "processId": "p", "argv": ["x"], "cwd": "file:///", "env": {}, "tty": false
            });
            value.as_object_mut().unwrap().remove(missing);
            let error = from_value::<Start>(value).unwrap_err().to_string();
            assert_eq!(error, format!("missing field `{missing}`"));
        }
    }

    #[test]
    fn every_field_of_the_policy_is_required() {
        let policy = to_value(EnvPolicy::inherit_all()).unwrap();
        for field in policy.as_object().unwrap().keys() {
            let mut value = policy.clone();
            value.as_object_mut().unwrap().remove(field);
            assert!(from_value::<EnvPolicy>(value).is_err(), "{field} may be missing");
        }
    }

    #[test]
    fn writing_has_the_stock_shape() {
        let write: Write = golden(json!({"processId": "p", "chunk": "aGkK", "writeId": "w1"}));
        assert_eq!(write.chunk, b"hi\n");
        golden::<Write>(json!({"processId": "p", "chunk": ""}));
        golden::<CloseStdin>(json!({"processId": "p"}));
        for (status, name) in [
            (WriteStatus::Accepted, "accepted"),
            (WriteStatus::UnknownProcess, "unknownProcess"),
            (WriteStatus::StdinClosed, "stdinClosed"),
            (WriteStatus::Starting, "starting"),
        ] {
            assert_eq!(golden::<WriteReply>(json!({"status": name})).status, status);
        }
    }

    #[test]
    fn signal_and_terminate_have_the_stock_shape() {
        for (signal, name) in [
            (SignalName::Interrupt, "interrupt"),
            (SignalName::Terminate, "terminate"),
            (SignalName::Kill, "kill"),
            (SignalName::Hangup, "hangup"),
        ] {
            let value = json!({"processId": "p", "signal": name});
            assert_eq!(golden::<Signal>(value).signal, signal);
        }
        assert!(from_value::<Signal>(json!({"processId": "p", "signal": "quit"})).is_err());
        golden::<Terminate>(json!({"processId": "p"}));
        assert!(golden::<TerminateReply>(json!({"running": true})).running);
        golden::<Empty>(json!({}));
    }

    #[test]
    fn reading_has_the_stock_shape() {
        golden::<Read>(json!({"processId": "p", "afterSeq": 3, "maxBytes": null, "waitMs": 0}));
        assert_eq!(from_value::<Read>(json!({"processId": "p"})).unwrap().after_seq, None);
        let reply: ReadReply = golden(json!({
            "chunks": [{"seq": 1, "stream": "stdout", "chunk": "b3V0Cg=="}], "nextSeq": 2,
            "exited": false, "exitCode": null, "closed": false, "failure": null,
            "sandboxDenied": false
        }));
        assert_eq!(reply.chunks[0].chunk[..], *b"out\n");
    }

    #[test]
    fn notifications_have_the_stock_shape() {
        let output = Output {
            process_id: id("p1"),
            seq: 1,
            stream: Stream::Stdout,
            chunk: Bytes::from_static(b"out\n"),
        };
        let exited = Exited { process_id: id("p1"), seq: 3, exit_code: 3, sandbox_denied: false };
        let closed = ClosedNotification { process_id: id("p1"), seq: 4 };
        let value = |bytes: Vec<u8>| from_slice::<Value>(&bytes).unwrap();
        assert_eq!(
            value(notification(&output)),
            json!({"method": "process/output", "params":
                {"processId": "p1", "seq": 1, "stream": "stdout", "chunk": "b3V0Cg=="}})
        );
        assert_eq!(
            value(notification(&exited)),
            json!({"method": "process/exited", "params":
                {"processId": "p1", "seq": 3, "exitCode": 3, "sandboxDenied": false}})
        );
        assert_eq!(
            value(notification(&closed)),
            json!({"method": "process/closed", "params": {"processId": "p1", "seq": 4}})
        );
        assert_eq!(to_value(Stream::Pty).unwrap(), "pty");
        assert_eq!(to_value(Stream::Stderr).unwrap(), "stderr");
    }
}
