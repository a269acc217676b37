//! A child's input: writes in the order of their requests, each id once.
//!
//! Requests put jobs into a bounded queue, in their order; one task per child
//! feeds them to the pipe or terminal. A job is answered when the operating
//! system has all of its bytes, so a child that does not read delays answers,
//! and a client that waits for them is slowed down to the child's pace.

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

use super::allowance::{Grant, Held, Waiting};
use crate::sys::child::Writer;

/// Largest write that a process for which nothing waits may always have waiting:
/// what a pipe holds, so that every process moves on.
pub(super) const STDIN_ALWAYS_BYTES: usize = 64 * 1024;
/// Ids of applied writes that a process remembers, oldest out first: a client
/// repeats at most what was unanswered when its stream broke.
const WRITE_IDS_PER_PROCESS: usize = 8 * limits::WRITES_UNANSWERED_PER_PROCESS;

/// The terminal's end-of-file character (Ctrl-D).
const END_OF_FILE: u8 = 4;

/// The requests' end of a child's input.
pub(super) struct Stdin {
    queue: Option<mpsc::Sender<Job>>,
    /// The most bytes that may wait.
    window: usize,
    queued_bytes: Arc<AtomicUsize>,
    /// Of the whole session. `None`: there is no input.
    session: Option<Arc<Waiting>>,
    done: Mutex<Done>,
}

/// What was applied, kept for repetitions.
#[derive(Default)]
struct Done {
    write_ids: VecDeque<String>,
    closed: bool,
}

struct Job {
    kind: Kind,
    answer: oneshot::Sender<WriteStatus>,
    /// Gives the bytes back to the queue's account.
    _charge: Charge,
    /// And to the session's. `None`: so few may always wait.
    _held: Option<Held>,
}

enum Kind {
    Write { chunk: Vec<u8>, write_id: Option<String> },
    Close,
}

struct Charge(Arc<AtomicUsize>, usize);

impl Drop for Charge {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// The child's end of its input; run [`Feed::run`] as a task of its own.
pub(super) struct Feed {
    stdin: Arc<Stdin>,
    jobs: mpsc::Receiver<Job>,
    /// Until nothing is read any more: then nothing waits, either.
    grant: Option<Grant>,
}

impl Stdin {
    /// The input of a child without one.
    pub(super) fn absent() -> Arc<Self> {
        Arc::new(Self {
            queue: None,
            window: 0,
            queued_bytes: Arc::default(),
            session: None,
            done: Mutex::default(),
        })
    }

    /// An input with this window, of a process of the session of this account,
    /// and the task that feeds it.
    pub(super) fn open(grant: Grant, session: Arc<Waiting>) -> (Arc<Self>, Feed) {
        let (queue, jobs) = mpsc::channel(limits::WRITES_UNANSWERED_PER_PROCESS);
        let stdin = Arc::new(Self {
            queue: Some(queue),
            window: grant.window(),
            queued_bytes: Arc::default(),
            session: Some(session),
            done: Mutex::default(),
        });
        (stdin.clone(), Feed { stdin, jobs, grant: Some(grant) })
    }

    /// Queues a write, now; the future is its answer.
    pub(super) fn write(
        self: &Arc<Self>,
        chunk: Vec<u8>,
        write_id: Option<String>,
    ) -> impl Future<Output = Result<WriteStatus, RpcError>> + Send + use<> {
        self.submit(Kind::Write { chunk, write_id })
    }

    /// Queues the end of the input, now; the future is its answer.
    pub(super) fn close(
        self: &Arc<Self>,
    ) -> impl Future<Output = Result<WriteStatus, RpcError>> + Send + use<> {
        self.submit(Kind::Close)
    }

    fn submit(
        self: &Arc<Self>,
        kind: Kind,
    ) -> impl Future<Output = Result<WriteStatus, RpcError>> + Send + use<> {
        let write_id = match &kind {
            Kind::Write { write_id, .. } => write_id.clone(),
            Kind::Close => None,
        };
        let closing = matches!(kind, Kind::Close);
        let queued = self.enqueue(kind);
        let stdin = self.clone();
        async move {
            match queued? {
                Some(answer) => {
                    // a job that is dropped unanswered met the child's end
                    Ok(answer.await.unwrap_or_else(|_| stdin.settled(closing, write_id.as_deref())))
                }
                None => Ok(stdin.settled(closing, write_id.as_deref())),
            }
        }
    }

