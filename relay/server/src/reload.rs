//! SIGHUP: settings are read again, and what can change while running does.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use rendez_registry::Registry;
use rendez_transport::telemetry::LogHandle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::layers::Difference;
use crate::config::{Change, Config, Loaded};
use crate::directory::Directory;
use crate::tls::Tls;

/// What can change while the relay runs.
pub(crate) struct Reload {
    /// As they are in force; what needs a restart is what it was at the start.
    settings: Mutex<Loaded>,
    log: LogHandle,
    tls: Option<Arc<Tls>>,
    directory: Arc<Directory>,
    registry: Registry,
}

impl Reload {
    pub(crate) fn new(
        settings: Loaded,
        log: LogHandle,
        tls: Option<Arc<Tls>>,
        directory: Arc<Directory>,
        registry: Registry,
    ) -> Self {
        Self { settings: Mutex::new(settings), log, tls, directory, registry }
    }

    /// Reads the settings again and says what changed. Settings that cannot be
    /// used leave everything as it is.
    pub(crate) fn reload(&self) {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = match settings.again() {
            Ok(newer) => newer.config,
            Err(error) => {
                tracing::warn!(%error, "the new settings cannot be used; the old ones stay");
                return;
            }
        };
        let differences = settings.differences(&newer);
        if differences.is_empty() {
            tracing::info!("settings read again, none of them changed");
        }
        let older = settings.config.clone();
        for difference in &differences {
            if difference.change == Change::AtReload {
                // It parsed a moment ago, as a value of this very setting.
                let _ = settings.config.set(difference.key, &newer.get(difference.key));
            }
        }
        self.apply(&settings.config);
        // When it is said, it is so.
        for difference in differences {
            say(&older, &newer, difference);
        }
    }

    fn apply(&self, config: &Config) {
        self.log.set_level(config.log_level);
        self.directory.ledger().set_quotas(config.quotas());
        self.registry.audit().keep(config.audit_keep());
        self.registry.history().keep(config.history_keep());
        match &self.tls {
            Some(tls) => tls.reconfigure(config),
            None if config.tls_cert.is_some() => {
                tracing::warn!("TLS is switched on at the next start");
            }
            None => {}
        }
    }

    /// Reloads at each SIGHUP until cancelled.
    pub(crate) async fn at(&self, mut hangups: Signal, cancel: CancellationToken) {
        while let Some(Some(())) = cancel.run_until_cancelled(hangups.recv()).await {
            self.reload();
        }
    }
}

/// What changed, or waits; of a setting with a value per id, each of them.
fn say(older: &Config, newer: &Config, difference: Difference) {
    let setting = difference.key;
    let (mut old, mut new) = (older.entries(setting), newer.entries(setting));
    if old.is_empty() && new.is_empty() {
        let (old, new) = (older.get(setting), newer.get(setting));
        match difference.change {
            Change::AtReload => tracing::info!(setting, old, new, "setting changed"),
            Change::AtStart => {
                tracing::warn!(setting, old, new, "this setting changes at the next start");
            }
        }
    }
    let ids: BTreeSet<String> = old.keys().chain(new.keys()).cloned().collect();
    for id in ids {
        let (old, new) = (old.remove(&id), new.remove(&id));
        if old != new {
            tracing::info!(setting, id, old, new, "setting changed");
        }
    }
}

/// SIGHUPs from here on: one that nobody waits for ends the process.
pub(crate) fn hangups() -> Option<Signal> {
    match signal(SignalKind::hangup()) {
        Ok(hangups) => Some(hangups),
        Err(error) => {
            tracing::warn!(%error, "SIGHUP cannot be caught; settings stay as they are");
            None
        }
    }
}
