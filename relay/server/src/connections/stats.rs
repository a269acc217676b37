//! Counters of connections: requests that were refused before their ticket was
//! checked, and how websockets ended. The registry counts refused tickets.

use std::sync::atomic::{AtomicU64, Ordering};

use rendez_proto::close::CloseFrame;
use rendez_proto::registry::environments::EndReason;
use rendez_transport::{Ended, SocketError};

/// How a websocket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The peer closed it.
    ByPeer,
    /// The network failed, or the peer disconnected without a close frame.
    Lost,
    /// The peer did not answer pings in time.
    Silent,
    /// The peer did not read what it was sent.
    NotReading,
    /// The peer began a message and did not finish it in time.
    MessageTimeout,
    /// The peer violated RFC 6455.
    BrokenProtocol,
    /// The peer sent a message above the limit.
    TooBig,
    /// The peer sent text.
    Text,
    /// An orchestrator sent a frame that cannot be routed.
    Malformed,
    /// Another websocket replaced the executor's.
    Superseded,
    /// The relay shut down.
    Restarting,
    /// Its token was revoked.
    TokenRevoked,
    /// Its token expired.
    TokenExpired,
    /// Its environment was revoked, or its registration ended.
    RegistrationEnded,
}

impl End {
    /// All ends, for counters.
    pub const ALL: [End; 14] = [
        End::ByPeer,
        End::Lost,
        End::Silent,
        End::NotReading,
        End::MessageTimeout,
        End::BrokenProtocol,
        End::TooBig,
        End::Text,
        End::Malformed,
        End::Superseded,
        End::Restarting,
        End::TokenRevoked,
        End::TokenExpired,
        End::RegistrationEnded,
    ];

    /// Its label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            End::ByPeer => "by_peer",
            End::Lost => "lost",
            End::Silent => "silent",
            End::NotReading => "not_reading",
            End::MessageTimeout => "message_timeout",
            End::BrokenProtocol => "broken_protocol",
            End::TooBig => "too_big",
            End::Text => "text",
            End::Malformed => "malformed",
            End::Superseded => "superseded",
            End::Restarting => "restarting",
            End::TokenRevoked => "token_revoked",
            End::TokenExpired => "token_expired",
            End::RegistrationEnded => "registration_ended",
        }
    }
}

impl End {
    /// Its reason in the history of connections.
    pub fn reason(self) -> EndReason {
        match self {
            End::ByPeer => EndReason::ClientClosed,
            End::Lost => EndReason::SocketError,
            End::Silent => EndReason::PingTimeout,
            End::NotReading => EndReason::NotReading,
            End::MessageTimeout
            | End::BrokenProtocol
            | End::TooBig
            | End::Text
            | End::Malformed => EndReason::ProtocolViolation,
            End::Superseded => EndReason::Superseded,
            End::Restarting => EndReason::RelayShutdown,
            End::TokenRevoked | End::TokenExpired | End::RegistrationEnded => EndReason::Revoked,
        }
    }
}

impl From<&Ended> for End {
    fn from(ended: &Ended) -> Self {
        match ended {
            Ended::ByPeer(_) | Ended::ReconnectWithin(_) => End::ByPeer,
            Ended::Silent => End::Silent,
            Ended::NotReading => End::NotReading,
            Ended::Lost(SocketError::TooBig) => End::TooBig,
            Ended::Lost(SocketError::Protocol(_)) => End::BrokenProtocol,
            Ended::Lost(SocketError::Lost(_)) => End::Lost,
            Ended::ByUs(frame) if *frame == CloseFrame::MESSAGE_TIMEOUT => End::MessageTimeout,
            Ended::ByUs(frame) if *frame == CloseFrame::MALFORMED => End::Malformed,
            Ended::ByUs(frame) if *frame == CloseFrame::TEXT => End::Text,
            Ended::ByUs(frame) if *frame == CloseFrame::SUPERSEDED => End::Superseded,
            Ended::ByUs(frame) if frame.code == CloseFrame::RESTARTING.code => End::Restarting,
            Ended::ByUs(frame) if *frame == CloseFrame::TOKEN_REVOKED => End::TokenRevoked,
            Ended::ByUs(frame) if *frame == CloseFrame::TOKEN_EXPIRED => End::TokenExpired,
            Ended::ByUs(frame) if *frame == CloseFrame::REGISTRATION_ENDED => {
                End::RegistrationEnded
            }
            Ended::ByUs(_) => End::Lost,
        }
    }
}

/// Counters since the relay started.
#[derive(Debug, Default)]
pub struct ConnectionStats {
    head_timeouts: AtomicU64,
    answer_timeouts: AtomicU64,
    bad_heads: AtomicU64,
    not_an_upgrade: AtomicU64,
    memory_waits: AtomicU64,
    ended: [AtomicU64; End::ALL.len()],
}

impl ConnectionStats {
    /// Connections that were closed because the head of a request, the first or a
    /// later one, did not arrive in time.
    pub fn head_timeouts(&self) -> u64 {
        self.head_timeouts.load(Ordering::Relaxed)
    }

    /// Connections that were closed because their client did not read a response.
    pub fn answer_timeouts(&self) -> u64 {
        self.answer_timeouts.load(Ordering::Relaxed)
    }

    /// Connections that were closed because the head of a request was not HTTP
    /// or too large.
    pub fn bad_heads(&self) -> u64 {
        self.bad_heads.load(Ordering::Relaxed)
    }

    /// Requests to the rendezvous that were not websocket upgrades.
    pub fn not_an_upgrade(&self) -> u64 {
        self.not_an_upgrade.load(Ordering::Relaxed)
    }

    /// Messages that waited for memory before they were read.
    pub fn memory_waits(&self) -> u64 {
        self.memory_waits.load(Ordering::Relaxed)
    }

    /// Websockets that ended this way.
    pub fn ended(&self, end: End) -> u64 {
        self.ended[end as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn count_head_timeout(&self) {
        self.head_timeouts.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_answer_timeout(&self) {
        self.answer_timeouts.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_bad_head(&self) {
        self.bad_heads.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_not_an_upgrade(&self) {
        self.not_an_upgrade.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_memory_wait(&self) {
        self.memory_waits.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_ended(&self, end: End) {
        self.ended[end as usize].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_own_counter() {
        let stats = ConnectionStats::default();
        for end in End::ALL {
            stats.count_ended(end);
            assert_eq!(stats.ended(end), 1, "{}", end.as_str());
        }
    }
}
