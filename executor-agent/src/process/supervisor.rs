//! The calls to the processes of one session.
//!
//! Each call does its ordered part at once and returns a future for the rest, so
//! that requests take effect in the order of their calls. A start runs in a task of
//! its own: a stream that breaks during the start leaves a process that the session
//! knows.

use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rendez_proto::rpc::RpcError;
use rendez_proto::rpc::process::{
    CloseStdin, Empty, ProcessId, Read, ReadReply, SANDBOX_NONE, Signal, SignalName, Start,
    StartReply, Terminate, TerminateReply, Write, WriteReply, WriteStatus,
};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::ProcessContext;
use super::child;
use super::process_handle::{NotificationQueue, ProcessHandle};
use super::stdin::Stdin;
use super::stdin_budget::StdinQuota;
use super::table::{ProcessEntry, ProcessTable, session_ended};
use crate::sandbox;
use crate::sys::child::Launched;
use crate::sys::process_group::ProcessGroup;

/// How long a finished process stays readable (docs/codex-wire.md#processes).
const PROCESS_LINGER: Duration = Duration::from_secs(80);

/// The processes of one session.
pub(crate) struct Supervisor {
    table: Mutex<ProcessTable>,
    notifications: Arc<NotificationQueue>,
    context: Arc<ProcessContext>,
    /// The queued input of all its processes.
    stdin_quota: Arc<StdinQuota>,
}

impl Supervisor {
    /// A session without processes and without a peer.
    pub(crate) fn new(context: Arc<ProcessContext>) -> Arc<Self> {
        let stdin_quota = context.stdin.session_quota();
        let (table, notifications) = Default::default();
        Arc::new(Self { table, notifications, context, stdin_quota })
    }

    // ---- the peer ----

    /// Attaches a peer that accepts chunks of `chunk_bytes`. Later events are pushed
    /// to it.
    pub(crate) fn attach(&self, chunk_bytes: usize) {
        self.table.lock().attach(chunk_bytes);
    }

    /// Detaches the peer. Processes keep running, and their output is kept.
    pub(crate) fn detach(&self) {
        self.table.lock().detach();
    }

    /// Waits for the next notification for the attached peer.
    pub(crate) async fn next_notification(&self) -> Vec<u8> {
        self.notifications.next().await
    }

    /// Whether no process runs or starts.
    pub(crate) fn is_idle(&self) -> bool {
        self.table.lock().is_idle()
    }

    /// Kills and forgets all processes. Final: no process can be started any more.
    pub(crate) fn kill_all(&self) {
        let entries = self.table.lock().end();
        for entry in entries {
            if let ProcessEntry::Running { process, task } = entry {
                process.signal(SignalName::Kill);
                // an orphan outside of the group may keep the outputs open
                task.inspect(AbortHandle::abort);
            }
        }
    }

    // ---- calls ----

    /// `process/start`
    pub(crate) fn start(
        self: &Arc<Self>,
        start: Start,
    ) -> impl Future<Output = Result<StartReply, RpcError>> + Send + use<> {
        let process_id = start.process_id.clone();
        let outcome = self.reserve(&start).map(|()| {
            let (started, outcome) = oneshot::channel();
            let withheld = self.context.withheld_variables;
            tokio::spawn(run_process(Arc::downgrade(self), start, withheld, started));
            outcome
        });
        async move {
            let stdin_window = outcome?.await.unwrap_or_else(|_| Err(session_ended()))?;
            Ok(StartReply { process_id, sandbox_type: SANDBOX_NONE.to_owned(), stdin_window })
        }
    }

    /// `process/write`
    pub(crate) fn write(
        &self,
        write: Write,
    ) -> impl Future<Output = Result<WriteReply, RpcError>> + Send + use<> {
        let queued = if write.write_id.as_deref() == Some("") {
            Err(RpcError::invalid_params("writeId must not be empty"))
        } else {
            Ok(self
                .stdin_of(&write.process_id)
                .map(|stdin| stdin.write(write.chunk, write.write_id)))
        };
        async move {
            let status = match queued? {
                Ok(answer) => answer.await?,
                Err(status) => status,
            };
            Ok(WriteReply { status })
        }
    }

