//! TLS in front of HTTP: rustls with aws-lc-rs, X25519MLKEM768 preferred.
//!
//! * A relay does not start with unusable files. A running relay keeps the last
//!   good ones.
//! * New files apply to new connections; open ones keep the parameters that they
//!   negotiated.
//! * Handshakes are bounded in time, and so is the number of those that compute at
//!   once ([`handshake_limit`]).
//! * The relay treats a certificate that it gets by ACME like any other file. Until
//!   there is one, it only serves the proofs of its names.

#[cfg(feature = "acme")]
mod acme;
#[cfg(not(feature = "acme"))]
#[path = "acme_disabled.rs"]
mod acme;
mod client;
mod error;
mod files;
mod handshake_limit;
mod order_stats;
mod stats;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use rendez_transport::socket::WRITE_BUFFER_BYTES;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::ClientHello;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use self::acme::{Acme, RenewalState};
pub(crate) use self::client::ClientCertificate;
pub use self::error::TlsError;
use self::files::{TlsFiles, UNREADABLE};
use self::handshake_limit::HandshakeLimit;
pub(crate) use self::handshake_limit::PeerClosed;
pub(crate) use self::order_stats::{OrderOutcome, OrderStats};
pub(crate) use self::stats::{HandshakeOutcome, KeyExchangeGroup, TlsStats};
use crate::config::Config;

/// Bytes that TLS on a connection takes before the system has taken them: as many as a
/// websocket writes at once.
pub(crate) const UNSENT_MAX_BYTES: usize = WRITE_BUFFER_BYTES;

/// TLS of a listener.
pub(crate) struct Tls {
    inner: RwLock<Inner>,
    acme: Option<Acme>,
    /// Notified when the relay itself has written a file.
    written: Notify,
    handshakes: HandshakeLimit,
    timeout: Duration,
    reload_every: Duration,
    pub(crate) stats: TlsStats,
    pub(crate) orders: OrderStats,
}

struct Inner {
    files: TlsFiles,
    /// The digest of the files at the last check, whether they were usable or not.
    seen: [u8; 32],
    serving: Serving,
}

#[derive(Clone)]
enum Serving {
    /// The last good certificate.
    Certificate(Arc<ServerConfig>),
    /// There was no good certificate yet. This configuration presents none.
    NoCertificate(Arc<ServerConfig>),
}

