//! SIGHUP: settings are read again, and what can change while running does.

use std::sync::{Arc, Mutex, PoisonError};

use rendez_transport::telemetry::LogHandle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Change, Loaded};
use crate::directory::Directory;
use crate::tls::Tls;

/// What can change while the relay runs.
pub(crate) struct Reload {
    /// As they are in force; what needs a restart is what it was at the start.
    settings: Mutex<Loaded>,
    log: LogHandle,
    tls: Option<Arc<Tls>>,
    directory: Arc<Directory>,
}

impl Reload {
    pub(crate) fn new(
        settings: Loaded,
        log: LogHandle,
        tls: Option<Arc<Tls>>,
        directory: Arc<Directory>,
    ) -> Self {
        Self { settings: Mutex::new(settings), log, tls, directory }
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
        for difference in differences {
            let setting = difference.key;
            let (old, new) = (settings.config.get(setting), newer.get(setting));
            if difference.change == Change::AtStart {
                tracing::warn!(setting, old, new, "this setting changes at the next start");
                continue;
            }
            // It parsed a moment ago, as a value of this very setting.
            if settings.config.set(setting, &new).is_ok() {
                tracing::info!(setting, old, new, "setting changed");
            }
        }
        self.log.set_level(settings.config.log_level);
        self.directory.ledger().set_quotas(settings.config.quotas());
        match &self.tls {
            Some(tls) => tls.reconfigure(&settings.config),
            None if settings.config.tls_cert.is_some() => {
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
