//! The counters of an endpoint.

/// Counts since the [`Mux`](crate::Mux) was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Messages received from the socket.
    pub frames_in: u64,
    /// Messages handed to the socket.
    pub frames_out: u64,
    /// Messages that were not valid frames.
    pub malformed: u64,
    /// Frames of streams that do not exist here.
    pub unknown_stream: u64,
    /// Frames that are invalid in the state of their stream.
    pub unexpected: u64,
    /// Records that did not open: forged, or damaged in transit.
    pub refused_records: u64,
    /// Records that had been opened before.
    pub duplicates: u64,
    /// Records beyond the window or the credit.
    pub out_of_window: u64,
    /// Control frames without a valid proof, or with an old one, in a reliable
    /// profile. Hints of the relay are not included.
    pub refused_control: u64,
    /// Unauthenticated resets that a reliable stream took as hints.
    pub hints: u64,
    /// Retransmitted records.
    pub retransmits: u64,
    /// Records sent, without retransmissions.
    pub records_out: u64,
    /// Plaintext bytes in [`records_out`](Self::records_out).
    pub bytes_out: u64,
    /// Records opened.
    pub records_in: u64,
    /// Plaintext bytes in [`records_in`](Self::records_in).
    pub bytes_in: u64,
    /// Streams that reached the open state.
    pub opened: u64,
    /// Streams that ended, whether they had opened or not.
    pub closed: u64,
    /// Handshakes that failed: damaged, refused, or with early data.
    pub handshake_failures: u64,
    /// Handshakes refused before any cryptography: too many streams, too many
    /// pending handshakes, or in cooldown.
    pub handshakes_throttled: u64,
    /// Frames dropped because the control queue was full.
    pub control_dropped: u64,
}
