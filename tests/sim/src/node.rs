//! An endpoint's process: its mux, its clock, its shell and its application.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use rendez_endpoint::{Identity, Key, Mux, Stats};
use rendez_proto::keys::PublicKey;
use rendez_proto::profile::Profile;

use crate::plan::{Conversation, Path};
use crate::registry::{ConnectReply, Registration};
use crate::relay::SocketId;
use crate::rng::Rng;
use crate::rules::StreamIndex;
use crate::{MS, Micros, SEC};

/// An endpoint's process.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) role: Role,
    pub(crate) identity: Identity,
    pub(crate) path: Path,
    pub(crate) mux: Mux,
    /// Counters of this node's earlier muxes.
    pub(crate) past: [u64; 4],
    /// Its process runs. Counts its lives, so that answers to an earlier one
    /// are dropped.
    pub(crate) alive: bool,
    pub(crate) life: u32,
    /// Its clock minus the world's.
    pub(crate) ahead: i64,
    pub(crate) paused_until: Micros,
    pub(crate) slow_until: Micros,
    pub(crate) socket: Option<SocketId>,
    /// Whether the mux's timers run, by the pump or by `wait_detached`. They do not
    /// while a shell waits for the registry or dials.
    pub(crate) timers_run: bool,
    /// When the application wants to run next.
    pub(crate) alarm: Option<Micros>,
    pub(crate) backoff: Backoff,
    pub(crate) connected_at: Micros,
    pub(crate) rng: Rng,
}

#[derive(Debug)]
pub(crate) enum Role {
    Executor(Agent),
    Orchestrator(Link),
}

/// `executor-agent/src/agent/lifecycle.rs`, and a session table with one log each.
#[derive(Debug, Default)]
pub(crate) struct Agent {
    /// Kept over sockets until a dial is refused or fails too often.
    pub(crate) registration: Option<Registration>,
    pub(crate) failed_dials: u32,
    pub(crate) streams: BTreeMap<Key, Served>,
    pub(crate) sessions: BTreeMap<u32, Session>,
}

/// A stream at an executor.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) stream: StreamIndex,
    pub(crate) open: bool,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) conversation: Option<u32>,
    /// Answers that wait for room.
    pub(crate) queue: VecDeque<Bytes>,
    /// The last output that was pushed on this stream.
    pub(crate) cursor: u32,
    /// The orchestrator has everything: close when the queue is empty.
    pub(crate) complete: bool,
    pub(crate) closing: bool,
}

/// The state that survives streams: executed requests, and the output.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) number: u32,
    pub(crate) started: Micros,
    pub(crate) done: BTreeSet<u32>,
}

/// `orchestrator/src/reconnect.rs`, with the conversations above it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) profile: Profile,
    pub(crate) state: LinkState,
    /// The executor that this connection is to.
    pub(crate) executor: Option<PublicKey>,
    /// A mux serves one connection (`Client::connect` makes one each).
    pub(crate) mux_used: bool,
    pub(crate) talks: Vec<Talk>,
    pub(crate) keys: BTreeMap<Key, usize>,
}

#[derive(Debug, Clone)]
pub(crate) enum LinkState {
    /// No connection; a new one is tried when there is something to send.
    Idle {
        not_before: Micros,
    },
    /// The registry is asked.
    Asking,
    /// A socket is being opened.
    Dialling(ConnectReply),
    Up,
    /// The socket broke; the next try comes by itself.
    Waiting,
    /// Everything is queued: the socket closes when the mux has sent it all.
    Closing,
}

/// One conversation at an orchestrator.
#[derive(Debug)]
pub(crate) struct Talk {
    pub(crate) id: u32,
    pub(crate) plan: Conversation,
    pub(crate) phase: Phase,
    pub(crate) key: Option<Key>,
    pub(crate) stream: StreamIndex,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The executor has welcomed us: from then on it must know the session.
    pub(crate) session: Option<u32>,
    pub(crate) first_asked: Option<Micros>,
    /// Requests that were sent on this stream.
    pub(crate) asked: BTreeSet<u32>,
    pub(crate) answered: BTreeSet<u32>,
    pub(crate) outputs: u32,
    /// For streams that do not resend: the last time something arrived.
    pub(crate) progress: Micros,
    pub(crate) outcome: Option<Outcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Wants a stream, not before.
    Waiting(Micros),
    Asking,
    Dialling,
    /// Open; hello was not sent or not answered.
    Greeting {
        sent: bool,
    },
    Talking,
    /// Has received everything; `reported`: [`Complete`](crate::message::Kind::Complete)
    /// was sent.
    Completing {
        reported: bool,
    },
    /// Complete, and open until the world asks to close.
    Lingering,
    Closing,
    Done,
}

