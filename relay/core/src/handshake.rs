//! The progress of a stream's handshake, as the hub sees it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_proto::limits::{AUTHORIZATION_TIMEOUT, HANDSHAKE_TIMEOUT, RTO_INITIAL};

use crate::lane::cost;

/// How soon message 1 of a handshake may be repeated: our own orchestrators
/// repeat it [`RTO_INITIAL`] after the first at the earliest.
pub(crate) const HANDSHAKE_REPEAT: Duration = Duration::from_millis(500);

const _: () = assert!(HANDSHAKE_REPEAT.as_millis() < RTO_INITIAL.as_millis());

/// The progress of a stream's handshake. The
/// [guard](crate::handshake_guard) decides when it moves on.
#[derive(Debug)]
pub(crate) enum HandshakeState {
    /// No handshake passed; the stream may have begun at another relay.
    None,
    /// Message 1 is here and may not go to the executor yet.
    Waiting { message: Bytes, since: Instant },
    /// Message 1 arrived, and went to the executor, first and last, at these times.
    Offered { arrived: Instant, since: Instant, at: Instant },
    /// The executor has answered, or will not.
    Over,
}

impl HandshakeState {
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self, HandshakeState::Waiting { .. })
    }

    pub(crate) fn is_offered(&self) -> bool {
        matches!(self, HandshakeState::Offered { .. })
    }

    /// The bytes that a waiting message is charged.
    pub(crate) fn cost(&self) -> usize {
        match self {
            HandshakeState::Waiting { message, .. } => cost(message),
            HandshakeState::None | HandshakeState::Offered { .. } | HandshakeState::Over => 0,
        }
    }

    /// When the handshake is given up: the orchestrator has given up by then.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            HandshakeState::None | HandshakeState::Over => None,
            HandshakeState::Waiting { since, .. } => Some(*since + HANDSHAKE_TIMEOUT),
            HandshakeState::Offered { at, .. } => {
                Some(*at + HANDSHAKE_TIMEOUT + AUTHORIZATION_TIMEOUT)
            }
        }
    }
}
