//! Counters by operation and outcome. The relay that embeds the registry exports
//! them as metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use rendez_proto::registry::error::ErrorCode;

/// The kind of a request.
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
    /// A websocket whose ticket is valid for neither kind
    UnknownTicket,
    /// A websocket with an executor's ticket
    ExecutorTicket,
    /// A websocket with an orchestrator's ticket
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

    /// The label of the counter.
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

/// The outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Success; for `/validate`, `valid: true`.
    Ok,
    /// `valid: false`.
    Denied,
    /// A ticket was refused.
    Ticket(TicketFault),
    /// An error response with this code.
    Error(ErrorCode),
}

/// Why a ticket was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TicketFault {
    /// It is not a ticket.
    Malformed,
    /// It has another signer.
    BadSignature,
    /// It is expired.
    Expired,
    /// It is for another purpose.
    WrongPurpose,
    /// It was used before.
    Used,
    /// Its token is revoked or expired.
    Revoked,
    /// Its token may not be used from that address.
    Source,
    /// A newer registration superseded its own.
    Superseded,
    /// Its environment is unknown.
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

    /// The label of the counter.
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
    /// The label of the counter; for an error its code.
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

    /// Returns how often `operation` ended with `outcome`.
    pub fn get(&self, operation: Operation, outcome: Outcome) -> u64 {
        self.counter(operation, outcome).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Returns all counters.
    pub fn all(&self) -> impl Iterator<Item = (Operation, Outcome, u64)> + '_ {
        self.counters
            .iter()
            .map(|(operation, outcome, n)| (*operation, *outcome, n.load(Ordering::Relaxed)))
    }

    /// Returns all counters that are not zero.
    pub fn nonzero(&self) -> impl Iterator<Item = (Operation, Outcome, u64)> + '_ {
        self.all().filter(|(_, _, n)| *n > 0)
    }

    // about 200 entries: a scan is cheap compared to the request
    fn counter(&self, operation: Operation, outcome: Outcome) -> Option<&AtomicU64> {
        self.counters
            .iter()
            .find(|(op, out, _)| *op == operation && *out == outcome)
            .map(|(_, _, counter)| counter)
    }
}

/// The kind of a call of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreCall {
    /// Reads tokens and blocked subjects.
    ReadTokens,
    /// Creates, rotates, revokes or uses tokens; enrols executors.
    WriteTokens,
    /// Reads environments and registrations.
    ReadEnvironments,
    /// Begins or ends registrations; revokes environments.
    WriteEnvironments,
    /// Reads revocations.
    ReadRevocations,
    /// Redeems tickets.
    Redeem,
    /// Reads the history of connections.
    ReadHistory,
    /// Writes the history of connections.
    WriteHistory,
    /// Prunes the history of connections.
    PruneHistory,
    /// Reads the audit log.
    ReadAudit,
    /// Writes the audit log.
    WriteAudit,
    /// Prunes the audit log.
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

    /// Whether the call writes.
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

    /// The label of the counter.
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
