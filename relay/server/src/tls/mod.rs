//! TLS in front of HTTP: rustls with aws-lc-rs, X25519MLKEM768 preferred.
//!
//! * A pair of files that cannot be used stops a start, and never a running
//!   relay: the last good one stays in force.
//! * A new pair is for new connections; open ones keep what they negotiated.
//! * A handshake is bounded in time, and the number of those that compute at
//!   once is bounded ([`handshakes`]).
//! * A certificate that the relay gets by itself is a file like others. Until
//!   there is one, handshakes serve its proof and nothing else.

#[cfg(feature = "acme")]
mod acme;
#[cfg(not(feature = "acme"))]
#[path = "no_acme.rs"]
mod acme;
mod client;
mod error;
mod files;
mod handshakes;
mod orders;
mod stats;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::ClientHello;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use self::acme::{Acme, Renewal};
pub(crate) use self::client::ClientCertificate;
pub use self::error::TlsError;
use self::files::Settings;
use self::handshakes::Handshakes;
pub(crate) use self::handshakes::Wire;
pub(crate) use self::orders::{OrderStats, Ordered};
pub(crate) use self::stats::{Group, Handshake, TlsStats};
use crate::config::Config;

/// The TLS side of a listener.
pub(crate) struct Tls {
    inner: RwLock<Inner>,
    acme: Option<Acme>,
    /// The relay itself has written a file.
    written: Notify,
    handshakes: Handshakes,
    timeout: Duration,
    reload_every: Duration,
    pub(crate) stats: TlsStats,
    pub(crate) orders: OrderStats,
}

struct Inner {
    settings: Settings,
    /// What the files held when they were last looked at, good or not.
    seen: [u8; 32],
    serving: Serving,
}

#[derive(Clone)]
enum Serving {
    /// The last good certificate.
    Certificate(Arc<ServerConfig>),
    /// None was there yet; this shows nothing.
    Nothing(Arc<ServerConfig>),
}

