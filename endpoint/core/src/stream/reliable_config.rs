//! The configuration that all reliable streams of one endpoint share.

use std::time::Duration;

use crate::window::{Budget, RECEIVE_MEMORY_BYTES, SEND_MEMORY_BYTES};

/// The grace and the memory of reliable streams.
#[derive(Debug)]
pub(crate) struct ReliableConfig {
    /// How long a stream outlives its socket.
    pub(crate) grace: Duration,
    /// Memory for grown windows of all streams together.
    pub(crate) send_memory: Budget,
    pub(crate) receive_memory: Budget,
}

impl ReliableConfig {
    pub(crate) fn new(grace: Duration) -> Self {
        let (send, receive) = (SEND_MEMORY_BYTES, RECEIVE_MEMORY_BYTES);
        Self { grace, send_memory: Budget::new(send), receive_memory: Budget::new(receive) }
    }
}
