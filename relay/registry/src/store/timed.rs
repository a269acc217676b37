//! A store that tells how long each call took.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use rendez_proto::audit::{AuditEvent, AuditRow, Head};
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use rendez_proto::registry::environments::EndReason;

use super::audit::AuditStore;
use super::records::{Began, Connection, Note, Records};
use super::{Claimed, Enrolled, Redeemed, Redemption, Rotated, Store, StoreError, Used, Withdrawn};
use crate::model::{
    Environment, NewRegistration, Registration, Subject, Token, TokenId, TokenPattern,
};
use crate::seam::Timing;
use crate::stats::StoreCall;

/// See the module. The time counts from the call to its end, waiting for a turn
/// to write included; of a call that is given up, nothing counts.
pub(crate) struct Timed<S> {
    inner: S,
    timing: Arc<dyn Timing>,
}

impl<S> Timed<S> {
    pub(crate) fn new(inner: S, timing: Arc<dyn Timing>) -> Self {
        Self { inner, timing }
    }

    async fn time<T>(
        &self,
        call: StoreCall,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let done = work.await;
        // that there may be no more of something is an answer
        let good = matches!(done, Ok(_) | Err(StoreError::LimitReached { .. }));
        self.timing.store_call(call, began.elapsed(), good);
        done
    }
}

#[async_trait]
impl<S: Store> Store for Timed<S> {
    async fn insert_token(&self, token: &Token, act: &AuditEvent) -> Result<(), StoreError> {
        self.time(StoreCall::WriteTokens, self.inner.insert_token(token, act)).await
    }

    async fn token(&self, id: &TokenId) -> Result<Option<Token>, StoreError> {
        self.time(StoreCall::ReadTokens, self.inner.token(id)).await
    }

    async fn tokens(&self, after: Option<&TokenId>, limit: u32) -> Result<Vec<Token>, StoreError> {
        self.time(StoreCall::ReadTokens, self.inner.tokens(after, limit)).await
    }

    async fn token_by_key(&self, public: &[u8; 32]) -> Result<Option<Token>, StoreError> {
        self.time(StoreCall::ReadTokens, self.inner.token_by_key(public)).await
    }

    async fn rotate_token(
        &self,
        id: &TokenId,
        new: &[u8; 32],
        overlap: u64,
        now: u64,
        act: &AuditEvent,
    ) -> Result<Rotated, StoreError> {
        let work = self.inner.rotate_token(id, new, overlap, now, act);
        self.time(StoreCall::WriteTokens, work).await
    }

    async fn use_token(&self, subject: &Subject, now: u64) -> Result<Used, StoreError> {
        self.time(StoreCall::WriteTokens, self.inner.use_token(subject, now)).await
    }

    async fn enrol(
        &self,
        token: &Token,
        join: &TokenId,
        now: u64,
        act: &AuditEvent,
    ) -> Result<Enrolled, StoreError> {
        self.time(StoreCall::WriteTokens, self.inner.enrol(token, join, now, act)).await
    }

    async fn revoke(
        &self,
        subject: &Subject,
        now: u64,
        act: &AuditEvent,
    ) -> Result<bool, StoreError> {
        self.time(StoreCall::WriteTokens, self.inner.revoke(subject, now, act)).await
    }

    async fn is_blocked(&self, subject: &Subject) -> Result<bool, StoreError> {
        self.time(StoreCall::ReadTokens, self.inner.is_blocked(subject)).await
    }

    async fn put_registration(
        &self,
        new: &NewRegistration,
        now: u64,
    ) -> Result<Claimed, StoreError> {
        self.time(StoreCall::WriteEnvironments, self.inner.put_registration(new, now)).await
    }

    async fn registration(
        &self,
        environment: &EnvironmentId,
    ) -> Result<Option<Registration>, StoreError> {
        self.time(StoreCall::ReadEnvironments, self.inner.registration(environment)).await
    }

    async fn environments(
        &self,
        covered: &[TokenPattern],
        after: Option<&EnvironmentId>,
        limit: u32,
    ) -> Result<Vec<Environment>, StoreError> {
        let work = self.inner.environments(covered, after, limit);
        self.time(StoreCall::ReadEnvironments, work).await
    }

    async fn environment(&self, id: &EnvironmentId) -> Result<Option<Environment>, StoreError> {
        self.time(StoreCall::ReadEnvironments, self.inner.environment(id)).await
    }

