//! The store: the registry's durable state. One transaction per method; `now` is
//! an argument, in seconds since 1970.
//!
//! There is one trait per kind of data, in a file of its own. An engine implements
//! each of them in a file of the same name; today the only engine is [`sqlite`]. A
//! change that must leave a trace takes an `event`, its row of the audit log,
//! which is written in the same transaction: the row exists if, and only if, the
//! change was made.

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

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is busy or not reachable: a retry may succeed.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A row has a value that this version does not write. The operator has to
    /// act.
    #[error("the database has an invalid {0}")]
    Corrupt(&'static str),
    /// A limit is reached. The caller asked for too much.
    #[error("the limit of {max} {what} is reached")]
    LimitReached {
        /// The name of the limited rows.
        what: &'static str,
        /// The limit.
        max: u32,
    },
}

/// The interval at which old rows of the audit log and of the history are pruned.
pub(crate) const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

const _: () = assert!(PRUNE_INTERVAL.as_secs() <= limits::KEEP_MIN.as_secs());

/// The pause after the database refused a background write.
pub(crate) const WRITE_RETRY_PAUSE: Duration = Duration::from_secs(1);
