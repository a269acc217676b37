//! Keeps orchestrators from driving an executor into its handshake cooldown.
//!
//! An executor that saw [`HANDSHAKE_FAILURES`] handshakes fail refuses all for
//! [`HANDSHAKE_COOLDOWN`] (docs/codex-wire.md#handshake-limits), and a stock one
//! never forgets a failure before that. So the hub counts along:
//!
//! ```text
//!          refused: cooldown, penalized token, rate
//!         ▲
//!  None ──┴─► Waiting ──room──► Offered ──answered──► Over ──► (another handshake)
//!                │                 │
//!                └── cancelled     └── reset, by either end: a failure
//! ```
//!
//! * No more handshakes are under way at once than may fail together without
//!   starting the cooldown; the others wait for their turn, in order.
//! * A failure is charged to the token that brought the handshake, at this
//!   executor. A token whose failures reach its quota is refused, and no more of
//!   its handshakes are under way than may still fail. The last
//!   [`HANDSHAKE_FAILURES_RESERVED`] failures are reserved for tokens without
//!   any. Another websocket of the token changes nothing. Another executor counts
//!   on its own, so a faulty executor does not lock a token out of the others.
//! * After a change of the registration all failures are forgiven once: see
//!   [`registration_changed`](HandshakeGuard::registration_changed).
//! * Only an early failure is charged. An executor that does not answer is
//!   suspended or cannot reach its registry, and the token is not to blame.
//! * A message that waits is charged like any frame that waits.
//! * When all but one have failed, one more is risked at a time: otherwise an
//!   executor that forgets nothing could not be reached any more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rendez_proto::limits::{HANDSHAKE_COOLDOWN, HANDSHAKE_FAILURES, HANDSHAKE_TIMEOUT};

use crate::account::{Account, Quota};
use crate::handshake::HandshakeState;
use crate::rate_limiter::RateLimiter;

/// How long until one failed handshake of a token is forgiven.
pub(crate) const HANDSHAKE_FAILURE_RECOVERY: Duration = Duration::from_secs(300);
/// A handshake that stays unanswered for this long and then fails is not charged
/// to its token. It is half of what an orchestrator waits for; a verdict takes
/// milliseconds.
pub(crate) const EARLY_FAILURE: Duration = Duration::from_secs(5);
/// Failures left at an executor at which only tokens without any get through.
pub(crate) const HANDSHAKE_FAILURES_RESERVED: u32 = 2;
/// Tokens whose failed handshakes one hub remembers. Beyond that it forgives the
/// token with the fewest failures left.
pub(crate) const PENALIZED_TOKENS_MAX: usize = 32;

const _: () = {
    assert!(HANDSHAKE_FAILURES_RESERVED < HANDSHAKE_FAILURES);
    assert!(EARLY_FAILURE.as_millis() * 2 <= HANDSHAKE_TIMEOUT.as_millis());
};

/// Counts an executor's failed handshakes, as far as a relay can follow them,
/// and orders those that are to come.
#[derive(Debug, Default)]
pub(crate) struct HandshakeGuard {
    failures: u32,
    cooldown_until: Option<Instant>,
    /// Tokens with failures that are not forgiven yet, at most
    /// [`PENALIZED_TOKENS_MAX`].
    penalized_tokens: Vec<PenalizedToken>,
    /// When the failures until then are forgiven, because some were due to a change of
    /// the registration.
    forgive_at: Option<Instant>,
    /// Claims whose handshakes wait, in order. Bounded by the number of claims:
    /// each is in it once.
    waiting: VecDeque<usize>,
    /// Claims whose handshakes are under way; fewer than
    /// [`HANDSHAKE_FAILURES`].
    offered: Vec<usize>,
}

/// A token with failed handshakes, recognized as long as it is remembered.
#[derive(Debug)]
struct PenalizedToken {
    token: Arc<Account>,
    failures: RateLimiter,
}

impl PenalizedToken {
    /// Failed handshakes that are not forgiven yet.
    fn failures(&self, now: Instant) -> u64 {
        let ahead = self.failures.ahead(now).as_millis();
        let failures = ahead.div_ceil(HANDSHAKE_FAILURE_RECOVERY.as_millis());
        u64::try_from(failures).unwrap_or(u64::MAX)
    }
}

impl HandshakeGuard {
    /// Failed handshakes of a token that are not forgiven yet.
    pub(crate) fn failures_of(&self, token: &Arc<Account>, now: Instant) -> u64 {
        if self.is_forgiven(now) {
            return 0;
        }
        let known =
            self.penalized_tokens.iter().find(|penalized| Arc::ptr_eq(&penalized.token, token));
        known.map_or(0, |penalized| penalized.failures(now))
    }

