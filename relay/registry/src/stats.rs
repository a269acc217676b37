//! Counters by operation and outcome. The registry only counts; whoever embeds
//! it translates them into metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use rendez_proto::registry::error::ErrorCode;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// POST .../register
    Register,
    /// POST .../connect
    Connect,
    /// POST .../validate
    Validate,
    /// GET /v1/environments and below
    Environments,
    /// Everything under /v1/tokens
    Tokens,
    /// Everything under /v1/audit
    Audit,
    /// GET /v1/status and /v1/connections
    Status,
    /// GET /v1/openapi.json
    Document,
    /// A path that does not exist
    UnknownRoute,
    /// At the websocket, what is no good ticket of either kind
    UnknownTicket,
    /// An executor's ticket at the websocket
    ExecutorTicket,
    /// An orchestrator's ticket at the websocket
    OrchestratorTicket,
}

impl Operation {
    /// All operations.
    pub const ALL: [Operation; 12] = [
        Operation::Register,
        Operation::Connect,
        Operation::Validate,
        Operation::Environments,
        Operation::Tokens,
        Operation::Audit,
        Operation::Status,
        Operation::Document,
        Operation::UnknownRoute,
        Operation::UnknownTicket,
        Operation::ExecutorTicket,
        Operation::OrchestratorTicket,
    ];

    /// A word for counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Register => "register",
            Operation::Connect => "connect",
            Operation::Validate => "validate",
            Operation::Environments => "environments",
            Operation::Tokens => "tokens",
            Operation::Audit => "audit",
            Operation::Status => "status",
            Operation::Document => "document",
            Operation::UnknownRoute => "unknown_route",
            Operation::UnknownTicket => "unknown_ticket",
            Operation::ExecutorTicket => "executor_ticket",
            Operation::OrchestratorTicket => "orchestrator_ticket",
        }
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// As asked; for `/validate`: `valid: true`.
    Ok,
    /// A verdict of `valid: false`.
    Denied,
    /// A ticket was refused.
    Ticket(TicketFault),
    /// An answer with this code.
    Error(ErrorCode),
}

/// Why a ticket was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TicketFault {
    /// Not a ticket.
    Malformed,
    /// Signed by somebody else.
    BadSignature,
    /// Too late.
    Expired,
    /// For something else.
    WrongPurpose,
    /// Used before.
    Used,
    /// Its token is revoked or expired.
    Revoked,
    /// Its token may not be used from that address.
    Source,
    /// A newer registration took over.
    Superseded,
    /// Its environment is unknown here.
    Unknown,
}

impl TicketFault {
    const ALL: [TicketFault; 9] = [
        TicketFault::Malformed,
        TicketFault::BadSignature,
        TicketFault::Expired,
        TicketFault::WrongPurpose,
        TicketFault::Used,
        TicketFault::Revoked,
        TicketFault::Source,
        TicketFault::Superseded,
        TicketFault::Unknown,
    ];

    /// A word for counters.
    pub fn as_str(self) -> &'static str {
        match self {
            TicketFault::Malformed => "ticket_malformed",
            TicketFault::BadSignature => "ticket_bad_signature",
            TicketFault::Expired => "ticket_expired",
            TicketFault::WrongPurpose => "ticket_wrong_purpose",
            TicketFault::Used => "ticket_used",
            TicketFault::Revoked => "ticket_revoked",
            TicketFault::Source => "ticket_wrong_source",
            TicketFault::Superseded => "ticket_superseded",
            TicketFault::Unknown => "ticket_unknown",
        }
    }
}

impl Outcome {
    /// A word for counters: of an error its code.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Denied => "denied",
            Outcome::Ticket(fault) => fault.as_str(),
            Outcome::Error(code) => code.as_str(),
        }
    }
}

fn outcomes() -> impl Iterator<Item = Outcome> {
    [Outcome::Ok, Outcome::Denied]
        .into_iter()
        .chain(TicketFault::ALL.map(Outcome::Ticket))
        .chain(ErrorCode::ALL.iter().copied().map(Outcome::Error))
}

/// One counter per operation and outcome.
#[derive(Debug)]
pub struct Stats {
    counters: Vec<(Operation, Outcome, AtomicU64)>,
}

