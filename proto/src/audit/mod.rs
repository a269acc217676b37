//! The audit log: rows that are chained by their hashes (`row.rs`), and a check of
//! the chain (`verify.rs`).

mod row;
mod verify;

pub use row::{AuditEvent, AuditHash, AuditKind, AuditPage, AuditRow, Head, InvalidHash};
pub use verify::{Broken, Intact, Verifier};
