//! The input of a child: applies writes in the order of their requests, and each
//! write id once.
//!
//! Requests put jobs into a bounded queue. One task per child writes them to the
//! pipe or terminal. A job is answered once the operating system has all its bytes,
//! so a child that does not read delays the answers: backpressure for a client that
//! waits for them.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rendez_proto::limits;
use rendez_proto::rpc::RpcError;
use rendez_proto::rpc::process::WriteStatus;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, oneshot};

use super::stdin_budget::{StdinQuota, StdinReservation, WindowGrant};
use crate::sys::child::Writer;

/// Largest write that is always accepted for a process without queued writes, also
/// with an exhausted budget: what a pipe holds, so that every process makes
/// progress.
pub(super) const STDIN_MIN_BYTES: usize = 64 * 1024;
/// Ids of applied writes that a process remembers, the newest: a client repeats only
/// writes that were unanswered when its stream broke.
const WRITE_IDS_PER_PROCESS: usize = 8 * limits::WRITES_UNANSWERED_PER_PROCESS;

/// The terminal's end-of-file character (Ctrl-D).
const END_OF_FILE: u8 = 4;

/// The input of a child, as requests see it.
pub(super) struct Stdin {
    queue: Option<mpsc::Sender<StdinJob>>,
    /// The most bytes that may be queued.
    window: usize,
    queued_bytes: Arc<AtomicUsize>,
    /// The queued bytes of the session. `None` for a child without input.
    session_quota: Option<Arc<StdinQuota>>,
    applied: Mutex<AppliedWrites>,
}

/// The applied writes, to recognise repetitions.
#[derive(Default)]
struct AppliedWrites {
    write_ids: VecDeque<String>,
    closed: bool,
}

struct StdinJob {
    kind: JobKind,
    answer: oneshot::Sender<WriteStatus>,
    /// Counts the bytes in [`Stdin::queued_bytes`] until dropped.
    _charge: QueuedBytes,
    /// Counts the bytes in the session. `None` for a write of at most
    /// [`STDIN_MIN_BYTES`] beyond its quota.
    _reservation: Option<StdinReservation>,
}

enum JobKind {
    Write { chunk: Vec<u8>, write_id: Option<String> },
    Close,
}

struct QueuedBytes(Arc<AtomicUsize>, usize);

impl Drop for QueuedBytes {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// The task that writes the queue to the child; spawn [`StdinFeeder::run`].
pub(super) struct StdinFeeder {
    stdin: Arc<Stdin>,
    jobs: mpsc::Receiver<StdinJob>,
    /// Held until the input is closed.
    grant: Option<WindowGrant>,
}

impl Stdin {
    /// The input of a child without one.
    pub(super) fn none() -> Arc<Self> {
        Arc::new(Self {
            queue: None,
            window: 0,
            queued_bytes: Arc::default(),
            session_quota: None,
            applied: Mutex::default(),
        })
    }

    /// An input with the granted window, and the task that feeds it.
    pub(super) fn open(
        grant: WindowGrant,
        session_quota: Arc<StdinQuota>,
    ) -> (Arc<Self>, StdinFeeder) {
        let (queue, jobs) = mpsc::channel(limits::WRITES_UNANSWERED_PER_PROCESS);
        let stdin = Arc::new(Self {
            queue: Some(queue),
            window: grant.window(),
            queued_bytes: Arc::default(),
            session_quota: Some(session_quota),
            applied: Mutex::default(),
        });
        (stdin.clone(), StdinFeeder { stdin, jobs, grant: Some(grant) })
    }

    /// Queues a write at once; the future resolves to its answer.
    pub(super) fn write(
        self: &Arc<Self>,
        chunk: Vec<u8>,
        write_id: Option<String>,
    ) -> impl Future<Output = Result<WriteStatus, RpcError>> + Send + use<> {
        self.submit(JobKind::Write { chunk, write_id })
    }

    /// Queues the end of the input at once; the future resolves to its answer.
    pub(super) fn close(
        self: &Arc<Self>,
    ) -> impl Future<Output = Result<WriteStatus, RpcError>> + Send + use<> {
        self.submit(JobKind::Close)
    }

