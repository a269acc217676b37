//! A handle to one open stream.

use std::sync::Arc;

use bytes::Bytes;
use rendez_endpoint::{Closed, Key, SendError};

use crate::message_stream::{MessageStream, StreamClosed};
use crate::shared_mux::{SharedMux, StreamPhase, StreamReadiness, now};

/// One stream. Dropping it closes the stream gracefully: sent messages are
/// still delivered.
pub struct Channel {
    mux: SharedMux,
    key: Key,
    readiness: Arc<StreamReadiness>,
}

impl Channel {
    pub(crate) fn new(mux: SharedMux, key: Key, readiness: Arc<StreamReadiness>) -> Self {
        Self { mux, key, readiness }
    }

    /// Waits until the handshake is complete.
    pub(crate) async fn opened(&self) -> Result<(), Closed> {
        let mut phase = self.readiness.phase.subscribe();
        match phase.wait_for(|phase| *phase != StreamPhase::Opening).await.as_deref() {
            Ok(StreamPhase::Closed(why)) => Err(*why),
            Ok(_) => Ok(()),
            // The sender lives as long as `self`.
            Err(_) => Err(Closed::Lost),
        }
    }

    /// Waits until the stream has ended, and returns the reason.
    pub async fn closed(&self) -> Closed {
        let mut phase = self.readiness.phase.subscribe();
        match phase.wait_for(|phase| matches!(phase, StreamPhase::Closed(_))).await.as_deref() {
            Ok(StreamPhase::Closed(why)) => *why,
            _ => Closed::Lost,
        }
    }

    /// Ends the stream at once because the other end sent invalid messages, and
    /// notifies it. Queued and unread messages are dropped.
    pub fn reset(&self) {
        self.mux.change(|mux| mux.reset(now(), self.key));
    }

    /// Closes the stream gracefully and waits until the other end has
    /// confirmed. Messages that it sends meanwhile must still be received, or
    /// this waits forever.
    pub async fn finish(&self) -> Closed {
        self.mux.change(|mux| mux.close(now(), self.key));
        self.closed().await
    }
}

impl MessageStream for Channel {
    async fn recv(&self) -> Option<Bytes> {
        loop {
            let readable = self.readiness.readable.notified();
            // Checked in this order, so that messages received before the end
            // are delivered before the end.
            let closed = self.readiness.is_closed();
            if let Some(message) = self.mux.change(|mux| mux.recv(self.key)) {
                return Some(message);
            }
            if closed {
                return None;
            }
            readable.await;
        }
    }

    async fn ended(&self) {
        let mut phase = self.readiness.phase.subscribe();
        let over =
            |phase: &StreamPhase| matches!(phase, StreamPhase::Ended | StreamPhase::Closed(_));
        // The sender lives as long as `self`.
        let _ = phase.wait_for(over).await;
    }

    async fn send(&self, message: Bytes) -> Result<(), StreamClosed> {
        loop {
            // Created before the attempt: notify_waiters reaches it from then
            // on.
            let writable = self.readiness.writable.notified();
            if self.readiness.is_closed() {
                return Err(StreamClosed);
            }
            match self.mux.change(|mux| mux.send(self.key, &message)) {
                Ok(()) => return Ok(()),
                Err(SendError::Blocked) => writable.await,
                Err(_) => return Err(StreamClosed),
            }
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.mux.change(|mux| mux.close(now(), self.key));
        self.mux.lock().streams.remove(&self.key);
    }
}
