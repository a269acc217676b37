//! The model of the applications at both ends: the messages that they sent, and
//! the events that they may expect.

use std::time::Instant;

use bytes::Bytes;
use rendez_endpoint::{
    Closed, Connect, ConnectError, Event, Key, Misbehaviour, Mux, PendingHandshake, Refusal,
    SendError,
};
use rendez_proto::frame::ResetReason;
use rendez_proto::limits::STREAM_GRACE;
use rendez_proto::profile::Profile;

use super::Side;
use super::wire::Wire;
use crate::noise::{authorized_other_key, executor, orchestrator, registration, stream};

/// One stream at one end.
#[derive(Debug)]
pub(super) struct End {
    side: Side,
    key: Key,
    id: u8,
    profile: Profile,
    /// At the executor: the index of the orchestrator's end that asked.
    connected_by: Option<usize>,
    /// Waits for the registry's verdict.
    pending: Option<PendingHandshake>,
    opened: Option<Instant>,
    /// The application closed it.
    app_closed: bool,
    closed: Option<Closed>,
    /// The process died, or the peer was refused.
    removed: bool,
    sent: Vec<Bytes>,
    received: usize,
    /// The index of the end whose messages arrive here, after the first one.
    bound: Option<usize>,
}

impl End {
    fn is_live(&self) -> bool {
        self.closed.is_none() && !self.removed
    }
}

/// All streams that ever existed, at both ends.
#[derive(Debug, Default)]
pub(super) struct Ends(Vec<End>);

impl Ends {
    pub(super) fn connects(&self) -> usize {
        self.0.iter().filter(|end| end.side == Side::Orchestrator).count()
    }

    /// The number of streams of this id that were ever open at this end: the
    /// number of keys that have sealed frames with that id.
    pub(super) fn opened(&self, side: Side, id: &str) -> usize {
        let same = |end: &&End| end.side == side && stream(end.id).as_str() == id;
        self.0.iter().filter(same).filter(|end| end.opened.is_some()).count()
    }

    /// Whether this end has an open stream of this id that retransmits.
    pub(super) fn is_open_and_reliable(&self, side: Side, id: &str) -> bool {
        self.0.iter().any(|end| {
            end.side == side
                && stream(end.id).as_str() == id
                && end.profile.is_reliable()
                && end.opened.is_some()
                && !end.app_closed
                && end.is_live()
        })
    }

    fn add(&mut self, side: Side, key: Key, id: u8, profile: Profile) -> &mut End {
        let (opened, closed) = (None, None);
        self.0.push(End {
            side,
            key,
            id,
            profile,
            connected_by: None,
            pending: None,
            opened,
            app_closed: false,
            closed,
            removed: false,
            sent: Vec::new(),
            received: 0,
            bound: None,
        });
        let last = self.0.len() - 1;
        &mut self.0[last]
    }

    fn pick(&self, end: u8) -> Option<usize> {
        (!self.0.is_empty()).then(|| usize::from(end) % self.0.len())
    }

    // ---- operations of applications ----------------------------------------------------

    pub(super) fn connect(&mut self, mux: &mut Mux, now: Instant, id: u8, profile: Profile) {
        let connect = Connect {
            stream: stream(id),
            profile,
            registration: registration(0),
            peer: executor().public_for(profile.suite()).clone(),
            authorization: self.0.len().to_string().into(),
        };
        match mux.connect(now, connect) {
            Ok(key) => drop(self.add(Side::Orchestrator, key, id, profile)),
            Err(error) => assert_eq!(error, ConnectError::StreamInUse),
        }
    }

    /// Gives the registry's verdict on one pending handshake.
    pub(super) fn verdict(&mut self, mux: &mut Mux, now: Instant, pick: u8, choice: u8) {
        let pending: Vec<usize> =
            (0..self.0.len()).filter(|i| self.0[*i].pending.is_some()).collect();
        if pending.is_empty() {
            return;
        }
        let end = &mut self.0[pending[usize::from(pick) % pending.len()]];
        let Some(pending) = end.pending.take() else { return };
        match choice % 16 {
            0 => mux.refuse(now, end.key, Refusal::Denied),
            1 => mux.refuse(now, end.key, Refusal::AuthenticationRejected),
            2 => mux.authorize(now, end.key, authorized_other_key()),
            _ => return mux.authorize(now, end.key, pending.authorize()),
        }
        end.removed = true;
    }