/// The outcome of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Complete,
    /// The executor has restarted and lost the session; nothing was repeated.
    Unknown,
}

impl Talk {
    pub(crate) fn new(id: u32, plan: Conversation) -> Self {
        Self {
            id,
            phase: Phase::Waiting(plan.starts),
            plan,
            key: None,
            stream: 0,
            readable: false,
            writable: false,
            session: None,
            first_asked: None,
            asked: BTreeSet::new(),
            answered: BTreeSet::new(),
            outputs: 0,
            progress: 0,
            outcome: None,
        }
    }

    pub(crate) fn has_everything(&self) -> bool {
        self.answered.len() == self.plan.requests.len()
            && self.outputs as usize == self.plan.outputs.len()
    }
}

impl Node {
    /// Its local time, since the world's origin.
    pub(crate) fn local(&self, now: Micros) -> Duration {
        Duration::from_micros(now.saturating_add_signed(self.ahead))
    }

    /// When its mux wants to run, in the world's time.
    pub(crate) fn timer(&self, base: std::time::Instant) -> Option<Micros> {
        if !self.alive || !self.timers_run {
            return None;
        }
        let at = self.mux.poll_timeout()?.saturating_duration_since(base);
        let micros = at.as_nanos().div_ceil(1000) as Micros;
        Some(micros.saturating_add_signed(-self.ahead).max(self.paused_until))
    }

    pub(crate) fn agent(&mut self) -> &mut Agent {
        match &mut self.role {
            Role::Executor(agent) => agent,
            Role::Orchestrator(_) => panic!("this node is no executor"),
        }
    }

    pub(crate) fn link(&mut self) -> &mut Link {
        match &mut self.role {
            Role::Orchestrator(link) => link,
            Role::Executor(_) => panic!("this node is no orchestrator"),
        }
    }

    pub(crate) fn is_executor(&self) -> bool {
        matches!(self.role, Role::Executor(_))
    }

    /// Replaces the mux; what the old one counted is kept.
    pub(crate) fn replace_mux(&mut self, mux: Mux) {
        let old = std::mem::replace(&mut self.mux, mux).stats();
        add(&mut self.past, &old);
    }

    /// Records and bytes sealed and opened, over all its muxes.
    pub(crate) fn totals(&self) -> [u64; 4] {
        let mut totals = self.past;
        add(&mut totals, &self.mux.stats());
        totals
    }
}

fn add(totals: &mut [u64; 4], stats: &Stats) {
    let more = [stats.records_out, stats.bytes_out, stats.records_in, stats.bytes_in];
    totals.iter_mut().zip(more).for_each(|(total, more)| *total += more);
}

/// `transport/src/backoff.rs`: at once after a connection that
/// worked, then exponential with full jitter.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff {
    failures: u32,
    at_once: bool,
}

/// The longest wait, and the longest while streams are held.
pub(crate) const CAP: Micros = 30 * SEC;
pub(crate) const RESUME_CAP: Micros = SEC;

impl Backoff {
    pub(crate) fn next_delay(&mut self, cap: Micros, random: u32) -> Micros {
        if std::mem::take(&mut self.at_once) {
            return 0;
        }
        let ceiling = (500 * MS * (1 << self.failures.min(16))).min(cap);
        self.failures = self.failures.saturating_add(1);
        u64::from(random) * ceiling / u64::from(u32::MAX)
    }

    pub(crate) fn connected_for(&mut self, lifetime: Micros) {
        self.at_once = lifetime >= SEC;
        if lifetime >= 60 * SEC {
            self.failures = 0;
        }
    }

    pub(crate) fn not_at_once(&mut self) {
        self.at_once = false;
    }
}