    fn submit(
        self: &Arc<Self>,
        kind: JobKind,
    ) -> impl Future<Output = Result<WriteStatus, RpcError>> + Send + use<> {
        let write_id = match &kind {
            JobKind::Write { write_id, .. } => write_id.clone(),
            JobKind::Close => None,
        };
        let closing = matches!(kind, JobKind::Close);
        let queued = self.enqueue(kind);
        let stdin = self.clone();
        async move {
            match queued? {
                Some(answer) => {
                    // a job is dropped unanswered if the child has exited
                    Ok(answer
                        .await
                        .unwrap_or_else(|_| stdin.final_status(closing, write_id.as_deref())))
                }
                None => Ok(stdin.final_status(closing, write_id.as_deref())),
            }
        }
    }

    /// Returns `None` if the child has no input, or closed it.
    fn enqueue(&self, kind: JobKind) -> Result<Option<oneshot::Receiver<WriteStatus>>, RpcError> {
        let (Some(queue), Some(session_quota)) = (&self.queue, &self.session_quota) else {
            return Ok(None);
        };
        let bytes = match &kind {
            JobKind::Write { chunk, .. } => chunk.len(),
            JobKind::Close => 0,
        };
        let before = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let charge = QueuedBytes(self.queued_bytes.clone(), bytes);
        let too_much = || {
            RpcError::invalid_request(format!(
                "the process does not read its stdin: at most {} writes and {} bytes can be \
                 queued; wait for answers before writing more",
                limits::WRITES_UNANSWERED_PER_PROCESS,
                self.window,
            ))
        };
        if before > 0 && before.saturating_add(bytes) > self.window {
            return Err(too_much());
        }
        let reservation = session_quota.reserve(bytes);
        if reservation.is_none() && (before > 0 || bytes > STDIN_MIN_BYTES) {
            return Err(RpcError::invalid_request(
                "too many processes do not read their stdin: the queue of the session or the \
                 executor is full; write less at once, or end some processes",
            ));
        }
        let (answer, answered) = oneshot::channel();
        match queue.try_send(StdinJob { kind, answer, _charge: charge, _reservation: reservation })
        {
            Ok(()) => Ok(Some(answered)),
            Err(mpsc::error::TrySendError::Closed(_)) => Ok(None),
            Err(mpsc::error::TrySendError::Full(_)) => Err(too_much()),
        }
    }

    /// The answer after the input was closed.
    fn final_status(&self, closing: bool, write_id: Option<&str>) -> WriteStatus {
        let applied = self.applied.lock();
        let applied = if closing { applied.closed } else { applied.knows(write_id) };
        if applied { WriteStatus::Accepted } else { WriteStatus::StdinClosed }
    }
}

impl AppliedWrites {
    fn knows(&self, write_id: Option<&str>) -> bool {
        write_id.is_some_and(|id| self.write_ids.iter().any(|known| known == id))
    }

