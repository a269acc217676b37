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
//! * What fails is charged to the token that brought it, at this executor. After
//!   the failures of its quota its bearers are refused, and so many may be under
//!   way; the last [`HANDSHAKE_FAILURES_RESERVED`] are for tokens without any.
//!   Another websocket of the token changes nothing; another executor is
//!   another matter, so a sick one locks nobody out of the rest.
//! * Only what fails soon is charged. An executor that does not answer is asleep,
//!   or cannot ask its registry, and whoever tries then is not to blame.
//! * A message that waits is paid for like any frame that waits.
//! * Only when all but one have failed, one more is risked at a time: an
//!   executor that forgets nothing could not be reached any more otherwise.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_proto::frame::ResetReason;
use rendez_proto::limits::{
    AUTHORIZATION_TIMEOUT, HANDSHAKE_COOLDOWN, HANDSHAKE_FAILURES, HANDSHAKE_TIMEOUT, RTO_INITIAL,
};
use rendez_proto::peek::Kind;

use crate::account::{Account, Quota};
use crate::claim::{Handshake, cost};
use crate::hub::Hub;
use crate::meter::Meter;
use crate::overflow::Direction;
use crate::refusal::{Refusal, Refused};
use crate::stats::Dropped;

/// How long until one failed handshake of a token is forgiven.
pub(crate) const HANDSHAKE_FAILURE_RECOVERY: Duration = Duration::from_secs(300);
/// For how long an executor may leave a handshake unanswered before that is its
/// own affair, and no failure of the token that brought it: half of what an
/// orchestrator waits for. A verdict takes milliseconds.
pub(crate) const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// Failures left at an executor at which only tokens without any get through.
pub(crate) const HANDSHAKE_FAILURES_RESERVED: u32 = 2;
/// How soon message 1 of a handshake may come again: our own orchestrators
/// repeat it, [`RTO_INITIAL`] after the first at the earliest.
pub(crate) const HANDSHAKE_REPEAT: Duration = Duration::from_millis(500);
/// Tokens whose failed handshakes one executor's switchboard remembers. Among
/// so many, those that failed are forgiven in the order of their time.
pub(crate) const HANDSHAKE_SUSPECTS: usize = 32;

const _: () = {
    assert!(HANDSHAKE_FAILURES_RESERVED < HANDSHAKE_FAILURES);
    assert!(HANDSHAKE_REPEAT.as_millis() < RTO_INITIAL.as_millis());
    assert!(HANDSHAKE_PATIENCE.as_millis() * 2 <= HANDSHAKE_TIMEOUT.as_millis());
};

/// The executor's count of failures, as far as a relay can follow it.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    failures: u32,
    deaf_until: Option<Instant>,
    /// Who brought failures that are not forgiven yet, at most
    /// [`HANDSHAKE_SUSPECTS`].
    suspects: Vec<Suspect>,
    /// Claims whose handshakes are under way; fewer than
    /// [`HANDSHAKE_FAILURES`].
    offered: Vec<usize>,
}

/// A token, which is known again as long as it is remembered.
#[derive(Debug)]
struct Suspect {
    token: Arc<Account>,
    failures: Meter,
}

impl Suspect {
    /// Failed handshakes that are not forgiven yet.
    fn failures(&self, now: Instant) -> u64 {
        let ahead = self.failures.ahead(now).as_millis();
        let failures = ahead.div_ceil(HANDSHAKE_FAILURE_RECOVERY.as_millis());
        u64::try_from(failures).unwrap_or(u64::MAX)
    }
}

impl Guard {
    /// Failed handshakes of a token that are not forgiven yet.
    pub(crate) fn failures_of(&self, token: &Arc<Account>, now: Instant) -> u64 {
        let known = self.suspects.iter().find(|suspect| Arc::ptr_eq(&suspect.token, token));
        known.map_or(0, |suspect| suspect.failures(now))
    }

