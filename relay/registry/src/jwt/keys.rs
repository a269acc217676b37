//! An issuer's public keys: kept, and asked for anew when a token names one
//! that is not among them, but not more often than every
//! [`limits::JWKS_REFRESH_PAUSE`], whatever tokens name.

use std::fs::File;
use std::io::Read as _;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use rendez_proto::limits;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::JwtError;
use super::config::KeySource;
use crate::seam::FetchKeys;

pub(super) struct Keys {
    source: KeySource,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    keys: Vec<Jwk>,
    /// When they were had.
    since: Option<Instant>,
    /// When they were asked for last, with whatever success.
    asked: Option<Instant>,
}

impl Keys {
    pub(super) fn new(source: KeySource) -> Self {
        Self { source, cache: Mutex::default() }
    }

    /// The key of this name, for this algorithm.
    pub(super) async fn find(
        &self,
        kid: &str,
        algorithm: Algorithm,
        fetch: &dyn FetchKeys,
    ) -> Result<DecodingKey, JwtError> {
        // held while keys are asked for: everybody waits for the one answer
        let mut cache = self.cache.lock().await;
        let age = cache.since.map(|since| since.elapsed());
        let is_fresh = age.is_some_and(|age| age < limits::JWKS_MAX_AGE);
        let may_ask = cache.asked.is_none_or(|asked| asked.elapsed() >= limits::JWKS_REFRESH_PAUSE);
        if may_ask && (!is_fresh || cache.key(kid).is_none()) {
            cache.asked = Some(Instant::now());
            match self.load(fetch).await {
                Ok(keys) => (cache.keys, cache.since) = (keys, Some(Instant::now())),
                Err(why) => {
                    tracing::warn!(source = ?self.source, %why, "an issuer's keys cannot be had");
                }
            }
        }
        // old keys are good for a while; then they may have been withdrawn
        let usable = cache.since.is_some_and(|since| since.elapsed() < limits::JWKS_STALE_MAX);
        if !usable {
            return Err(JwtError::KeysUnavailable);
        }
        let key = cache.key(kid).ok_or(JwtError::UnknownKey)?;
        if !fits(key, algorithm) {
            return Err(JwtError::Algorithm);
        }
        DecodingKey::from_jwk(key).map_err(|_| JwtError::UnknownKey)
    }

    async fn load(&self, fetch: &dyn FetchKeys) -> Result<Vec<Jwk>, String> {
        let bytes = match &self.source {
            KeySource::Url(url) => fetch.fetch(url).await?,
            KeySource::File(path) => {
                let mut bytes = Vec::new();
                let limit = limits::JWKS_MAX_BYTES as u64 + 1;
                File::open(path)
                    .and_then(|file| file.take(limit).read_to_end(&mut bytes))
                    .map_err(|error| error.to_string())?;
                bytes
            }
        };
        if bytes.len() > limits::JWKS_MAX_BYTES {
            return Err(format!("they have over {} bytes", limits::JWKS_MAX_BYTES));
        }
        let set: JwkSet = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        Ok(set.keys)
    }
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
