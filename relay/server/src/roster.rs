//! Who is connected to this node: one entry per open websocket.
//!
//! Touched when a websocket opens or closes, never per frame. An entry is there
//! exactly as long as its `Visit`; what an executor's has carried and why it
//! ended goes to the registry's history when the visit is over.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rendez_proto::audit::{AuditEvent, AuditKind};
use rendez_proto::ids::{EnvironmentId, Generation, RegistrationId};
use rendez_proto::profile::Profile;
use rendez_proto::registry::environments::EndReason;
use rendez_proto::registry::status::{ConnectionCursor, ConnectionEntry, ConnectionRole};
use rendez_proto::ticket::Purpose;
use rendez_registry::model::Subject;
use rendez_registry::store::records::{Connection as Record, ConnectionId};
use rendez_registry::{Admitted, Registry};

use crate::edge::port::PortWatch;

/// One open websocket.
pub struct Connection {
    /// Its name.
    pub id: ConnectionId,
    /// Whether it is an executor's; else it is an orchestrator's.
    pub is_executor: bool,
    /// Where.
    pub environment: EnvironmentId,
    /// Under which registration.
    pub registration: RegistrationId,
    /// The registration's place in the environment's order.
    pub generation: Generation,
    /// Who asked for its ticket.
    pub subject: Subject,
    /// What its ticket is for.
    pub profile: Profile,
    /// When it began, in seconds since 1970.
    pub connected_at: u64,
    /// What it has carried.
    pub port: PortWatch,
}

/// All open websockets, by environment and number.
#[derive(Default)]
pub struct Roster(Mutex<BTreeMap<(EnvironmentId, u64), Arc<Connection>>>);

impl Roster {
    /// Adds a websocket until the visit is dropped.
    pub(crate) fn enter(
        self: &Arc<Self>,
        registry: &Registry,
        Admitted { claims, subject, .. }: &Admitted,
        port: PortWatch,
    ) -> Visit {
        let connection = Arc::new(Connection {
            id: registry.history().next_id(),
            is_executor: claims.purpose == Purpose::Executor,
            environment: claims.environment.clone(),
            registration: claims.registration.clone(),
            generation: claims.generation,
            subject: subject.clone(),
            profile: claims.profile,
            connected_at: registry.unix_now(),
            port,
        });
        if connection.is_executor {
            registry.history().note(connection.record(None));
        }
        registry.audit().record(connection.trace(registry, AuditKind::Open));
        self.lock().insert(connection.key(), connection.clone());
        Visit {
            roster: self.clone(),
            registry: registry.clone(),
            connection,
            // a client that leaves between ticket and upgrade
            why: EndReason::SocketError,
        }
    }

    /// The open websockets of an environment.
    pub fn of(&self, environment: &EnvironmentId) -> Vec<Arc<Connection>> {
        let range = (environment.clone(), 0)..=(environment.clone(), u64::MAX);
        self.lock().range(range).map(|(_, connection)| connection.clone()).collect()
    }

    /// The executor's websocket that joined last, if one is open.
    pub fn executor(&self, environment: &EnvironmentId) -> Option<Arc<Connection>> {
        self.of(environment).into_iter().rev().find(|connection| connection.is_executor)
    }

    /// At most `limit` open websockets after this one, ordered by environment and
    /// number; of one environment or of all.
    pub fn page(
        &self,
        environment: Option<&EnvironmentId>,
        after: Option<&ConnectionCursor>,
        limit: usize,
    ) -> Vec<Arc<Connection>> {
        let all = self.lock();
        let first = match (after, environment) {
            (Some(after), _) => Bound::Excluded((after.environment.clone(), after.number)),
            (None, Some(environment)) => Bound::Included((environment.clone(), 0)),
            (None, None) => Bound::Unbounded,
        };
        let page = all.range((first, Bound::Unbounded)).map(|(_, connection)| connection);
        page.take_while(|found| environment.is_none_or(|wanted| *wanted == found.environment))
            .take(limit)
            .cloned()
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(EnvironmentId, u64), Arc<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// The same for operators.
    pub(crate) fn entry(&self) -> ConnectionEntry {
        let traffic = self.port.traffic();
        let (environment, number) = self.key();
        ConnectionEntry {
            id: ConnectionCursor { environment, number }.to_string(),
            environment_id: self.environment.clone(),
            role: match self.is_executor {
                true => ConnectionRole::Executor,
                false => ConnectionRole::Orchestrator,
            },
            executor_registration_id: self.registration.clone(),
            generation: self.generation,
            subject: self.subject.to_string(),
            profile: self.profile.to_string(),
            connected_at_unix_secs: self.connected_at,
            verified_ms_ago: traffic.verified().map(|round_trip| round_trip.age_ms),
            received_bytes: traffic.received_bytes(),
            sent_bytes: traffic.sent_bytes(),
        }
    }

    fn key(&self) -> (EnvironmentId, u64) {
        (self.environment.clone(), self.id.number)
    }

    /// `executor` or `orchestrator`.
    pub fn role(&self) -> &'static str {
        if self.is_executor { "executor" } else { "orchestrator" }
    }

