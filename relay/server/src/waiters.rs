//! Who waits for which environment's executor: woken by its join, never by a
//! timer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_registry::NotWaiting;
use tokio::sync::Notify;

/// Calls of `/connect` that wait on one node. Further ones are answered at
/// once, as if nothing was to be waited for.
const CONNECT_WAITERS: usize = 8192;
/// Those that wait for one environment: no more could be let in when its
/// executor comes ([`limits::ORCHESTRATORS_PER_EXECUTOR`]).
const CONNECT_WAITERS_PER_ENVIRONMENT: usize = limits::ORCHESTRATORS_PER_EXECUTOR;

/// The waiting calls of a node.
#[derive(Default)]
pub(crate) struct Waiters(Mutex<State>);

#[derive(Default)]
struct State {
    places: HashMap<EnvironmentId, Place>,
    total: usize,
    /// The relay is going away: nobody waits any more.
    closed: bool,
}

#[derive(Default)]
struct Place {
    joined: Arc<Notify>,
    waiting: usize,
}

impl Waiters {
    /// Takes a place; dropping it gives it back.
    pub(crate) fn wait(
        self: &Arc<Self>,
        environment: &EnvironmentId,
    ) -> Result<Waiter, NotWaiting> {
        let mut state = self.lock();
        if state.closed || state.total >= CONNECT_WAITERS {
            return Err(NotWaiting);
        }
        let place = state.places.entry(environment.clone()).or_default();
        if place.waiting >= CONNECT_WAITERS_PER_ENVIRONMENT {
            return Err(NotWaiting);
        }
        place.waiting += 1;
        let joined = place.joined.clone();
        state.total += 1;
        Ok(Waiter { waiters: self.clone(), environment: environment.clone(), joined })
    }

    /// Wakes those who wait for this environment: they look again.
    pub(crate) fn wake(&self, environment: &EnvironmentId) {
        if let Some(place) = self.lock().places.get(environment) {
            place.joined.notify_waiters();
        }
    }

    /// Wakes everybody, and lets nobody wait from now on.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for place in state.places.values() {
            place.joined.notify_waiters();
        }
    }

    /// How many wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().total
    }

    /// Whether nobody waits any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those who wait.
pub(crate) struct Waiter {
    waiters: Arc<Waiters>,
    environment: EnvironmentId,
    joined: Arc<Notify>,
}

impl Waiter {
    /// Woken by the next join; enable it before looking, or a join in between
    /// is missed.
    pub(crate) fn joined(&self) -> &Notify {
        &self.joined
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut state = self.waiters.lock();
        state.total -= 1;
        if let Some(place) = state.places.get_mut(&self.environment) {
            place.waiting -= 1;
            if place.waiting == 0 {
                state.places.remove(&self.environment);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let waiters = Arc::<Waiters>::default();
        let env = |n: usize| format!("env-{n}").parse::<EnvironmentId>().unwrap();
        let mut held = Vec::new();
        for _ in 0..CONNECT_WAITERS_PER_ENVIRONMENT {
            held.push(waiters.wait(&env(0)).unwrap());
        }
        assert!(waiters.wait(&env(0)).is_err(), "one environment takes no more");
        held.pop();
        held.push(waiters.wait(&env(0)).unwrap());
        let mut n = 1;
        while held.len() < CONNECT_WAITERS {
            held.push(waiters.wait(&env(n)).unwrap());
            n += 1;
        }
        assert!(waiters.wait(&env(n)).is_err(), "the node takes no more");
        held.clear();
        assert!(waiters.lock().places.is_empty());
        assert_eq!(waiters.waiting(), 0);
        waiters.close();
        assert!(waiters.wait(&env(0)).is_err(), "nobody waits for a relay that goes");
    }
}
