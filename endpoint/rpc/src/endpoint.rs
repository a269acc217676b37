//! The [`Mux`] of one endpoint, shared by the pump that drives it and the
//! tasks that use its streams.
//!
//! Everybody locks the core for a moment, changes it, and wakes whom the core
//! names; there is no queue of commands. The lock is never held over an
//! `.await`. Streams and what they hold outlive the websocket: a [`Driver`]
//! attaches the core to one socket, and dropping it detaches.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_endpoint::{
    Closed, Connect, ConnectError, Event, Key, Mux, PendingHandshake, Refusal, SendError, Stats,
};
use rendez_proto::close::CloseFrame;
use rendez_proto::ids::{RegistrationId, StreamId};
use rendez_proto::keys::PublicKey;
use rendez_transport::{Protocol, Violation};
use tokio::sync::{Notify, watch};

use crate::channel::Channel;

/// A shared endpoint; clones are handles to the same one.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Something is in `State::incoming`.
    incoming: Notify,
}

struct State {
    mux: Mux,
    pump: Option<Waker>,
    streams: HashMap<Key, Arc<Signals>>,
    /// The handshakes that wait for a verdict, whether their requests were taken
    /// or not: as many as the core has pending.
    asking: HashMap<Key, watch::Sender<()>>,
    /// What was not taken yet. A request whose handshake is over leaves, so there
    /// are no more than in `asking`; a stream opens only after somebody took its
    /// request from here.
    incoming: VecDeque<Incoming>,
    closing: Option<CloseFrame>,
}

impl State {
    /// Takes a request that nobody has taken yet out of the queue: its handshake
    /// is over.
    fn take_back(&mut self, key: Key) {
        let is_it = |incoming: &Incoming| match incoming {
            Incoming::Authorization(request) => {
                request.pending.as_ref().is_some_and(|(pending, _)| *pending == key)
            }
            Incoming::Opened(_) => false,
        };
        let at = self.incoming.iter().position(is_it);
        if let Some(Incoming::Authorization(mut request)) =
            at.and_then(|at| self.incoming.remove(at))
        {
            request.pending = None; // there is nothing to answer any more
        }
    }
}

/// How a stream's tasks learn that it changed.
pub(crate) struct Signals {
    pub(crate) readable: Notify,
    pub(crate) writable: Notify,
    pub(crate) phase: watch::Sender<Phase>,
}

impl Signals {
    pub(crate) fn is_closed(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Closed(_))
    }

    fn closed(&self, why: Closed) {
        if !self.is_closed() {
            self.phase.send_replace(Phase::Closed(why));
            self.readable.notify_one();
            self.writable.notify_waiters();
        }
    }
}

/// Where a stream is in its life.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    Opening,
    Open,
    /// Over, but not everything that arrived was taken.
    Ended,
    Closed(Closed),
}

/// What an executor's endpoint receives.
pub enum Incoming {
    /// An orchestrator wants a stream; the registry must say whether it may.
    Authorization(AuthorizationRequest),
    /// An authorized stream is open.
    Opened(Channel),
}

/// A handshake that waits for the registry's verdict. Dropping it unanswered
/// refuses it.
pub struct AuthorizationRequest {
    /// The stream's id on the relay.
    pub stream: StreamId,
    /// The registration under which the handshake came.
    pub registration: RegistrationId,
    /// The orchestrator's static key, proven by the handshake.
    pub peer: PublicKey,
    /// The registry's opaque authorization for that key.
    pub authorization: Bytes,
    endpoint: Endpoint,
    pending: Option<(Key, PendingHandshake)>,
    gone: watch::Receiver<()>,
}

impl AuthorizationRequest {
    /// Waits until the handshake is over without a verdict: its peer reset it,
    /// or the websocket or the time for it is gone. Nobody cares for the verdict
    /// any more.
    pub async fn gone(&self) {
        // its sender goes with the handshake, and says nothing before
        let _ = self.gone.clone().changed().await;
    }

    /// Lets the stream open: the registry has said yes for [`Self::peer`].
    pub fn authorize(mut self) {
        self.answer(|mux, key, pending| mux.authorize(now(), key, pending.authorize()));
    }

    /// Refuses the stream.
    pub fn refuse(mut self, why: Refusal) {
        self.answer(|mux, key, _| mux.refuse(now(), key, why));
    }

