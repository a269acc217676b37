//! An in-memory pair of [`MessageStream`]s, for tests of services and callers.

use bytes::Bytes;
use tokio::sync::{Mutex, mpsc};

use crate::message_stream::{MessageStream, StreamClosed};

/// One end of an in-memory stream. Dropping it closes the other end.
pub struct DuplexEnd {
    incoming: Mutex<mpsc::Receiver<Bytes>>,
    outgoing: mpsc::Sender<Bytes>,
}

/// Creates two connected ends. Each direction holds at most `capacity`
/// messages; then its sender waits.
pub fn duplex(capacity: usize) -> (DuplexEnd, DuplexEnd) {
    let (to_right, from_left) = mpsc::channel(capacity);
    let (to_left, from_right) = mpsc::channel(capacity);
    (
        DuplexEnd { incoming: Mutex::new(from_right), outgoing: to_right },
        DuplexEnd { incoming: Mutex::new(from_left), outgoing: to_left },
    )
}

impl DuplexEnd {
    /// Messages that wait to be received; 0 while a task waits for one.
    pub fn unread(&self) -> usize {
        self.incoming.try_lock().map_or(0, |incoming| incoming.len())
    }
}

impl MessageStream for DuplexEnd {
    async fn recv(&self) -> Option<Bytes> {
        self.incoming.lock().await.recv().await
    }

    async fn ended(&self) {
        self.outgoing.closed().await;
    }

    async fn send(&self, message: Bytes) -> Result<(), StreamClosed> {
        self.outgoing.send(message).await.map_err(|_| StreamClosed)
    }
}
