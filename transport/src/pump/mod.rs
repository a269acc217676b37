//! The one loop between a core and a websocket.
//!
//! Invariants:
//! * Reading and writing advance independently, so two ends with full sockets
//!   cannot block each other.
//! * A flush happens once per batch, not once per message.
//! * One poll handles at most `BATCH` messages each way, then yields, so one
//!   busy socket does not starve the others of its thread.
//! * The core's bytes are taken late: no more than the budget of `drain_rate` waits
//!   behind what the kernel accepts, and one message.
//! * A deadline that the pump cannot act on does not wake it: while the socket is
//!   full, due work waits for the socket and not for the clock.
//! * A peer that makes no progress for too long is gone (`liveness`), and one that
//!   begins a message has to finish it.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use rendez_proto::close::CloseFrame;
use rendez_proto::limits;
use tokio::time::{Sleep, sleep_until};

use crate::protocol::{Protocol, Violation};
use crate::socket::{Incoming, Outgoing, Socket, SocketError};

mod drain_rate;
mod liveness;

use drain_rate::DrainRate;
use liveness::Liveness;
pub use liveness::PING_ANSWER_TIMEOUT;

/// Messages read, and messages written, before the task yields.
const BATCH: usize = 64;
/// How long a close frame may take to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a pump ended.
#[derive(Debug)]
pub enum Ended {
    /// The peer closed, with its code.
    ByPeer(Option<u16>),
    /// The peer closed because it goes away, and asks that we come back at a
    /// random moment within this span.
    ReconnectWithin(Duration),
    /// We closed, with our reason.
    ByUs(CloseFrame),
    /// The path broke.
    Lost(SocketError),
    /// The peer finished no message and answered no ping for too long.
    Silent,
    /// The peer did not read what we sent for too long.
    NotReading,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::ByPeer(Some(code)) => write!(f, "closed by the peer (code {code})"),
            Ended::ReconnectWithin(within) => {
                write!(f, "sent away, to come back within {} s", within.as_secs())
            }
            Ended::ByPeer(None) => f.write_str("closed by the peer"),
            Ended::ByUs(frame) => write!(f, "closed ({} {})", frame.code, frame.reason),
            Ended::Lost(error) => error.fmt(f),
            Ended::Silent => f.write_str("the peer was silent for too long"),
            Ended::NotReading => f.write_str("the peer did not read for too long"),
        }
    }
}

/// Runs `protocol` over `socket` until one of them ends.
///
/// Cancelling the future drops the socket without a close frame.
pub async fn pump<S: Socket, P: Protocol>(socket: S, protocol: &mut P) -> Ended {
    let start = now();
    let mut pump = Pump {
        socket,
        protocol,
        dirty: false,
        drain_rate: DrainRate::new(start),
        liveness: Liveness::new(start, SystemTime::now()),
        reading: true,
        reading_since: start,
        blocked: false,
        closing: None,
        timer: Box::pin(sleep_until(start.into())),
    };
    poll_fn(|cx| pump.poll(cx)).await
}

struct Pump<'a, S, P> {
    socket: S,
    protocol: &'a mut P,
    /// Something was buffered since the last completed flush.
    dirty: bool,
    drain_rate: DrainRate,
    liveness: Liveness,
    /// Whether the core wanted to read when it was last asked.
    reading: bool,
    /// When it began to want that.
    reading_since: Instant,
    /// Whether the socket had no room when it was last asked. It wakes the task
    /// when it has.
    blocked: bool,
    /// Our close frame is buffered; the socket ends when it is flushed, or at
    /// this deadline.
    closing: Option<(Instant, Ended)>,
    timer: Pin<Box<Sleep>>,
}

/// Whether a step left work to do.
#[derive(PartialEq)]
enum Progress {
    /// Possibly more that could be done now.
    Ready,
    /// Nothing; a waker is registered.
    Waiting,
}

