//! How TLS handshakes ended.

use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus_client::metrics::histogram::Histogram;
use rustls::crypto::SupportedKxGroup;
use rustls::{Error, NamedGroup};

/// Bounds in seconds: a hybrid handshake computes for about a millisecond; the
/// rest is the network and the queue.
const SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// How a handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// A connection.
    Ok,
    /// Not in time.
    Timeout,
    /// The client left before it was its turn.
    HungUp,
    /// No certificate of the client's, or none that is good.
    ClientCertificate,
    /// Otherwise; most are no TLS at all or scanners.
    Failed,
    /// An ACME server saw the proof that it had asked for.
    Proof,
    /// The relay has no certificate yet.
    NoCertificate,
}

impl Handshake {
    pub(crate) const ALL: [Handshake; 7] = [
        Handshake::Ok,
        Handshake::Timeout,
        Handshake::HungUp,
        Handshake::ClientCertificate,
        Handshake::Failed,
        Handshake::Proof,
        Handshake::NoCertificate,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Handshake::Ok => "ok",
            Handshake::Timeout => "timeout",
            Handshake::HungUp => "hung_up",
            Handshake::ClientCertificate => "client_certificate",
            Handshake::Failed => "failed",
            Handshake::Proof => "proof",
            Handshake::NoCertificate => "no_certificate",
        }
    }

    pub(super) fn of_error(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::ConnectionAborted {
            return Handshake::HungUp;
        }
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match tls {
            Some(Error::NoCertificatesPresented | Error::InvalidCertificate(_)) => {
                Handshake::ClientCertificate
            }
            _ => Handshake::Failed,
        }
    }
}

/// What the keys were agreed on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// Holds against quantum computers.
    X25519MlKem768,
    /// Does not.
    X25519,
    /// Another one; they do not either.
    Other,
}

impl Group {
    pub(crate) const ALL: [Group; 3] = [Group::X25519MlKem768, Group::X25519, Group::Other];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Group::X25519MlKem768 => "x25519mlkem768",
            Group::X25519 => "x25519",
            Group::Other => "other",
        }
    }
}

/// Counters since the relay started.
pub(crate) struct TlsStats {
    handshakes: [AtomicU64; Handshake::ALL.len()],
    groups: [AtomicU64; Group::ALL.len()],
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
    pub(super) fn count(&self, ended: Handshake) {
        self.handshakes[ended as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_group(&self, group: Option<&'static dyn SupportedKxGroup>) {
        let group = match group.map(SupportedKxGroup::name) {
            Some(NamedGroup::X25519MLKEM768) => Group::X25519MlKem768,
            Some(NamedGroup::X25519) => Group::X25519,
            _ => Group::Other,
        };
        self.groups[group as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_reload(&self, good: bool) {
        self.reloads[usize::from(good)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn certificate_ends(&self, not_after: i64) {
        self.not_after.store(not_after, Ordering::Relaxed);
    }

    /// Handshakes that ended so.
    pub(crate) fn handshakes(&self, ended: Handshake) -> u64 {
        self.handshakes[ended as usize].load(Ordering::Relaxed)
    }

    /// Connections that agreed on keys with it.
    pub(crate) fn groups(&self, group: Group) -> u64 {
        self.groups[group as usize].load(Ordering::Relaxed)
    }

    /// Reloads that failed, and that did not.
    pub(crate) fn reloads(&self) -> [u64; 2] {
        [self.reloads[0].load(Ordering::Relaxed), self.reloads[1].load(Ordering::Relaxed)]
    }

    /// When the certificate ends, in seconds since 1970.
    pub(crate) fn not_after(&self) -> i64 {
        self.not_after.load(Ordering::Relaxed)
    }
}
