//! A client of one in-memory stream, for tests of sessions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use rendez_proto::rpc::path::PathUri;
use rendez_proto::rpc::process::*;
use rendez_proto::rpc::session::*;
use rendez_proto::rpc::{
    Message, Method, Notification, RequestId, RpcError, notification, request,
};
use rendez_rpc::MessageStream as _;
use rendez_rpc::duplex::{DuplexEnd, duplex};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::{SessionManager, StreamEnd, serve};
use crate::testing::process_id as pid;

/// A client of one stream. It keeps messages until a test asks for them.
pub(super) struct Client {
    pub(super) end: DuplexEnd,
    pub(super) next_id: AtomicI64,
    pub(super) inbox: Vec<Message>,
    pub(super) takes: Option<ClientExtensions>,
    pub(super) server: JoinHandle<StreamEnd>,
}

impl Client {
    pub(super) fn connect(sessions: &Arc<SessionManager>, capacity: usize) -> Self {
        let (end, other) = duplex(capacity);
        let server = tokio::spawn(serve(sessions.clone(), Arc::new(other)));
        Self { end, next_id: AtomicI64::new(1), inbox: Vec::new(), takes: None, server }
    }

    /// Connects and opens or resumes a session; returns its id, too.
    pub(super) async fn ready(
        sessions: &Arc<SessionManager>,
        resume: Option<&SessionId>,
    ) -> (Self, SessionId) {
        let mut client = Self::connect(sessions, 64);
        let id = client.initialize(resume).await.unwrap();
        (client, id)
    }

    pub(super) async fn initialize(
        &mut self,
        resume: Option<&SessionId>,
    ) -> Result<SessionId, RpcError> {
        let call = Initialize {
            client_name: "test".into(),
            resume_session_id: resume.cloned(),
            rendez: self.takes.clone(),
        };
        let reply = self.call::<Initialize>(&call).await?;
        self.raw(&notification(&Initialized {})).await;
        Ok(reply.session_id)
    }

    pub(super) async fn raw(&self, message: &[u8]) {
        self.end.send(Bytes::copy_from_slice(message)).await.unwrap();
    }

    /// Sends a call; [`Client::answer`] waits for its reply.
    pub(super) async fn ask<M: Method>(&self, params: &M::Params) -> i64 {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.raw(&request::<M>(&RequestId::Number(id), params)).await;
        id
    }

    pub(super) async fn answer<M: Method>(&mut self, id: i64) -> Result<M::Reply, RpcError> {
        let id = RequestId::Number(id);
        let found = self
            .find(
                |message| matches!(message, Message::Response { id: theirs, .. } if *theirs == id),
            )
            .await;
        let Message::Response { outcome, .. } = found else { unreachable!() };
        outcome.map(|value| value.parse().unwrap())
    }

    pub(super) async fn call<M: Method>(
        &mut self,
        params: &M::Params,
    ) -> Result<M::Reply, RpcError> {
        let id = self.ask::<M>(params).await;
        self.answer::<M>(id).await
    }

    /// Waits for the first `wanted` message; keeps the others.
    pub(super) async fn find(&mut self, wanted: impl Fn(&Message) -> bool) -> Message {
        loop {
            if let Some(at) = self.inbox.iter().position(&wanted) {
                return self.inbox.remove(at);
            }
            let bytes = self.end.recv().await.expect("the stream ended");
            self.inbox.push(Message::parse(&bytes).unwrap());
        }
    }

    /// The next notification about a process.
    pub(super) async fn next_event(&mut self, id: &ProcessId) -> Event {
        let about = |message: &Message| match message {
            Message::Notification { params, .. } => {
                params.parse::<Value>().unwrap()["processId"] == id.0
            }
            _ => false,
        };
        let Message::Notification { method, params } = self.find(about).await else {
            unreachable!()
        };
        match method.as_str() {
            Output::NAME => Event::Output(params.parse().unwrap()),
            Exited::NAME => Event::Exited(params.parse().unwrap()),
            ClosedNotification::NAME => Event::Closed(params.parse().unwrap()),
            other => panic!("unknown notification {other}"),
        }
    }

    /// Collects all events until the close; fails if one is missing.
    pub(super) async fn finish(&mut self, id: &ProcessId, after: u64) -> Finished {
        let mut finished = Finished { last_seq: after, ..Finished::default() };
        loop {
            let event = self.next_event(id).await;
            let (Event::Output(Output { seq, .. })
            | Event::Exited(Exited { seq, .. })
            | Event::Closed(ClosedNotification { seq, .. })) = event;
            assert_eq!(seq, finished.last_seq + 1, "a hole or a repetition");
            finished.last_seq = seq;
            match event {
                Event::Output(output) => {
                    finished.chunks += 1;
                    finished.largest = finished.largest.max(output.chunk.len());
                    let text = match output.stream {
                        Stream::Stdout => &mut finished.stdout,
                        Stream::Stderr => &mut finished.stderr,
                        Stream::Pty => &mut finished.pty,
                    };
                    text.extend(output.chunk);
                }
                Event::Exited(exited) => finished.code = Some(exited.exit_code),
                Event::Closed(_) => return finished,
            }
        }
    }

    /// Runs a shell script with PATH only.
    pub(super) async fn sh(&mut self, id: &str, script: &str) -> Finished {
        let start = shell(id, script);
        self.call::<Start>(&start).await.unwrap();
        self.finish(&start.process_id, 0).await
    }

    pub(super) async fn write(
        &mut self,
        id: &str,
        chunk: &str,
        write_id: Option<&str>,
    ) -> WriteStatus {
        let write =
            Write { process_id: pid(id), chunk: chunk.into(), write_id: write_id.map(Into::into) };
        self.call::<Write>(&write).await.unwrap().status
    }

    pub(super) async fn close_stdin(&mut self, id: &str) -> WriteStatus {
        let close = CloseStdin { process_id: pid(id), write_id: None };
        self.call::<CloseStdin>(&close).await.unwrap().status
    }

    pub(super) async fn signal(&mut self, id: &str, signal: SignalName) {
        self.call::<Signal>(&Signal { process_id: pid(id), signal }).await.unwrap();
    }

    pub(super) async fn terminate(&mut self, id: &str) -> bool {
        self.call::<Terminate>(&Terminate { process_id: pid(id) }).await.unwrap().running
    }

    pub(super) async fn read(&mut self, id: &str, after: u64) -> ReadReply {
        self.call::<Read>(&read(id, after)).await.unwrap()
    }

    /// Drops the stream and waits until the executor has noticed.
    pub(super) async fn disconnect(self) {
        drop(self.end);
        assert_eq!(self.server.await.unwrap(), StreamEnd::Closed);
    }
}

pub(super) enum Event {
    Output(Output),
    Exited(Exited),
    Closed(ClosedNotification),
}

#[derive(Debug, Default)]
pub(super) struct Finished {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) pty: Vec<u8>,
    pub(super) chunks: usize,
    pub(super) largest: usize,
    pub(super) code: Option<i32>,
    pub(super) last_seq: u64,
}

impl Finished {
    pub(super) fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

pub(super) fn path(path: &str) -> PathUri {
    PathUri::from_path(path).unwrap()
}

pub(super) fn shell(id: &str, script: &str) -> Start {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    let path_variable = std::env::var("PATH").unwrap();
    Start {
        env: BTreeMap::from([("PATH".to_owned(), path_variable)]),
        ..Start::new(pid(id), argv, path("/tmp"))
    }
}

pub(super) fn read(id: &str, after: u64) -> Read {
    Read { process_id: pid(id), after_seq: Some(after), max_bytes: None, wait_ms: None }
}
