//! Closes open websockets whose token, environment or registration was revoked,
//! by any process, and those whose token has expired.
//!
//! No websocket is missed: it is in the table first, then the registry checks
//! its ticket a second time, and only then it opens. A revocation after that
//! check finds it in the table, and the check finds a revocation before it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rendez_proto::close::CloseFrame;
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use rendez_proto::limits;
use rendez_registry::Registry;
use rendez_registry::model::{Revocation, Subject};
use rendez_registry::store::StoreError;
use rendez_registry::traits::{Clock as _, SystemClock};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::guard::EVICTION_GRACE;
use super::table::ConnectionTable;

/// How often a relay reads revocations from its store.
const REVOCATION_POLL: Duration = Duration::from_secs(1);

// A revocation closes live websockets within 5 s.
const _: () = assert!(REVOCATION_POLL.as_secs() + EVICTION_GRACE.as_secs() + 1 < 5);

/// Reads the store's revocations and evicts the websockets that they name.
pub(crate) struct RevocationWatcher {
    table: Arc<ConnectionTable>,
    registry: Registry,
    /// The sequence number of the last revocation that was read.
    last: u64,
}

impl RevocationWatcher {
    /// A watcher of revocations after `last`, the newest one before any websocket
    /// opened.
    pub(crate) fn new(table: Arc<ConnectionTable>, registry: Registry, last: u64) -> Self {
        Self { table, registry, last }
    }

    /// Evicts websockets until cancelled.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let mut tick = interval(REVOCATION_POLL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        while cancel.run_until_cancelled(tick.tick()).await.is_some() {
            self.evict_expired(SystemClock.now_unix_secs());
            match self.evict_withdrawn().await {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(
                        %error,
                        "cannot read revocations from the database; open websockets stay open"
                    );
                }
                Err(_) => {}
            }
        }
    }

    async fn evict_withdrawn(&mut self) -> Result<(), StoreError> {
        loop {
            let page = self.registry.revocations().after(self.last).await?;
            if !page.complete {
                tracing::warn!("too many revocations to follow: closing every websocket");
                self.evict(|_| Some(CloseFrame::RESTARTING));
            }
            let full = page.revocations.len() >= limits::REVOCATIONS_PAGE as usize;
            let mut revoked = RevokedIds::default();
            for (seq, revocation) in page.revocations {
                self.last = seq;
                revoked.add(revocation);
            }
            let evicted = self.evict(|connection| revoked.close_frame(connection));
            if evicted > 0 {
                tracing::info!(evicted, "closing websockets after a revocation");
            }
            if !full {
                return Ok(());
            }
        }
    }

    /// Evicts the websockets that `reason` gives a frame for. Waking a port takes
    /// its hub's lock, so it happens without the table's.
    fn evict(&self, reason: impl Fn(&Connection) -> Option<CloseFrame>) -> usize {
        let mut evicted = 0;
        for connection in self.table.all() {
            if let Some(frame) = reason(&connection) {
                connection.evict(frame);
                evicted += 1;
            }
        }
        evicted
    }

    fn evict_expired(&self, now: u64) {
        for connection in self.table.take_expired(now) {
            let Connection { subject, environment, .. } = &*connection;
            tracing::info!(token = %subject, %environment, "token expired");
            connection.evict(CloseFrame::TOKEN_EXPIRED);
        }
    }
}

/// The subjects, environments and registrations of a page of revocations.
#[derive(Default)]
struct RevokedIds {
    subjects: HashSet<Subject>,
    environments: HashSet<EnvironmentId>,
    registrations: HashSet<RegistrationId>,
}

impl RevokedIds {
    fn add(&mut self, revocation: Revocation) {
        match revocation {
            Revocation::Subject(subject) => drop(self.subjects.insert(subject)),
            Revocation::Environment(id) => drop(self.environments.insert(id)),
            Revocation::Registration(id) => drop(self.registrations.insert(id)),
        }
    }

    fn close_frame(&self, connection: &Connection) -> Option<CloseFrame> {
        let ended = self.environments.contains(&connection.environment)
            || self.registrations.contains(&connection.registration);
        if self.subjects.contains(&connection.subject) {
            Some(CloseFrame::TOKEN_REVOKED)
        } else {
            ended.then_some(CloseFrame::REGISTRATION_ENDED)
        }
    }
}
