//! Tracks whether the peer of a reliable stream can be reached.
//!
//! ```text
//!          socket lost                     socket opened
//!   Up ───────────────────► Down ───────────────────────────► Probing
//!   ▲ │                       │ ▲         socket lost            │ │
//!   │ └── relay hint; silence ──┼───────────────────────────────►│ │
//!   │                         │ └────────────────────────────────┘ │
//!   │                         └──── grace over: the stream is lost─┤
//!   └─────────── any frame that the peer authenticated ────────────┘
//! ```
//!
//! While probing, only resumes are sent, with exponential back-off. Records
//! wait until the peer has answered, so none are sent in vain.

use std::time::{Duration, Instant};

use crate::window::Rto;

/// Whether the peer can be reached, and until when it may be away.
#[derive(Debug)]
pub(super) enum PathState {
    Up,
    Down { until: Instant },
    Probing { until: Instant, probe: Probe },
}

impl PathState {
    pub(super) fn is_up(&self) -> bool {
        matches!(self, PathState::Up)
    }

    pub(super) fn socket_lost(&mut self, now: Instant, grace: Duration) {
        *self = PathState::Down { until: self.until(now, grace) };
    }

    pub(super) fn socket_opened(&mut self, now: Instant, grace: Duration) {
        *self = PathState::Probing { until: self.until(now, grace), probe: Probe::due() };
    }

    /// Starts probing because the relay reports that the peer is away.
    pub(super) fn on_peer_away(&mut self, now: Instant, grace: Duration, rto: &Rto) {
        if self.is_up() {
            let probe = Probe::after(now, rto);
            *self = PathState::Probing { until: now + grace, probe };
        }
    }

    /// Probes the peer at once.
    pub(super) fn probe_now(&mut self, now: Instant, grace: Duration) {
        if self.is_up() {
            *self = PathState::Probing { until: now + grace, probe: Probe::due() };
        }
    }

    /// Whether the peer was probed and has not answered yet.
    pub(super) fn is_probing(&self) -> bool {
        matches!(self, PathState::Probing { probe, .. } if probe.attempts > 0)
    }

    /// Notes that the peer answered. Returns whether it was out of reach
    /// before.
    pub(super) fn on_authenticated(&mut self) -> bool {
        !matches!(std::mem::replace(self, PathState::Up), PathState::Up)
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        match self {
            PathState::Up => false,
            PathState::Down { until } | PathState::Probing { until, .. } => *until <= now,
        }
    }

    pub(super) fn probe(&mut self) -> Option<&mut Probe> {
        match self {
            PathState::Probing { probe, .. } => Some(probe),
            PathState::Up | PathState::Down { .. } => None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            PathState::Up => None,
            PathState::Down { until } => Some(*until),
            PathState::Probing { until, probe } => {
                Some(probe.poll_timeout().map_or(*until, |at| at.min(*until)))
            }
        }
    }

    fn until(&self, now: Instant, grace: Duration) -> Instant {
        match self {
            PathState::Up => now + grace,
            PathState::Down { until } | PathState::Probing { until, .. } => *until,
        }
    }
}

/// A transmission that is repeated, with exponential back-off, until it is
/// answered.
#[derive(Debug)]
pub(super) struct Probe {
    next: Option<Instant>, // `None`: due now
    pub(super) attempts: u32,
}

impl Probe {
    pub(super) fn due() -> Self {
        Self { next: None, attempts: 0 }
    }

    pub(super) fn after(now: Instant, rto: &Rto) -> Self {
        Self { next: Some(now + rto.current()), attempts: 0 }
    }

    /// Makes the next transmission due immediately.
    pub(super) fn at_once(&mut self) {
        self.next = None;
    }

    /// Makes the transmissions after the first due again, from now on.
    pub(super) fn repeat(&mut self) {
        *self = Self { next: None, attempts: self.attempts.min(1) };
    }

    pub(super) fn is_due(&self) -> bool {
        self.next.is_none()
    }

    /// Notes a transmission; each interval is twice the one before.
    pub(super) fn sent(&mut self, now: Instant, rto: &Rto) {
        let mut wait = rto.clone();
        for _ in 0..self.attempts.min(16) {
            wait.back_off();
        }
        self.attempts += 1;
        self.next = Some(now + wait.current());
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.next.is_some_and(|at| at <= now) {
            self.next = None;
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }
}
