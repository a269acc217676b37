//! What is refused again and again, for the audit log: a row at once, and then at
//! most one per [`REFUSAL_ROW_INTERVAL`] that says how often it happened
//! since.
//!
//! One entry per kind, token and word, at most [`REFUSAL_ENTRIES_MAX`] of them;
//! what does not fit is counted together, per kind and word. So nobody fills the
//! log by being refused.

use std::collections::BTreeMap;
use std::time::Duration;

use rendez_proto::audit::AuditEvent;
use tokio::time::Instant;

/// How often the audit log says that the same token runs into the same limit, or
/// is refused for the same reason.
pub(crate) const REFUSAL_ROW_INTERVAL: Duration = Duration::from_secs(60);

/// Tokens and limits that are kept apart for that, and as many tokens and
/// reasons. At a row per minute each, the log of a relay under attack grows by
/// 140 rows a second at most.
pub(crate) const REFUSAL_ENTRIES_MAX: usize = 4096;

/// See the module.
#[derive(Default)]
pub(super) struct RefusalAggregator {
    entries: BTreeMap<Key, Entry>,
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

impl RefusalAggregator {
    /// The row of a first one; later ones wait for [`due`](Self::due).
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

    /// Rows at this time whose time has come, or all. Entries of whom nothing was
    /// heard since the last row go.
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

    /// When something may be due.
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
        // a minute of peace, and it is a first one again
        assert_eq!(refusals.due(second + REFUSAL_ROW_INTERVAL, 9, false), []);
        assert_eq!(refusals.next_due(), None);
        assert!(refusals.record(there.clone(), second).is_some());
        // each token, word and kind has its own
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
        let said = (0..REFUSAL_ENTRIES_MAX + 7).filter_map(&mut take);
        let said: Vec<_> = said.collect();
        assert_eq!(said.len(), REFUSAL_ENTRIES_MAX + 1);
        let nobody = AuditEvent { actor: None, ..away("", Some("here")) };
        assert_eq!(said.last(), Some(&nobody), "the first of those without an entry");
        let rows = refusals.due(start + REFUSAL_ROW_INTERVAL, 9, false);
        assert_eq!(rows, [counted(nobody, 6)]);
    }
}
