//! The store: the registry's durable state. One transaction per method; `now` is
//! an argument, in seconds since 1970.
//!
//! One trait per table, in a file of its own; an engine implements each of them
//! in a file of the same name: [`sqlite`] today. A change that must leave a trace
//! takes an `act`, its row of the audit log, which is written in the same
//! transaction: the row exists if, and only if, the change was made.

pub mod audit;
mod call_timer;
pub mod capacity;
pub mod connections;
pub mod registrations;
pub mod revocations;
pub mod sqlite;
pub mod tickets;
pub mod tokens;

use std::time::Duration;

use rendez_proto::limits;

pub use self::audit::AuditStore;
pub use self::connections::ConnectionStore;
pub use self::registrations::{RegisterOutcome, RegistrationStore};
pub use self::revocations::{RevocationPage, RevocationStore};
pub use self::tickets::{RedeemOutcome, Redemption, TicketStore};
pub use self::tokens::{EnrolOutcome, RotateOutcome, TokenStore, UseOutcome};

/// The registry's durable state.
pub trait Store:
    TokenStore + RegistrationStore + TicketStore + RevocationStore + ConnectionStore + AuditStore
{
}

impl<T> Store for T where
    T: TokenStore
        + RegistrationStore
        + TicketStore
        + RevocationStore
        + ConnectionStore
        + AuditStore
{
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Busy, or not reachable: the same call may succeed later.
    #[error("the database is not available: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A row is not what this version wrote. The operator has to act.
    #[error("the database holds an invalid {0}")]
    Corrupt(&'static str),
    /// There may be no more of these. The caller asked for too much.
    #[error("there are {max} {what} already, which is the limit")]
    LimitReached {
        /// Of what.
        what: &'static str,
        /// How many.
        max: u32,
    },
}

/// How often old rows of the audit log and of the history are looked for.
pub(crate) const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

const _: () = assert!(PRUNE_INTERVAL.as_secs() <= limits::KEEP_MIN.as_secs());

/// Pause after the database refused what is written in the background.
pub(crate) const WRITE_RETRY_PAUSE: Duration = Duration::from_secs(1);
