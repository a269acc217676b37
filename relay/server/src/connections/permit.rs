//! The TCP connections that a listener has open.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::strangers::{Closed, StrangerBounds, StrangerClosed, Strangers};

/// How often the log names a stranger that was closed.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The bounds on a listener's open TCP connections.
#[derive(Debug, Clone)]
pub struct ConnectionLimit {
    permits: Arc<Semaphore>,
    pub(crate) max: usize,
    strangers: Arc<StrangerTable>,
}

#[derive(Debug)]
struct StrangerTable {
    strangers: Mutex<Strangers>,
    closed: [AtomicU64; StrangerClosed::ALL.len()],
    /// When the log named one last, and how many were closed since.
    logged: Mutex<(Option<Instant>, u64)>,
}

/// One TCP connection's share of the bounds. Requests carry a clone of it, so that
/// a websocket, which the HTTP server has let go of, still counts.
#[derive(Clone)]
pub(crate) struct ConnectionPermit {
    held: Arc<Held>,
}

struct Held {
    _permit: OwnedSemaphorePermit,
    table: Arc<StrangerTable>,
    number: u64,
    closed: CancellationToken,
}

impl ConnectionLimit {
    pub(crate) fn new(max: usize, bounds: StrangerBounds) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        let strangers = StrangerTable {
            strangers: Mutex::new(Strangers::new(bounds)),
            closed: Default::default(),
            logged: Mutex::default(),
        };
        Self { permits: Arc::new(Semaphore::new(max)), max, strangers: Arc::new(strangers) }
    }

    /// Lets a connection in, as a stranger. When all connections are taken, the oldest
    /// stranger is closed for it; without strangers it waits.
    pub(crate) async fn admit(
        &self,
        address: Option<IpAddr>,
    ) -> Result<ConnectionPermit, AcquireError> {
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                self.close_oldest_stranger(StrangerClosed::Full);
                self.permits.clone().acquire_owned().await?
            }
        };
        let closed = CancellationToken::new();
        let (number, left) = self.strangers.strangers.lock().add(address, closed.clone());
        self.strangers.note(left);
        let table = self.strangers.clone();
        Ok(ConnectionPermit { held: Arc::new(Held { _permit: permit, table, number, closed }) })
    }

    pub(crate) fn close_oldest_stranger(&self, why: StrangerClosed) {
        let left = self.strangers.strangers.lock().close_oldest(why);
        self.strangers.note(left);
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.max.saturating_sub(self.permits.available_permits())
    }

    /// The number of open connections that have shown no valid token or ticket.
    pub fn strangers(&self) -> usize {
        self.strangers.strangers.lock().len()
    }

    /// Strangers that were closed for this reason.
    pub fn strangers_closed(&self, why: StrangerClosed) -> u64 {
        self.strangers.closed[why as usize].load(Ordering::Relaxed)
    }
}

impl StrangerTable {
    /// Counts one that was closed, and names it in the log now and then.
    fn note(&self, left: Option<Closed>) {
        let Some(Closed { address, why }) = left else { return };
        self.closed[why as usize].fetch_add(1, Ordering::Relaxed);
        let mut logged = self.logged.lock();
        let (last, count) = &mut *logged;
        *count += 1;
        let now = Instant::now();
        if last.is_none_or(|last| now.duration_since(last) >= LOG_INTERVAL) {
            let address = address.map(tracing::field::display);
            tracing::warn!(
                address,
                why = why.as_str(),
                closed = *count,
                "closed connections that had shown no token or ticket, to let others in; the \
                 address is that of the last one"
            );
            (*last, *count) = (Some(now), 0);
        }
    }
}

impl ConnectionPermit {
    /// The connection has shown a valid token or ticket.
    pub(crate) fn show_credential(&self) {
        self.held.table.strangers.lock().forget(self.held.number);
    }

    /// A proxy has named the address that the connection is used for.
    pub(crate) fn locate(&self, address: Option<IpAddr>) {
        let left = self.held.table.strangers.lock().locate(self.held.number, address);
        self.held.table.note(left);
    }

    /// Cancelled when the connection, as a stranger, has to leave.
    pub(crate) fn closed(&self) -> CancellationToken {
        self.held.closed.clone()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.table.strangers.lock().forget(self.number);
    }
}