    fn remember(&mut self, write_id: Option<String>) {
        self.write_ids.extend(write_id);
        if self.write_ids.len() > WRITE_IDS_PER_PROCESS {
            self.write_ids.pop_front();
        }
    }
}

impl StdinFeeder {
    /// Writes the queue to `writer`. Never returns, because it holds the sending end,
    /// too: abort it when the child has exited, which answers the waiting jobs. On a
    /// `terminal` it types end-of-file, because closing our end would hang it up.
    pub(super) async fn run(mut self, writer: Writer, terminal: bool) {
        let mut writer = Some(writer);
        let mut at_line_start = true;
        while let Some(job) = self.jobs.recv().await {
            let status = match job.kind {
                JobKind::Write { write_id, .. }
                    if self.stdin.applied.lock().knows(write_id.as_deref()) =>
                {
                    WriteStatus::Accepted
                }
                JobKind::Write { chunk, write_id } => {
                    if write_all(&mut writer, &chunk).await {
                        at_line_start = chunk.last().map_or(at_line_start, |byte| *byte == b'\n');
                        self.stdin.applied.lock().remember(write_id);
                        WriteStatus::Accepted
                    } else {
                        WriteStatus::StdinClosed
                    }
                }
                JobKind::Close if self.stdin.applied.lock().closed => WriteStatus::Accepted,
                JobKind::Close if writer.is_none() => WriteStatus::StdinClosed,
                JobKind::Close => {
                    if terminal {
                        // within a line the first one only submits the line
                        let keys = [END_OF_FILE; 2];
                        let keys = if at_line_start { &keys[..1] } else { &keys[..] };
                        write_all(&mut writer, keys).await;
                    }
                    writer = None;
                    self.stdin.applied.lock().closed = true;
                    WriteStatus::Accepted
                }
            };
            if writer.is_none() {
                self.grant = None;
            }
            // the caller may have left
            let _ = job.answer.send(status);
        }
    }
}

/// Writes all of `bytes` and returns whether it succeeded; drops a failed writer.
async fn write_all(writer: &mut Option<Writer>, bytes: &[u8]) -> bool {
    let Some(open) = writer else { return false };
    let sent = async {
        open.write_all(bytes).await?;
        open.flush().await
    };
    if sent.await.is_err() {
        *writer = None;
    }
    writer.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::stdin_budget::{SESSION_STDIN_QUEUED_BYTES, StdinBudget};
    use WriteStatus::{Accepted, StdinClosed};
    use tokio::io::AsyncReadExt as _;

    fn fed(terminal: bool, room: usize) -> (Arc<Stdin>, tokio::io::DuplexStream) {
        granted(Arc::<StdinBudget>::default().grant(0), terminal, room)
    }

    fn granted(
        grant: WindowGrant,
        terminal: bool,
        room: usize,
    ) -> (Arc<Stdin>, tokio::io::DuplexStream) {
        let (stdin, feed) = Stdin::open(grant, Arc::<StdinBudget>::default().session_quota());
        let (near, far) = tokio::io::duplex(room);
        tokio::spawn(feed.run(Box::new(near), terminal));
        (stdin, far)
    }

    async fn write(stdin: &Arc<Stdin>, chunk: &str, id: Option<&str>) -> WriteStatus {
        stdin.write(chunk.into(), id.map(Into::into)).await.unwrap()
    }

    #[tokio::test]
    async fn writes_and_close_keep_their_order() {
        let (stdin, mut far) = fed(false, 4);
        let jobs = [stdin.write(b"one ".to_vec(), None), stdin.write(b"two".to_vec(), None)];
        let close = stdin.close();
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "one two");
        for job in jobs {
            assert_eq!(job.await.unwrap(), Accepted);
        }
        assert_eq!(close.await.unwrap(), Accepted);
        assert_eq!(stdin.close().await.unwrap(), Accepted, "closing is idempotent");
        assert_eq!(write(&stdin, "late", None).await, StdinClosed);
    }

