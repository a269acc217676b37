//! Two [`MessageStream`] ends joined in memory, for tests of services and callers.

use bytes::Bytes;
use tokio::sync::{Mutex, mpsc};

use crate::message_stream::{MessageStream, StreamClosed};

/// One end of an in-memory stream. Dropping it closes the other end.
pub struct DuplexEnd {
    incoming: Mutex<mpsc::Receiver<Bytes>>,
    outgoing: mpsc::Sender<Bytes>,
}

/// Two joined ends; each direction holds at most `capacity` messages, then
/// its sender waits.
pub fn duplex(capacity: usize) -> (DuplexEnd, DuplexEnd) {
    let (to_right, from_left) = mpsc::channel(capacity);
    let (to_left, from_right) = mpsc::channel(capacity);
    (
        DuplexEnd { incoming: Mutex::new(from_right), outgoing: to_right },
        DuplexEnd { incoming: Mutex::new(from_left), outgoing: to_left },
    )
}

impl DuplexEnd {
    /// How many messages wait here to be taken; 0 while somebody waits for one.
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
