//! TLS in front of HTTP: rustls with aws-lc-rs, X25519MLKEM768 preferred.
//!
//! * A pair of files that cannot be used stops a start, and never a running
//!   relay: the last good one stays in force.
//! * A new pair is for new connections; open ones keep what they negotiated.
//! * A handshake is bounded in time, and so is the number of them at once: it
//!   is the most work that a stranger can ask for with few bytes.

mod client;
mod files;
mod stats;

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::config::Config;

pub(crate) use self::client::ClientCertificate;
use self::files::Settings;
pub use self::files::TlsError;
pub(crate) use self::stats::{Group, Handshake, TlsStats};

/// The TLS side of a listener.
pub(crate) struct Tls {
    inner: RwLock<Inner>,
    handshakes: Semaphore,
    timeout: Duration,
    reload_every: Duration,
    pub(crate) stats: TlsStats,
}

struct Inner {
    settings: Settings,
    /// What the files held when they were last looked at, good or not.
    seen: [u8; 32],
    /// The last good one.
    serving: Arc<ServerConfig>,
}

impl Tls {
    /// `None` if the settings name no certificate.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub(crate) fn open(config: &Config) -> Result<Option<Arc<Self>>, TlsError> {
        let Some(settings) = Settings::of(config)? else { return Ok(None) };
        let loaded = settings.load()?;
        let stats = TlsStats::default();
        stats.certificate_ends(loaded.not_after);
        let inner = Inner { settings, seen: loaded.digest, serving: loaded.config };
        Ok(Some(Arc::new(Self {
            inner: RwLock::new(inner),
            handshakes: Semaphore::new(config.tls_handshakes_max.clamp(1, Semaphore::MAX_PERMITS)),
            timeout: config.tls_handshake_timeout,
            reload_every: config.tls_reload_every,
            stats,
        })))
    }

    /// Ends TLS on an accepted connection; waiting for a place among the
    /// handshakes counts as part of it. `None` is counted and logged.
    pub(crate) async fn accept<T: AsyncRead + AsyncWrite + Unpin>(
        &self,
        io: T,
    ) -> Option<(TlsStream<T>, Option<ClientCertificate>)> {
        let since = Instant::now();
        let handshake = async {
            let _place = self.handshakes.acquire().await.map_err(io::Error::other)?;
            TlsAcceptor::from(self.serving()).accept(io).await
        };
        let result = match tokio::time::timeout(self.timeout, handshake).await {
            Ok(result) => result,
            Err(_) => {
                self.stats.count(Handshake::Timeout);
                tracing::debug!("a TLS handshake took too long");
                return None;
            }
        };
        match result {
            Ok(stream) => {
                self.stats.count(Handshake::Ok);
                self.stats.took.observe(since.elapsed().as_secs_f64());
                let (_, session) = stream.get_ref();
                self.stats.count_group(session.negotiated_key_exchange_group());
                let client = session.peer_certificates().and_then(|chain| chain.first());
                let client = client.map(ClientCertificate::of);
                Some((stream, client))
            }
            Err(error) => {
                self.stats.count(Handshake::of_error(&error));
                tracing::debug!(%error, "a TLS handshake failed");
                None
            }
        }
    }

    /// Looks at the files every few seconds until cancelled.
    pub(crate) async fn watch(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            let pause = tokio::time::sleep(self.reload_every);
            if cancel.run_until_cancelled(pause).await.is_none() {
                return;
            }
            let this = self.clone();
            // It reads files.
            let _ = tokio::task::spawn_blocking(move || this.look()).await;
        }
    }

    /// Takes over what the files hold, if that is new and good.
    fn look(&self) {
        let (settings, seen) = {
            let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
            (inner.settings.clone(), inner.seen)
        };
        match settings.digest() {
            Ok(digest) if digest == seen => {}
            // Files that are being replaced may be missing for a moment: that
            // is looked at again, and said once it stays.
            Err(error) if seen == files::UNREADABLE => tracing::debug!(%error, "still unreadable"),
            digest => self.replace(settings, digest.unwrap_or(files::UNREADABLE)),
        }
    }

    /// Takes new settings over, at SIGHUP.
    pub(crate) fn reconfigure(&self, config: &Config) {
        match Settings::of(config) {
            Ok(Some(settings)) => {
                let digest = settings.digest().unwrap_or(files::UNREADABLE);
                self.replace(settings, digest);
            }
            Ok(None) => tracing::warn!("TLS is switched off at the next start"),
            Err(error) => tracing::warn!(%error, "the TLS settings stay as they were"),
        }
    }

    fn replace(&self, settings: Settings, digest: [u8; 32]) {
        let loaded = settings.load();
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.seen = digest;
        match loaded {
            Ok(loaded) => {
                self.stats.count_reload(true);
                self.stats.certificate_ends(loaded.not_after);
                *inner = Inner { settings, seen: loaded.digest, serving: loaded.config };
            }
            Err(error) => {
                self.stats.count_reload(false);
                tracing::warn!(%error, "the new TLS files cannot be used; the old ones serve on");
            }
        }
    }

    fn serving(&self) -> Arc<ServerConfig> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).serving.clone()
    }
}
