//! Drives the shared [`Mux`] over one websocket.

use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;
use rendez_endpoint::Mux;
use rendez_proto::close::CloseFrame;
use rendez_transport::{Protocol, Violation};

use crate::shared_mux::{SharedMux, now};

/// The shared [`Mux`] attached to one socket; dropping it detaches.
pub struct Driver {
    mux: SharedMux,
}

impl Driver {
    pub(crate) fn new(mux: SharedMux) -> Self {
        Self { mux }
    }
}

impl Protocol for Driver {
    fn handle_message(&mut self, now: Instant, message: Bytes) -> Result<(), Violation> {
        self.mux.drive(|mux| mux.handle_message(now, message));
        Ok(())
    }

    fn handle_text(&mut self) -> Result<(), Violation> {
        // As stock executors do: a message that is not a frame does not end the
        // socket. A relay that sends one must not end the streams of the Codex
        // profile, which last as long as the socket.
        self.mux.drive(Mux::handle_text);
        Ok(())
    }

    fn wants_read(&self) -> bool {
        self.mux.lock().mux.wants_read()
    }

    fn poll_transmit(&mut self, now: Instant, budget: usize) -> Option<Bytes> {
        self.mux.drive(|mux| mux.poll_transmit(now, budget))
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.mux.lock().mux.poll_timeout()
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.mux.drive(|mux| mux.handle_timeout(now));
    }

    fn register(&mut self, waker: &Waker) {
        let mut state = self.mux.lock();
        if !state.pump.as_ref().is_some_and(|pump| pump.will_wake(waker)) {
            state.pump = Some(waker.clone());
        }
    }

    fn closing(&self) -> Option<CloseFrame> {
        self.mux.lock().closing.clone()
    }

    fn wants_ping(&mut self) -> bool {
        self.mux.lock().mux.poll_ping()
    }

    fn wants_short_ping_timeout(&self) -> bool {
        self.mux.lock().mux.can_resume()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.mux.drive(|mux| mux.socket_lost(now()));
        self.mux.lock().pump = None;
    }
}