impl Tls {
    /// `None` if the settings name no certificate and no way to get one.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub(crate) fn open(config: &Config) -> Result<Option<Arc<Self>>, TlsError> {
        let acme = Acme::of(config)?;
        let own = acme.as_ref().map(Acme::certificate);
        let Some(settings) = Settings::of(config, own)? else { return Ok(None) };
        let stats = TlsStats::default();
        let (seen, serving) = match (settings.load(), &acme) {
            (Ok(loaded), _) => {
                stats.certificate_ends(loaded.not_after);
                (loaded.digest, Serving::Certificate(loaded.config))
            }
            (Err(error), None) => return Err(error),
            (Err(error), Some(acme)) => {
                // What the operator named must be good, certificate or not.
                settings.verifier(Arc::new(aws_lc_rs::default_provider()))?;
                match own.is_some_and(std::path::Path::exists) {
                    true => tracing::warn!(%error, "the kept certificate cannot be used"),
                    false => tracing::info!("there is no certificate yet"),
                }
                (files::UNREADABLE, Serving::Nothing(acme.nothing()))
            }
        };
        Ok(Some(Arc::new(Self {
            inner: RwLock::new(Inner { settings, seen, serving }),
            acme,
            written: Notify::new(),
            handshakes: Handshakes::new(config.tls_handshakes_max),
            timeout: config.tls_handshake_timeout,
            reload_every: config.tls_reload_every,
            stats,
            orders: OrderStats::default(),
        })))
    }

    /// Ends TLS on an accepted connection; waiting for the peer and for a place
    /// among the handshakes counts as part of it. `None` is counted and logged.
    pub(crate) async fn accept<T: Wire>(
        &self,
        io: T,
    ) -> Option<(TlsStream<T>, Option<ClientCertificate>)> {
        let since = Instant::now();
        let mut purpose = Handshake::Ok;
        let handshake = self.handshakes.accept(io, |hello| {
            let (asked, config) = self.answer(hello);
            purpose = asked;
            config
        });
        let result = match tokio::time::timeout(self.timeout, handshake).await {
            Ok(result) => result,
            Err(_) => {
                self.stats.count(Handshake::Timeout);
                tracing::debug!("a TLS handshake took too long");
                return None;
            }
        };
        match (purpose, result) {
            (Handshake::Ok, Ok(stream)) => {
                self.stats.count(Handshake::Ok);
                self.stats.took.observe(since.elapsed().as_secs_f64());
                let (_, session) = stream.get_ref();
                self.stats.count_group(session.negotiated_key_exchange_group());
                let client = session.peer_certificates().and_then(|chain| chain.first());
                let client = client.map(ClientCertificate::of);
                return Some((stream, client));
            }
            // A proof is shown, and there is nothing to say afterwards.
            (purpose, Ok(mut stream)) => {
                self.stats.count(purpose);
                tracing::debug!("an ACME server looked at a proof");
                let _ = tokio::time::timeout(self.timeout, stream.shutdown()).await;
            }
            (Handshake::NoCertificate, Err(_)) => {
                self.stats.count(Handshake::NoCertificate);
                tracing::debug!("a TLS handshake is refused: there is no certificate yet");
            }
            (_, Err(error)) => {
                self.stats.count(Handshake::of_error(&error));
                tracing::debug!(%error, "a TLS handshake failed");
            }
        }
        None
    }

    /// Who asks for a proof gets that or nothing, whatever else is served.
    fn answer(&self, hello: &ClientHello<'_>) -> (Handshake, Arc<ServerConfig>) {
        if let Some(acme) = self.acme.as_ref().filter(|acme| acme.is_asked(hello)) {
            return match acme.proof(hello) {
                Some(proof) => (Handshake::Proof, proof),
                None => (Handshake::Failed, acme.nothing()),
            };
        }
        match self.serving() {
            Serving::Certificate(config) => (Handshake::Ok, config),
            Serving::Nothing(config) => (Handshake::NoCertificate, config),
        }
    }

    /// Looks at the files every few seconds, and when the relay has written one,
    /// until cancelled.
    pub(crate) async fn watch(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            let pause = tokio::time::timeout(self.reload_every, self.written.notified());
            if cancel.run_until_cancelled(pause).await.is_none() {
                return;
            }
            let this = self.clone();
            // It reads files.
            let _ = tokio::task::spawn_blocking(move || this.look()).await;
        }
    }

    /// Gets certificates by ACME, if that is on, until cancelled.
    pub(crate) async fn renew(self: Arc<Self>, cancel: CancellationToken) {
        let Some(acme) = &self.acme else { return };
        let mut renewal = Renewal::default();
        let mut renewed = async || acme.renewed(&mut renewal, &self.orders).await;
        while cancel.run_until_cancelled(renewed()).await.is_some() {
            self.written.notify_one();
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
            digest => {
                self.replace(settings, digest.unwrap_or(files::UNREADABLE));
            }
        }
    }

    /// Takes new settings over, at SIGHUP. How a certificate is had stays as it
    /// was at the start. `false` if they are not in force now; then they are as
    /// soon as their files can be used.
    pub(crate) fn reconfigure(&self, config: &Config) -> bool {
        match Settings::of(config, self.acme.as_ref().map(Acme::certificate)) {
            Ok(Some(settings)) => {
                let digest = settings.digest().unwrap_or(files::UNREADABLE);
                let nothing = matches!(self.serving(), Serving::Nothing(_));
                if nothing && digest == files::UNREADABLE {
                    // For the certificate that is to come.
                    self.inner.write().unwrap_or_else(PoisonError::into_inner).settings = settings;
                    return true;
                }
                return self.replace(settings, digest);
            }
            Ok(None) => tracing::warn!("TLS is switched off at the next start"),
            Err(error) => tracing::warn!(%error, "the TLS settings stay as they were"),
        }
        false
    }

    /// Whether the settings are in force now. If not, they are what is looked
    /// at from here on.
    fn replace(&self, settings: Settings, digest: [u8; 32]) -> bool {
        let loaded = settings.load();
        let good = loaded.is_ok();
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        match loaded {
            Ok(loaded) => {
                self.stats.count_reload(true);
                self.stats.certificate_ends(loaded.not_after);
                let serving = Serving::Certificate(loaded.config);
                *inner = Inner { settings, seen: loaded.digest, serving };
            }
            Err(error) => {
                self.stats.count_reload(false);
                tracing::warn!(%error, "the new TLS files cannot be used; the old ones serve on");
                (inner.settings, inner.seen) = (settings, digest);
            }
        }
        good
    }

    fn serving(&self) -> Serving {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).serving.clone()
    }
}
