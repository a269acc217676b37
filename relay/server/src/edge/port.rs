//! A hub behind a mutex, and its ports as protocols for the pump.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_proto::close::CloseFrame;
use rendez_proto::ids::Generation;
use rendez_proto::peek::peek;
use rendez_relay_core::{
    Account, Capabilities, Hub, JoinError, KeyFingerprint, PortKey, Refusal, Shared, Standing,
};
use rendez_transport::{Protocol, Violation};

use super::traffic::Traffic;

/// The switchboard of one executor and the tasks that drive its ports.
#[derive(Default)]
pub struct SharedHub(Mutex<Switchboard>);

#[derive(Default)]
struct Switchboard {
    hub: Hub,
    /// Taken out when woken, so there is at most one per port.
    wakers: HashMap<PortKey, Waker>,
    /// The relay is going away: every port closes so.
    leaving: Option<CloseFrame>,
}

impl SharedHub {
    pub(crate) fn new(shared: Shared) -> Self {
        Self(Mutex::new(Switchboard { hub: Hub::new(shared), ..Switchboard::default() }))
    }

    pub(crate) fn join_executor(
        self: &Arc<Self>,
        generation: Generation,
        token: Arc<Account>,
        now: Instant,
    ) -> Result<HubPort, JoinError> {
        self.change(|hub| hub.join_executor(generation, token, now)).map(|key| self.port(key))
    }

    pub(crate) fn join_orchestrator(
        self: &Arc<Self>,
        fingerprint: KeyFingerprint,
        can: Capabilities,
        token: Arc<Account>,
    ) -> Result<HubPort, JoinError> {
        self.change(|hub| hub.join_orchestrator(fingerprint, can, token)).map(|key| self.port(key))
    }

