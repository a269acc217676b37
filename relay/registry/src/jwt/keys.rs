//! The public keys of an issuer: cached, and fetched again when a token names an
//! unknown key, but at most once per [`JWKS_REFRESH_PAUSE`].
//!
//! Invariants
//!
//! * Keys are fetched in a task of its own, one fetch at a time. Cancelling a
//!   caller that waits for a fetch does not cancel the fetch; otherwise strangers
//!   could prevent keys from ever being loaded.
//! * A cached key that is not old is returned at once. A key older than
//!   [`JWKS_MAX_AGE`] may have been removed by the issuer, so its bearers wait for
//!   the fetch; the cached key is used if the fetch fails.

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

/// The age at which an issuer's keys are fetched again.
pub(crate) const JWKS_MAX_AGE: Duration = Duration::from_secs(3600);

/// The largest age of keys that are used while they cannot be fetched.
pub(crate) const JWKS_STALE_MAX: Duration = Duration::from_secs(24 * 3600);

/// The pause before an issuer's keys are fetched again.
pub(crate) const JWKS_REFRESH_PAUSE: Duration = Duration::from_secs(30);

pub(super) struct IssuerKeys {
    source: KeySource,
    /// Locked only briefly.
    cache: Arc<Mutex<Cache>>,
}

#[derive(Default)]
struct Cache {
    keys: Vec<Jwk>,
    /// When the keys were fetched.
    fetched_at: Option<Instant>,
    /// When the last fetch began.
    refreshed_at: Option<Instant>,
    /// Closed when the last fetch ends.
    refreshing: Option<watch::Receiver<()>>,
}

impl IssuerKeys {
    pub(super) fn new(source: KeySource) -> Self {
        Self { source, cache: Arc::default() }
    }

    /// Returns the key with this id for this algorithm.
    pub(super) async fn find(
        &self,
        kid: &str,
        algorithm: Algorithm,
        fetch: &Arc<dyn FetchKeys>,
    ) -> Result<DecodingKey, JwtError> {
        if let Some(mut refreshing) = self.refresh(kid, fetch) {
            // an error means that the fetch has ended
            let _ = refreshing.changed().await;
        }
        let cache = self.cache.lock();
        // old keys stay valid for a while; then the issuer may have removed them
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

    /// Returns the fetch to wait for before this key is looked up, if any: a
    /// running one or a new one.
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
            match loaded.unwrap_or_else(|_| Err("no response within the time limit".to_owned())) {
                Ok(keys) => {
                    let mut cache = kept.lock();
                    (cache.keys, cache.fetched_at) = (keys, Some(Instant::now()));
                }
                Err(why) => tracing::warn!(?source, %why, "failed to fetch an issuer's keys"),
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
        return Err(format!("the key set exceeds {} bytes", limits::JWKS_MAX_BYTES));
    }
    let set: JwkSet = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    Ok(set.keys)
}

/// Reads the file, up to one byte beyond the limit.
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

/// Whether this is a public key for signatures with this algorithm.
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