impl Tls {
    /// Returns `None` if the settings name neither a certificate nor ACME domains.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub(crate) fn open(config: &Config) -> Result<Option<Arc<Self>>, TlsError> {
        let acme = Acme::new(config)?;
        let own = acme.as_ref().map(Acme::certificate);
        let Some(files) = TlsFiles::new(config, own)? else { return Ok(None) };
        let stats = TlsStats::default();
        let (seen, serving) = match (files.load(), &acme) {
            (Ok(loaded), _) => {
                stats.set_certificate_expiry(loaded.not_after);
                (loaded.digest, Serving::Certificate(loaded.config))
            }
            (Err(error), None) => return Err(error),
            (Err(error), Some(acme)) => {
                // The files that the operator named must be usable in any case.
                files.verifier(Arc::new(aws_lc_rs::default_provider()))?;
                match own.is_some_and(std::path::Path::exists) {
                    true => tracing::warn!(%error, "cannot use the stored ACME certificate"),
                    false => tracing::info!("there is no certificate yet"),
                }
                (UNREADABLE, Serving::NoCertificate(acme.no_certificate()))
            }
        };
        Ok(Some(Arc::new(Self {
            inner: RwLock::new(Inner { files, seen, serving }),
            acme,
            written: Notify::new(),
            handshakes: HandshakeLimit::new(config.tls_handshakes_max),
            timeout: config.tls_handshake_timeout,
            reload_every: config.tls_reload_every,
            stats,
            orders: OrderStats::default(),
        })))
    }

    /// Accepts TLS on a connection. The timeout includes waiting for the peer and for
    /// a turn to compute. `None`, after a failure, is counted and logged.
    pub(crate) async fn accept<T: PeerClosed>(
        &self,
        io: T,
    ) -> Option<(TlsStream<T>, Option<ClientCertificate>)> {
        let since = Instant::now();
        let mut purpose = HandshakeOutcome::Ok;
        let handshake = self.handshakes.accept(io, |hello| {
            let (wanted, config) = self.config_for(hello);
            purpose = wanted;
            config
        });
        let result = match tokio::time::timeout(self.timeout, handshake).await {
            Ok(result) => result,
            Err(_) => {
                self.stats.count(HandshakeOutcome::Timeout);
                tracing::debug!("a TLS handshake took too long");
                return None;
            }
        };
        match (purpose, result) {
            (HandshakeOutcome::Ok, Ok(mut stream)) => {
                stream.get_mut().1.set_buffer_limit(Some(UNSENT_MAX_BYTES));
                self.stats.count(HandshakeOutcome::Ok);
                self.stats.took.observe(since.elapsed().as_secs_f64());
                let (_, session) = stream.get_ref();
                self.stats.count_group(session.negotiated_key_exchange_group());
                let client = session.peer_certificates().and_then(|chain| chain.first());
                let client = client.map(ClientCertificate::new);
                return Some((stream, client));
            }
            // The handshake itself shows the proof; no data follows.
            (purpose, Ok(mut stream)) => {
                self.stats.count(purpose);
                tracing::debug!("an ACME server read a proof");
                let _ = tokio::time::timeout(self.timeout, stream.shutdown()).await;
            }
            (HandshakeOutcome::NoCertificate, Err(_)) => {
                self.stats.count(HandshakeOutcome::NoCertificate);
                tracing::debug!("refused a TLS handshake: there is no certificate yet");
            }
            (_, Err(error)) => {
                self.stats.count(HandshakeOutcome::of_error(&error));
                tracing::debug!(%error, "a TLS handshake failed");
            }
        }
        None
    }

    /// A client that asks for a proof gets the proof or no certificate, never the
    /// relay's own certificate.
    fn config_for(&self, hello: &ClientHello<'_>) -> (HandshakeOutcome, Arc<ServerConfig>) {
        if let Some(acme) = self.acme.as_ref().filter(|acme| acme.is_challenge(hello)) {
            return match acme.proof(hello) {
                Some(proof) => (HandshakeOutcome::Proof, proof),
                None => (HandshakeOutcome::Failed, acme.no_certificate()),
            };
        }
        match self.serving() {
            Serving::Certificate(config) => (HandshakeOutcome::Ok, config),
            Serving::NoCertificate(config) => (HandshakeOutcome::NoCertificate, config),
        }
    }

    /// Checks the files every few seconds, and when the relay has written one, until
    /// cancelled.
    pub(crate) async fn watch(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            let pause = tokio::time::timeout(self.reload_every, self.written.notified());
            if cancel.run_until_cancelled(pause).await.is_none() {
                return;
            }
            let this = self.clone();
            // It reads files, which blocks.
            let _ = tokio::task::spawn_blocking(move || this.check_files()).await;
        }
    }

    /// Orders and renews certificates by ACME, if that is on, until cancelled.
    pub(crate) async fn renew(self: Arc<Self>, cancel: CancellationToken) {
        let Some(acme) = &self.acme else { return };
        let mut state = RenewalState::default();
        let mut renewed = async || acme.renewed(&mut state, &self.orders).await;
        while cancel.run_until_cancelled(renewed()).await.is_some() {
            self.written.notify_one();
        }
    }

    /// Loads the files if they changed.
    fn check_files(&self) {
        let (files, seen) = {
            let inner = self.inner.read();
            (inner.files.clone(), inner.seen)
        };
        match files.digest() {
            Ok(digest) if digest == seen => {}
            // Files that are being replaced may be missing for a moment. The first
            // failure is logged, a repeated one is not.
            Err(error) if seen == UNREADABLE => {
                tracing::debug!(%error, "the TLS files are still unreadable");
            }
            digest => {
                self.replace(files, digest.unwrap_or(UNREADABLE));
            }
        }
    }

    /// Applies new settings at SIGHUP; whether ACME is used stays as it was at the
    /// start. Returns `false` if they are not in force yet; they will be as soon as
    /// their files are usable.
    pub(crate) fn reconfigure(&self, config: &Config) -> bool {
        match TlsFiles::new(config, self.acme.as_ref().map(Acme::certificate)) {
            Ok(Some(files)) => {
                let digest = files.digest().unwrap_or(UNREADABLE);
                let no_certificate = matches!(self.serving(), Serving::NoCertificate(_));
                if no_certificate && digest == UNREADABLE {
                    // They apply to the certificate that is still to be issued.
                    self.inner.write().files = files;
                    return true;
                }
                return self.replace(files, digest);
            }
            Ok(None) => {
                tracing::warn!("the settings turn TLS off: that takes effect at the next start")
            }
            Err(error) => {
                tracing::warn!(%error, "cannot use the new TLS settings: keeping the old ones")
            }
        }
        false
    }

    /// Loads the files and applies them. Returns `false` if they are unusable; they
    /// are then checked from now on.
    fn replace(&self, files: TlsFiles, digest: [u8; 32]) -> bool {
        let loaded = files.load();
        let good = loaded.is_ok();
        let mut inner = self.inner.write();
        match loaded {
            Ok(loaded) => {
                self.stats.count_reload(true);
                self.stats.set_certificate_expiry(loaded.not_after);
                let serving = Serving::Certificate(loaded.config);
                *inner = Inner { files, seen: loaded.digest, serving };
            }
            Err(error) => {
                self.stats.count_reload(false);
                tracing::warn!(%error, "cannot use the new TLS files: keeping the old ones");
                (inner.files, inner.seen) = (files, digest);
            }
        }
        good
    }

    fn serving(&self) -> Serving {
        self.inner.read().serving.clone()
    }
}