    /// `process/closeStdin`
    pub(crate) fn close_stdin(
        &self,
        close: &CloseStdin,
    ) -> impl Future<Output = Result<WriteReply, RpcError>> + Send + use<> {
        let queued = self.stdin_of(&close.process_id).map(|stdin| stdin.close());
        async move {
            let status = match queued {
                Ok(answer) => answer.await?,
                Err(status) => status,
            };
            Ok(WriteReply { status })
        }
    }

    /// `process/signal`
    pub(crate) fn signal(&self, signal: &Signal) -> Empty {
        self.table.lock().signal(&signal.process_id, signal.signal);
        Empty {}
    }

    /// `process/terminate`
    pub(crate) fn terminate(&self, terminate: &Terminate) -> TerminateReply {
        let running = self.table.lock().signal(&terminate.process_id, SignalName::Kill);
        TerminateReply { running }
    }

    /// The wait of `process/read` for an event of the process, or for its time limit.
    /// `None` if the call does not wait, or the process is not known.
    pub(crate) fn wait_for_event(
        &self,
        read: &Read,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let wait = Duration::from_millis(read.wait_ms.filter(|wait| *wait > 0)?);
        let process = self.table.lock().get(&read.process_id)?.process()?.clone();
        let after = read.after_seq.unwrap_or(0);
        Some(async move {
            // a timeout is no failure
            let _ = tokio::time::timeout(wait, process.wait_for_event(after)).await;
        })
    }

    /// `process/read`, without its wait.
    pub(crate) fn read(&self, read: &Read) -> Result<ReadReply, RpcError> {
        let process = match self.table.lock().get(&read.process_id).map(ProcessEntry::process) {
            None => {
                return Err(RpcError::invalid_request(format!(
                    "unknown process id {}",
                    read.process_id
                )));
            }
            Some(None) => {
                return Err(RpcError::invalid_request(format!(
                    "process {} is still starting",
                    read.process_id
                )));
            }
            Some(Some(process)) => process.clone(),
        };
        Ok(process.read(read.after_seq.unwrap_or(0), read.max_bytes.unwrap_or(u64::MAX)))
    }

    // ---- internals ----

    /// Checks the call and reserves its process id.
    fn reserve(&self, start: &Start) -> Result<(), RpcError> {
        if start.argv.is_empty() {
            return Err(RpcError::invalid_params("argv must not be empty"));
        }
        sandbox::check_process(start)?;
        self.table.lock().reserve(&start.process_id)
    }

    /// Registers a started child. Returns `None` if the session has ended meanwhile,
    /// which kills the child.
    fn register(
        &self,
        id: &ProcessId,
        stdin: Arc<Stdin>,
        group: ProcessGroup,
    ) -> Option<Arc<ProcessHandle>> {
        self.table.lock().started(id, |peer_chunk_bytes| {
            let budget = self.context.output.clone();
            ProcessHandle::new(
                id.clone(),
                stdin,
                group,
                self.notifications.clone(),
                peer_chunk_bytes,
                budget,
            )
        })
    }

