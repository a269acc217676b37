//! The counters of a hub. Shells turn them into metrics.

use rendez_proto::frame::ResetReason;

/// Why a frame was not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dropped {
    /// The bytes cannot be routed.
    Malformed,
    /// The stream belongs to another orchestrator.
    ForeignStream,
    /// From the executor, for a stream without a claim.
    UnknownStream,
    /// The other end of the stream is not connected.
    PeerAway,
    /// The orchestrator, or the executor, has too many streams.
    TooManyStreams,
    /// The lane of a stream that resends was full, or a stream moved to another
    /// websocket with a full lane.
    LaneFull,
    /// A newer ack or heartbeat of its stream replaced it before it was sent.
    ExpressFull,
    /// The frame waited in the lane of a stream that was reset as overloaded.
    Overloaded,
    /// A quota of streams is used up, or the token or the websocket has no memory
    /// left for another frame.
    Quota,
    /// A handshake of a token whose handshakes failed too often.
    HandshakeGuard,
    /// A handshake beyond a rate.
    HandshakeRate,
    /// A repeated handshake while the first was under way.
    HandshakeRepeat,
    /// A frame of a stream whose handshake still waits, or the handshake itself when it
    /// has waited for too long.
    HandshakeWaits,
}

impl Dropped {
    /// All reasons, for counters.
    pub const ALL: [Dropped; 13] = [
        Dropped::Malformed,
        Dropped::ForeignStream,
        Dropped::UnknownStream,
        Dropped::PeerAway,
        Dropped::TooManyStreams,
        Dropped::LaneFull,
        Dropped::ExpressFull,
        Dropped::Overloaded,
        Dropped::Quota,
        Dropped::HandshakeGuard,
        Dropped::HandshakeRate,
        Dropped::HandshakeRepeat,
        Dropped::HandshakeWaits,
    ];

    /// A word for counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Dropped::Malformed => "malformed",
            Dropped::ForeignStream => "foreign_stream",
            Dropped::UnknownStream => "unknown_stream",
            Dropped::PeerAway => "peer_away",
            Dropped::TooManyStreams => "too_many_streams",
            Dropped::LaneFull => "lane_full",
            Dropped::ExpressFull => "express_full",
            Dropped::Overloaded => "overloaded",
            Dropped::Quota => "quota",
            Dropped::HandshakeGuard => "handshake_guard",
            Dropped::HandshakeRate => "handshake_rate",
            Dropped::HandshakeRepeat => "handshake_repeat",
            Dropped::HandshakeWaits => "handshake_waits",
        }
    }
}

/// Counters of one hub since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames put into an outbox, by direction: to the executor, to orchestrators.
    pub forwarded_frames: [u64; 2],
    /// Bytes of those.
    pub forwarded_bytes: [u64; 2],
    /// Handshakes that failed and were charged to their token.
    pub failed_handshakes: u64,
    /// How often reading a websocket was paused because of a rate.
    pub throttled: u64,
    dropped: [u64; Dropped::ALL.len()],
    resets: [u64; ResetReason::ALL.len()],
}

impl Stats {
    /// Frames that were dropped for this reason.
    pub fn dropped(&self, why: Dropped) -> u64 {
        self.dropped[why as usize]
    }

    /// Resets that the hub itself sent for this reason.
    pub fn resets(&self, why: ResetReason) -> u64 {
        self.resets[why as usize]
    }

    /// Adds the counters of another hub.
    pub fn add(&mut self, other: &Stats) {
        let sum = |ours: &mut [u64], theirs: &[u64]| {
            ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| *ours += theirs);
        };
        sum(&mut self.forwarded_frames, &other.forwarded_frames);
        sum(&mut self.forwarded_bytes, &other.forwarded_bytes);
        self.failed_handshakes += other.failed_handshakes;
        self.throttled += other.throttled;
        sum(&mut self.dropped, &other.dropped);
        sum(&mut self.resets, &other.resets);
    }

    pub(crate) fn count_dropped(&mut self, why: Dropped, frames: u64) {
        self.dropped[why as usize] += frames;
    }

    pub(crate) fn count_reset(&mut self, why: ResetReason) {
        self.resets[why as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter() {
        for (i, why) in Dropped::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, i, "{}", why.as_str());
        }
        for (i, why) in ResetReason::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, i, "{why}");
        }
    }
}
