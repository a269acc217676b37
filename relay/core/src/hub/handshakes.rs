//! The hub's part in handshakes: it offers, counts and ends them as its
//! [guard](crate::handshake_guard) decides.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rendez_proto::frame::ResetReason;
use rendez_proto::peek::Kind;

use super::Hub;
use crate::account::Account;
use crate::handshake::{HANDSHAKE_REPEAT, HandshakeState};
use crate::handshake_guard::EARLY_FAILURE;
use crate::overflow::Direction;
use crate::refusal::{Refusal, Refused};
use crate::stats::Dropped;

impl Hub {
    /// Takes a handshake of an orchestrator: offers it to the executor, now or
    /// later.
    ///
    /// # Errors
    /// The reason of its refusal.
    pub(super) fn offer(
        &mut self,
        index: usize,
        message: Bytes,
        now: Instant,
    ) -> Result<(), Refused> {
        if !self.has_executor() {
            self.stats.count_dropped(Dropped::PeerAway, 1);
            return Ok(());
        }
        let claim = &self.claims[index];
        match *claim.handshake() {
            // Our orchestrators repeat message 1. Executors do not count it again.
            HandshakeState::Offered { arrived, since, at }
                if claim.resends && now >= at + HANDSHAKE_REPEAT =>
            {
                if !claim.can_pay(&message) {
                    self.stats.count_dropped(Dropped::Quota, 1);
                    return Ok(());
                }
                self.set_handshake(index, HandshakeState::Offered { arrived, since, at: now });
                self.forward(index, Direction::ToExecutor, Kind::Handshake, message, now);
                return Ok(());
            }
            HandshakeState::Offered { .. } | HandshakeState::Waiting { .. } => {
                self.stats.count_dropped(Dropped::HandshakeRepeat, 1);
                return Ok(());
            }
            HandshakeState::None | HandshakeState::Over => {}
        }
        let accounts = claim.accounts();
        if self.guard.is_in_cooldown(now) {
            return Err(Refused::guarded(Refusal::ExecutorCooldown));
        }
        if !self.guard.may_fail(claim.token(), 0, now) {
            return Err(Refused::guarded(Refusal::FailedHandshakes));
        }
        accounts.begin_handshake(now).map_err(Refused::too_often)?;
        let waiting = HandshakeState::Waiting { message, since: now };
        if waiting.cost() > accounts.free_memory() {
            return Err(Refused(Dropped::Quota, ResetReason::Overloaded, Some(Refusal::Memory)));
        }
        self.continue_stream(index);
        self.set_handshake(index, waiting);
        self.offer_waiting(now);
        Ok(())
    }

    /// Changes the state of a handshake, in the claim and in the guard.
    pub(super) fn set_handshake(
        &mut self,
        index: usize,
        handshake: HandshakeState,
    ) -> HandshakeState {
        let claim = &mut self.claims[index];
        let before = claim.set_handshake(handshake);
        self.guard.follow(index, &before, claim.handshake());
        before
    }

    /// Offers as many of the handshakes that wait as may fail together.
    pub(super) fn offer_waiting(&mut self, now: Instant) {
        let mut place = 0;
        while let Some(index) = self.guard.waiting(place)
            && !self.guard.is_in_cooldown(now)
            && self.guard.has_room()
        {
            let token = self.claims[index].token();
            if !self.guard.may_fail(token, self.offered_by(token), now) {
                place += 1;
                continue;
            }
            let HandshakeState::Waiting { since: arrived, .. } = *self.claims[index].handshake()
            else {
                place += 1;
                continue;
            };
            let offered = HandshakeState::Offered { arrived, since: now, at: now };
            let before = self.set_handshake(index, offered);
            if let HandshakeState::Waiting { message, .. } = before {
                self.forward(index, Direction::ToExecutor, Kind::Handshake, message, now);
            }
        }
    }

    /// Handshakes of one token that are under way.
    fn offered_by(&self, token: &Arc<Account>) -> u64 {
        let is_its = |index: &&usize| Arc::ptr_eq(self.claims[**index].token(), token);
        self.guard.offered().iter().filter(is_its).count() as u64
    }

    /// Follows a stream's handshake by the frames that pass.
    pub(super) fn follow_handshake(
        &mut self,
        index: usize,
        direction: Direction,
        kind: Kind,
        now: Instant,
    ) {
        match (self.claims[index].handshake(), direction, kind) {
            (HandshakeState::Offered { .. }, Direction::ToOrchestrator, Kind::Handshake) => {
                self.set_handshake(index, HandshakeState::Over);
                self.offer_waiting(now);
            }
            (HandshakeState::Offered { .. }, _, Kind::Reset) => {
                self.handshake_failed(index, direction, now);
            }
            _ => {}
        }
    }

    /// Ends a handshake. If its message was still waiting, it is dropped.
    pub(super) fn drop_handshake(&mut self, index: usize) -> HandshakeState {
        let before = self.set_handshake(index, HandshakeState::Over);
        self.stats.count_dropped(Dropped::HandshakeWaits, u64::from(before.is_waiting()));
        before
    }

    /// Ends a handshake that failed, by a reset in this direction. If it was offered,
    /// the failure counts.
    pub(super) fn handshake_failed(&mut self, index: usize, reset: Direction, now: Instant) {
        let before = self.drop_handshake(index);
        if let HandshakeState::Offered { arrived, since, .. } = before {
            // An orchestrator gives up after its own time, of which the message may have
            // spent most in the hub.
            let begun = match reset {
                Direction::ToOrchestrator => since,
                Direction::ToExecutor => arrived,
            };
            // During its cooldown an executor refuses every handshake.
            if !self.guard.is_in_cooldown(now) {
                self.stats.failed_handshakes += 1;
                let token = self.claims[index].token();
                self.guard.failed((now < begun + EARLY_FAILURE).then_some(token), now);
            }
            self.offer_waiting(now);
        }
    }

    /// Forgets all handshakes, because the executor has left.
    pub(super) fn forget_handshakes(&mut self) {
        self.guard.forget_all();
        for claim in self.claims.iter_mut() {
            let before = claim.set_handshake(HandshakeState::Over);
            self.stats.count_dropped(Dropped::PeerAway, u64::from(before.is_waiting()));
        }
    }

    /// Ends a handshake that stayed unanswered for too long. If it was never offered,
    /// the stream is over: the executor does not know it.
    pub(super) fn expire_handshake(&mut self, index: usize, now: Instant) {
        let is_due = self.claims[index].handshake().deadline().is_some_and(|at| at <= now);
        if is_due && self.drop_handshake(index).is_waiting() {
            self.end_at_once(index);
        }
    }
}