impl Default for Stats {
    fn default() -> Self {
        let pairs = Operation::ALL
            .into_iter()
            .flat_map(|operation| outcomes().map(move |outcome| (operation, outcome)));
        Self { counters: pairs.map(|(op, outcome)| (op, outcome, AtomicU64::new(0))).collect() }
    }
}

impl Stats {
    pub(crate) fn count(&self, operation: Operation, outcome: Outcome) {
        if let Some(counter) = self.counter(operation, outcome) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often `operation` ended with `outcome`.
    pub fn get(&self, operation: Operation, outcome: Outcome) -> u64 {
        self.counter(operation, outcome).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// All counters.
    pub fn all(&self) -> impl Iterator<Item = (Operation, Outcome, u64)> + '_ {
        self.counters
            .iter()
            .map(|(operation, outcome, n)| (*operation, *outcome, n.load(Ordering::Relaxed)))
    }

    /// All counters that are not zero.
    pub fn nonzero(&self) -> impl Iterator<Item = (Operation, Outcome, u64)> + '_ {
        self.all().filter(|(_, _, n)| *n > 0)
    }

    // about 200 entries: a scan is cheap beside the request that it counts
    fn counter(&self, operation: Operation, outcome: Outcome) -> Option<&AtomicU64> {
        self.counters
            .iter()
            .find(|(op, out, _)| *op == operation && *out == outcome)
            .map(|(_, _, counter)| counter)
    }
}

/// What is asked of a store, for counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreCall {
    /// Tokens and blocked subjects are looked up.
    ReadTokens,
    /// Tokens are made, rotated, revoked or used; executors are enrolled.
    WriteTokens,
    /// Environments and registrations are looked up.
    ReadEnvironments,
    /// Registrations begin or end; environments are revoked.
    WriteEnvironments,
    /// What was withdrawn is asked for.
    ReadRevocations,
    /// Tickets are used.
    Redeem,
    /// The history of connections is read.
    ReadHistory,
    /// It is written.
    WriteHistory,
    /// Its old end is removed.
    PruneHistory,
    /// The audit log is read.
    ReadAudit,
    /// It is written.
    WriteAudit,
    /// Its old end is removed.
    PruneAudit,
}

impl StoreCall {
    /// All calls.
    pub const ALL: [StoreCall; 12] = [
        StoreCall::ReadTokens,
        StoreCall::WriteTokens,
        StoreCall::ReadEnvironments,
        StoreCall::WriteEnvironments,
        StoreCall::ReadRevocations,
        StoreCall::Redeem,
        StoreCall::ReadHistory,
        StoreCall::WriteHistory,
        StoreCall::PruneHistory,
        StoreCall::ReadAudit,
        StoreCall::WriteAudit,
        StoreCall::PruneAudit,
    ];

    /// Whether it writes.
    pub fn writes(self) -> bool {
        match self {
            StoreCall::WriteTokens
            | StoreCall::WriteEnvironments
            | StoreCall::Redeem
            | StoreCall::WriteHistory
            | StoreCall::PruneHistory
            | StoreCall::WriteAudit
            | StoreCall::PruneAudit => true,
            StoreCall::ReadTokens
            | StoreCall::ReadEnvironments
            | StoreCall::ReadRevocations
            | StoreCall::ReadHistory
            | StoreCall::ReadAudit => false,
        }
    }

    /// A word for counters.
    pub fn as_str(self) -> &'static str {
        match self {
            StoreCall::ReadTokens => "read_tokens",
            StoreCall::WriteTokens => "write_tokens",
            StoreCall::ReadEnvironments => "read_environments",
            StoreCall::WriteEnvironments => "write_environments",
            StoreCall::ReadRevocations => "read_withdrawals",
            StoreCall::Redeem => "redeem",
            StoreCall::ReadHistory => "read_history",
            StoreCall::WriteHistory => "write_history",
            StoreCall::PruneHistory => "prune_history",
            StoreCall::ReadAudit => "read_audit",
            StoreCall::WriteAudit => "write_audit",
            StoreCall::PruneAudit => "prune_audit",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_calls_have_distinct_indexes() {
        for (i, call) in StoreCall::ALL.into_iter().enumerate() {
            assert_eq!(call as usize, i, "{}", call.as_str());
        }
    }
}
