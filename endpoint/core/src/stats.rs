//! Counters: all that a core tells about itself. Shells translate them.

/// Counts since the [`Mux`](crate::Mux) was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Messages that came from the socket.
    pub frames_in: u64,
    /// Messages that were handed to the socket.
    pub frames_out: u64,
    /// Messages that were no frames.
    pub malformed: u64,
    /// Frames of streams that do not exist here.
    pub unknown_stream: u64,
    /// Frames that make no sense in their stream's state.
    pub unexpected: u64,
    /// Records that did not open: forged or damaged on the way.
    pub refused_records: u64,
    /// Records that had been opened before.
    pub duplicates: u64,
    /// Records beyond the window or the credit.
    pub out_of_window: u64,
    /// Control frames without a valid proof, or with an old one, in a
    /// reliable profile. Hints of the relay are not among them.
    pub refused_control: u64,
    /// Unauthenticated resets that a reliable stream took as hints.
    pub hints: u64,
    /// Records that were sent again.
    pub retransmits: u64,
    /// Records that were sent once, and bytes of plaintext in them.
    pub records_out: u64,
    /// Plaintext bytes in [`records_out`](Self::records_out).
    pub bytes_out: u64,
    /// Records that were opened.
    pub records_in: u64,
    /// Plaintext bytes in [`records_in`](Self::records_in).
    pub bytes_in: u64,
    /// Streams that reached the open state.
    pub opened: u64,
    /// Streams that ended, open or not.
    pub closed: u64,
    /// Handshakes that failed: damaged, refused, impatient.
    pub handshake_failures: u64,
    /// Handshakes that were turned away unread: too many streams, too many
    /// pending, or cooling down.
    pub handshakes_throttled: u64,
    /// Frames for the control queue that found it full.
    pub control_dropped: u64,
}
