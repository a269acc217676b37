//! Finding an environment's executor, and waiting for one that is offline.

use std::fmt;

use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_proto::registry::error::{Absence, AbsenceState};
use tokio::time::{Instant, timeout_at};

use super::Registrations;
use crate::model::Registration;
use crate::registry::environments::Environments;
use crate::store::StoreError;

/// An executor that is offline, with the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecutorOffline {
    /// The reason, for programs.
    pub absence: Absence,
    /// The time of the request, in seconds since 1970.
    pub asked_at: u64,
}

impl fmt::Display for ExecutorOffline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Absence { state, since_unix_secs, away_because } = self.absence;
        if state == AbsenceState::Unknown {
            return f.write_str("no executor has registered for this environment; check its id");
        }
        f.write_str("this environment's executor is not connected")?;
        if let Some(since) = since_unix_secs {
            let seconds = self.asked_at.saturating_sub(since);
            match away_because {
                Some(why) => write!(f, ": {} {seconds} s ago", why.words()),
                None => write!(f, ": it registered {seconds} s ago and has not connected since"),
            }
        } else {
            away_because.map_or(Ok(()), |why| write!(f, ": {}", why.words()))
        }
    }
}

/// Why an environment's executor cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReachError {
    #[error("{0}")]
    Offline(ExecutorOffline),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Registrations<'_> {
    /// Returns the current registration of an environment whose executor is
    /// connected under it. Otherwise waits for it, also after its registration was
    /// ended, since it may register again. Does not wait if the environment was
    /// never registered.
    pub(super) async fn wait_until_reachable(
        self,
        environment: &EnvironmentId,
    ) -> Result<Registration, ReachError> {
        let wait = self.ctx.options.connect_wait.min(limits::CONNECT_WAIT_MAX);
        let deadline = Instant::now() + wait;
        let mut connected = self.ctx.presence().connected(environment).await;
        // Ends at the deadline: each iteration needs another registration to join.
        loop {
            let Some(mut found) = self.ctx.store().environment(environment).await? else {
                let away = ExecutorOffline { absence: Absence::UNKNOWN, asked_at: self.ctx.now() };
                return Err(ReachError::Offline(away));
            };
            // an executor that is connected under an older registration would
            // refuse the handshake, whose prologue names another one
            let current = found.registration.take_if(|own| connected.as_ref() == Some(&own.id));
            if let Some(registration) = current {
                return Ok(registration);
            }
            let joined = match wait.is_zero() {
                true => None,
                false => {
                    let joined =
                        self.ctx.presence().wait_for_executor(environment, connected.as_ref());
                    timeout_at(deadline, joined).await.ok().and_then(Result::ok)
                }
            };
            if joined.is_none() {
                let absence = Environments::new(self.ctx).absence(&found).await?;
                return Err(ReachError::Offline(ExecutorOffline {
                    absence,
                    asked_at: self.ctx.now(),
                }));
            }
            connected = joined;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use rendez_proto::registry::environments::EndReason;

    use super::*;
    use crate::model::Role;
    use crate::store::connections::ConnectionRow;
    use crate::testing::{Fixture, START, env};

    /// No test waits that long, unless the machine stalls.
    const WAIT: Duration = limits::CONNECT_WAIT_MAX;

    async fn away(fixture: &Fixture) -> ExecutorOffline {
        match fixture.registry.registrations().wait_until_reachable(&env("dev")).await {
            Err(ReachError::Offline(away)) => away,
            other => panic!("{other:?}"),
        }
    }

    /// An environment whose executor is offline.
    async fn offline(wait: Duration) -> (Arc<Fixture>, crate::model::Caller) {
        let fixture = Arc::new(Fixture::with_connect_wait(wait).await);
        let executor = fixture.caller(Role::Executor, "*").await;
        fixture.register(&executor, "dev").await;
        (fixture, executor)
    }

    #[tokio::test]
    async fn connect_answers_at_once_without_wait() {
        let (fixture, _) = offline(Duration::ZERO).await;
        away(&fixture).await;
        assert_eq!(fixture.waits.load(Ordering::SeqCst), 0);

        let fixture = Fixture::with_connect_wait(WAIT).await;
        assert_eq!(away(&fixture).await.absence, Absence::UNKNOWN);
        assert_eq!(fixture.waits.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn connect_waits_for_new_registration() {
        let (fixture, executor) = offline(WAIT).await;
        let waiting = tokio::spawn({
            let fixture = fixture.clone();
            async move { fixture.registry.registrations().wait_until_reachable(&env("dev")).await }
        });
        fixture.until_waiting(1).await;
        let again = fixture.register(&executor, "dev").await;
        assert!(!waiting.is_finished(), "registered is not connected");
        fixture.set_connected("dev", &again.executor_registration_id);
        assert_eq!(waiting.await.unwrap().unwrap().id, again.executor_registration_id);
    }

    /// Records a connection under this registration and flushes it.
    async fn note(fixture: &Fixture, registration: &str, ended: Option<(u64, EndReason)>) {
        let history = fixture.registry.history();
        history.record(ConnectionRow {
            id: history.next_id(),
            environment: env("dev"),
            registration: registration.parse().unwrap(),
            generation: rendez_proto::ids::Generation(1),
            connected_at: START,
            ended,
            received_bytes: 1,
            sent_bytes: 2,
        });
        history.flush().await.unwrap();
    }

    #[tokio::test]
    async fn offline_executor_is_reported_with_reason() {
        let (fixture, executor) = offline(Duration::from_millis(1)).await;
        fixture.advance(7);
        let is = async |since: Option<u64>, because: Option<EndReason>, end: &str| {
            let away = away(&fixture).await;
            let expected = Absence {
                state: AbsenceState::Offline,
                since_unix_secs: since,
                away_because: because,
            };
            assert_eq!(away.absence, expected);
            assert!(away.to_string().ends_with(end), "{away}");
        };
        let not_since = "registered 7 s ago and has not connected since";
        is(Some(START), None, not_since).await;
        let gone = (START + 2, EndReason::PingTimeout);
        note(&fixture, "reg_x", Some(gone)).await;
        let silent = "stopped answering pings 5 s ago";
        is(Some(START + 2), Some(EndReason::PingTimeout), silent).await;

        // it registers again while its old websocket is still open
        let fresh = fixture.register(&executor, "dev").await;
        fixture.advance(7);
        note(&fixture, "reg_y", None).await;
        is(Some(START + 7), None, not_since).await;
        // it was connected, and the reason for the end is not known yet
        note(&fixture, fresh.executor_registration_id.as_str(), None).await;
        is(None, None, "executor is not connected").await;
    }

    #[tokio::test]
    async fn connect_waits_after_registration_was_ended() {
        for whole in [false, true] {
            let (fixture, _) = offline(Duration::from_millis(1)).await;
            end(&fixture, whole).await;
            let revoked = Absence {
                state: AbsenceState::Offline,
                since_unix_secs: None,
                away_because: Some(EndReason::Revoked),
            };
            let gone = away(&fixture).await;
            assert_eq!(gone.absence, revoked);
            assert!(gone.to_string().ends_with("connected: its access was revoked"), "{gone}");
            assert_eq!(fixture.waits.load(Ordering::SeqCst), 1, "it was waited for");
            // an earlier end for another reason does not explain the absence
            note(&fixture, "reg_x", Some((START + 1, EndReason::PingTimeout))).await;
            assert_eq!(away(&fixture).await.absence, revoked);
            note(&fixture, "reg_x", Some((START + 2, EndReason::Revoked))).await;
            let absence = away(&fixture).await.absence;
            assert_eq!(absence, Absence { since_unix_secs: Some(START + 2), ..revoked });

            let (fixture, executor) = offline(WAIT).await;
            end(&fixture, whole).await;
            let waiting = tokio::spawn({
                let fixture = fixture.clone();
                async move { fixture.registry.registrations().wait_until_reachable(&env("dev")).await }
            });
            fixture.until_waiting(1).await;
            // after the environment's revocation only with a new token
            let executor = match whole {
                false => executor,
                true => fixture.caller(Role::Executor, "*").await,
            };
            let back = fixture.online(&executor, "dev").await;
            assert_eq!(waiting.await.unwrap().unwrap().id, back.executor_registration_id);
        }
    }

    /// Ends the registration, or revokes the environment.
    async fn end(fixture: &Fixture, whole: bool) {
        let registry = &fixture.registry;
        match whole {
            true => assert!(registry.environments().revoke(None, &env("dev")).await.unwrap()),
            false => drop(registry.registrations().end(None, &env("dev")).await.unwrap().unwrap()),
        }
    }
}
