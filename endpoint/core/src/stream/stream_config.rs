//! The configuration that all streams of one endpoint share.

use std::time::Duration;

use crate::framing::PARTIAL_MEMORY_BYTES;
use crate::window::{Budget, RECEIVE_MEMORY_BYTES, SEND_MEMORY_BYTES};

/// The grace and the memory of streams.
#[derive(Debug)]
pub(crate) struct StreamConfig {
    /// How long a reliable stream outlives its socket.
    pub(crate) grace: Duration,
    /// Memory for grown windows of all reliable streams together.
    pub(crate) send_memory: Budget,
    pub(crate) receive_memory: Budget,
    /// Memory for messages that are incomplete, of all streams together.
    pub(crate) partial_memory: Budget,
}

impl StreamConfig {
    pub(crate) fn new(grace: Duration) -> Self {
        let (send, receive) = (SEND_MEMORY_BYTES, RECEIVE_MEMORY_BYTES);
        Self {
            grace,
            send_memory: Budget::new(send),
            receive_memory: Budget::new(receive),
            partial_memory: Budget::new(PARTIAL_MEMORY_BYTES),
        }
    }
}
