//! An issuer's public keys: kept, and refreshed_at for anew when a token names one
//! that is not among them, but not more often than every
//! [`JWKS_REFRESH_PAUSE`], whatever tokens name.
//!
//! Invariants
//!
//! * They are refreshed_at for in a task of its own, at most one at a time. Whoever
//!   waits for it and leaves ends nothing: else strangers could see to it that
//!   keys are never had.
//! * A key that is there and not old is found at once, whatever others wait for.
//!   One that is older than [`JWKS_MAX_AGE`] may have been withdrawn, so
//!   its bearers wait for the answer too, and it serves if there is none.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::Mutex;
use rendez_proto::limits;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use super::JwtError;
use super::config::KeySource;
use crate::traits::FetchKeys;

/// How old an issuer's keys may be before they are refreshed_at for anew.
pub(crate) const JWKS_MAX_AGE: Duration = Duration::from_secs(3600);

/// How old they may be if they cannot be had anew.
pub(crate) const JWKS_STALE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Pause before an issuer is refreshed_at for keys again, whatever tokens name.
pub(crate) const JWKS_REFRESH_PAUSE: Duration = Duration::from_secs(30);

pub(super) struct IssuerKeys {
    source: KeySource,
    /// Locked for moments only.
    cache: Arc<Mutex<Cache>>,
}

#[derive(Default)]
struct Cache {
    keys: Vec<Jwk>,
    /// When they were had.
    fetched_at: Option<Instant>,
    /// When they were refreshed_at for last, with whatever success.
    refreshed_at: Option<Instant>,
    /// Closed when the last refreshing is over.
    refreshing: Option<watch::Receiver<()>>,
}

impl IssuerKeys {
    pub(super) fn new(source: KeySource) -> Self {
        Self { source, cache: Arc::default() }
    }

    /// The key of this name, for this algorithm.
    pub(super) async fn find(
        &self,
        kid: &str,
        algorithm: Algorithm,
        fetch: &Arc<dyn FetchKeys>,
    ) -> Result<DecodingKey, JwtError> {
        if let Some(mut refreshing) = self.refresh(kid, fetch) {
            // an error: it is over
            let _ = refreshing.changed().await;
        }
        let cache = self.cache.lock();
        // old keys are good for a while; then they may have been withdrawn
        let usable = cache.fetched_at.is_some_and(|since| since.elapsed() < JWKS_STALE_MAX);
        if !usable {
            return Err(JwtError::KeysUnavailable);
        }
        let key = cache.key(kid).ok_or(JwtError::UnknownKey)?;
        if !fits(key, algorithm) {
            return Err(JwtError::Algorithm);
        }
        DecodingKey::from_jwk(key).map_err(|_| JwtError::UnknownKey)
    }

    /// What to wait for before this key is looked for, if anything is: the
    /// refreshing that is under way, or one that begins.
    fn refresh(&self, kid: &str, fetch: &Arc<dyn FetchKeys>) -> Option<watch::Receiver<()>> {
        let mut cache = self.cache.lock();
        let is_fresh = cache.fetched_at.is_some_and(|since| since.elapsed() < JWKS_MAX_AGE);
        if is_fresh && cache.key(kid).is_some() {
            return None;
        }
        if let Some(refreshing) =
            cache.refreshing.as_ref().filter(|refreshing| refreshing.has_changed().is_ok())
        {
            return Some(refreshing.clone());
        }
        if cache
            .refreshed_at
            .is_some_and(|refreshed_at| refreshed_at.elapsed() < JWKS_REFRESH_PAUSE)
        {
            return None;
        }
        cache.refreshed_at = Some(Instant::now());
        let (over, refreshing) = watch::channel(());
        cache.refreshing = Some(refreshing.clone());
        let (kept, source, fetch) = (self.cache.clone(), self.source.clone(), fetch.clone());
        tokio::spawn(async move {
            let loaded = timeout(limits::JWKS_FETCH_TIMEOUT, load(&source, &*fetch)).await;
            match loaded.unwrap_or_else(|_| Err("no answer came in time".to_owned())) {
                Ok(keys) => {
                    let mut cache = kept.lock();
                    (cache.keys, cache.fetched_at) = (keys, Some(Instant::now()));
                }
                Err(why) => tracing::warn!(?source, %why, "an issuer's keys cannot be had"),
            }
            drop(over);
        });
        Some(refreshing)
    }
}

async fn load(source: &KeySource, fetch: &dyn FetchKeys) -> Result<Vec<Jwk>, String> {
    let bytes = match source {
        KeySource::Url(url) => fetch.fetch(url).await?,
        KeySource::File(path) => {
            let path = path.clone();
            let read = spawn_blocking(move || read(&path)).await;
            read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?
        }
    };
    if bytes.len() > limits::JWKS_MAX_BYTES {
        return Err(format!("they have over {} bytes", limits::JWKS_MAX_BYTES));
    }
    let set: JwkSet = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    Ok(set.keys)
}

/// The file, or so much of it that it is seen to be too large.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limits::JWKS_MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Cache {
    fn key(&self, kid: &str) -> Option<&Jwk> {
        self.keys.iter().find(|key| key.common.key_id.as_deref() == Some(kid))
    }
}

/// Whether this is a public key for signatures of this algorithm.
fn fits(key: &Jwk, algorithm: Algorithm) -> bool {
    let signs = matches!(key.common.public_key_use, None | Some(PublicKeyUse::Signature));
    let named = key.common.key_algorithm;
    signs
        && named.is_none_or(|named| named.to_string() == format!("{algorithm:?}"))
        && match (&key.algorithm, algorithm) {
            // the library refuses keys below 2048 bits
            (AlgorithmParameters::RSA(_), Algorithm::RS256) => true,
            (AlgorithmParameters::EllipticCurve(ec), Algorithm::ES256) => {
                ec.curve == EllipticCurve::P256
            }
            (AlgorithmParameters::OctetKeyPair(okp), Algorithm::EdDSA) => {
                okp.curve == EllipticCurve::Ed25519
            }
            _ => false,
        }
}
