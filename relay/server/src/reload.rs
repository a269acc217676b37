//! SIGHUP reloads the settings and applies those that can change at runtime.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use rendez_program::logging::LogHandle;
use rendez_program::settings::{Change, Difference, Loaded, Settings as _};
use rendez_registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::connections::ConnectionTable;
use crate::sys::Hangups;
use crate::tls::Tls;

/// The parts of a relay that can change at runtime.
pub(crate) struct Reload {
    /// The settings in force; those that need a restart keep their value from the start.
    settings: Mutex<Loaded<Config>>,
    log: LogHandle,
    tls: Option<Arc<Tls>>,
    connections: Arc<ConnectionTable>,
    registry: Registry,
}

impl Reload {
    pub(crate) fn new(
        settings: Loaded<Config>,
        log: LogHandle,
        tls: Option<Arc<Tls>>,
        connections: Arc<ConnectionTable>,
        registry: Registry,
    ) -> Self {
        Self { settings: Mutex::new(settings), log, tls, connections, registry }
    }

    /// Reads the settings again, applies them and logs the changes. Invalid settings
    /// change nothing.
    pub(crate) fn reload(&self) {
        let mut settings = self.settings.lock();
        let newer = match settings.reload() {
            Ok(newer) => newer.config,
            Err(error) => {
                tracing::warn!(%error, "cannot use the new settings: keeping the old ones");
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
                // Cannot fail: this text was just parsed as a value of this setting.
                let _ = settings.config.set(difference.key, &newer.get(difference.key));
            }
        }
        let tls_is_new = self.apply(&settings.config);
        // Logged after they are in force.
        for difference in differences {
            if !tls_is_new && waits_for_tls(difference) {
                let setting = difference.key;
                tracing::warn!(setting, "this setting of TLS is not in force yet");
            } else {
                log_change(&older, &newer, difference);
            }
        }
    }

    /// Returns whether the TLS settings are in force as well.
    fn apply(&self, config: &Config) -> bool {
        self.log.set_level(config.log_level);
        self.connections.quotas().set_quotas(config.quotas());
        self.registry.audit().set_retention(config.audit_keep());
        self.registry.history().set_retention(config.history_keep());
        match &self.tls {
            Some(tls) => tls.reconfigure(config),
            None if config.tls_cert.is_some() => {
                tracing::warn!("the settings turn TLS on: that takes effect at the next start");
                false
            }
            None => true,
        }
    }

    /// Reloads at each SIGHUP until cancelled.
    pub(crate) async fn at(self, mut hangups: Hangups, cancel: CancellationToken) {
        let this = Arc::new(self);
        while let Some(Some(())) = cancel.run_until_cancelled(hangups.recv()).await {
            let this = this.clone();
            // It reads files, possibly over a network, which blocks.
            let _ = tokio::task::spawn_blocking(move || this.reload()).await;
        }
    }
}

/// Whether it is a TLS setting that a reload applies.
fn waits_for_tls(difference: Difference) -> bool {
    difference.key.starts_with("tls.") && difference.change == Change::AtReload
}

/// Logs a changed setting; of a setting with a value per id, each changed value.
fn log_change(older: &Config, newer: &Config, difference: Difference) {
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::Duration;

    use rendez_registry::Options;
    use rustix::process::{Signal, getpid, kill_process};
    use tokio::sync::oneshot;

    use super::*;
    use rendez_program::settings::Layers;

    /// Longest wait for the other task.
    const WITHIN: Duration = Duration::from_secs(30);

    /// The file is a pipe without a writer for a while; all tasks run on one thread.
    #[tokio::test]
    async fn slow_settings_file_blocks_no_task() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.toml");
        fs::write(&path, "").unwrap();
        let settings = Layers { file: Some(path.clone()), overrides: Vec::new() }.load().unwrap();
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());

        let (hangups, cancel) = (Hangups::catch().unwrap(), CancellationToken::new());
        let state = directory.path().join("state");
        let registry = Registry::open(&state, Options::default()).await.unwrap();
        let reload = Reload::new(settings, LogHandle::default(), None, Arc::default(), registry);
        let reloading = tokio::spawn({
            let cancel = cancel.clone();
            async move { reload.at(hangups, cancel).await }
        });
        let (reading, begun) = oneshot::channel();
        let (alive, sign) = std::sync::mpsc::channel();
        let writer = tokio::task::spawn_blocking(move || {
            // Returns when the file is opened for reading.
            let _pipe = File::options().write(true).open(path).unwrap();
            let _ = reading.send(());
            sign.recv_timeout(WITHIN).is_ok()
        });
        kill_process(getpid(), Signal::HUP).unwrap();
        begun.await.unwrap();
        let _ = alive.send(());
        assert!(writer.await.unwrap(), "no task ran while the file was read");
        cancel.cancel();
        reloading.await.unwrap();
    }
}