    /// Authorizes every pending handshake.
    pub(super) fn authorize_all(&mut self, mux: &mut Mux, now: Instant) {
        while self.0.iter().any(|end| end.pending.is_some()) {
            self.verdict(mux, now, 0, 15);
        }
    }

    pub(super) fn send(&mut self, muxes: &mut [Mux; 2], end: u8, size: u8) {
        let Some(index) = self.pick(end) else { return };
        let end = &mut self.0[index];
        let len = match size {
            0..=223 => 8 + usize::from(size),
            224..=247 => 61_436, // a full record with its header
            248..=253 => 200_000,
            _ => 1_200_000,
        };
        // no two messages are equal
        let mut message = vec![size; len];
        message[..4].copy_from_slice(&(index as u32).to_be_bytes());
        message[4..8].copy_from_slice(&(end.sent.len() as u32).to_be_bytes());
        let message = Bytes::from(message);
        if end.removed {
            return;
        }
        match muxes[end.side as usize].send(end.key, &message) {
            Ok(()) => {
                assert!(end.opened.is_some() && !end.app_closed && end.is_live());
                end.sent.push(message);
            }
            Err(SendError::Blocked) => assert!(end.is_live() && !end.app_closed),
            Err(SendError::Closed(_)) => {}
            Err(SendError::TooLarge) => panic!("{len} bytes are allowed"),
        }
    }

    pub(super) fn recv(&mut self, muxes: &mut [Mux; 2], end: u8, times: u8) {
        let Some(index) = self.pick(end) else { return };
        for _ in 0..=times {
            if !self.take(muxes, index) {
                break;
            }
        }
    }

    pub(super) fn recv_all(&mut self, muxes: &mut [Mux; 2]) {
        for index in 0..self.0.len() {
            while self.take(muxes, index) {}
        }
    }

    /// Receives one message and checks that it is the next one that the peer
    /// sent.
    fn take(&mut self, muxes: &mut [Mux; 2], index: usize) -> bool {
        let end = &self.0[index];
        if end.removed {
            return false;
        }
        let Some(message) = muxes[end.side as usize].recv(end.key) else { return false };
        assert!(end.opened.is_some(), "a message before the stream was open");
        let nth = end.received;
        let sent = |peer: usize| self.0[peer].sent.get(nth) == Some(&message);
        let from = match end.bound {
            Some(peer) => Some(peer).filter(|peer| sent(*peer)),
            None => self.peers(index).into_iter().find(|peer| sent(*peer)),
        };
        assert!(from.is_some(), "message {nth} was not sent, or not now");
        let end = &mut self.0[index];
        (end.bound, end.received) = (from, nth + 1);
        true
    }

    /// The far ends with which this end may share a handshake.
    fn peers(&self, index: usize) -> Vec<usize> {
        match self.0[index].side {
            Side::Executor => self.0[index].connected_by.into_iter().collect(),
            Side::Orchestrator => {
                let asked = |peer: &usize| self.0[*peer].connected_by == Some(index);
                (0..self.0.len()).filter(asked).filter(|i| self.0[*i].opened.is_some()).collect()
            }
        }
    }

    pub(super) fn close(&mut self, muxes: &mut [Mux; 2], now: Instant, end: u8) {
        let Some(index) = self.pick(end) else { return };
        let end = &mut self.0[index];
        if end.is_live() {
            end.app_closed = true;
            end.pending = None;
            muxes[end.side as usize].close(now, end.key);
        }
    }

    pub(super) fn executor_restarted(&mut self) {
        for end in self.0.iter_mut().filter(|end| end.side == Side::Executor) {
            end.removed = true;
            end.pending = None;
        }
    }

    // ---- events --------------------------------------------------------------------

