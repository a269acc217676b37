//! The signals that ask a waiting command to end.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::sys::{Signal, SignalKind, ignored_signals, signal};

/// The request of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalRequest {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM or SIGHUP, by its number: not sent by a user who could send it twice.
    Terminate(u8),
}

/// The number of SIGHUP.
pub const HANGUP: u8 = 1;
/// The number of SIGTERM.
pub const TERMINATE: u8 = 15;

/// Receives the signals from now on, in place of their default actions.
pub struct SignalListener(Vec<(SignalRequest, Signal)>);

impl SignalListener {
    /// Starts listening. SIGTERM and SIGHUP stay ignored if the process was started
    /// with them ignored, as by nohup.
    ///
    /// # Errors
    /// A handler cannot be installed.
    pub fn listen() -> std::io::Result<Self> {
        let ignored = ignored_signals();
        let mut heard = vec![(SignalRequest::Interrupt, signal(SignalKind::interrupt())?)];
        for number in [HANGUP, TERMINATE] {
            let kind = SignalKind::from_raw(number.into());
            if !ignored.contains(&kind.as_raw_value()) {
                heard.push((SignalRequest::Terminate(number), signal(kind)?));
            }
        }
        Ok(Self(heard))
    }

    /// Waits for the next signal.
    pub async fn recv(&mut self) -> SignalRequest {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<SignalRequest> {
        for (asked, signal) in &mut self.0 {
            if let Poll::Ready(Some(())) = signal.poll_recv(cx) {
                return Poll::Ready(*asked);
            }
        }
        Poll::Pending
    }

    /// Waits for `work` until a signal arrives.
    ///
    /// # Errors
    /// The request of the signal. `work` may be awaited again.
    pub async fn run_until_signal<W: Future + Unpin>(
        &mut self,
        work: &mut W,
    ) -> Result<W::Output, SignalRequest> {
        poll_fn(|cx| match Pin::new(&mut *work).poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_recv(cx).map(Err),
        })
        .await
    }
}
