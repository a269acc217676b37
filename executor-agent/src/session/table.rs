//! The sessions of an executor and their connections. Pure: takes `now`.
//!
//! ```text
//!            open                  detach
//!   ─────────────────► Attached ◄─────────► Detached ──grace──► expired
//!                                  resume
//! ```
//!
//! A session is attached to at most one connection. Only that connection can detach
//! it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rendez_proto::rpc::session::SessionId;
use rendez_proto::rpc::{RpcError, code};

/// Identifies a connection of this executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ConnectionId(pub(super) u64);

/// The sessions by id; `S` is the state of a session.
#[derive(Debug)]
pub(super) struct SessionTable<S> {
    sessions: BTreeMap<SessionId, SessionEntry<S>>,
    grace: Duration,
    most: usize,
}

#[derive(Debug)]
struct SessionEntry<S> {
    value: S,
    attachment: Attachment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attachment {
    Attached(ConnectionId),
    Detached { since: Instant },
}

/// Why a session cannot be opened or resumed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AttachError {
    /// No session has this id, or it has expired.
    #[error("unknown session id {0}")]
    Unknown(SessionId),
    /// Another connection holds the session.
    #[error("session {0} is already attached to another connection")]
    Attached(SessionId),
    /// The limit of sessions is reached.
    #[error("this executor holds {0} sessions, its maximum; try again later")]
    Full(usize),
}

impl From<AttachError> for RpcError {
    fn from(error: AttachError) -> Self {
        let code = match error {
            AttachError::Attached(_) => code::SESSION_ATTACHED,
            AttachError::Unknown(_) | AttachError::Full(_) => code::INVALID_REQUEST,
        };
        RpcError::new(code, error.to_string())
    }
}

impl<S: Clone> SessionTable<S> {
    /// An empty table for at most `most` sessions, which expire `grace` after their
    /// last connection.
    pub(super) fn new(most: usize, grace: Duration) -> Self {
        Self { sessions: BTreeMap::new(), grace, most }
    }

    /// Opens a session with a new id.
    ///
    /// # Errors
    /// [`AttachError::Full`]
    pub(super) fn open(
        &mut self,
        id: SessionId,
        value: S,
        connection: ConnectionId,
    ) -> Result<(), AttachError> {
        if self.sessions.len() >= self.most {
            return Err(AttachError::Full(self.most));
        }
        let attachment = Attachment::Attached(connection);
        self.sessions.insert(id, SessionEntry { value, attachment });
        Ok(())
    }

    /// Attaches a detached session.
    ///
    /// # Errors
    /// [`AttachError::Unknown`] or [`AttachError::Attached`].
    pub(super) fn resume(
        &mut self,
        id: &SessionId,
        connection: ConnectionId,
        now: Instant,
    ) -> Result<S, AttachError> {
        let Some(entry) = self.sessions.get_mut(id) else {
            return Err(AttachError::Unknown(id.clone()));
        };
        match entry.attachment {
            Attachment::Attached(_) => Err(AttachError::Attached(id.clone())),
            // expired, but not removed yet
            Attachment::Detached { since } if now >= since + self.grace => {
                Err(AttachError::Unknown(id.clone()))
            }
            Attachment::Detached { .. } => {
                entry.attachment = Attachment::Attached(connection);
                Ok(entry.value.clone())
            }
        }
    }

    /// Detaches a session from `connection`; returns whether it was attached to it.
    pub(super) fn detach(
        &mut self,
        id: &SessionId,
        connection: ConnectionId,
        now: Instant,
    ) -> bool {
        match self.sessions.get_mut(id) {
            Some(entry) if entry.attachment == Attachment::Attached(connection) => {
                entry.attachment = Attachment::Detached { since: now };
                true
            }
            _ => false,
        }
    }

