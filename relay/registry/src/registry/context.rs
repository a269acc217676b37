//! The context that all resources of a registry share.

use std::sync::Arc;

use super::options::Options;
use crate::audit::Audit;
use crate::history::History;
use crate::jwt::Issuers;
use crate::signer::Signer;
use crate::stats::Stats;
use crate::store::Store;
use crate::traits::{NoRandomness, Presence, random_bytes};

/// The store, the signer and the surroundings of a registry.
pub(crate) struct Context {
    pub(super) store: Arc<dyn Store>,
    pub(super) history: History,
    pub(super) audit: Arc<Audit>,
    pub(super) signer: Signer,
    pub(super) issuers: Issuers,
    pub(super) started_at: u64,
    pub(super) options: Options,
    pub(super) stats: Stats,
}

impl Context {
    pub(super) fn new(
        store: Arc<dyn Store>,
        instance: u64,
        signer: Signer,
        issuers: Issuers,
        options: Options,
    ) -> Self {
        let history =
            History::new(store.clone(), options.clock.clone(), instance, options.history_retention);
        let audit = Audit::new(store.clone(), options.clock.clone(), options.audit_retention);
        let audit = Arc::new(audit);
        let stats = Stats::default();
        let started_at = options.clock.now_unix_secs();
        Self { store, history, audit, signer, issuers, started_at, options, stats }
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub(super) fn history(&self) -> &History {
        &self.history
    }

    pub(super) fn audit(&self) -> &Arc<Audit> {
        &self.audit
    }

    pub(super) fn issuers(&self) -> &Issuers {
        &self.issuers
    }

    pub(super) fn stats(&self) -> &Stats {
        &self.stats
    }

    pub(super) fn presence(&self) -> &dyn Presence {
        &*self.options.presence
    }

    /// Seconds since 1970.
    pub(super) fn now(&self) -> u64 {
        self.options.clock.now_unix_secs()
    }

    pub(super) fn random<const N: usize>(&self) -> Result<[u8; N], NoRandomness> {
        random_bytes(&*self.options.random)
    }
}
