//! Bounds that every store holds, whatever its engine.

use std::time::Duration;

use rendez_proto::limits;

/// How long the record of a used ticket outlives the ticket: covers a clock
/// that is set back.
pub const REDEEMED_TICKET_MARGIN: Duration = Duration::from_secs(600);

/// Records of used tickets that one redemption may purge.
pub const REDEEMED_PURGE_BATCH: u32 = 64;

/// Environments of one registry: bounds what a token with the pattern `*` can
/// create. Where there are so many, those that are away longest make room.
pub const ENVIRONMENTS_MAX: u32 = 100_000;

/// How long an environment's executor must be away before it may be forgotten
/// for others: machines that are off for the night find all as it was, and so
/// many pods with a name of their own may come a day as there is room for.
pub const ENVIRONMENTS_AWAY_KEPT: Duration = Duration::from_secs(86_400);

/// Environments that one registration may have forgotten.
pub const ENVIRONMENTS_PURGE_BATCH: u32 = 64;

/// How long after nothing was found to be forgotten it is looked for again: that
/// goes through all environments.
pub const ENVIRONMENTS_PURGE_PAUSE: Duration = Duration::from_secs(60);

/// Tokens of one registry, those that ended included, and enrolled executors
/// not. Where there are so many, the ones that ended first make room.
pub const TOKENS_MAX: u32 = 100_000;

/// How long a token that was revoked or expired is kept, so that its bearer is
/// told so and an operator sees it. For each environment that is probed once a
/// minute, 86,400 of them.
pub const TOKENS_ENDED_KEPT: Duration = Duration::from_secs(30 * 86_400);

/// Ended tokens that the creation of one may remove.
pub const TOKENS_PURGE_BATCH: u32 = 64;

/// EnrolOutcome executors of one registry, revoked ones included: those stay, so
/// that a key which was revoked is never enrolled again. Room to enrol each
/// environment's executor anew.
pub const ENROLLED_MAX: u32 = 2 * ENVIRONMENTS_MAX;

/// Subjects of other issuers that are blocked, for good.
pub const BLOCKED_SUBJECTS_MAX: u32 = 100_000;

/// Withdrawals that a store keeps for relays that have not read them yet. A
/// relay that is further behind closes every websocket instead.
pub const REVOCATIONS_KEPT: u32 = 100_000;

/// The part of the audit log that what people did may take, when it is carried
/// over because the log is cut for its length: one row in two, so that a cut
/// always makes room, whatever is in the log.
pub const AUDIT_ACTS_PART: u64 = 2;

/// Connections that one transaction removes as too old.
pub const CONNECTIONS_PRUNE_BATCH: u32 = 2000;

const _: () = assert!(limits::REVOCATIONS_PAGE < REVOCATIONS_KEPT);

/// How many rows of what grows without bound a store may hold. Tests shrink it.
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
