//! The capacity of a store, whatever its engine.

use std::time::Duration;

use rendez_proto::limits;

/// How long the record of a used ticket outlives the ticket, in case the clock is
/// set back.
pub const REDEEMED_TICKET_MARGIN: Duration = Duration::from_secs(600);

/// The records of used tickets that one redemption may purge.
pub const REDEEMED_PURGE_BATCH: u32 = 64;

/// The environments of one registry. The bound limits what a token with the
/// pattern `*` can create. When it is reached, the environments that are offline
/// longest make room.
pub const ENVIRONMENTS_MAX: u32 = 100_000;

/// How long an environment must be offline before it may be purged. Machines that
/// are off overnight keep their state, and a day's pods with unique names may use
/// the whole capacity.
pub const ENVIRONMENTS_OFFLINE_KEPT: Duration = Duration::from_secs(86_400);

/// The environments that one registration may purge.
pub const ENVIRONMENTS_PURGE_BATCH: u32 = 64;

/// The pause after a purge that found nothing: a search reads all environments.
pub const ENVIRONMENTS_PURGE_PAUSE: Duration = Duration::from_secs(60);

/// The tokens of one registry, ended ones included, enrolled executors excluded.
/// When the bound is reached, the tokens that ended first make room.
pub const TOKENS_MAX: u32 = 100_000;

/// How long an ended token is kept, so that its bearer gets the reason and an
/// operator sees it. An environment that is probed once a minute leaves 86,400 of
/// them in that time.
pub const TOKENS_ENDED_KEPT: Duration = Duration::from_secs(30 * 86_400);

/// The ended tokens that the creation of one may purge.
pub const TOKENS_PURGE_BATCH: u32 = 64;

/// The enrolled executors of one registry. Revoked ones are kept, so that a
/// revoked key is never enrolled again. The bound permits enrolling each
/// environment's executor once more.
pub const ENROLLED_MAX: u32 = 2 * ENVIRONMENTS_MAX;

/// The permanently blocked subjects of other issuers.
pub const BLOCKED_SUBJECTS_MAX: u32 = 100_000;

/// The revocations that are kept for relays that have not read them yet. A relay
/// that is further behind closes every websocket instead.
pub const REVOCATIONS_KEPT: u32 = 100_000;

/// The part of a pruned audit log that carried over rows may take: one row in two,
/// so that pruning always makes room.
pub const AUDIT_ACTS_PART: u64 = 2;

/// The connections that one transaction prunes.
pub const CONNECTIONS_PRUNE_BATCH: u32 = 2000;

const _: () = assert!(limits::REVOCATIONS_PAGE < REVOCATIONS_KEPT);

/// The rows that a store may hold. Tests reduce it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Capacity {
    /// Environments.
    pub(crate) environments: u32,
    /// Tokens without a key.
    pub(crate) tokens: u32,
    /// Tokens with a key: enrolled executors.
    pub(crate) enrolled: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { environments: ENVIRONMENTS_MAX, tokens: TOKENS_MAX, enrolled: ENROLLED_MAX }
    }
}