    fn find(&self, side: Side, key: Key) -> usize {
        let found =
            self.0.iter().position(|end| end.side == side && end.key == key && !end.removed);
        found.expect("an event of a stream that never existed, or was refused")
    }

    pub(super) fn event(&mut self, side: Side, now: Instant, event: Event, wire: &Wire) {
        if let Event::AuthorizationNeeded {
            key, stream: id, peer, authorization, pending, ..
        } = event
        {
            let text = std::str::from_utf8(&authorization).expect("it was checked");
            let from: usize = text.parse().expect("no other peer can prove this key");
            let (number, profile) = (self.0[from].id, self.0[from].profile);
            assert_eq!(id, stream(number), "a handshake for another stream");
            assert_eq!(&peer, orchestrator().public_for(profile.suite()));
            let end = self.add(side, key, number, profile);
            (end.connected_by, end.pending) = (Some(from), Some(pending));
            return;
        }
        let (Event::Opened { key }
        | Event::Readable { key }
        | Event::Writable { key }
        | Event::Ended { key }
        | Event::Closed { key, .. }
        | Event::AuthorizationNeeded { key, .. }) = event;
        let index = self.find(side, key);
        assert_eq!(self.0[index].closed, None, "an event after the last one");
        match event {
            Event::Opened { .. } => self.opened_at(index, now),
            Event::Closed { why, .. } => {
                self.may_close(index, now, why, wire);
                let end = &mut self.0[index];
                (end.closed, end.pending) = (Some(why), None);
            }
            Event::Readable { .. } | Event::Writable { .. } | Event::Ended { .. } => {
                assert!(self.0[index].opened.is_some(), "not open yet");
            }
            Event::AuthorizationNeeded { .. } => {}
        }
    }

    fn opened_at(&mut self, index: usize, now: Instant) {
        assert_eq!(self.0[index].opened, None, "opened twice");
        assert!(!self.peers(index).is_empty(), "open, but never authorized");
        self.0[index].opened = Some(now);
    }

    /// Checks that this end may end for this reason.
    fn may_close(&self, index: usize, now: Instant, why: Closed, wire: &Wire) {
        let end = &self.0[index];
        let not_misbehaved = !matches!(
            why,
            Closed::PeerMisbehaved(
                Misbehaviour::AckOfUnsent
                    | Misbehaviour::MessageLength
                    | Misbehaviour::RecordLength
            )
        );
        assert!(not_misbehaved, "{why}: no honest peer authenticates this");
        let Some(opened) = end.opened else { return };
        if !end.profile.is_reliable() {
            return;
        }
        let allowed = match why {
            Closed::Finished => {
                end.app_closed || self.peers(index).iter().any(|peer| self.0[*peer].app_closed)
            }
            Closed::Lost => now >= opened + STREAM_GRACE,
            Closed::Reset(ResetReason::UnknownStream) => wire.got_unknown_stream(end.side, end.id),
            _ => false,
        };
        assert!(allowed, "an open reliable stream ended: {why}");
    }

    // ---- the end -------------------------------------------------------------------

    /// Checks that everything has arrived, on an honest network: at streams
    /// that are open at both ends, and at those whose far end closed them
    /// gracefully.
    pub(super) fn all_arrived(&self) {
        for (index, end) in self.0.iter().enumerate() {
            assert!(end.pending.is_none(), "no verdict was given");
            if end.opened.is_none() || end.removed || !end.profile.is_reliable() {
                continue;
            }
            let &[peer] = self.peers(index).as_slice() else { continue };
            if self.peers(peer) != [index] {
                continue; // a replayed handshake: two ends, one peer
            }
            let peer = &self.0[peer];
            let both = end.is_live() && peer.is_live() && peer.opened.is_some();
            let finished =
                end.closed == Some(Closed::Finished) && peer.app_closed && !end.app_closed;
            assert!(!both || !(end.app_closed || peer.app_closed), "closed, but never ended");
            if both || finished {
                assert_eq!(end.received, peer.sent.len(), "messages are missing");
            }
        }
    }
}