    async fn remove_registration(
        &self,
        environment: &EnvironmentId,
        now: u64,
        act: &AuditEvent,
    ) -> Result<Option<RegistrationId>, StoreError> {
        let work = self.inner.remove_registration(environment, now, act);
        self.time(StoreCall::WriteEnvironments, work).await
    }

    async fn revoke_environment(
        &self,
        environment: &EnvironmentId,
        now: u64,
        act: &AuditEvent,
    ) -> Result<bool, StoreError> {
        let work = self.inner.revoke_environment(environment, now, act);
        self.time(StoreCall::WriteEnvironments, work).await
    }

    async fn last_withdrawal(&self) -> Result<u64, StoreError> {
        self.time(StoreCall::ReadWithdrawals, self.inner.last_withdrawal()).await
    }

    async fn withdrawals(&self, after: u64, limit: u32) -> Result<Withdrawn, StoreError> {
        self.time(StoreCall::ReadWithdrawals, self.inner.withdrawals(after, limit)).await
    }

    async fn redeem(&self, redemption: &Redemption, now: u64) -> Result<Redeemed, StoreError> {
        self.time(StoreCall::Redeem, self.inner.redeem(redemption, now)).await
    }
}

#[async_trait]
impl<S: Records> Records for Timed<S> {
    async fn write_connections(&self, notes: &[Note], keep: u32) -> Result<Vec<Began>, StoreError> {
        let work = self.inner.write_connections(notes, keep);
        self.time(StoreCall::WriteHistory, work).await
    }

    async fn prune_connections(&self, before: u64, limit: u32) -> Result<u64, StoreError> {
        self.time(StoreCall::PruneHistory, self.inner.prune_connections(before, limit)).await
    }

    async fn connections(
        &self,
        environment: &EnvironmentId,
        limit: u32,
    ) -> Result<Vec<Connection>, StoreError> {
        self.time(StoreCall::ReadHistory, self.inner.connections(environment, limit)).await
    }

    async fn last_connections(
        &self,
        environments: &[EnvironmentId],
    ) -> Result<Vec<Connection>, StoreError> {
        self.time(StoreCall::ReadHistory, self.inner.last_connections(environments)).await
    }

    async fn end_open_connections(&self, now: u64, why: EndReason) -> Result<u64, StoreError> {
        self.time(StoreCall::WriteHistory, self.inner.end_open_connections(now, why)).await
    }
}

#[async_trait]
impl<S: AuditStore> AuditStore for Timed<S> {
    async fn append_audit(&self, events: &[AuditEvent]) -> Result<Head, StoreError> {
        self.time(StoreCall::WriteAudit, self.inner.append_audit(events)).await
    }

    async fn audit_rows(&self, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        self.time(StoreCall::ReadAudit, self.inner.audit_rows(after, limit)).await
    }

    async fn audit_head(&self) -> Result<Head, StoreError> {
        self.time(StoreCall::ReadAudit, self.inner.audit_head()).await
    }

    async fn prune_audit(
        &self,
        keep_rows: u64,
        keep_since: u64,
        limit: u32,
        now: u64,
    ) -> Result<u64, StoreError> {
        let work = self.inner.prune_audit(keep_rows, keep_since, limit, now);
        self.time(StoreCall::PruneAudit, work).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::store::contract;
    use crate::store::sqlite::SqliteStore;

    #[derive(Default)]
    struct Seen(Mutex<Vec<(StoreCall, bool)>>);

    impl Timing for Seen {
        fn store_call(&self, call: StoreCall, _: Duration, good: bool) {
            self.0.lock().unwrap().push((call, good));
        }
    }

    #[tokio::test]
    async fn it_is_the_store_and_every_kind_of_call_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
        let seen = Arc::<Seen>::default();
        let timed = Timed::new(store.clone(), seen.clone());
        contract::all(&timed).await;
        timed.append_audit(&[]).await.unwrap();
        timed.audit_rows(0, 1).await.unwrap();
        timed.audit_head().await.unwrap();
        timed.prune_audit(1, 0, 1, 0).await.unwrap();
        timed.is_blocked(&TokenId::from_random([9; 8]).into()).await.unwrap();
        store.close().await;
        assert!(timed.last_withdrawal().await.is_err());
        let seen = seen.0.lock().unwrap();
        for call in StoreCall::ALL {
            assert!(seen.contains(&(call, true)), "{}", call.as_str());
        }
        assert_eq!(seen.last(), Some(&(StoreCall::ReadWithdrawals, false)));
    }
}