impl<S: Socket, P: Protocol> Pump<'_, S, P> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        match self.round(cx) {
            Ok(()) => Poll::Pending,
            Err(ended) => Poll::Ready(ended),
        }
    }

    fn round(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        self.protocol.register(cx.waker());
        let now = now();
        // 1 time
        if self.protocol.poll_timeout().is_some_and(|deadline| deadline <= now) {
            self.protocol.handle_timeout(now);
        }
        self.liveness.short_timeout = self.protocol.wants_short_ping_timeout();
        self.liveness.compare_clocks(now, SystemTime::now());
        self.check_liveness(now)?;
        // 2 read: while the core has room
        let read = self.read(cx, now)?;
        self.check_unfinished_message(now)?;
        // 3 write: pull while the socket has room; what the core answers to
        //   what was just read goes out in the same turn
        let wrote = self.write(cx, now)?;
        // 4 flush what both have buffered (a read may have buffered a pong)
        self.flush(cx, now)?;
        let taken = self.dirty.then(|| self.socket.taken_bytes()).flatten();
        self.liveness.note_unsent(now, taken);
        if wrote == Progress::Waiting && !self.dirty {
            self.drain_rate.idle();
        }
        if read == Progress::Ready || wrote == Progress::Ready {
            // After the other tasks had their turn.
            cx.waker().wake_by_ref();
        } else {
            self.arm(cx);
        }
        Ok(())
    }

    fn write(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Progress, Ended> {
        if self.closing.is_some() {
            return Ok(Progress::Waiting);
        }
        for _ in 0..BATCH {
            if self.blocked || self.drain_rate.is_spent() {
                self.flush(cx, now)?;
                self.blocked = self.dirty;
                if self.blocked {
                    return Ok(Progress::Waiting);
                }
            }
            match self.socket.poll_ready(cx) {
                Poll::Pending => {
                    self.blocked = true;
                    self.drain_rate.blocked(now);
                    return Ok(Progress::Waiting);
                }
                Poll::Ready(ready) => ready.map_err(Ended::Lost)?,
            }
            // A ping goes first, or a busy stream would keep it back for good.
            let requested = self.protocol.wants_ping();
            let ping_is_due = self.liveness.wants_ping(now, requested);
            let message = match ping_is_due.then(|| self.liveness.ping(now)) {
                Some(number) => Some(Outgoing::Ping(number)),
                None => {
                    let budget = self.drain_rate.budget();
                    self.protocol.poll_transmit(now, budget).map(Outgoing::Binary)
                }
            };
            let message = match message {
                Some(message) => message,
                None => match self.protocol.closing() {
                    Some(frame) => {
                        self.start_close(now, frame.clone(), Ended::ByUs(frame))?;
                        return Ok(Progress::Ready);
                    }
                    None => return Ok(Progress::Waiting),
                },
            };
            if let Outgoing::Binary(bytes) = &message {
                self.liveness.wrote(bytes.len());
                self.drain_rate.wrote(bytes.len());
            }
            self.socket.start_send(message).map_err(Ended::Lost)?;
            self.dirty = true;
        }
        Ok(Progress::Ready)
    }

    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Progress, Ended> {
        for _ in 0..BATCH {
            if !self.protocol.wants_read() && self.closing.is_none() {
                self.reading = false;
                return Ok(Progress::Waiting);
            }
            if !self.reading {
                self.reading = true;
                self.reading_since = now;
                self.liveness.heard(now);
            }
            let incoming = match self.socket.poll_read(cx) {
                Poll::Pending => return Ok(Progress::Waiting),
                Poll::Ready(None) => return Err(self.end_reason(Ended::ByPeer(None))),
                Poll::Ready(Some(Err(SocketError::TooBig))) if self.closing.is_none() => {
                    self.start_close(now, CloseFrame::TOO_BIG, Ended::Lost(SocketError::TooBig))?;
                    return Ok(Progress::Ready);
                }
                Poll::Ready(Some(Err(error))) => return Err(self.end_reason(Ended::Lost(error))),
                Poll::Ready(Some(Ok(incoming))) => incoming,
            };
            match incoming {
                // Messages that arrive after our close frame are dropped.
                Incoming::Binary(_) | Incoming::Text if self.closing.is_some() => {}
                Incoming::Binary(message) => {
                    self.liveness.heard(now);
                    let taken = self.protocol.handle_message(now, message);
                    self.close_on_violation(now, taken)?;
                }
                Incoming::Text => {
                    self.liveness.heard(now);
                    let taken = self.protocol.handle_text();
                    self.close_on_violation(now, taken)?;
                }
                Incoming::Alive => self.dirty = true,
                Incoming::Pong(number) => {
                    if let Some(round_trip) = self.liveness.pong(now, number) {
                        self.liveness.heard(now);
                        self.protocol.handle_pong(now, round_trip);
                    }
                }
                Incoming::Close(code) => return Err(self.after_peer_close(cx, Ended::ByPeer(code))),
                Incoming::ReconnectWithin(within) => {
                    return Err(self.after_peer_close(cx, Ended::ReconnectWithin(within)));
                }
            }
        }
        Ok(Progress::Ready)
    }

    fn flush(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), Ended> {
        if self.dirty {
            match self.socket.poll_flush(cx) {
                Poll::Pending => self.drain_rate.blocked(now),
                Poll::Ready(flushed) => {
                    flushed.map_err(|error| self.end_reason(Ended::Lost(error)))?;
                    self.dirty = false;
                    self.drain_rate.flushed(now);
                }
            }
        }
        Ok(())
    }

    fn close_on_violation(
        &mut self,
        now: Instant,
        taken: Result<(), Violation>,
    ) -> Result<(), Ended> {
        match taken {
            Ok(()) => Ok(()),
            Err(Violation(frame)) => self.start_close(now, frame.clone(), Ended::ByUs(frame)),
        }
    }

    /// Buffers our close frame. The loop goes on until the peer answers it.
    fn start_close(&mut self, now: Instant, frame: CloseFrame, ended: Ended) -> Result<(), Ended> {
        match self.socket.start_send(Outgoing::Close(frame)) {
            Ok(()) => {
                self.dirty = true;
                self.closing = Some((now + CLOSE_TIMEOUT, ended));
                Ok(())
            }
            Err(_) => Err(ended),
        }
    }

    /// The library has buffered the answer to a close frame.
    fn after_peer_close(&mut self, cx: &mut Context<'_>, ended: Ended) -> Ended {
        let _ = self.socket.poll_flush(cx);
        self.end_reason(ended)
    }

    /// Our own reason wins over how the socket then came down.
    fn end_reason(&mut self, otherwise: Ended) -> Ended {
        self.closing.take().map_or(otherwise, |(_, ended)| ended)
    }

    fn check_liveness(&mut self, now: Instant) -> Result<(), Ended> {
        match &self.closing {
            Some((deadline, _)) if *deadline <= now => Err(self.end_reason(Ended::Silent)),
            None if self.reading && now >= self.liveness.deadline() => Err(Ended::Silent),
            None if self.liveness.unsent_deadline().is_some_and(|deadline| now >= deadline) => {
                Err(Ended::NotReading)
            }
            _ => Ok(()),
        }
    }

    /// When the message that the peer has begun must be finished. Time during which we
    /// chose not to read does not count.
    fn message_deadline(&self) -> Option<Instant> {
        let since = self.socket.unfinished_since().filter(|_| self.reading)?;
        Some(since.max(self.reading_since) + limits::MESSAGE_TIMEOUT)
    }

    fn check_unfinished_message(&mut self, now: Instant) -> Result<(), Ended> {
        let overdue = self.message_deadline().is_some_and(|deadline| now >= deadline);
        if overdue && self.closing.is_none() {
            let frame = CloseFrame::MESSAGE_TIMEOUT;
            self.start_close(now, frame.clone(), Ended::ByUs(frame))?;
        }
        Ok(())
    }

    /// Wakes the task at the next deadline of the core or of the connection.
    fn arm(&mut self, cx: &mut Context<'_>) {
        let deadline = match &self.closing {
            Some((closing, _)) => Some(*closing),
            None => {
                let silent = self.reading.then(|| self.liveness.deadline());
                let look = self.liveness.next_look(!self.blocked);
                let unsent = self.liveness.unsent_deadline();
                let message = self.message_deadline();
                let core = self.protocol.poll_timeout();
                [look, silent, unsent, message, core].into_iter().flatten().min()
            }
        };
        let Some(deadline) = deadline else { return };
        self.timer.as_mut().reset(deadline.into());
        if self.timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

/// The runtime's clock, so that tests may pause it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;
