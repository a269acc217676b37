//! Who ran into a limit, for the audit log: a row at once, and then at most one
//! per [`limits::QUOTA_ROW_INTERVAL`] that says how often it happened since.
//!
//! One entry per token and limit, at most [`limits::QUOTA_ENTRIES`] of them; what
//! does not fit is counted together. So nobody fills the log by being refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rendez_proto::audit::{AuditEvent, AuditKind};
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use rendez_proto::limits;
use rendez_proto::ticket::Claims;
use rendez_registry::Registry;
use rendez_relay_core::SWEEP_INTERVAL;
use tokio_util::sync::CancellationToken;

/// What rows say of refusals that found no entry.
const OTHERS: &str = "of further tokens";

/// See the module.
pub(crate) struct Refusals(Mutex<Entries>);

struct Entries {
    of: BTreeMap<(String, &'static str), Entry>,
    others: u64,
    others_since: Instant,
}

struct Entry {
    /// Since the last row.
    count: u64,
    last_row: Instant,
    /// Where, if it was at one place since the last row.
    place: Option<Place>,
}

#[derive(Clone, PartialEq, Eq)]
struct Place {
    environment: EnvironmentId,
    registration: RegistrationId,
}

/// A row to be.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    token: Option<String>,
    what: &'static str,
    at: Option<(EnvironmentId, RegistrationId)>,
    count: u64,
}