    /// `None`: there is no input, or not any more.
    fn enqueue(&self, kind: Kind) -> Result<Option<oneshot::Receiver<WriteStatus>>, RpcError> {
        let (Some(queue), Some(session)) = (&self.queue, &self.session) else { return Ok(None) };
        let bytes = match &kind {
            Kind::Write { chunk, .. } => chunk.len(),
            Kind::Close => 0,
        };
        let before = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let charge = Charge(self.queued_bytes.clone(), bytes);
        let too_much = || {
            RpcError::invalid_request(format!(
                "the process does not read its stdin: at most {} writes and {} bytes may wait; \
                 wait for answers before writing more",
                limits::WRITES_UNANSWERED_PER_PROCESS,
                self.window,
            ))
        };
        if before > 0 && before.saturating_add(bytes) > self.window {
            return Err(too_much());
        }
        let held = session.hold(bytes);
        if held.is_none() && (before > 0 || bytes > STDIN_ALWAYS_BYTES) {
            return Err(RpcError::invalid_request(
                "too many processes do not read their stdin: all that may wait for them waits; \
                 write less at once, or end some of them",
            ));
        }
        let (answer, answered) = oneshot::channel();
        match queue.try_send(Job { kind, answer, _charge: charge, _held: held }) {
            Ok(()) => Ok(Some(answered)),
            Err(mpsc::error::TrySendError::Closed(_)) => Ok(None),
            Err(mpsc::error::TrySendError::Full(_)) => Err(too_much()),
        }
    }

