//! Aggregation of repeated refusals for the audit log: the first one gets a row at
//! once, the following ones share at most one row per [`REFUSAL_ROW_INTERVAL`],
//! which has their number.
//!
//! There is one entry per kind, token and reason, and at most
//! [`REFUSAL_ENTRIES_MAX`] of them. Refusals without an entry are counted
//! together, per kind and reason. So refusals cannot fill the log.

use std::collections::BTreeMap;
use std::time::Duration;

use rendez_proto::audit::AuditEvent;
use tokio::time::Instant;

/// The interval between two rows about the same token and the same limit or
/// reason.
pub(crate) const REFUSAL_ROW_INTERVAL: Duration = Duration::from_secs(60);

/// The entries that are kept apart. With a row per minute each, the log of a relay
/// under attack grows by at most 140 rows a second.
pub(crate) const REFUSAL_ENTRIES_MAX: usize = 4096;

/// Aggregates refusals by kind, actor and reason.
#[derive(Default)]
pub(super) struct RefusalAggregator {
    entries: BTreeMap<Key, Entry>,
}

/// Kind, actor and reason. The actor is `None` for refusals that found no entry.
type Key = (&'static str, Option<String>, Option<String>);

struct Entry {
    last_row: Instant,
    /// Refusals since that row.
    count: u64,
    /// The fields that all counted refusals have in common.
    common: AuditEvent,
}

impl RefusalAggregator {
    /// Returns the row of a first refusal. Later ones wait for [`due`](Self::due).
    pub(super) fn record(&mut self, event: AuditEvent, now: Instant) -> Option<AuditEvent> {
        let mut event = event;
        let mut key = key(&event);
        if self.entries.len() >= REFUSAL_ENTRIES_MAX && !self.entries.contains_key(&key) {
            event.actor = None;
            key.1 = None;
        }
        match self.entries.get_mut(&key) {
            None => {
                let entry = Entry { last_row: now, count: 0, common: event.clone() };
                self.entries.insert(key, entry);
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

    /// Returns the rows that are due now, or all. Removes entries without a
    /// refusal since their last row.
    pub(super) fn due(&mut self, now: Instant, at: u64, all: bool) -> Vec<AuditEvent> {
        let mut rows = Vec::new();
        self.entries.retain(|_, entry| {
            if !all && now < entry.last_row + REFUSAL_ROW_INTERVAL {
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

    /// Returns when the next row may be due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = |entry: &Entry| entry.last_row + REFUSAL_ROW_INTERVAL;
        self.entries.values().map(due).min()
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
    fn first_refusal_is_immediate_then_aggregated() {
        let start = Instant::now();
        let mut refusals = RefusalAggregator::default();
        assert_eq!(refusals.next_due(), None);
        let (here, there) = (away("t", Some("here")), away("t", Some("there")));
        assert_eq!(refusals.record(here.clone(), start), Some(here.clone()));
        for _ in 0..1000 {
            assert_eq!(refusals.record(there.clone(), start + SECOND), None);
        }
        let minute = start + REFUSAL_ROW_INTERVAL;
        assert_eq!(refusals.next_due(), Some(minute));
        assert_eq!(refusals.due(minute - SECOND, 9, false), []);
        assert_eq!(refusals.due(minute, 9, false), [counted(there.clone(), 1000)]);

        assert_eq!(refusals.record(here.clone(), minute), None);
        assert_eq!(refusals.record(there.clone(), minute), None);
        let second = minute + REFUSAL_ROW_INTERVAL;
        let several = counted(away("t", None), 2);
        assert_eq!(refusals.due(second, 9, false), [several], "at several places");
        // after a quiet minute a refusal is a first one again
        assert_eq!(refusals.due(second + REFUSAL_ROW_INTERVAL, 9, false), []);
        assert_eq!(refusals.next_due(), None);
        assert!(refusals.record(there.clone(), second).is_some());
        // each token, reason and kind has its own entry
        assert!(refusals.record(away("u", Some("there")), second).is_some());
        let denied = AuditEvent { what: Some("denied".to_owned()), ..there.clone() };
        assert!(refusals.record(denied, second).is_some());
        let other = AuditEvent { kind: AuditKind::Validate, ..there.clone() };
        assert!(refusals.record(other, second).is_some());
        assert_eq!(refusals.record(there.clone(), second), None);
        assert_eq!(refusals.due(second, 9, true), [counted(there, 1)], "at the end, all");
    }

    #[test]
    fn refusals_of_many_tokens_are_bounded() {
        let start = Instant::now();
        let mut refusals = RefusalAggregator::default();
        let mut take = |n: usize| refusals.record(away(&format!("t{n}"), Some("here")), start);
        let rows = (0..REFUSAL_ENTRIES_MAX + 7).filter_map(&mut take);
        let rows: Vec<_> = rows.collect();
        assert_eq!(rows.len(), REFUSAL_ENTRIES_MAX + 1);
        let unknown = AuditEvent { actor: None, ..away("", Some("here")) };
        assert_eq!(rows.last(), Some(&unknown), "the first of those without an entry");
        let rows = refusals.due(start + REFUSAL_ROW_INTERVAL, 9, false);
        assert_eq!(rows, [counted(unknown, 6)]);
    }
}