    fn trace(&self, registry: &Registry, kind: AuditKind) -> AuditEvent {
        AuditEvent {
            actor: Some(self.subject.to_string()),
            environment: Some(self.environment.clone()),
            registration: Some(self.registration.clone()),
            what: Some(self.role().to_owned()),
            ..registry.audit().event(kind)
        }
    }

    fn record(&self, ended: Option<(u64, EndReason)>) -> Record {
        let traffic = self.port.traffic();
        let over = |bytes| if ended.is_some() { bytes } else { 0 };
        Record {
            id: self.id.clone(),
            environment: self.environment.clone(),
            registration: self.registration.clone(),
            generation: self.generation,
            connected_at: self.connected_at,
            ended,
            received_bytes: over(traffic.received_bytes()),
            sent_bytes: over(traffic.sent_bytes()),
        }
    }
}

/// A websocket's time in the roster; dropping it ends it.
pub(crate) struct Visit {
    roster: Arc<Roster>,
    registry: Registry,
    connection: Arc<Connection>,
    why: EndReason,
}

impl Visit {
    /// Says why it is about to end.
    pub(crate) fn ends(&mut self, why: EndReason) {
        self.why = why;
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let Self { connection, registry, why, .. } = self;
        if connection.is_executor {
            let now = registry.unix_now().max(connection.connected_at);
            registry.history().note(connection.record(Some((now, *why))));
        }
        let traffic = connection.port.traffic();
        registry.audit().record(AuditEvent {
            what: Some(format!("{} {}", connection.role(), why.as_str())),
            received_bytes: Some(traffic.received_bytes()),
            sent_bytes: Some(traffic.sent_bytes()),
            ..connection.trace(registry, AuditKind::Close)
        });
        self.roster.lock().remove(&self.connection.key());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rendez_proto::ticket::{self, Claims};
    use rendez_registry::Options;
    use rendez_relay_core::{Capabilities, KeyFingerprint};

    use super::*;
    use crate::directory::Directory;

    fn admitted(environment: &str, purpose: Purpose) -> Admitted {
        let claims = Claims {
            purpose,
            environment: environment.parse().unwrap(),
            registration: "reg_a".parse().unwrap(),
            generation: Generation(1),
            subject: "0011223344556677".to_owned(),
            profile: Profile::NoiseHybridIkV1,
            expires_at_unix_secs: None,
            id: [0; ticket::ID_BYTES],
            binding: [0; ticket::BINDING_BYTES],
        };
        Admitted { subject: claims.subject.parse().unwrap(), claims, until: None }
    }

    #[tokio::test]
    async fn pages_hold_each_connection_once_also_while_some_end() {
        let state = tempfile::tempdir().unwrap();
        let registry = Registry::open(state.path(), Options::default()).await.unwrap();
        let directory = Directory::default();
        let roster = directory.roster();
        let mut open = Vec::new();
        for name in ["b", "a", "ab"] {
            let admitted = admitted(name, Purpose::Executor);
            let claims = &admitted.claims;
            let port = directory.join_executor(
                &claims.environment,
                &claims.registration,
                claims.generation,
                "token",
                Instant::now(),
            );
            let port = port.map_err(|error| error.to_string()).unwrap();
            open.push((roster.enter(&registry, &admitted, port.watch()), port));
        }
        for name in ["a", "b", "a", "a"] {
            let admitted = admitted(name, Purpose::Orchestrator);
            let environment = &admitted.claims.environment;
            let can = Capabilities { resends: false };
            let port =
                directory.join_orchestrator(environment, KeyFingerprint([0; 32]), can, "token");
            let port = port.map_err(|error| error.to_string()).unwrap();
            open.push((roster.enter(&registry, &admitted, port.watch()), port));
        }
        let ids = |page: Vec<Arc<Connection>>| {
            page.iter().map(|connection| connection.entry().id).collect::<Vec<_>>()
        };
        let walk = |environment: Option<&EnvironmentId>, limit| {
            let mut all: Vec<String> = Vec::new();
            loop {
                let after = all.last().map(|last| last.parse().unwrap());
                let page = ids(roster.page(environment, after.as_ref(), limit));
                assert!(page.len() <= limit);
                if page.is_empty() {
                    return all;
                }
                all.extend(page);
            }
        };
        let all = ["a.2", "a.4", "a.6", "a.7", "ab.3", "b.1", "b.5"];
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        for limit in [1, 2, 3, 7, 100] {
            assert_eq!(walk(None, limit), all, "pages of {limit}");
            assert_eq!(walk(Some(&a), limit), all[..4], "pages of {limit}");
            assert_eq!(walk(Some(&b), limit), all[5..], "pages of {limit}");
        }
        // the last one of a page ends before the next is asked for
        assert_eq!(ids(roster.page(None, None, 2)), all[..2]);
        open.retain(|(visit, _)| visit.connection.id.number != 4);
        let gone = "a.4".parse().unwrap();
        assert_eq!(ids(roster.page(None, Some(&gone), 2)), all[2..4]);
        open.clear();
        assert!(walk(None, 10).is_empty());
    }
}