    /// Whether another handshake of a token may be risked while `under_way` may
    /// fail as well; when few failures are left, only one of a token without
    /// any.
    fn may_fail(&self, token: &Arc<Account>, under_way: u64, now: Instant) -> bool {
        match token.quota().handshake_failures {
            Quota::NONE => true,
            max => {
                let max = if self.is_reserved() { max.min(1) } else { max };
                self.failures_of(token, now) + under_way < max
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn suspects(&self) -> usize {
        self.suspects.len()
    }

    fn suspect(&mut self, token: &Arc<Account>, now: Instant) {
        self.suspects.retain(|suspect| suspect.failures(now) > 0);
        let known = self.suspects.iter().position(|suspect| Arc::ptr_eq(&suspect.token, token));
        let at = known.unwrap_or_else(|| {
            let least = (0..self.suspects.len()).min_by_key(|at| self.suspects[*at].failures(now));
            if let Some(least) = least
                && self.suspects.len() >= HANDSHAKE_SUSPECTS
            {
                self.suspects.remove(least);
            }
            self.suspects.push(Suspect { token: token.clone(), failures: Meter::default() });
            self.suspects.len() - 1
        });
        self.suspects[at].failures.take(now, HANDSHAKE_FAILURE_RECOVERY, Duration::ZERO);
    }

    /// Counts a failure, and charges it to a token, if one is to blame.
    pub(crate) fn failed(&mut self, token: Option<&Arc<Account>>, now: Instant) {
        if let Some(token) = token {
            self.suspect(token, now);
        }
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
    /// Why it is refused.
    pub(crate) fn offer(
        &mut self,
        index: usize,
        message: Bytes,
        now: Instant,
    ) -> Result<(), Refused> {
        let claim = &self.claims[index];
        match claim.handshake() {
            // Ours repeat message 1, for which executors have no second count.
            Handshake::Offered { since, at } if claim.resends && now >= *at + HANDSHAKE_REPEAT => {
                if !claim.can_pay(&message) {
                    self.stats.count_dropped(Dropped::Quota, 1);
                    return Ok(());
                }
                let again = Handshake::Offered { since: *since, at: now };
                self.set_handshake(index, again);
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
        if self.guard.is_deaf(now) {
            return Err(Refused::guarded(Refusal::DeafExecutor));
        }
        if !self.guard.may_fail(&accounts.token, 0, now) {
            return Err(Refused::guarded(Refusal::FailedHandshakes));
        }
        accounts.begin_handshake(now).map_err(Refused::too_often)?;
        let waiting = Handshake::Waiting { message, since: now };
        if waiting.cost() > accounts.free_memory() {
            return Err(Refused(Dropped::Quota, ResetReason::Overloaded, Some(Refusal::Memory)));
        }
        self.set_handshake(index, waiting);
        self.offer_waiting(now);
        Ok(())
    }

    /// Changes how far a handshake has come, in all places.
    pub(crate) fn set_handshake(&mut self, index: usize, handshake: Handshake) -> Handshake {
        let waits = matches!(handshake, Handshake::Waiting { .. });
        let offered = matches!(handshake, Handshake::Offered { .. });
        let before = self.claims[index].set_handshake(handshake);
        match &before {
            Handshake::Waiting { .. } if !waits => self.handshakes.retain(|other| *other != index),
            Handshake::Offered { .. } if !offered => {
                self.guard.offered.retain(|other| *other != index);
            }
            _ => {}
        }
        if waits && !matches!(before, Handshake::Waiting { .. }) {
            self.handshakes.push_back(index);
        }
        if offered && !matches!(before, Handshake::Offered { .. }) {
            self.guard.offered.push(index);
        }
        before
    }

    /// Whether a claim's handshake waits; then nothing of it goes to the
    /// executor, which does not know the stream yet.
    pub(crate) fn is_waiting(&self, index: usize) -> bool {
        matches!(self.claims[index].handshake(), Handshake::Waiting { .. })
    }

    /// Offers as many of the handshakes that wait as may fail together.
    pub(crate) fn offer_waiting(&mut self, now: Instant) {
        let mut at = 0;
        while at < self.handshakes.len()
            && !self.guard.is_deaf(now)
            && self.guard.offered.len() < self.guard.room()
        {
            let index = self.handshakes[at];
            let token = &self.claims[index].accounts().token;
            if !self.guard.may_fail(token, self.offered_by(token), now) {
                at += 1;
                continue;
            }
            let offered = Handshake::Offered { since: now, at: now };
            let before = self.set_handshake(index, offered);
            if let Handshake::Waiting { message, .. } = before {
                self.forward(index, Direction::ToExecutor, Kind::Handshake, message, now);
            }
        }
    }

    /// Handshakes of one token that are under way.
    fn offered_by(&self, token: &Arc<Account>) -> u64 {
        let is_its = |index: &&usize| Arc::ptr_eq(&self.claims[**index].accounts().token, token);
        self.guard.offered.iter().filter(is_its).count() as u64
    }

    /// Follows a stream's handshake by what passes.
    pub(crate) fn follow_handshake(
        &mut self,
        index: usize,
        direction: Direction,
        kind: Kind,
        now: Instant,
    ) {
        match (self.claims[index].handshake(), direction, kind) {
            (Handshake::Offered { .. }, Direction::ToOrchestrator, Kind::Handshake) => {
                self.set_handshake(index, Handshake::Over);
                self.offer_waiting(now);
            }
            (Handshake::Offered { .. }, _, Kind::Reset) => self.handshake_failed(index, now),
            _ => {}
        }
    }

    /// A handshake came to nothing. If it was offered, that counts.
    pub(crate) fn handshake_failed(&mut self, index: usize, now: Instant) {
        if let Handshake::Offered { since, .. } = self.set_handshake(index, Handshake::Over) {
            // An executor that is deaf refuses whoever comes.
            if !self.guard.is_deaf(now) {
                self.stats.failed_handshakes += 1;
                let token = &self.claims[index].accounts().token;
                self.guard.failed((now < since + HANDSHAKE_PATIENCE).then_some(token), now);
            }
            self.offer_waiting(now);
        }
    }

    /// Forgets all handshakes: the executor is gone, and nobody is to blame.
    pub(crate) fn forget_handshakes(&mut self) {
        self.handshakes.clear();
        self.guard.offered.clear();
        for (_, claim) in &mut self.claims {
            claim.set_handshake(Handshake::Over);
        }
    }

    /// A handshake that nobody answers does not keep its place for ever.
    pub(crate) fn expire_handshake(&mut self, index: usize, now: Instant) {
        if self.claims[index].handshake().deadline().is_some_and(|deadline| deadline <= now) {
            self.set_handshake(index, Handshake::Over);
        }
    }
}

impl Handshake {
    /// What a message that waits is charged with.
    pub(crate) fn cost(&self) -> usize {
        match self {
            Handshake::Waiting { message, .. } => cost(message),
            Handshake::None | Handshake::Offered { .. } | Handshake::Over => 0,
        }
    }

    /// When it has lasted too long: whoever waits has given up by then.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Handshake::None | Handshake::Over => None,
            Handshake::Waiting { since, .. } => Some(*since + HANDSHAKE_TIMEOUT),
            Handshake::Offered { at, .. } => Some(*at + HANDSHAKE_TIMEOUT + AUTHORIZATION_TIMEOUT),
        }
    }
}