    /// Runs the hub's timers; `false` if nothing is left of it.
    pub(crate) fn sweep(&self, now: Instant) -> bool {
        self.change(|hub| {
            hub.handle_timeout(now);
            !hub.is_empty()
        })
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Hub) -> T) -> T {
        read(&self.lock().hub)
    }

    /// Closes every websocket with `frame`.
    pub(crate) fn leave(&self, frame: CloseFrame) {
        let mut board = self.lock();
        board.leaving = Some(frame);
        let wakers = std::mem::take(&mut board.wakers);
        drop(board);
        wakers.into_values().for_each(Waker::wake);
    }

    fn port(self: &Arc<Self>, key: PortKey) -> HubPort {
        HubPort {
            shared: self.clone(),
            key,
            traffic: Arc::default(),
            notice: Arc::default(),
            on_refusal: None,
        }
    }

    /// Wakes the driver of one port.
    fn wake(&self, key: PortKey) {
        let waker = self.lock().wakers.remove(&key);
        waker.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Switchboard> {
        // A hub has no invariant that a panic elsewhere could break halfway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the hub, then wakes the ports that it names, without the lock.
    fn change<T>(&self, change: impl FnOnce(&mut Hub) -> T) -> T {
        let mut board = self.lock();
        let result = change(&mut board.hub);
        // One frame wakes one port: no allocation in the common case.
        let mut first = None;
        let mut rest = Vec::new();
        while let Some(key) = board.hub.poll_wake() {
            let Some(waker) = board.wakers.remove(&key) else { continue };
            match first {
                None => first = Some(waker),
                Some(_) => rest.push(waker),
            }
        }
        drop(board);
        first.into_iter().chain(rest).for_each(Waker::wake);
        result
    }
}

/// One websocket's place in a hub; dropping it leaves the hub.
pub struct HubPort {
    shared: Arc<SharedHub>,
    key: PortKey,
    traffic: Arc<Traffic>,
    /// Why it must leave, once it must.
    notice: Arc<OnceLock<CloseFrame>>,
    on_refusal: Option<Box<OnRefusal>>,
}

/// What is told of each refusal, without any lock.
type OnRefusal = dyn Fn(Refusal) + Send + Sync;

impl HubPort {
    /// Has every limit that its frames run into told to `tell`.
    pub(crate) fn on_refusal(&mut self, tell: impl Fn(Refusal) + Send + Sync + 'static) {
        self.on_refusal = Some(Box::new(tell));
    }

    /// To look at the port while its pump has it.
    pub fn watch(&self) -> PortWatch {
        let shared = Arc::downgrade(&self.shared);
        PortWatch { shared, key: self.key, traffic: self.traffic.clone() }
    }

    /// What sends this one port away, from elsewhere.
    pub(crate) fn door(&self) -> Door {
        let shared = Arc::downgrade(&self.shared);
        Door { shared, key: self.key, notice: self.notice.clone() }
    }
}

/// Sends one port away.
pub(crate) struct Door {
    shared: Weak<SharedHub>,
    key: PortKey,
    notice: Arc<OnceLock<CloseFrame>>,
}

impl Door {
    /// Nothing passes the port from now on, either way, and its websocket
    /// closes with `frame`. The first reason stands.
    pub(crate) fn show(&self, frame: CloseFrame) {
        let _ = self.notice.set(frame);
        if let Some(shared) = self.shared.upgrade() {
            shared.wake(self.key);
        }
    }

    /// The reason, once there is one.
    pub(crate) fn shown(&self) -> Option<&CloseFrame> {
        self.notice.get()
    }
}

/// A look at a port from outside of its pump. It does not keep the hub.
#[derive(Clone)]
pub struct PortWatch {
    shared: Weak<SharedHub>,
    key: PortKey,
    traffic: Arc<Traffic>,
}

impl PortWatch {
    /// What its websocket has carried.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Sends a ping as soon as the socket has room, and waits for the pong of
    /// it, or of one that was on its way already.
    pub(crate) async fn ping(&self) {
        let mut pong = std::pin::pin!(self.traffic.pong().notified());
        // before the wish: the pong may come at once
        pong.as_mut().enable();
        self.traffic.want_ping();
        if let Some(shared) = self.shared.upgrade() {
            shared.wake(self.key);
        }
        pong.await;
    }
}

impl Protocol for HubPort {
    fn handle_message(&mut self, now: Instant, message: Bytes) -> Result<(), Violation> {
        if self.notice.get().is_some() {
            return Ok(());
        }
        trace("received", &message);
        self.traffic.count_received(message.len());
        let (taken, refusal) = self.shared.change(|hub| {
            let taken = hub.handle_message(self.key, message, now);
            (taken, hub.take_refusal())
        });
        if let (Some(refusal), Some(tell)) = (refusal, &self.on_refusal) {
            tell(refusal);
        }
        taken.map_err(|_| Violation(CloseFrame::MALFORMED))
    }

    fn wants_read(&self) -> bool {
        // one that leaves is read on, so that its answer to the close is seen
        self.notice.get().is_some() || self.shared.read(|hub| hub.wants_read(self.key))
    }

    fn poll_transmit(&mut self, _now: Instant) -> Option<Bytes> {
        if self.notice.get().is_some() {
            return None;
        }
        let message = self.shared.change(|hub| hub.poll_transmit(self.key))?;
        trace("sent", &message);
        self.traffic.count_sent(message.len());
        Some(message)
    }

    /// When a port that a rate held back is read again. The hub's other
    /// deadlines are the sweeper's: they must pass also when no websocket is
    /// left to drive them.
    fn poll_timeout(&self) -> Option<Instant> {
        self.shared.read(|hub| hub.poll_port_timeout(self.key))
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.shared.change(|hub| hub.handle_port_timeout(self.key, now));
    }

    fn register(&mut self, waker: &Waker) {
        self.shared.lock().wakers.insert(self.key, waker.clone());
    }

    fn closing(&self) -> Option<CloseFrame> {
        if let Some(frame) = self.notice.get() {
            return Some(frame.clone());
        }
        let board = self.shared.lock();
        match board.hub.standing(self.key) {
            Standing::Superseded => Some(CloseFrame::SUPERSEDED),
            Standing::Joined => board.leaving.clone(),
        }
    }

    fn wants_ping(&mut self) -> bool {
        self.traffic.take_wish()
    }

    fn handle_pong(&mut self, now: Instant, round_trip: Duration) {
        self.traffic.note_pong(now, round_trip);
    }
}

/// Logs what a relay knows of a frame.
fn trace(way: &'static str, message: &[u8]) {
    if tracing::enabled!(tracing::Level::TRACE)
        && let Ok(frame) = peek(message)
    {
        let kind = frame.kind.as_str();
        // The id as a quoted text: its bytes are an orchestrator's choice.
        tracing::trace!(way, stream = ?frame.stream, kind, bytes = message.len(), "frame");
    }
}

impl Drop for HubPort {
    fn drop(&mut self) {
        self.shared.change(|hub| hub.leave(self.key, Instant::now()));
        self.shared.lock().wakers.remove(&self.key);
    }
}
