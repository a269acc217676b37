//! One process as the rest of the agent sees it: its log, its input, and what
//! signals reach.
//!
//! The log sits behind a mutex that is never held across an await. Whoever
//! changes it tells three parties: readers that wait for news, pumps that wait
//! for room, and the [`NotificationQueue`] of the session.

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

/// A started process, running or not.
pub(super) struct ProcessHandle {
    id: ProcessId,
    log: Mutex<OutputLog>,
    /// Something was appended.
    appended: Notify,
    /// [`OutputLog::read_size`] may have changed.
    read_size_changed: Notify,
    stdin: Arc<Stdin>,
    group: Mutex<Option<ProcessGroup>>,
    notifications: Arc<NotificationQueue>,
    queued: AtomicBool,
}

impl ProcessHandle {
    /// A process whose events go to `notifications` if a peer is `attached`, in chunks
    /// of that many bytes.
    pub(super) fn new(
        id: ProcessId,
        stdin: Arc<Stdin>,
        group: ProcessGroup,
        notifications: Arc<NotificationQueue>,
        attached: Option<usize>,
        budget: Arc<OutputBudget>,
    ) -> Arc<Self> {
        let mut log = OutputLog::new(PROCESS_OUTPUT_RETAINED_BYTES, budget);
        if let Some(chunk_bytes) = attached {
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

    /// Its name in the session.
    pub(super) fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Its input.
    pub(super) fn stdin(&self) -> &Arc<Stdin> {
        &self.stdin
    }

    // ---- what happens to the child ----

    /// Appends output.
    pub(super) fn output(self: &Arc<Self>, stream: Stream, bytes: Bytes) {
        self.append(|log| log.append_output(stream, bytes));
    }

    /// Appends the exit.
    pub(super) fn exited(self: &Arc<Self>, code: i32) {
        self.append(|log| log.append_exit(code));
    }

    /// Appends the close. What the child left behind without an output of ours
    /// lives on, out of reach.
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

    /// Waits until the child's outputs should be read; returns how many bytes
    /// at once.
    pub(super) async fn read_size(&self) -> usize {
        loop {
            let changed = self.read_size_changed.notified();
            if let Some(room) = self.log.lock().read_size() {
                return room;
            }
            changed.await;
        }
    }

    // ---- what peers want ----

    /// Pushes from here on, in chunks of at most `chunk_bytes`.
    pub(super) fn attach(&self, chunk_bytes: usize) {
        self.log.lock().attach(chunk_bytes);
        self.read_size_changed.notify_waiters();
    }

    /// Stops pushing.
    pub(super) fn detach(&self) {
        self.log.lock().detach();
        self.read_size_changed.notify_waiters();
    }

    /// Whether no attached peer still waits for some of it.
    pub(super) fn is_fully_pushed(&self) -> bool {
        self.log.lock().is_fully_pushed()
    }

    /// The kept output above `after`.
    pub(super) fn read(&self, after: u64, max_bytes: u64) -> ReadReply {
        self.log.lock().read(after, max_bytes)
    }

    /// Waits until something has a number above `after`, or nothing ever will.
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

    /// Sends a signal to all that can be reached; false if the process ended.
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

/// The processes of one session that have something to push, each once, in
/// turn: one that floods takes one turn like the others.
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

    /// Waits for the next notification, complete; in the order of its numbers
    /// per process. One task asks at a time.
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
                        // it may have more; if not, its next turn finds nothing
                        self.add(&process);
                        return message;
                    }
                }
            }
        }
    }
}
