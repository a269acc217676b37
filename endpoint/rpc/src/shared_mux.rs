//! The [`Mux`] of one endpoint behind a mutex, shared by the pump that drives
//! it and by the tasks that use its streams.
//!
//! Each of them locks the [`Mux`] briefly, changes it, and wakes the tasks that
//! its events concern; there is no command queue. The lock is never held across
//! an `.await`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use rendez_endpoint::{Closed, Event, Key, Mux, PendingHandshake};
use rendez_proto::close::CloseFrame;
use rendez_proto::ids::{RegistrationId, StreamId};
use rendez_proto::keys::PublicKey;
use tokio::sync::{Notify, watch};

/// A handle to the shared [`Mux`]; clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct SharedMux(Arc<Inner>);

struct Inner {
    state: Mutex<MuxState>,
    /// Notified when [`MuxState::incoming`] grows.
    incoming: Notify,
}

/// The [`Mux`], and the tasks that wait for it.
pub(crate) struct MuxState {
    pub(crate) mux: Mux,
    pub(crate) pump: Option<Waker>,
    pub(crate) streams: HashMap<Key, Arc<StreamReadiness>>,
    /// The handshakes that wait for a verdict, whether their requests were
    /// taken or not: as many as the [`Mux`] has pending.
    pub(crate) pending: HashMap<Key, watch::Sender<()>>,
    /// Events that no task has taken yet. A request is removed when its
    /// handshake ends, so there are no more of them than in `pending`; a stream
    /// opens only after its request was taken.
    pub(crate) incoming: VecDeque<IncomingEvent>,
    pub(crate) closing: Option<CloseFrame>,
}

/// An event of an executor's endpoint that no task has taken yet.
pub(crate) enum IncomingEvent {
    /// A peer waits for the registry's verdict.
    Authorization {
        key: Key,
        stream: StreamId,
        registration: RegistrationId,
        peer: PublicKey,
        authorization: Bytes,
        pending: PendingHandshake,
        /// Closes when the handshake ends.
        cancelled: watch::Receiver<()>,
    },
    /// A stream is open.
    Opened { key: Key, readiness: Arc<StreamReadiness> },
}

/// The wait points of the tasks of one stream.
pub(crate) struct StreamReadiness {
    pub(crate) readable: Notify,
    pub(crate) writable: Notify,
    pub(crate) phase: watch::Sender<StreamPhase>,
}

/// The phase of a stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum StreamPhase {
    Opening,
    Open,
    /// Ended, with received messages still unread.
    Ended,
    Closed(Closed),
}

impl StreamReadiness {
    pub(crate) fn is_closed(&self) -> bool {
        matches!(*self.phase.borrow(), StreamPhase::Closed(_))
    }

    pub(crate) fn close(&self, why: Closed) {
        if !self.is_closed() {
            self.phase.send_replace(StreamPhase::Closed(why));
            self.readable.notify_one();
            self.writable.notify_waiters();
        }
    }
}

impl SharedMux {
    pub(crate) fn new(mux: Mux) -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(MuxState {
                mux,
                pump: None,
                streams: HashMap::new(),
                pending: HashMap::new(),
                incoming: VecDeque::new(),
                closing: None,
            }),
            incoming: Notify::new(),
        }))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, MuxState> {
        self.0.state.lock()
    }

    /// Changes the [`Mux`], then wakes the pump and the tasks that its events
    /// concern.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Mux) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state.mux);
        self.apply_events(&mut state);
        result
    }

    /// Changes the [`Mux`] from within the pump, which needs no waking.
    pub(crate) fn drive<T>(&self, change: impl FnOnce(&mut Mux) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state.mux);
        self.dispatch(&mut state);
        result
    }

    /// Handles the events of a change that was made under the lock, and wakes
    /// the pump.
    pub(crate) fn apply_events(&self, state: &mut MuxState) {
        self.dispatch(state);
        state.wake_pump();
    }

    /// Waits for the next event of an executor's endpoint.
    pub(crate) async fn incoming(&self) -> IncomingEvent {
        loop {
            let notified = self.0.incoming.notified();
            if let Some(incoming) = self.lock().incoming.pop_front() {
                return incoming;
            }
            notified.await;
        }
    }

    fn dispatch(&self, state: &mut MuxState) {
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
                    let (sender, cancelled) = watch::channel(());
                    state.pending.insert(key, sender);
                    state.incoming.push_back(IncomingEvent::Authorization {
                        key,
                        stream,
                        registration,
                        peer,
                        authorization,
                        pending,
                        cancelled,
                    });
                    self.0.incoming.notify_one();
                }
                Event::Opened { key } => match state.streams.get(&key) {
                    Some(readiness) => drop(readiness.phase.send_replace(StreamPhase::Open)),
                    None => {
                        let readiness = state.add_stream(key, StreamPhase::Open);
                        state.incoming.push_back(IncomingEvent::Opened { key, readiness });
                        self.0.incoming.notify_one();
                    }
                },
                Event::Readable { key } => {
                    if let Some(readiness) = state.streams.get(&key) {
                        readiness.readable.notify_one();
                    }
                }
                Event::Writable { key } => {
                    if let Some(readiness) = state.streams.get(&key) {
                        readiness.writable.notify_waiters();
                    }
                }
                Event::Ended { key } => {
                    if let Some(readiness) = state.streams.get(&key)
                        && !readiness.is_closed()
                    {
                        readiness.phase.send_replace(StreamPhase::Ended);
                    }
                }
                Event::Closed { key, why } => {
                    if let Some(readiness) = state.streams.get(&key) {
                        readiness.close(why);
                    }
                    if state.pending.remove(&key).is_some() {
                        state.drop_request(key);
                    }
                }
            }
        }
    }
}

impl MuxState {
    /// Adds a stream that tasks may wait for.
    pub(crate) fn add_stream(&mut self, key: Key, phase: StreamPhase) -> Arc<StreamReadiness> {
        let readiness = Arc::new(StreamReadiness {
            readable: Notify::new(),
            writable: Notify::new(),
            phase: watch::Sender::new(phase),
        });
        self.streams.insert(key, readiness.clone());
        readiness
    }

    pub(crate) fn wake_pump(&mut self) {
        if let Some(pump) = self.pump.take() {
            pump.wake();
        }
    }

    /// Removes the request of a handshake that has ended, if no task has taken
    /// it.
    fn drop_request(&mut self, over: Key) {
        self.incoming.retain(|incoming| {
            !matches!(incoming, IncomingEvent::Authorization { key, .. } if *key == over)
        });
    }
}

/// The runtime's clock, so that tests may pause it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
