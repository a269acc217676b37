//! One process as other modules see it: its log, its input and its process group.
//!
//! The mutex of the log is never held across an await. Each change of the log wakes
//! readers that wait for an event, tasks that wait to read the child's output, and
//! the [`NotificationQueue`] of the session.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use rendez_proto::rpc::notification;
use rendez_proto::rpc::process::{
    ClosedNotification, Exited, Output, ProcessId, ReadReply, SignalName, Stream,
};
use tokio::sync::Notify;

use super::output_budget::OutputBudget;
use super::output_log::{OutputLog, PROCESS_OUTPUT_RETAINED_BYTES, ProcessEvent};
use super::stdin::Stdin;
use crate::sys::process_group::ProcessGroup;

/// A process that was started; it may have exited.
pub(super) struct ProcessHandle {
    id: ProcessId,
    log: Mutex<OutputLog>,
    /// Notified when an event was appended.
    appended: Notify,
    /// Notified when [`OutputLog::read_size`] may have changed.
    read_size_changed: Notify,
    stdin: Arc<Stdin>,
    group: Mutex<Option<ProcessGroup>>,
    notifications: Arc<NotificationQueue>,
    queued: AtomicBool,
}

impl ProcessHandle {
    /// A process whose events go to `notifications` while a peer is attached, which
    /// accepts chunks of `peer_chunk_bytes`.
    pub(super) fn new(
        id: ProcessId,
        stdin: Arc<Stdin>,
        group: ProcessGroup,
        notifications: Arc<NotificationQueue>,
        peer_chunk_bytes: Option<usize>,
        budget: Arc<OutputBudget>,
    ) -> Arc<Self> {
        let mut log = OutputLog::new(PROCESS_OUTPUT_RETAINED_BYTES, budget);
        if let Some(chunk_bytes) = peer_chunk_bytes {
            log.attach(chunk_bytes);
        }
        Arc::new(Self {
            id,
            log: Mutex::new(log),
            appended: Notify::new(),
            read_size_changed: Notify::new(),
            stdin,
            group: Mutex::new(Some(group)),
            notifications,
            queued: AtomicBool::new(false),
        })
    }

    /// Its id in the session.
    pub(super) fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Its input.
    pub(super) fn stdin(&self) -> &Arc<Stdin> {
        &self.stdin
    }

    // ---- events of the child ----

    /// Appends output.
    pub(super) fn output(self: &Arc<Self>, stream: Stream, bytes: Bytes) {
        self.append(|log| log.append_output(stream, bytes));
    }

    /// Appends the exit.
    pub(super) fn exited(self: &Arc<Self>, code: i32) {
        self.append(|log| log.append_exit(code));
    }

    /// Appends the close. Processes that the child left behind without our pipes
    /// keep running, out of reach of signals.
    pub(super) fn closed(self: &Arc<Self>) {
        if let Some(group) = self.group.lock().take() {
            group.disarm();
        }
        self.append(OutputLog::append_close);
    }

    fn append(self: &Arc<Self>, change: impl FnOnce(&mut OutputLog)) {
        change(&mut self.log.lock());
        self.appended.notify_waiters();
        self.notifications.add(self);
    }

    /// Waits until the child's output may be read; returns the most bytes to read.
    pub(super) async fn read_size(&self) -> usize {
        loop {
            let changed = self.read_size_changed.notified();
            if let Some(room) = self.log.lock().read_size() {
                return room;
            }
            changed.await;
        }
    }

    // ---- calls of peers ----

    /// Starts pushing later events, in chunks of at most `chunk_bytes`.
    pub(super) fn attach(&self, chunk_bytes: usize) {
        self.log.lock().attach(chunk_bytes);
        self.read_size_changed.notify_waiters();
    }

    /// Stops pushing.
    pub(super) fn detach(&self) {
        self.log.lock().detach();
        self.read_size_changed.notify_waiters();
    }

    /// Whether no event waits for an attached peer.
    pub(super) fn is_fully_pushed(&self) -> bool {
        self.log.lock().is_fully_pushed()
    }

    /// The kept output above `after`.
    pub(super) fn read(&self, after: u64, max_bytes: u64) -> ReadReply {
        self.log.lock().read(after, max_bytes)
    }

    /// Waits until an event has a number above `after`, or the log is closed.
    pub(super) async fn wait_for_event(&self, after: u64) {
        loop {
            let changed = self.appended.notified();
            {
                let log = self.log.lock();
                if log.last_seq() > after || log.is_closed() {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Sends a signal to the process group; returns whether the process runs.
    pub(super) fn signal(&self, signal: SignalName) -> bool {
        let running = !self.log.lock().has_exited();
        if let Some(group) = self.group.lock().as_ref() {
            group.signal(signal);
        }
        running
    }

    fn next_push(&self) -> Option<Vec<u8>> {
        let event = self.log.lock().next_push()?;
        self.read_size_changed.notify_waiters();
        let process_id = self.id.clone();
        Some(match event {
            ProcessEvent::Output { seq, stream, bytes } => {
                notification(&Output { process_id, seq, stream, chunk: bytes })
            }
            ProcessEvent::Exited { seq, code } => {
                notification(&Exited { process_id, seq, exit_code: code, sandbox_denied: false })
            }
            ProcessEvent::Closed { seq } => notification(&ClosedNotification { process_id, seq }),
        })
    }
}

/// The processes of one session with events to push, each once. Each takes one turn
/// after the other, so a process that floods does not starve the others.
#[derive(Default)]
pub(super) struct NotificationQueue {
    ready: Mutex<VecDeque<Weak<ProcessHandle>>>,
    added: Notify,
}

impl NotificationQueue {
    fn add(&self, process: &Arc<ProcessHandle>) {
        if !process.queued.swap(true, Ordering::AcqRel) {
            self.ready.lock().push_back(Arc::downgrade(process));
            self.added.notify_one();
        }
    }

    /// Waits for the next notification, encoded. Those of one process come in order.
    /// Only one task may call this.
    pub(super) async fn next(&self) -> Vec<u8> {
        loop {
            let added = self.added.notified();
            let next = self.ready.lock().pop_front();
            match next {
                None => added.await,
                Some(process) => {
                    let Some(process) = process.upgrade() else { continue };
                    process.queued.store(false, Ordering::Release);
                    if let Some(message) = process.next_push() {
                        // it may have more events; if not, its next turn is empty
                        self.add(&process);
                        return message;
                    }
                }
            }
        }
    }
}
