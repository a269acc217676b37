//! The contract of a store, run against each engine.

#![allow(clippy::unwrap_used, reason = "all of it is a test")]

mod contract;
mod values;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rendez_registry::model::TokenId;
use rendez_registry::stats::StoreCall;
use rendez_registry::store::sqlite::SqliteStore;
use rendez_registry::store::{AuditStore as _, RevocationStore as _, TokenStore as _};
use rendez_registry::traits::StoreMetrics;

/// The calls that were reported, and whether each succeeded.
#[derive(Default)]
struct Reported(Mutex<Vec<(StoreCall, bool)>>);

impl StoreMetrics for Reported {
    fn observe_call(&self, call: StoreCall, _: Duration, succeeded: bool) {
        self.0.lock().push((call, succeeded));
    }
}

#[tokio::test]
async fn sqlite_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract::check(&SqliteStore::open(&dir.path().join("db")).await.unwrap()).await;
}

#[tokio::test]
async fn every_kind_of_call_is_timed() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
    let reported = Arc::<Reported>::default();
    let timed = store.clone().with_metrics(reported.clone());
    contract::check(&timed).await;
    timed.append_audit(&[]).await.unwrap();
    timed.audit_rows(0, 1).await.unwrap();
    timed.audit_head().await.unwrap();
    timed.prune_audit(1, 0, 1, 0).await.unwrap();
    timed.is_blocked(&TokenId::from_random([9; 8]).into()).await.unwrap();
    store.close().await;
    assert!(timed.last_revocation().await.is_err());
    let reported = reported.0.lock();
    for call in StoreCall::ALL {
        assert!(reported.contains(&(call, true)), "{}", call.as_str());
    }
    assert_eq!(reported.last(), Some(&(StoreCall::ReadRevocations, false)));
}
