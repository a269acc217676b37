//! A hub behind a mutex, and the wakers of the tasks that drive its ports.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use rendez_proto::close::CloseFrame;
use rendez_proto::ids::Generation;
use rendez_relay_core::{
    Account, Capabilities, Hub, HubAccounts, JoinError, KeyFingerprint, PortKey,
};

/// The hub of one executor, shared by the tasks that drive its ports.
pub(crate) struct SharedHub(Mutex<HubState>);

struct HubState {
    hub: Hub,
    /// A waker is removed when it is woken, so there is at most one per port.
    wakers: HashMap<PortKey, Waker>,
    /// The close frame for every port, once the relay drains.
    closing: Option<CloseFrame>,
}

impl SharedHub {
    pub(super) fn new(accounts: HubAccounts) -> Self {
        let hub = Hub::new(accounts);
        Self(Mutex::new(HubState { hub, wakers: HashMap::new(), closing: None }))
    }

    pub(super) fn join_executor(
        &self,
        generation: Generation,
        token: Arc<Account>,
        now: Instant,
    ) -> Result<PortKey, JoinError> {
        self.change(|hub| hub.join_executor(generation, token, now))
    }

    pub(super) fn join_orchestrator(
        &self,
        fingerprint: KeyFingerprint,
        can: Capabilities,
        token: Arc<Account>,
    ) -> Result<PortKey, JoinError> {
        self.change(|hub| hub.join_orchestrator(fingerprint, can, token))
    }

    pub(super) fn leave(&self, port: PortKey) {
        self.change(|hub| hub.leave(port, Instant::now()));
        self.lock().wakers.remove(&port);
    }

    /// Runs the hub's timers. Returns `false` if the hub is empty.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        self.change(|hub| {
            hub.handle_timeout(now);
            !hub.is_empty()
        })
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Hub) -> T) -> T {
        read(&self.lock().hub)
    }

    /// Closes every websocket with `frame`.
    pub(crate) fn close(&self, frame: CloseFrame) {
        let mut state = self.lock();
        state.closing = Some(frame);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_values().for_each(Waker::wake);
    }

    /// The frame to close a port with, once it must close.
    pub(crate) fn closing(&self, port: PortKey) -> Option<CloseFrame> {
        let state = self.lock();
        if state.hub.is_joined(port) { state.closing.clone() } else { Some(CloseFrame::SUPERSEDED) }
    }

    pub(crate) fn register(&self, port: PortKey, waker: &Waker) {
        self.lock().wakers.insert(port, waker.clone());
    }

    /// Wakes the task that drives a port.
    pub(super) fn wake(&self, port: PortKey) {
        let waker = self.lock().wakers.remove(&port);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Changes the hub, then wakes the ports that it names, without the lock.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Hub) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state.hub);
        // One frame wakes one port: no allocation in the common case.
        let mut first = None;
        let mut rest = Vec::new();
        while let Some(port) = state.hub.poll_wake() {
            let Some(waker) = state.wakers.remove(&port) else { continue };
            match first {
                None => first = Some(waker),
                Some(_) => rest.push(waker),
            }
        }
        drop(state);
        first.into_iter().chain(rest).for_each(Waker::wake);
        result
    }

    fn lock(&self) -> MutexGuard<'_, HubState> {
        self.0.lock()
    }
}