    /// Another registration has joined. A message 1 that is bound to the former one fails
    /// without fault of its token, and orchestrators send such messages for up to
    /// [`HANDSHAKE_TIMEOUT`]. A token may fail as often as otherwise until then, and is
    /// forgiven after it.
    pub(crate) fn registration_changed(&mut self, now: Instant) {
        self.forget_forgiven(now);
        self.forgive_at = Some(now + HANDSHAKE_TIMEOUT);
    }

    fn is_forgiven(&self, now: Instant) -> bool {
        self.forgive_at.is_some_and(|at| at <= now)
    }

    fn forget_forgiven(&mut self, now: Instant) {
        if self.is_forgiven(now) {
            self.penalized_tokens.clear();
            self.forgive_at = None;
        }
    }

    /// Whether another handshake of a token may be risked while `under_way` may
    /// fail as well. When few failures are left, a token may risk one, and only
    /// if it has none.
    pub(crate) fn may_fail(&self, token: &Arc<Account>, under_way: u64, now: Instant) -> bool {
        match token.quota().handshake_failures {
            Quota::NONE => true,
            max => {
                let max = if self.is_reserved() { max.min(1) } else { max };
                self.failures_of(token, now) + under_way < max
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn penalized_tokens(&self) -> usize {
        self.penalized_tokens.len()
    }

    fn penalize(&mut self, token: &Arc<Account>, now: Instant) {
        self.forget_forgiven(now);
        self.penalized_tokens.retain(|penalized| penalized.failures(now) > 0);
        let known =
            self.penalized_tokens.iter().position(|penalized| Arc::ptr_eq(&penalized.token, token));
        let at = known.unwrap_or_else(|| {
            let least = (0..self.penalized_tokens.len())
                .min_by_key(|at| self.penalized_tokens[*at].failures(now));
            if let Some(least) = least
                && self.penalized_tokens.len() >= PENALIZED_TOKENS_MAX
            {
                self.penalized_tokens.remove(least);
            }
            self.penalized_tokens
                .push(PenalizedToken { token: token.clone(), failures: RateLimiter::default() });
            self.penalized_tokens.len() - 1
        });
        self.penalized_tokens[at].failures.take(now, HANDSHAKE_FAILURE_RECOVERY, Duration::ZERO);
    }

    /// Counts a failure, and charges it to a token, if one is to blame.
    pub(crate) fn failed(&mut self, token: Option<&Arc<Account>>, now: Instant) {
        if let Some(token) = token {
            self.penalize(token, now);
        }
        self.failures += 1;
        if self.failures >= HANDSHAKE_FAILURES {
            self.failures = 0;
            self.cooldown_until = Some(now + HANDSHAKE_COOLDOWN);
        }
    }

    /// Whether the executor refuses all handshakes.
    pub(crate) fn is_in_cooldown(&self, now: Instant) -> bool {
        self.cooldown_until.is_some_and(|until| now < until)
    }

    fn is_reserved(&self) -> bool {
        self.failures + HANDSHAKE_FAILURES_RESERVED >= HANDSHAKE_FAILURES
    }

    /// Whether another handshake may be under way.
    pub(crate) fn has_room(&self) -> bool {
        let room = (HANDSHAKE_FAILURES - 1).saturating_sub(self.failures).max(1) as usize;
        self.offered.len() < room
    }

    /// The claim whose handshake is at this place of those that wait.
    pub(crate) fn waiting(&self, place: usize) -> Option<usize> {
        self.waiting.get(place).copied()
    }

    /// The claims whose handshakes are under way.
    pub(crate) fn offered(&self) -> &[usize] {
        &self.offered
    }

    /// Lists a claim by the state that its handshake has changed to.
    pub(crate) fn follow(&mut self, index: usize, before: &HandshakeState, after: &HandshakeState) {
        match (before.is_waiting(), after.is_waiting()) {
            (true, false) => self.waiting.retain(|other| *other != index),
            (false, true) => self.waiting.push_back(index),
            (true, true) | (false, false) => {}
        }
        match (before.is_offered(), after.is_offered()) {
            (true, false) => self.offered.retain(|other| *other != index),
            (false, true) => self.offered.push(index),
            (true, true) | (false, false) => {}
        }
    }

    /// Forgets all handshakes that wait or are under way: the executor has left,
    /// and no token is to blame.
    pub(crate) fn forget_all(&mut self) {
        self.waiting.clear();
        self.offered.clear();
    }
}