impl Refusals {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Entries { of: BTreeMap::new(), others: 0, others_since: now }))
    }

    /// Whoever asked for the ticket with these claims was refused for this limit.
    pub(crate) fn note(
        &self,
        registry: &Registry,
        token: &str,
        claims: &Claims,
        what: &'static str,
        now: Instant,
    ) {
        if let Some(row) = self.count(token, claims, what, now) {
            record(registry, row);
        }
    }

    /// Writes what is due, until cancelled; then all.
    pub(crate) async fn write(self: Arc<Self>, registry: Registry, cancel: CancellationToken) {
        let mut tick = tokio::time::interval(SWEEP_INTERVAL);
        while cancel.run_until_cancelled(tick.tick()).await.is_some() {
            self.due(Instant::now(), false).into_iter().for_each(|row| record(&registry, row));
        }
        self.due(Instant::now(), true).into_iter().for_each(|row| record(&registry, row));
    }

    /// The row of a first one; later ones wait for [`due`](Self::due).
    fn count(&self, token: &str, claims: &Claims, what: &'static str, now: Instant) -> Option<Row> {
        let place = Place {
            environment: claims.environment.clone(),
            registration: claims.registration.clone(),
        };
        let mut entries = self.lock();
        let key = (token.to_owned(), what);
        if let Some(entry) = entries.of.get_mut(&key) {
            if entry.count == 0 {
                entry.place = Some(place);
            } else if entry.place.as_ref() != Some(&place) {
                entry.place = None;
            }
            entry.count = entry.count.saturating_add(1);
            return None;
        }
        if entries.of.len() >= limits::QUOTA_ENTRIES {
            entries.others = entries.others.saturating_add(1);
            return None;
        }
        entries.of.insert(key, Entry { count: 0, last_row: now, place: None });
        let token = Some(token.to_owned());
        Some(Row { token, what, at: Some((place.environment, place.registration)), count: 1 })
    }

    /// Rows whose time has come, or all. Entries of whom nothing was heard since
    /// the last row go.
    fn due(&self, now: Instant, all: bool) -> Vec<Row> {
        let is_due = |since: Instant| all || since + limits::QUOTA_ROW_INTERVAL <= now;
        let mut rows = Vec::new();
        let mut entries = self.lock();
        entries.of.retain(|(token, what), entry| {
            if !is_due(entry.last_row) {
                return true;
            }
            let count = std::mem::take(&mut entry.count);
            if count == 0 {
                return false;
            }
            let at = entry.place.take().map(|place| (place.environment, place.registration));
            rows.push(Row { token: Some(token.clone()), what, at, count });
            entry.last_row = now;
            true
        });
        if is_due(entries.others_since) {
            entries.others_since = now;
            let count = std::mem::take(&mut entries.others);
            if count > 0 {
                rows.push(Row { token: None, what: OTHERS, at: None, count });
            }
        }
        rows
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn record(registry: &Registry, row: Row) {
    let (environment, registration) = row.at.unzip();
    registry.audit().record(AuditEvent {
        actor: row.token,
        environment,
        registration,
        what: Some(row.what.to_owned()),
        count: Some(row.count),
        ..registry.audit().event(AuditKind::Quota)
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rendez_proto::ids::Generation;
    use rendez_proto::profile::Profile;
    use rendez_proto::ticket::{self, Purpose};

    use super::*;

    const STREAMS: &str = "streams of the token";
    const SECOND: Duration = Duration::from_secs(1);

    fn claims(token: &str, environment: &str) -> Claims {
        Claims {
            purpose: Purpose::Orchestrator,
            environment: environment.parse().unwrap(),
            registration: "reg_a".parse().unwrap(),
            generation: Generation(1),
            profile: Profile::NoiseHybridIkV1,
            binding: [0; ticket::BINDING_BYTES],
            id: [0; ticket::ID_BYTES],
            subject: token.to_owned(),
            expires_at_unix_secs: None,
        }
    }

    fn count(
        refusals: &Refusals,
        claims: &Claims,
        what: &'static str,
        now: Instant,
    ) -> Option<Row> {
        refusals.count(&claims.subject, claims, what, now)
    }

    fn row(token: &str, environment: Option<&str>, count: u64) -> Row {
        let at = environment.map(|name| (name.parse().unwrap(), "reg_a".parse().unwrap()));
        Row { token: Some(token.to_owned()), what: STREAMS, at, count }
    }

    #[test]
    fn the_first_is_said_at_once_and_the_rest_by_the_minute() {
        let start = Instant::now();
        let refusals = Refusals::new(start);
        let (here, there) = (claims("t", "here"), claims("t", "there"));
        assert_eq!(count(&refusals, &here, STREAMS, start), Some(row("t", Some("here"), 1)));
        for _ in 0..1000 {
            assert_eq!(count(&refusals, &here, STREAMS, start + SECOND), None);
        }
        let minute = start + limits::QUOTA_ROW_INTERVAL;
        assert_eq!(refusals.due(minute - SECOND, false), []);
        assert_eq!(refusals.due(minute, false), [row("t", Some("here"), 1000)]);

        count(&refusals, &here, STREAMS, minute);
        count(&refusals, &there, STREAMS, minute);
        assert_eq!(refusals.due(minute + SECOND, false), []);
        let second = minute + limits::QUOTA_ROW_INTERVAL;
        assert_eq!(refusals.due(second, false), [row("t", None, 2)], "at several places");
        // a minute of peace, and it is a first one again
        assert_eq!(refusals.due(second + limits::QUOTA_ROW_INTERVAL, false), []);
        assert!(refusals.lock().of.is_empty());
        assert!(count(&refusals, &there, STREAMS, second).is_some());
        // each limit and each token has its own
        assert!(count(&refusals, &there, "streams of the node", second).is_some());
        assert!(count(&refusals, &claims("u", "there"), STREAMS, second).is_some());
        count(&refusals, &there, STREAMS, second);
        assert_eq!(refusals.due(second, true), [row("t", Some("there"), 1)], "at the end, all");
    }

    #[test]
    fn however_many_there_are_they_do_not_fill_the_log() {
        let start = Instant::now();
        let refusals = Refusals::new(start);
        let first = |n: usize| count(&refusals, &claims(&format!("t{n}"), "here"), STREAMS, start);
        let said = (0..limits::QUOTA_ENTRIES + 7).filter(|n| first(*n).is_some()).count();
        assert_eq!(said, limits::QUOTA_ENTRIES);
        assert_eq!(refusals.due(start + SECOND, false), []);
        let rows = refusals.due(start + limits::QUOTA_ROW_INTERVAL, false);
        assert_eq!(rows, [Row { token: None, what: OTHERS, at: None, count: 7 }]);
    }
}
