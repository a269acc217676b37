//! Calls of `/connect` that wait for an environment's executor. Its join wakes
//! them, never a timer.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_registry::WaitRefused;
use tokio::sync::Notify;

/// Calls of `/connect` that wait on one node. Further ones are answered at once.
const CONNECT_WAITERS: usize = 8192;
/// Those that wait for one environment: no more could join when its executor does ([`limits::ORCHESTRATORS_PER_EXECUTOR`]).
const CONNECT_WAITERS_PER_ENVIRONMENT: usize = limits::ORCHESTRATORS_PER_EXECUTOR;

/// The waiting calls of a node.
#[derive(Default)]
pub(crate) struct Waiters(Mutex<WaiterCounts>);

#[derive(Default)]
struct WaiterCounts {
    environments: HashMap<EnvironmentId, EnvironmentWaiters>,
    total: usize,
    /// The relay is stopping: no call waits any more.
    closed: bool,
}

#[derive(Default)]
struct EnvironmentWaiters {
    joined: Arc<Notify>,
    waiting: usize,
}

impl Waiters {
    /// Counts a call as waiting until the [`Waiter`] is dropped.
    pub(crate) fn wait(
        self: &Arc<Self>,
        environment: &EnvironmentId,
    ) -> Result<Waiter, WaitRefused> {
        let mut counts = self.lock();
        if counts.closed || counts.total >= CONNECT_WAITERS {
            return Err(WaitRefused);
        }
        let waiters = counts.environments.entry(environment.clone()).or_default();
        if waiters.waiting >= CONNECT_WAITERS_PER_ENVIRONMENT {
            return Err(WaitRefused);
        }
        waiters.waiting += 1;
        let joined = waiters.joined.clone();
        counts.total += 1;
        Ok(Waiter { waiters: self.clone(), environment: environment.clone(), joined })
    }

    /// Wakes the calls that wait for this environment: they check again.
    pub(crate) fn wake(&self, environment: &EnvironmentId) {
        if let Some(waiters) = self.lock().environments.get(environment) {
            waiters.joined.notify_waiters();
        }
    }

    /// Wakes all waiting calls, and refuses further ones.
    pub(crate) fn close(&self) {
        let mut counts = self.lock();
        counts.closed = true;
        for waiters in counts.environments.values() {
            waiters.joined.notify_waiters();
        }
    }

    /// The number of waiting calls.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().total
    }

    /// Whether calls may no longer wait.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, WaiterCounts> {
        self.0.lock()
    }
}

/// One waiting call.
pub(crate) struct Waiter {
    waiters: Arc<Waiters>,
    environment: EnvironmentId,
    joined: Arc<Notify>,
}

impl Waiter {
    /// Notified by the next join. Enable it before checking, or a join in between
    /// is missed.
    pub(crate) fn joined(&self) -> &Notify {
        &self.joined
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut counts = self.waiters.lock();
        counts.total -= 1;
        if let Some(waiters) = counts.environments.get_mut(&self.environment) {
            waiters.waiting -= 1;
            if waiters.waiting == 0 {
                counts.environments.remove(&self.environment);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_are_bounded_and_released() {
        let waiters = Arc::<Waiters>::default();
        let env = |n: usize| format!("env-{n}").parse::<EnvironmentId>().unwrap();
        let mut held = Vec::new();
        for _ in 0..CONNECT_WAITERS_PER_ENVIRONMENT {
            held.push(waiters.wait(&env(0)).unwrap());
        }
        assert!(waiters.wait(&env(0)).is_err(), "the environment's bound");
        held.pop();
        held.push(waiters.wait(&env(0)).unwrap());
        let mut n = 1;
        while held.len() < CONNECT_WAITERS {
            held.push(waiters.wait(&env(n)).unwrap());
            n += 1;
        }
        assert!(waiters.wait(&env(n)).is_err(), "the node's bound");
        held.clear();
        assert!(waiters.lock().environments.is_empty());
        assert_eq!(waiters.waiting(), 0);
        waiters.close();
        assert!(waiters.wait(&env(0)).is_err(), "the relay is stopping");
    }
}
