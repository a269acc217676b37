//! Two [`Messages`] ends joined in memory, for tests of services and callers.

use bytes::Bytes;
use tokio::sync::{Mutex, mpsc};

use crate::messages::{Messages, StreamClosed};

/// One end of an in-memory stream. Dropping it closes the other end.
pub struct End {
    incoming: Mutex<mpsc::Receiver<Bytes>>,
    outgoing: mpsc::Sender<Bytes>,
}

/// Two joined ends; each direction holds at most `capacity` messages, then
/// its sender waits.
pub fn pair(capacity: usize) -> (End, End) {
    let (to_right, from_left) = mpsc::channel(capacity);
    let (to_left, from_right) = mpsc::channel(capacity);
    (
        End { incoming: Mutex::new(from_right), outgoing: to_right },
        End { incoming: Mutex::new(from_left), outgoing: to_left },
    )
}

impl End {
    /// How many messages wait here to be taken; 0 while somebody waits for one.
    pub fn unread(&self) -> usize {
        self.incoming.try_lock().map_or(0, |incoming| incoming.len())
    }
}

impl Messages for End {
    async fn recv(&self) -> Option<Bytes> {
        self.incoming.lock().await.recv().await
    }

    async fn over(&self) {
        self.outgoing.closed().await;
    }

    async fn send(&self, message: Bytes) -> Result<(), StreamClosed> {
        self.outgoing.send(message).await.map_err(|_| StreamClosed)
    }
}
