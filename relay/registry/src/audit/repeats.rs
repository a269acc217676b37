//! What is refused again and again, for the audit log: a row at once, and then at
//! most one per [`QUOTA_ROW_INTERVAL`] that says how often it happened
//! since.
//!
//! One entry per kind, token and word, at most [`QUOTA_ENTRIES`] of them;
//! what does not fit is counted together, per kind and word. So nobody fills the
//! log by being refused.

use std::collections::BTreeMap;
use std::time::Duration;

use rendez_proto::audit::AuditEvent;
use tokio::time::Instant;

/// How often the audit log says that the same token runs into the same limit, or
/// is refused for the same reason.
pub(crate) const QUOTA_ROW_INTERVAL: Duration = Duration::from_secs(60);

/// Tokens and limits that are kept apart for that, and as many tokens and
/// reasons. At a row per minute each, the log of a relay under attack grows by
/// 140 rows a second at most.
pub(crate) const QUOTA_ENTRIES: usize = 4096;

/// See the module.
#[derive(Default)]
pub(super) struct Repeats {
    of: BTreeMap<Key, Entry>,
}

/// Kind, actor and word. Without an actor: of those that found no entry.
type Key = (&'static str, Option<String>, Option<String>);

struct Entry {
    last_row: Instant,
    /// How often since that row.
    count: u64,
    /// What is the same of all that is counted.
    common: AuditEvent,
}

impl Repeats {
    /// The row of a first one; later ones wait for [`due`](Self::due).
    pub(super) fn take(&mut self, event: AuditEvent, now: Instant) -> Option<AuditEvent> {
        let mut event = event;
        let mut key = key(&event);
        if self.of.len() >= QUOTA_ENTRIES && !self.of.contains_key(&key) {
            event.actor = None;
            key.1 = None;
        }
        match self.of.get_mut(&key) {
            None => {
                let entry = Entry { last_row: now, count: 0, common: event.clone() };
                self.of.insert(key, entry);
                Some(event)
            }
            Some(entry) => {
                entry.common = match entry.count {
                    0 => event,
                    _ => common(&entry.common, event),
                };
                entry.count = entry.count.saturating_add(1);
                None
            }
        }
    }

    /// Rows at this time whose time has come, or all. Entries of whom nothing was
    /// heard since the last row go.
    pub(super) fn due(&mut self, now: Instant, at: u64, all: bool) -> Vec<AuditEvent> {
        let mut rows = Vec::new();
        self.of.retain(|_, entry| {
            if !all && now < entry.last_row + QUOTA_ROW_INTERVAL {
                return true;
            }
            let count = std::mem::take(&mut entry.count);
            if count == 0 {
                return false;
            }
            entry.last_row = now;
            let common = entry.common.clone();
            rows.push(AuditEvent { at_unix_secs: at, count: Some(count), ..common });
            true
        });
        rows
    }

    /// When something may be due.
    pub(super) fn next(&self) -> Option<Instant> {
        let due = |entry: &Entry| entry.last_row + QUOTA_ROW_INTERVAL;
        self.of.values().map(due).min()
    }
}

fn key(event: &AuditEvent) -> Key {
    (event.kind.as_str(), event.actor.clone(), event.what.clone())
}

fn common(one: &AuditEvent, other: AuditEvent) -> AuditEvent {
    AuditEvent {
        environment: other.environment.filter(|id| one.environment.as_ref() == Some(id)),
        registration: other.registration.filter(|id| one.registration.as_ref() == Some(id)),
        stream: other.stream.filter(|id| one.stream.as_ref() == Some(id)),
        ..other
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rendez_proto::audit::AuditKind;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn away(actor: &str, environment: Option<&str>) -> AuditEvent {
        AuditEvent {
            actor: Some(actor.to_owned()),
            environment: environment.map(|id| id.parse().unwrap()),
            what: Some("away".to_owned()),
            ..AuditEvent::new(AuditKind::Connect, 7)
        }
    }

    fn counted(event: AuditEvent, count: u64) -> AuditEvent {
        AuditEvent { at_unix_secs: 9, count: Some(count), ..event }
    }

    #[test]
    fn the_first_is_said_at_once_and_the_rest_by_the_minute() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        assert_eq!(repeats.next(), None);
        let (here, there) = (away("t", Some("here")), away("t", Some("there")));
        assert_eq!(repeats.take(here.clone(), start), Some(here.clone()));
        for _ in 0..1000 {
            assert_eq!(repeats.take(there.clone(), start + SECOND), None);
        }
        let minute = start + QUOTA_ROW_INTERVAL;
        assert_eq!(repeats.next(), Some(minute));
        assert_eq!(repeats.due(minute - SECOND, 9, false), []);
        assert_eq!(repeats.due(minute, 9, false), [counted(there.clone(), 1000)]);

        assert_eq!(repeats.take(here.clone(), minute), None);
        assert_eq!(repeats.take(there.clone(), minute), None);
        let second = minute + QUOTA_ROW_INTERVAL;
        let several = counted(away("t", None), 2);
        assert_eq!(repeats.due(second, 9, false), [several], "at several places");
        // a minute of peace, and it is a first one again
        assert_eq!(repeats.due(second + QUOTA_ROW_INTERVAL, 9, false), []);
        assert_eq!(repeats.next(), None);
        assert!(repeats.take(there.clone(), second).is_some());
        // each token, word and kind has its own
        assert!(repeats.take(away("u", Some("there")), second).is_some());
        let denied = AuditEvent { what: Some("denied".to_owned()), ..there.clone() };
        assert!(repeats.take(denied, second).is_some());
        let other = AuditEvent { kind: AuditKind::Validate, ..there.clone() };
        assert!(repeats.take(other, second).is_some());
        assert_eq!(repeats.take(there.clone(), second), None);
        assert_eq!(repeats.due(second, 9, true), [counted(there, 1)], "at the end, all");
    }

    #[test]
    fn however_many_tokens_there_are_they_do_not_fill_the_log() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        let mut take = |n: usize| repeats.take(away(&format!("t{n}"), Some("here")), start);
        let said = (0..QUOTA_ENTRIES + 7).filter_map(&mut take);
        let said: Vec<_> = said.collect();
        assert_eq!(said.len(), QUOTA_ENTRIES + 1);
        let nobody = AuditEvent { actor: None, ..away("", Some("here")) };
        assert_eq!(said.last(), Some(&nobody), "the first of those without an entry");
        let rows = repeats.due(start + QUOTA_ROW_INTERVAL, 9, false);
        assert_eq!(rows, [counted(nobody, 6)]);
    }
}