    /// Removes and returns the expired sessions.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<S> {
        let over = |entry: &SessionEntry<S>| match entry.attachment {
            Attachment::Attached(_) => false,
            Attachment::Detached { since } => now >= since + self.grace,
        };
        let ids: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, entry)| over(entry))
            .map(|(id, _)| id.clone())
            .collect();
        ids.iter().filter_map(|id| self.sessions.remove(id)).map(|entry| entry.value).collect()
    }

    /// The time at which the next session expires.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.sessions
            .values()
            .filter_map(|entry| match entry.attachment {
                Attachment::Attached(_) => None,
                Attachment::Detached { since } => Some(since + self.grace),
            })
            .min()
    }

    /// Removes and returns the `idle` session that was detached first, if the table
    /// is full: a new session is worth more.
    pub(super) fn make_room(&mut self, idle: impl Fn(&S) -> bool) -> Option<S> {
        if self.sessions.len() < self.most {
            return None;
        }
        let (_, id) = self
            .sessions
            .iter()
            .filter_map(|(id, entry)| match entry.attachment {
                Attachment::Detached { since } if idle(&entry.value) => Some((since, id)),
                _ => None,
            })
            .min()?;
        let id = id.clone();
        self.sessions.remove(&id).map(|entry| entry.value)
    }

    /// Removes and returns all sessions.
    pub(super) fn drain(&mut self) -> Vec<S> {
        std::mem::take(&mut self.sessions).into_values().map(|entry| entry.value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(100);
    const A: ConnectionId = ConnectionId(1);
    const B: ConnectionId = ConnectionId(2);

    fn id(text: &str) -> SessionId {
        SessionId(text.into())
    }

    fn table() -> (SessionTable<&'static str>, Instant) {
        let mut table = SessionTable::new(2, GRACE);
        table.open(id("s"), "S", A).unwrap();
        (table, Instant::now())
    }

    #[test]
    fn session_has_one_connection() {
        let (mut table, now) = table();
        let error = table.resume(&id("s"), B, now).unwrap_err();
        assert_eq!(
            RpcError::from(error),
            RpcError::new(-32010, "session s is already attached to another connection")
        );
        assert!(table.detach(&id("s"), A, now));
        assert_eq!(table.resume(&id("s"), B, now), Ok("S"));
        assert!(!table.detach(&id("s"), A, now), "a stale connection changes nothing");
        assert!(table.resume(&id("s"), A, now).is_err());
    }

    #[test]
    fn unknown_session_id_is_named() {
        let (mut table, now) = table();
        let error = table.resume(&id("x"), B, now).unwrap_err();
        assert_eq!(RpcError::from(error), RpcError::new(-32600, "unknown session id x"));
    }

    #[test]
    fn detached_session_lives_for_its_grace() {
        let (mut table, now) = table();
        assert_eq!(table.next_expiry(), None);
        table.detach(&id("s"), A, now);
        assert_eq!(table.next_expiry(), Some(now + GRACE));
        let almost = now + GRACE - Duration::from_millis(1);
        assert!(table.expire(almost).is_empty());
        assert_eq!(table.resume(&id("s"), B, almost), Ok("S"));
        assert!(table.expire(now + GRACE * 9).is_empty(), "attached sessions don't expire");
        table.detach(&id("s"), B, almost);
        assert_eq!(
            table.resume(&id("s"), A, almost + GRACE),
            Err(AttachError::Unknown(id("s"))),
            "expired before its removal"
        );
        assert_eq!(table.expire(almost + GRACE), ["S"]);
        assert_eq!(table.next_expiry(), None);
    }

    #[test]
    fn full_table_drops_oldest_idle_session() {
        let (mut table, now) = table();
        table.open(id("t"), "T", B).unwrap();
        assert_eq!(table.make_room(|_| true), None, "attached ones stay");
        assert_eq!(table.open(id("u"), "U", A), Err(AttachError::Full(2)));
        table.detach(&id("t"), B, now);
        table.detach(&id("s"), A, now + GRACE / 2);
        assert_eq!(table.make_room(|_| false), None, "busy ones stay");
        assert_eq!(table.make_room(|_| true), Some("T"));
        assert_eq!(table.make_room(|_| true), None, "there is room");
        table.open(id("u"), "U", A).unwrap();
        assert_eq!(table.drain(), ["S", "U"]);
    }
}