    #[tokio::test]
    async fn write_id_is_applied_once() {
        let (stdin, mut far) = fed(false, 64);
        assert_eq!(write(&stdin, "a", Some("1")).await, Accepted);
        assert_eq!(write(&stdin, "a", Some("1")).await, Accepted);
        assert_eq!(write(&stdin, "b", Some("2")).await, Accepted);
        stdin.close().await.unwrap();
        assert_eq!(write(&stdin, "b", Some("2")).await, Accepted);
        assert_eq!(write(&stdin, "c", Some("3")).await, StdinClosed);
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "ab");
    }

    #[tokio::test]
    async fn remembered_write_ids_are_bounded() {
        let mut applied = AppliedWrites::default();
        (0..WRITE_IDS_PER_PROCESS + 1).for_each(|n| applied.remember(Some(n.to_string())));
        assert_eq!(applied.write_ids.len(), WRITE_IDS_PER_PROCESS);
        assert!(!applied.knows(Some("0")) && applied.knows(Some("1")) && !applied.knows(None));
    }

    #[tokio::test]
    async fn write_to_closed_stdin_is_reported() {
        let (stdin, far) = fed(false, 4);
        drop(far);
        assert_eq!(write(&stdin, "x", Some("1")).await, StdinClosed);
        assert_eq!(write(&stdin, "x", Some("1")).await, StdinClosed);
        assert_eq!(stdin.close().await.unwrap(), StdinClosed);
        assert_eq!(write(&Stdin::none(), "x", None).await, StdinClosed);
    }

    #[tokio::test]
    async fn writes_beyond_the_queue_are_refused() {
        let (stdin, mut far) = fed(false, 1);
        let mut accepted = Vec::new();
        let refused = loop {
            let mut job = Box::pin(stdin.write(b"xy".to_vec(), None));
            // a refusal is ready at once; a queued write waits for the reader
            match futures_util::poll!(&mut job) {
                std::task::Poll::Ready(outcome) => break outcome.unwrap_err(),
                std::task::Poll::Pending => accepted.push(job),
            }
            assert!(accepted.len() <= limits::WRITES_UNANSWERED_PER_PROCESS + 1);
        };
        assert!(refused.message.contains("does not read its stdin"), "{refused}");
        assert!(accepted.len() >= limits::WRITES_UNANSWERED_PER_PROCESS);
        let mut bytes = vec![0; accepted.len() * 2];
        far.read_exact(&mut bytes).await.unwrap();
        for job in accepted {
            assert_eq!(job.await.unwrap(), Accepted);
        }
        assert_eq!(stdin.queued_bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn first_write_may_have_any_size() {
        let (stdin, _far) = fed(false, 1);
        let mut big = Box::pin(stdin.write(vec![0; limits::STDIN_QUEUED_BYTES * 2], None));
        assert!(futures_util::poll!(&mut big).is_pending());
        assert!(stdin.write(vec![0], None).await.is_err());
    }

    #[tokio::test]
    async fn full_session_accepts_small_writes_per_process() {
        const LITTLE: usize = STDIN_MIN_BYTES;
        let budget = Arc::<StdinBudget>::default();
        let session = budget.session_quota();
        let full = session.reserve(SESSION_STDIN_QUEUED_BYTES - LITTLE).unwrap();
        let (stdin, feed) = Stdin::open(budget.grant(0), session);
        let (near, mut far) = tokio::io::duplex(1);
        tokio::spawn(feed.run(Box::new(near), false));
        let refused = |job| match futures_util::FutureExt::now_or_never(job) {
            Some(Err(RpcError { message, .. })) => message.contains("too many processes"),
            _ => false,
        };
        assert!(refused(stdin.write(vec![0; LITTLE + 1], None)));
        let mut jobs = Vec::new();
        for _ in 0..2 {
            let mut job = Box::pin(stdin.write(vec![0; LITTLE / 2], None));
            assert!(futures_util::poll!(&mut job).is_pending());
            jobs.push(job);
        }
        assert!(refused(stdin.write(vec![0; 1], None)));
        let mut bytes = vec![0; LITTLE];
        far.read_exact(&mut bytes).await.unwrap();
        for job in jobs {
            assert_eq!(job.await.unwrap(), Accepted);
        }
        // with an exhausted budget
        let rest = stdin.session_quota.as_ref().unwrap().reserve(LITTLE).unwrap();
        let mut job = Box::pin(stdin.write(vec![0; LITTLE], None));
        assert!(futures_util::poll!(&mut job).is_pending());
        assert!(refused(stdin.write(vec![0; 1], None)), "a write is queued");
        drop((full, rest));
        let mut more = Box::pin(stdin.write(vec![0; 1], None));
        assert!(futures_util::poll!(&mut more).is_pending());
    }

    #[tokio::test]
    async fn queue_holds_the_granted_window() {
        const MOST: usize = limits::STDIN_WINDOW_MAX_BYTES;
        let budget = Arc::<StdinBudget>::default();
        let all: Vec<_> = (0..4).map(|_| budget.grant(MOST)).collect();
        assert_eq!(budget.grant(MOST).window(), limits::STDIN_QUEUED_BYTES);
        drop(all);
        let others: Vec<_> = (0..3).map(|_| budget.grant(MOST)).collect();
        let (stdin, mut far) = granted(budget.grant(MOST), false, 1024 * 1024);
        let half = || vec![0; MOST / 2];
        let jobs = [stdin.write(half(), None), stdin.write(half(), None)];
        assert!(stdin.write(vec![0], None).await.is_err());
        let mut bytes = vec![0; MOST];
        far.read_exact(&mut bytes).await.unwrap();
        for job in jobs {
            assert_eq!(job.await.unwrap(), Accepted);
        }
        assert_eq!(budget.grant(MOST).window(), limits::STDIN_QUEUED_BYTES);
        stdin.close().await.unwrap();
        assert_eq!(budget.grant(MOST).window(), MOST);
        drop(others);
    }

    #[tokio::test]
    async fn closing_a_terminal_types_end_of_file() {
        for (line, typed) in [("line\n", "line\n\u{4}"), ("part", "part\u{4}\u{4}"), ("", "\u{4}")]
        {
            let (stdin, mut far) = fed(true, 64);
            write(&stdin, line, None).await;
            stdin.close().await.unwrap();
            let mut text = String::new();
            far.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, typed);
        }
    }
}