    fn answer(&mut self, answer: impl FnOnce(&mut Mux, Key, PendingHandshake)) {
        if let Some((key, pending)) = self.pending.take() {
            let mut state = self.endpoint.lock();
            state.asking.remove(&key);
            answer(&mut state.mux, key, pending);
            self.endpoint.settle(&mut state);
        }
    }
}

impl Drop for AuthorizationRequest {
    fn drop(&mut self) {
        self.answer(|mux, key, _| mux.refuse(now(), key, Refusal::Denied));
    }
}

impl Endpoint {
    /// Shares a core.
    pub fn new(mux: Mux) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State {
                mux,
                pump: None,
                streams: HashMap::new(),
                asking: HashMap::new(),
                incoming: VecDeque::new(),
                closing: None,
            }),
            incoming: Notify::new(),
        }))
    }

    /// Attaches the core to a socket; give the driver to the pump.
    pub fn attach(&self, registration: RegistrationId) -> Driver {
        self.change(|mux| mux.socket_opened(now(), registration));
        Driver { endpoint: self.clone() }
    }

    /// Opens a stream and waits for its handshake.
    ///
    /// # Errors
    /// [`OpenError`] tells a misuse from what the other end decided.
    pub async fn connect(&self, connect: Connect) -> Result<Channel, OpenError> {
        // Owns the stream from here on: cancelling this future closes it.
        let channel = {
            let mut state = self.lock();
            let key = state.mux.connect(now(), connect)?;
            let channel = self.channel_in(&mut state, key, Phase::Opening);
            self.settle(&mut state);
            channel
        };
        channel.opened().await.map_err(OpenError::Closed)?;
        Ok(channel)
    }

    /// The next event of an executor's endpoint. One task asks at a time.
    pub async fn incoming(&self) -> Incoming {
        loop {
            let notified = self.0.incoming.notified();
            if let Some(incoming) = self.lock().incoming.pop_front() {
                return incoming;
            }
            notified.await;
        }
    }

    /// Closes the socket in good order once everything is sent. Final: a
    /// socket that is attached later closes at once.
    pub fn shut_down(&self, frame: CloseFrame) {
        let mut state = self.lock();
        state.closing = Some(frame);
        if let Some(pump) = state.pump.take() {
            pump.wake();
        }
    }

    /// Whether [`shut_down`](Self::shut_down) was called.
    pub fn is_shut_down(&self) -> bool {
        self.lock().closing.is_some()
    }

    /// Whether a stream is open or opening.
    pub fn has_streams(&self) -> bool {
        self.lock().streams.values().any(|signals| !signals.is_closed())
    }

    /// Lets `duration` pass while no socket is attached. The core's timers,
    /// which a pump runs otherwise, go on: a stream whose grace is over ends.
    pub async fn wait_detached(&self, duration: Duration) {
        let until = now() + duration;
        loop {
            let next = self.lock().mux.poll_timeout().map_or(until, |at| at.min(until));
            tokio::time::sleep_until(next.into()).await;
            let now = now();
            self.change(|mux| mux.handle_timeout(now));
            if now >= until {
                return;
            }
        }
    }

    /// Ends every stream here as lost: there is no way back to the other end.
    pub fn abandon(&self) {
        for signals in self.lock().streams.values() {
            signals.closed(Closed::Lost);
        }
    }

    /// The core's counters.
    pub fn stats(&self) -> Stats {
        self.lock().mux.stats()
    }

    pub(crate) fn send(&self, key: Key, message: &Bytes) -> Result<(), SendError> {
        self.change(|mux| mux.send(key, message))
    }

    pub(crate) fn recv(&self, key: Key) -> Option<Bytes> {
        self.change(|mux| mux.recv(key))
    }

    pub(crate) fn close(&self, key: Key) {
        self.change(|mux| mux.close(now(), key));
    }

    pub(crate) fn reset(&self, key: Key) {
        self.change(|mux| mux.reset(now(), key));
    }

    pub(crate) fn forget(&self, key: Key) {
        self.lock().streams.remove(&key);
    }

    /// Changes the core, then tells everybody whom its events concern.
    fn change<T>(&self, change: impl FnOnce(&mut Mux) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state.mux);
        self.settle(&mut state);
        result
    }

    fn settle(&self, state: &mut State) {
        self.dispatch(state);
        if let Some(pump) = state.pump.take() {
            pump.wake();
        }
    }

    fn dispatch(&self, state: &mut State) {
        while let Some(event) = state.mux.poll_event() {
            match event {
                Event::AuthorizationNeeded {
                    key,
                    stream,
                    registration,
                    peer,
                    authorization,
                    pending,
                } => {
                    let endpoint = self.clone();
                    let (asking, gone) = watch::channel(());
                    state.asking.insert(key, asking);
                    state.incoming.push_back(Incoming::Authorization(AuthorizationRequest {
                        stream,
                        registration,
                        peer,
                        authorization,
                        endpoint,
                        pending: Some((key, pending)),
                        gone,
                    }));
                    self.0.incoming.notify_one();
                }
                Event::Opened { key } => match state.streams.get(&key) {
                    Some(signals) => drop(signals.phase.send_replace(Phase::Open)),
                    None => {
                        let channel = self.channel_in(state, key, Phase::Open);
                        state.incoming.push_back(Incoming::Opened(channel));
                        self.0.incoming.notify_one();
                    }
                },
                Event::Readable { key } => {
                    if let Some(signals) = state.streams.get(&key) {
                        signals.readable.notify_one();
                    }
                }
                Event::Writable { key } => {
                    if let Some(signals) = state.streams.get(&key) {
                        signals.writable.notify_waiters();
                    }
                }
                Event::Ended { key } => {
                    if let Some(signals) = state.streams.get(&key)
                        && !signals.is_closed()
                    {
                        signals.phase.send_replace(Phase::Ended);
                    }
                }
                Event::Closed { key, why } => {
                    if let Some(signals) = state.streams.get(&key) {
                        signals.closed(why);
                    }
                    if state.asking.remove(&key).is_some() {
                        state.take_back(key);
                    }
                }
            }
        }
    }

    fn channel_in(&self, state: &mut State, key: Key, phase: Phase) -> Channel {
        let signals = Arc::new(Signals {
            readable: Notify::new(),
            writable: Notify::new(),
            phase: watch::Sender::new(phase),
        });
        state.streams.insert(key, signals.clone());
        Channel::new(self.clone(), key, signals)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The core has no invariant that a panic of a user could break halfway.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a stream did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The request itself cannot be served.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The stream ended before it was open.
    #[error("{0}")]
    Closed(Closed),
}

