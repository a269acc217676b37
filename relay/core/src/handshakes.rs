//! Keeps orchestrators from making an executor deaf.
//!
//! An executor that saw [`HANDSHAKE_FAILURES`] handshakes fail refuses all for
//! [`HANDSHAKE_COOLDOWN`] (WIRE.md, section 4), and a stock one never forgets a
//! failure before that. So the hub counts along:
//!
//! ```text
//!          refused: deaf, suspect token, rate
//!         ▲
//!  None ──┴─► Waiting ──room──► Offered ──answered──► Over ──► (another handshake)
//!                │                 │
//!                └── cancelled     └── reset, by whomever: a failure
//! ```
//!
//! * No more handshakes are under way at once than may fail together without
//!   making the executor deaf; the others wait their turn, in order.
//! * What fails is charged to the token that brought it. After the failures of
//!   its quota its bearers are refused, and so many may be under way; the last
//!   [`HANDSHAKE_FAILURES_RESERVED`] are for tokens without any.
//! * Only when all but one have failed, one more is risked at a time: an
//!   executor that forgets nothing could not be reached any more otherwise.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rendez_proto::frame::ResetReason;
use rendez_proto::limits::{
    AUTHORIZATION_TIMEOUT, HANDSHAKE_COOLDOWN, HANDSHAKE_FAILURES, HANDSHAKE_FAILURES_RESERVED,
    HANDSHAKE_REPEAT, HANDSHAKE_TIMEOUT,
};
use rendez_proto::peek::Kind;

use crate::account::Account;
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

    /// Handshakes that may be under way at once.
    fn room(&self) -> usize {
        (HANDSHAKE_FAILURES - 1).saturating_sub(self.failures).max(1) as usize
    }
}

impl Hub {
    /// Takes a handshake of an orchestrator: offers it to the executor, now or
    /// later.
    ///
    /// # Errors
    /// Why it is refused, and what its sender is told.
    pub(crate) fn offer(
        &mut self,
        index: usize,
        message: Bytes,
        now: Instant,
    ) -> Result<(), (Dropped, ResetReason)> {
        let claim = &mut self.claims[index];
        match &mut claim.handshake {
            // Ours repeat message 1, for which executors have no second count.
            Handshake::Offered { at } if claim.resends && now >= *at + HANDSHAKE_REPEAT => {
                *at = now;
                self.forward(index, Direction::ToExecutor, Kind::Handshake, message, now);
                return Ok(());
            }
            Handshake::Offered { .. } | Handshake::Waiting { .. } => {
                self.stats.count_dropped(Dropped::HandshakeRepeat, 1);
                return Ok(());
            }
            Handshake::None | Handshake::Over => {}
        }
        let accounts = claim.accounts();
        if self.guard.is_deaf(now) || !accounts.token.may_fail(now, 0, self.guard.is_reserved()) {
            return Err((Dropped::HandshakeGuard, ResetReason::HandshakeRefused));
        }
        if !accounts.begin_handshake(now) {
            return Err((Dropped::HandshakeRate, ResetReason::Overloaded));
        }
        claim.handshake = Handshake::Waiting { message, since: now };
        self.handshakes.push_back(index);
        self.offer_waiting(now);
        Ok(())
    }

    /// Whether a claim's handshake waits; then nothing of it goes to the
    /// executor, which does not know the stream yet.
    pub(crate) fn is_waiting(&self, index: usize) -> bool {
        matches!(self.claims[index].handshake, Handshake::Waiting { .. })
    }

    /// Offers as many of the handshakes that wait as may fail together.
    pub(crate) fn offer_waiting(&mut self, now: Instant) {
        let mut at = 0;
        while at < self.handshakes.len()
            && !self.guard.is_deaf(now)
            && self.offered(None) < self.guard.room()
        {
            let index = self.handshakes[at];
            let token = self.claims[index].accounts().token.clone();
            let under_way = self.offered(Some(&token));
            if !token.may_fail(now, under_way as u64, self.guard.is_reserved()) {
                at += 1;
                continue;
            }
            self.handshakes.remove(at);
            let offered = Handshake::Offered { at: now };
            let before = std::mem::replace(&mut self.claims[index].handshake, offered);
            if let Handshake::Waiting { message, .. } = before {
                self.forward(index, Direction::ToExecutor, Kind::Handshake, message, now);
            }
        }
    }

    /// Handshakes under way: all, or those of one token.
    fn offered(&self, token: Option<&Arc<Account>>) -> usize {
        let is_one = |claim: &crate::claim::Claim| {
            matches!(claim.handshake, Handshake::Offered { .. })
                && token.is_none_or(|token| Arc::ptr_eq(&claim.accounts().token, token))
        };
        self.claims.iter().filter(|(_, claim)| is_one(claim)).count()
    }

    /// Follows a stream's handshake by what passes.
    pub(crate) fn follow_handshake(
        &mut self,
        index: usize,
        direction: Direction,
        kind: Kind,
        now: Instant,
    ) {
        match (&self.claims[index].handshake, direction, kind) {
            (Handshake::Offered { .. }, Direction::ToOrchestrator, Kind::Handshake) => {
                self.claims[index].handshake = Handshake::Over;
                self.offer_waiting(now);
            }
            (Handshake::Offered { .. }, _, Kind::Reset) => self.handshake_failed(index, now),
            _ => {}
        }
    }

    /// A handshake came to nothing. If it was offered, that counts.
    pub(crate) fn handshake_failed(&mut self, index: usize, now: Instant) {
        let claim = &mut self.claims[index];
        match std::mem::replace(&mut claim.handshake, Handshake::Over) {
            Handshake::Offered { .. } => {
                // An executor that is deaf refuses whoever comes.
                if !self.guard.is_deaf(now) {
                    self.stats.failed_handshakes += 1;
                    claim.accounts().token.handshake_failed(now);
                    self.guard.failed(now);
                }
                self.offer_waiting(now);
            }
            Handshake::Waiting { .. } => self.handshakes.retain(|other| *other != index),
            Handshake::None | Handshake::Over => {}
        }
    }

    /// Forgets all handshakes: the executor is gone, and nobody is to blame.
    pub(crate) fn forget_handshakes(&mut self) {
        self.handshakes.clear();
        for (_, claim) in &mut self.claims {
            claim.handshake = Handshake::Over;
        }
    }

    /// A handshake that nobody answers does not keep its place for ever.
    pub(crate) fn expire_handshake(&mut self, index: usize, now: Instant) {
        if self.claims[index].handshake.deadline().is_some_and(|deadline| deadline <= now) {
            self.handshakes.retain(|other| *other != index);
            self.claims[index].handshake = Handshake::Over;
        }
    }
}

impl Handshake {
    /// When it has lasted too long: whoever waits has given up by then.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Handshake::None | Handshake::Over => None,
            Handshake::Waiting { since, .. } => Some(*since + HANDSHAKE_TIMEOUT),
            Handshake::Offered { at } => Some(*at + HANDSHAKE_TIMEOUT + AUTHORIZATION_TIMEOUT),
        }
    }
}