    /// The answer when nothing can be applied any more.
    fn settled(&self, closing: bool, write_id: Option<&str>) -> WriteStatus {
        let done = self.done.lock();
        let applied = if closing { done.closed } else { done.knows(write_id) };
        if applied { WriteStatus::Accepted } else { WriteStatus::StdinClosed }
    }
}

impl Done {
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

impl Feed {
    /// Feeds `writer` until it is dropped, which happens when the child has
    /// ended: what waits then is answered at once. It never ends by itself, since
    /// it holds the requesters' end, too. `terminal`: end-of-file is typed,
    /// because closing one's end of a terminal would hang it up.
    pub(super) async fn run(mut self, writer: Writer, terminal: bool) {
        let mut writer = Some(writer);
        let mut at_line_start = true;
        while let Some(job) = self.jobs.recv().await {
            let status = match job.kind {
                Kind::Write { write_id, .. }
                    if self.stdin.done.lock().knows(write_id.as_deref()) =>
                {
                    WriteStatus::Accepted
                }
                Kind::Write { chunk, write_id } => {
                    if deliver(&mut writer, &chunk).await {
                        at_line_start = chunk.last().map_or(at_line_start, |byte| *byte == b'\n');
                        self.stdin.done.lock().remember(write_id);
                        WriteStatus::Accepted
                    } else {
                        WriteStatus::StdinClosed
                    }
                }
                Kind::Close if self.stdin.done.lock().closed => WriteStatus::Accepted,
                Kind::Close if writer.is_none() => WriteStatus::StdinClosed,
                Kind::Close => {
                    if terminal {
                        // within a line the first one only hands the line over
                        let keys = [END_OF_FILE; 2];
                        let keys = if at_line_start { &keys[..1] } else { &keys[..] };
                        deliver(&mut writer, keys).await;
                    }
                    writer = None;
                    self.stdin.done.lock().closed = true;
                    WriteStatus::Accepted
                }
            };
            if writer.is_none() {
                self.grant = None;
            }
            // who asked may be gone
            let _ = job.answer.send(status);
        }
    }
}

/// Whether all of `bytes` went out; a writer that failed is dropped.
async fn deliver(writer: &mut Option<Writer>, bytes: &[u8]) -> bool {
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
    use crate::process::allowance::{Allowance, SESSION_STDIN_QUEUED_BYTES};
    use WriteStatus::{Accepted, StdinClosed};
    use tokio::io::AsyncReadExt as _;

    fn fed(terminal: bool, room: usize) -> (Arc<Stdin>, tokio::io::DuplexStream) {
        granted(Arc::<Allowance>::default().grant(0), terminal, room)
    }

    fn granted(grant: Grant, terminal: bool, room: usize) -> (Arc<Stdin>, tokio::io::DuplexStream) {
        let (stdin, feed) = Stdin::open(grant, Arc::<Allowance>::default().session());
        let (near, far) = tokio::io::duplex(room);
        tokio::spawn(feed.run(Box::new(near), terminal));
        (stdin, far)
    }

    async fn write(stdin: &Arc<Stdin>, chunk: &str, id: Option<&str>) -> WriteStatus {
        stdin.write(chunk.into(), id.map(Into::into)).await.unwrap()
    }

    #[tokio::test]
    async fn writes_keep_their_order_and_closing_comes_after_them() {
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
    async fn an_id_is_applied_once_and_remembered_after_the_end() {
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
    async fn the_memory_of_ids_is_bounded() {
        let mut done = Done::default();
        (0..WRITE_IDS_PER_PROCESS + 1).for_each(|n| done.remember(Some(n.to_string())));
        assert_eq!(done.write_ids.len(), WRITE_IDS_PER_PROCESS);
        assert!(!done.knows(Some("0")) && done.knows(Some("1")) && !done.knows(None));
    }

    #[tokio::test]
    async fn a_child_that_closed_its_stdin_is_reported() {
        let (stdin, far) = fed(false, 4);
        drop(far);
        assert_eq!(write(&stdin, "x", Some("1")).await, StdinClosed);
        assert_eq!(write(&stdin, "x", Some("1")).await, StdinClosed);
        assert_eq!(stdin.close().await.unwrap(), StdinClosed);
        assert_eq!(write(&Stdin::absent(), "x", None).await, StdinClosed);
    }

    #[tokio::test]
    async fn more_than_the_bound_is_refused_and_nothing_is_lost() {
        let (stdin, mut far) = fed(false, 1);
        let mut accepted = Vec::new();
        let refused = loop {
            let mut job = Box::pin(stdin.write(b"xy".to_vec(), None));
            // a refusal is ready at once, a queued write waits for the reader
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
    async fn one_write_of_any_size_is_taken_then_bytes_count() {
        let (stdin, _far) = fed(false, 1);
        let mut big = Box::pin(stdin.write(vec![0; limits::STDIN_QUEUED_BYTES * 2], None));
        assert!(futures_util::poll!(&mut big).is_pending());
        assert!(stdin.write(vec![0], None).await.is_err());
    }

    #[tokio::test]
    async fn a_session_that_is_full_still_takes_a_little_for_each_process() {
        const LITTLE: usize = STDIN_ALWAYS_BYTES;
        let allowance = Arc::<Allowance>::default();
        let session = allowance.session();
        let full = session.hold(SESSION_STDIN_QUEUED_BYTES - LITTLE).unwrap();
        let (stdin, feed) = Stdin::open(allowance.grant(0), session);
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
        // with nothing left at all
        let rest = stdin.session.as_ref().unwrap().hold(LITTLE).unwrap();
        let mut job = Box::pin(stdin.write(vec![0; LITTLE], None));
        assert!(futures_util::poll!(&mut job).is_pending());
        assert!(refused(stdin.write(vec![0; 1], None)), "something waits");
        drop((full, rest));
        let mut more = Box::pin(stdin.write(vec![0; 1], None));
        assert!(futures_util::poll!(&mut more).is_pending());
    }

    #[tokio::test]
    async fn as_much_waits_as_was_granted_and_the_end_gives_it_back() {
        const MOST: usize = limits::STDIN_WINDOW_MAX_BYTES;
        let allowance = Arc::<Allowance>::default();
        let all: Vec<_> = (0..4).map(|_| allowance.grant(MOST)).collect();
        assert_eq!(allowance.grant(MOST).window(), limits::STDIN_QUEUED_BYTES);
        drop(all);
        let others: Vec<_> = (0..3).map(|_| allowance.grant(MOST)).collect();
        let (stdin, mut far) = granted(allowance.grant(MOST), false, 1024 * 1024);
        let half = || vec![0; MOST / 2];
        let jobs = [stdin.write(half(), None), stdin.write(half(), None)];
        assert!(stdin.write(vec![0], None).await.is_err());
        let mut bytes = vec![0; MOST];
        far.read_exact(&mut bytes).await.unwrap();
        for job in jobs {
            assert_eq!(job.await.unwrap(), Accepted);
        }
        assert_eq!(allowance.grant(MOST).window(), limits::STDIN_QUEUED_BYTES);
        stdin.close().await.unwrap();
        assert_eq!(allowance.grant(MOST).window(), MOST);
        drop(others);
    }

    #[tokio::test]
    async fn on_a_terminal_end_of_file_is_typed() {
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