/// The core attached to one socket; dropping it detaches.
pub struct Driver {
    endpoint: Endpoint,
}

impl Driver {
    fn drive<T>(&self, change: impl FnOnce(&mut Mux) -> T) -> T {
        let mut state = self.endpoint.lock();
        let result = change(&mut state.mux);
        self.endpoint.dispatch(&mut state);
        result
    }
}

impl Protocol for Driver {
    fn handle_message(&mut self, now: Instant, message: Bytes) -> Result<(), Violation> {
        self.drive(|mux| mux.handle_message(now, message));
        Ok(())
    }

    fn handle_text(&mut self) -> Result<(), Violation> {
        // As stock executors do. It is no frame, and what is no frame ends no
        // socket here: a relay that sends either must not end the streams of
        // the Codex profile, which live as long as the socket.
        self.drive(Mux::handle_text);
        Ok(())
    }

    fn wants_read(&self) -> bool {
        self.endpoint.lock().mux.wants_read()
    }

    fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        self.drive(|mux| mux.poll_transmit(now))
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.endpoint.lock().mux.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.drive(|mux| mux.handle_timeout(now));
    }

    fn register(&mut self, waker: &Waker) {
        let mut state = self.endpoint.lock();
        if !state.pump.as_ref().is_some_and(|pump| pump.will_wake(waker)) {
            state.pump = Some(waker.clone());
        }
    }

    fn closing(&self) -> Option<CloseFrame> {
        self.endpoint.lock().closing.clone()
    }

    fn wants_ping(&mut self) -> bool {
        self.endpoint.lock().mux.take_doubt()
    }

    fn is_impatient(&self) -> bool {
        self.endpoint.lock().mux.can_resume()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.drive(|mux| mux.socket_lost(now()));
        self.endpoint.lock().pump = None;
    }
}

/// The runtime's clock, so that tests may pause it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
