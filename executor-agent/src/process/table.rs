//! The processes of one session by id.
//!
//! ```text
//!   reserve ──► Starting ──started──► Running (running → exited) ──closed──► Closed
//!                  │ failed                                           │ PROCESS_LINGER
//!                  ▼                                                  ▼ or room needed
//!              forgotten ◄────────────────────────────────────────────┘
//! ```
//!
//! A process is not forgotten while the attached peer has not received all of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use rendez_proto::rpc::RpcError;
use rendez_proto::rpc::process::{ProcessId, SignalName};
use tokio::task::AbortHandle;

use super::process_handle::ProcessHandle;

/// Processes of one session, running or closed. Bounds file descriptors, and memory
/// at [`PROCESS_OUTPUT_MIN_BYTES`](super::output_budget::PROCESS_OUTPUT_MIN_BYTES)
/// each.
pub(crate) const PROCESSES_PER_SESSION: usize = 1024;

/// The processes of a session, and whether a peer is attached to it.
#[derive(Default)]
pub(super) struct ProcessTable {
    entries: BTreeMap<ProcessId, ProcessEntry>,
    /// The largest chunk of output that the attached peer accepts.
    peer_chunk_bytes: Option<usize>,
    /// The session has ended: no process can be started any more.
    ended: bool,
    closings: u64,
}

pub(super) enum ProcessEntry {
    Starting {
        /// A signal that came too early. A later one replaces it, but nothing
        /// replaces a kill.
        early: Option<SignalName>,
    },
    Running {
        process: Arc<ProcessHandle>,
        task: Option<AbortHandle>,
    },
    Closed {
        process: Arc<ProcessHandle>,
        /// Orders closed processes by their close.
        order: u64,
    },
}

impl ProcessEntry {
    /// The process, once it is started.
    pub(super) fn process(&self) -> Option<&Arc<ProcessHandle>> {
        match self {
            Self::Starting { .. } => None,
            Self::Running { process, .. } | Self::Closed { process, .. } => Some(process),
        }
    }
}

impl ProcessTable {
    /// Attaches a peer that accepts chunks of at most `chunk_bytes`.
    pub(super) fn attach(&mut self, chunk_bytes: usize) {
        self.peer_chunk_bytes = Some(chunk_bytes);
        self.processes().for_each(|process| process.attach(chunk_bytes));
    }

    /// Detaches the peer.
    pub(super) fn detach(&mut self) {
        self.peer_chunk_bytes = None;
        self.processes().for_each(|process| process.detach());
    }

    fn processes(&self) -> impl Iterator<Item = &Arc<ProcessHandle>> {
        self.entries.values().filter_map(ProcessEntry::process)
    }

    /// Whether no process runs or starts.
    pub(super) fn is_idle(&self) -> bool {
        self.entries.values().all(|entry| matches!(entry, ProcessEntry::Closed { .. }))
    }

    /// Ends the session and forgets all processes, which it returns.
    pub(super) fn end(&mut self) -> impl Iterator<Item = ProcessEntry> + use<> {
        self.ended = true;
        std::mem::take(&mut self.entries).into_values()
    }

    /// The entry of a process.
    pub(super) fn get(&self, id: &ProcessId) -> Option<&ProcessEntry> {
        self.entries.get(id)
    }

    /// Reserves the id of a process that is about to start.
    ///
    /// # Errors
    /// -32600 if the id is taken, the table is full or the session has ended.
    pub(super) fn reserve(&mut self, id: &ProcessId) -> Result<(), RpcError> {
        if self.ended {
            return Err(session_ended());
        }
        if self.entries.contains_key(id) {
            return Err(RpcError::invalid_request(format!("process {id} already exists")));
        }
        if self.entries.len() >= PROCESSES_PER_SESSION && !self.forget_oldest_closed() {
            return Err(RpcError::invalid_request(format!(
                "this session has {PROCESSES_PER_SESSION} processes, its maximum; end one first",
            )));
        }
        self.entries.insert(id.clone(), ProcessEntry::Starting { early: None });
        Ok(())
    }

    /// Moves a process from `Starting` to `Running`. `make` gets the chunk size of the
    /// attached peer. Returns `None` without calling `make` if the session has ended
    /// meanwhile.
    pub(super) fn started(
        &mut self,
        id: &ProcessId,
        make: impl FnOnce(Option<usize>) -> Arc<ProcessHandle>,
    ) -> Option<Arc<ProcessHandle>> {
        let entry = self.entries.get_mut(id)?;
        let process = make(self.peer_chunk_bytes);
        let running = ProcessEntry::Running { process: process.clone(), task: None };
        if let ProcessEntry::Starting { early: Some(signal) } = std::mem::replace(entry, running) {
            process.signal(signal);
        }
        Some(process)
    }

    /// Sets the task of a running process; aborts it if the session has ended.
    pub(super) fn set_task(&mut self, id: &ProcessId, handle: AbortHandle) {
        match self.entries.get_mut(id) {
            Some(ProcessEntry::Running { task, .. }) => *task = Some(handle),
            Some(_) => {}
            None => handle.abort(),
        }
    }

    /// Moves a process from `Running` to `Closed`.
    pub(super) fn closed(&mut self, process: &Arc<ProcessHandle>) {
        self.closings += 1;
        if let Some(entry) = self.entries.get_mut(process.id()) {
            *entry = ProcessEntry::Closed { process: process.clone(), order: self.closings };
        }
    }

    /// Forgets `process`, or with `None` a process that failed to start.
    pub(super) fn forget(&mut self, id: &ProcessId, process: Option<&Arc<ProcessHandle>>) {
        // the id may belong to another process by now
        let same = self.entries.get(id).is_some_and(|entry| match (entry.process(), process) {
            (Some(there), Some(process)) => Arc::ptr_eq(there, process),
            (None, None) => true,
            _ => false,
        });
        if same {
            self.entries.remove(id);
        }
    }

    /// Sends a signal, or keeps it for a process that is starting. Returns
    /// whether the process runs.
    pub(super) fn signal(&mut self, id: &ProcessId, signal: SignalName) -> bool {
        match self.entries.get_mut(id) {
            None | Some(ProcessEntry::Closed { .. }) => false,
            Some(ProcessEntry::Starting { early }) => {
                if *early != Some(SignalName::Kill) {
                    *early = Some(signal);
                }
                true
            }
            Some(ProcessEntry::Running { process, .. }) => process.signal(signal),
        }
    }

    fn forget_oldest_closed(&mut self) -> bool {
        let oldest = self
            .entries
            .iter()
            .filter_map(|(id, entry)| match entry {
                ProcessEntry::Closed { order, process } if process.is_fully_pushed() => {
                    Some((*order, id))
                }
                _ => None,
            })
            .min()
            .map(|(_, id)| id.clone());
        oldest.is_some_and(|id| self.entries.remove(&id).is_some())
    }
}

pub(super) fn session_ended() -> RpcError {
    RpcError::invalid_request("the session has ended")
}

#[cfg(test)]
impl ProcessTable {
    /// The ids in the table.
    pub(super) fn ids(&self) -> Vec<ProcessId> {
        self.entries.keys().cloned().collect()
    }
}
