//! Keeps orchestrators from making an executor deaf.
//!
//! An executor that saw [`HANDSHAKE_FAILURES`] handshakes fail refuses all for
//! [`HANDSHAKE_COOLDOWN`] (WIRE.md, section 4), and a stock one never forgets a
//! failure before that. So the hub counts along, and what fails is charged to
//! the token that brought it: after [`HANDSHAKE_FAILURES_PER_TOKEN`] its bearers
//! wait, and the last [`HANDSHAKE_FAILURES_RESERVED`] are for tokens without
//! any.
//!
//! A failure is a handshake that was offered and ended in a reset, by whomever:
//! executors count those that were cancelled too.
//!
//! [`HANDSHAKE_FAILURES_PER_TOKEN`]: rendez_proto::limits::HANDSHAKE_FAILURES_PER_TOKEN

use std::sync::Arc;
use std::time::Instant;

use rendez_proto::frame::ResetReason;
use rendez_proto::limits::{
    HANDSHAKE_COOLDOWN, HANDSHAKE_FAILURES, HANDSHAKE_FAILURES_RESERVED,
    HANDSHAKES_PENDING_PER_TOKEN, PENDING_HANDSHAKES, STREAMS_PER_EXECUTOR,
};
use rendez_proto::peek::Kind;

use crate::account::Accounts;
use crate::claim::Handshake;
use crate::hub::Hub;
use crate::overflow::Direction;
use crate::stats::Dropped;

/// The executor's count of failures, as far as a relay can follow it.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    failures: u32,
    deaf_until: Option<Instant>,
}

impl Guard {
    fn failed(&mut self, now: Instant) {
        self.failures += 1;
        if self.failures >= HANDSHAKE_FAILURES {
            self.failures = 0;
            self.deaf_until = Some(now + HANDSHAKE_COOLDOWN);
        }
    }

    fn is_deaf(&self, now: Instant) -> bool {
        self.deaf_until.is_some_and(|until| now < until)
    }

    fn is_reserved(&self) -> bool {
        self.failures + HANDSHAKE_FAILURES_RESERVED >= HANDSHAKE_FAILURES
    }
}

impl Hub {
    /// Whether a new stream's first handshake may go to the executor.
    pub(crate) fn admit_handshake(
        &self,
        accounts: &Accounts,
        now: Instant,
    ) -> Result<(), (Dropped, ResetReason)> {
        let token = &accounts.token;
        let few = self.guard.is_reserved();
        if self.guard.is_deaf(now) || !token.may_fail(now, few) {
            return Err((Dropped::HandshakeGuard, ResetReason::HandshakeRefused));
        }
        let pending = self.claims.iter().filter(|(_, claim)| {
            claim.handshake == Handshake::Offered && Arc::ptr_eq(&claim.accounts().token, token)
        });
        if pending.count() >= HANDSHAKES_PENDING_PER_TOKEN || !accounts.begin_handshake(now) {
            return Err((Dropped::HandshakeRate, ResetReason::Overloaded));
        }
        Ok(())
    }

    /// Follows a stream's handshake by what passes.
    pub(crate) fn follow_handshake(
        &mut self,
        index: usize,
        direction: Direction,
        kind: Kind,
        now: Instant,
    ) {
        let claim = &mut self.claims[index];
        match (claim.handshake, direction, kind) {
            (Handshake::None, Direction::ToExecutor, Kind::Handshake) => {
                claim.handshake = Handshake::Offered;
            }
            (Handshake::Offered, Direction::ToOrchestrator, Kind::Handshake) => {
                claim.handshake = Handshake::Over;
            }
            (Handshake::Offered, _, Kind::Reset) => self.handshake_failed(index, now),
            _ => {}
        }
    }

    /// A handshake that was offered came to nothing.
    pub(crate) fn handshake_failed(&mut self, index: usize, now: Instant) {
        if self.claims[index].handshake != Handshake::Offered {
            return;
        }
        let streams = self.claims.len();
        let pending =
            self.claims.iter().filter(|(_, claim)| claim.handshake == Handshake::Offered).count();
        self.claims[index].handshake = Handshake::Over;
        // An executor that is full or deaf refuses whoever comes.
        let is_busy = streams > STREAMS_PER_EXECUTOR || pending > PENDING_HANDSHAKES;
        if is_busy || self.guard.is_deaf(now) {
            return;
        }
        self.stats.failed_handshakes += 1;
        self.claims[index].accounts().token.handshake_failed(now);
        self.guard.failed(now);
    }
}