    fn stdin_of(&self, id: &ProcessId) -> Result<Arc<Stdin>, WriteStatus> {
        match self.table.lock().get(id).map(ProcessEntry::process) {
            None => Err(WriteStatus::UnknownProcess),
            Some(None) => Err(WriteStatus::Starting),
            Some(Some(process)) => Ok(process.stdin().clone()),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// Runs a process from its start until it is forgotten. Sends the outcome of the
/// start to `started`, with the granted window if the caller asked for one.
async fn run_process(
    supervisor: Weak<Supervisor>,
    start: Start,
    withheld: &'static [&'static str],
    started: oneshot::Sender<Result<Option<u64>, RpcError>>,
) {
    let id = start.process_id.clone();
    let wanted = start.stdin_window.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let launched = tokio::task::spawn_blocking(move || child::launch(start, withheld))
        .await
        .unwrap_or_else(|error| Err(RpcError::internal(error.to_string())));
    let Some(here) = supervisor.upgrade() else { return };
    let Launched { child, group, outputs, stdin: writer } = match launched {
        Ok(launched) => launched,
        Err(error) => {
            here.table.lock().forget(&id, None);
            let _ = started.send(Err(error));
            return;
        }
    };
    let mut window = None;
    let (stdin, feed) = match writer {
        None => (Stdin::none(), None),
        Some(writer) => {
            let grant = here.context.stdin.grant(wanted.unwrap_or(0));
            window = wanted.map(|_| grant.window() as u64);
            let (stdin, feed) = Stdin::open(grant, here.stdin_quota.clone());
            (stdin, Some((feed, writer)))
        }
    };
    let Some(process) = here.register(&id, stdin, group) else { return };
    tracing::debug!(pid = child.id(), "process started");
    let child_task = tokio::spawn(child::run(child, outputs, feed, process.clone()));
    here.table.lock().set_task(&id, child_task.abort_handle());
    drop(here);
    // the caller may have left; the process keeps running
    let _ = started.send(Ok(window));
    // aborted: the session has ended
    if child_task.await.is_err() {
        return;
    }
    if let Some(here) = supervisor.upgrade() {
        here.table.lock().closed(&process);
    }
    // the table may forget it earlier to make room
    let weak = Arc::downgrade(&process);
    drop(process);
    loop {
        tokio::time::sleep(PROCESS_LINGER).await;
        let (Some(here), Some(process)) = (supervisor.upgrade(), weak.upgrade()) else { return };
        // a slow or disconnected reader must still get all events
        if process.is_fully_pushed() {
            return here.table.lock().forget(&id, Some(&process));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::output_log::PROCESS_OUTPUT_RETAINED_BYTES;
    use crate::process::table::PROCESSES_PER_SESSION;
    use crate::testing::process_id as pid;
    use rendez_proto::limits;
    use rendez_proto::rpc::Message;
    use rendez_proto::rpc::path::PathUri;

    fn start(id: &str, script: &str) -> Start {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        Start::new(pid(id), argv, PathUri::from_path("/").unwrap())
    }

    async fn read(supervisor: &Supervisor, after_seq: u64, wait_ms: u64) -> ReadReply {
        let (after_seq, wait_ms) = (Some(after_seq), Some(wait_ms));
        let call = Read { process_id: pid("p"), after_seq, max_bytes: Some(1), wait_ms };
        if let Some(news) = supervisor.wait_for_event(&call) {
            news.await;
        }
        supervisor.read(&call).unwrap()
    }

    /// The method and sequence number of the next notification.
    async fn next(supervisor: &Supervisor) -> (String, u64) {
        let message = supervisor.next_notification().await.into();
        let Message::Notification { method, params } = Message::parse(&message).unwrap() else {
            panic!("not a notification")
        };
        (method, params.parse::<serde_json::Value>().unwrap()["seq"].as_u64().unwrap())
    }

    #[tokio::test]
    async fn unread_output_pauses_child_and_loses_nothing() {
        let supervisor = Supervisor::new(Arc::default());
        supervisor.attach(limits::PROCESS_CHUNK_MAX_BYTES);
        let total = 2 * PROCESS_OUTPUT_RETAINED_BYTES;
        let script = format!("exec head -c {total} /dev/zero");
        supervisor.start(start("p", &script)).await.unwrap();
        // until the log is nearly full and no output came for a while
        let mut last = 0;
        let held = loop {
            let exited = read(&supervisor, last, 500).await.exited;
            assert!(!exited, "the child was not paused");
            let call =
                Read { process_id: pid("p"), after_seq: None, max_bytes: None, wait_ms: None };
            let all = supervisor.read(&call).unwrap();
            let held: usize = all.chunks.iter().map(|chunk| chunk.chunk.len()).sum();
            if all.next_seq - 1 == last && held >= PROCESS_OUTPUT_RETAINED_BYTES / 2 {
                break held;
            }
            last = all.next_seq - 1;
        };
        assert!(held <= PROCESS_OUTPUT_RETAINED_BYTES + limits::PROCESS_CHUNK_MAX_BYTES);
        for expected in 1.. {
            let (method, seq) = next(&supervisor).await;
            assert_eq!(seq, expected, "an event is missing");
            if method == "process/closed" {
                break;
            }
        }
        assert!(read(&supervisor, u64::MAX, 0).await.closed);
    }

    #[tokio::test]
    async fn detaching_lets_a_paused_child_continue() {
        let supervisor = Supervisor::new(Arc::default());
        supervisor.attach(limits::PROCESS_CHUNK_MAX_BYTES);
        let total = 2 * PROCESS_OUTPUT_RETAINED_BYTES;
        let script = format!("exec head -c {total} /dev/zero");
        supervisor.start(start("p", &script)).await.unwrap();
        supervisor.detach();
        let mut after = 0;
        while !read(&supervisor, after, 60_000).await.closed {
            after = read(&supervisor, u64::MAX, 0).await.next_seq - 1;
        }
    }

    #[tokio::test]
    async fn calls_during_start_are_answered() {
        let supervisor = Supervisor::new(Arc::default());
        supervisor.attach(limits::PROCESS_CHUNK_MAX_BYTES);
        let started = supervisor.start(start("p", "exec sleep 1000"));
        // without an await, the child cannot have started yet
        let write = Write { process_id: pid("p"), chunk: vec![1], write_id: None };
        assert_eq!(supervisor.write(write).await.unwrap().status, WriteStatus::Starting);
        let error = supervisor.start(start("p", "true")).await.unwrap_err();
        assert_eq!(error.message, "process p already exists");
        assert!(supervisor.terminate(&Terminate { process_id: pid("p") }).running);
        started.await.unwrap();
        assert_eq!(next(&supervisor).await, ("process/exited".to_owned(), 1));
        assert_eq!(read(&supervisor, 0, 0).await.exit_code, Some(137));
    }

    #[tokio::test]
    async fn full_session_forgets_oldest_closed_process() {
        let supervisor = Supervisor::new(Arc::default());
        supervisor.attach(limits::PROCESS_CHUNK_MAX_BYTES);
        for n in 1..PROCESSES_PER_SESSION {
            supervisor.table.lock().reserve(&pid(&n.to_string())).unwrap();
        }
        supervisor.start(start("p", "exec sleep 1000")).await.unwrap();
        let error = supervisor.start(start("q", "true")).await.unwrap_err();
        assert!(error.message.contains("end one first"), "{error}");
        supervisor.terminate(&Terminate { process_id: pid("p") });
        while next(&supervisor).await.0 != "process/closed" {}
        // the entry follows its last notification
        while !matches!(supervisor.table.lock().get(&pid("p")), Some(ProcessEntry::Closed { .. })) {
            tokio::task::yield_now().await;
        }
        supervisor.start(start("q", "true")).await.unwrap();
        assert!(supervisor.table.lock().get(&pid("p")).is_none());
    }

    #[tokio::test]
    async fn closed_process_is_forgotten_after_linger() {
        let supervisor = Supervisor::new(Arc::default());
        supervisor.attach(limits::PROCESS_CHUNK_MAX_BYTES);
        supervisor.start(start("p", "true")).await.unwrap();
        while next(&supervisor).await.0 != "process/closed" {}
        while !supervisor.is_idle() {
            tokio::task::yield_now().await;
        }
        // its task starts to sleep in the same poll in which it reports the close
        tokio::task::yield_now().await;
        tokio::time::pause();
        tokio::time::advance(PROCESS_LINGER - Duration::from_millis(10)).await;
        assert_eq!(read(&supervisor, 0, 0).await.exit_code, Some(0));
        tokio::time::advance(Duration::from_millis(20)).await;
        while !supervisor.table.lock().ids().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn process_with_unread_output_is_not_forgotten() {
        let supervisor = Supervisor::new(Arc::default());
        supervisor.attach(limits::PROCESS_CHUNK_MAX_BYTES);
        supervisor.start(start("p", "echo late; exit 7")).await.unwrap();
        while !supervisor.is_idle() {
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
        tokio::time::pause();
        // let its task check more than once
        for _ in 0..3 {
            tokio::time::advance(PROCESS_LINGER + Duration::from_millis(10)).await;
            tokio::task::yield_now().await;
        }
        let mut methods = Vec::new();
        while methods.last().is_none_or(|method| method != "process/closed") {
            let next = tokio::time::timeout(Duration::from_secs(1), next(&supervisor)).await;
            methods.push(next.unwrap().0);
        }
        // the exit may come before the last output
        methods.sort_unstable();
        assert_eq!(methods, ["process/closed", "process/exited", "process/output"]);
        tokio::time::advance(PROCESS_LINGER + Duration::from_millis(10)).await;
        while !supervisor.table.lock().ids().is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
