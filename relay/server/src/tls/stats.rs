//! Counters of TLS handshakes.

use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus_client::metrics::histogram::Histogram;
use rustls::crypto::SupportedKxGroup;
use rustls::{Error, NamedGroup};

/// Histogram buckets in seconds: a hybrid handshake computes for about a
/// millisecond; the rest is the network and the queue.
const SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// How a handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeOutcome {
    /// It succeeded.
    Ok,
    /// It did not finish in time.
    Timeout,
    /// The client closed the connection before its turn.
    HungUp,
    /// The client's certificate is missing or invalid.
    ClientCertificate,
    /// It failed otherwise; most of these are scanners or not TLS.
    Failed,
    /// An ACME server read the proof that it had asked for.
    Proof,
    /// The relay has no certificate yet.
    NoCertificate,
}

impl HandshakeOutcome {
    pub(crate) const ALL: [HandshakeOutcome; 7] = [
        HandshakeOutcome::Ok,
        HandshakeOutcome::Timeout,
        HandshakeOutcome::HungUp,
        HandshakeOutcome::ClientCertificate,
        HandshakeOutcome::Failed,
        HandshakeOutcome::Proof,
        HandshakeOutcome::NoCertificate,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            HandshakeOutcome::Ok => "ok",
            HandshakeOutcome::Timeout => "timeout",
            HandshakeOutcome::HungUp => "hung_up",
            HandshakeOutcome::ClientCertificate => "client_certificate",
            HandshakeOutcome::Failed => "failed",
            HandshakeOutcome::Proof => "proof",
            HandshakeOutcome::NoCertificate => "no_certificate",
        }
    }

    pub(super) fn of_error(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::ConnectionAborted {
            return HandshakeOutcome::HungUp;
        }
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match tls {
            Some(Error::NoCertificatesPresented | Error::InvalidCertificate(_)) => {
                HandshakeOutcome::ClientCertificate
            }
            _ => HandshakeOutcome::Failed,
        }
    }
}

/// The group of a key exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyExchangeGroup {
    /// Secure against quantum computers.
    X25519MlKem768,
    /// Not secure against quantum computers.
    X25519,
    /// Another one, not secure against quantum computers.
    Other,
}

impl KeyExchangeGroup {
    pub(crate) const ALL: [KeyExchangeGroup; 3] =
        [KeyExchangeGroup::X25519MlKem768, KeyExchangeGroup::X25519, KeyExchangeGroup::Other];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            KeyExchangeGroup::X25519MlKem768 => "x25519mlkem768",
            KeyExchangeGroup::X25519 => "x25519",
            KeyExchangeGroup::Other => "other",
        }
    }
}

/// Counters since the relay started.
pub(crate) struct TlsStats {
    handshakes: [AtomicU64; HandshakeOutcome::ALL.len()],
    groups: [AtomicU64; KeyExchangeGroup::ALL.len()],
    reloads: [AtomicU64; 2],
    not_after: AtomicI64,
    pub(crate) took: Histogram,
}

impl Default for TlsStats {
    fn default() -> Self {
        Self {
            handshakes: Default::default(),
            groups: Default::default(),
            reloads: Default::default(),
            not_after: AtomicI64::new(0),
            took: Histogram::new(SECONDS),
        }
    }
}

impl TlsStats {
    pub(super) fn count(&self, outcome: HandshakeOutcome) {
        self.handshakes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_group(&self, group: Option<&'static dyn SupportedKxGroup>) {
        let group = match group.map(SupportedKxGroup::name) {
            Some(NamedGroup::X25519MLKEM768) => KeyExchangeGroup::X25519MlKem768,
            Some(NamedGroup::X25519) => KeyExchangeGroup::X25519,
            _ => KeyExchangeGroup::Other,
        };
        self.groups[group as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_reload(&self, good: bool) {
        self.reloads[usize::from(good)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_certificate_expiry(&self, not_after: i64) {
        self.not_after.store(not_after, Ordering::Relaxed);
    }

    /// The number of handshakes with this outcome.
    pub(crate) fn handshakes(&self, outcome: HandshakeOutcome) -> u64 {
        self.handshakes[outcome as usize].load(Ordering::Relaxed)
    }

    /// The number of connections with this group.
    pub(crate) fn groups(&self, group: KeyExchangeGroup) -> u64 {
        self.groups[group as usize].load(Ordering::Relaxed)
    }

    /// The numbers of failed and of successful reloads.
    pub(crate) fn reloads(&self) -> [u64; 2] {
        [self.reloads[0].load(Ordering::Relaxed), self.reloads[1].load(Ordering::Relaxed)]
    }

    /// When the certificate expires, in seconds since 1970.
    pub(crate) fn not_after(&self) -> i64 {
        self.not_after.load(Ordering::Relaxed)
    }
}
