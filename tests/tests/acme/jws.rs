//! Requests signed by an ACME client (RFC 8555, section 6.2), and their
//! verification.

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// An account's public key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Jwk {
    crv: String,
    kty: String,
    x: String,
    y: String,
}

/// The key that signed a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Signer {
    /// A new account, by its key.
    Key(Jwk),
    /// An existing account, by its URL.
    Account(String),
}

/// A request whose signature is not verified yet.
pub(crate) struct Signed {
    pub(crate) signer: Signer,
    pub(crate) nonce: String,
    pub(crate) payload: Vec<u8>,
    message: String,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Flattened {
    protected: String,
    payload: String,
    signature: String,
}

#[derive(Deserialize)]
struct Protected {
    alg: String,
    jwk: Option<Jwk>,
    kid: Option<String>,
    nonce: String,
    url: String,
}

impl Jwk {
    /// The thumbprint of RFC 7638.
    pub(crate) fn thumbprint(&self) -> String {
        let Self { crv, kty, x, y } = self;
        let canonical = format!(r#"{{"crv":"{crv}","kty":"{kty}","x":"{x}","y":"{y}"}}"#);
        URL_SAFE_NO_PAD.encode(Sha256::digest(canonical))
    }

    fn point(&self) -> Result<Vec<u8>> {
        ensure!((self.kty.as_str(), self.crv.as_str()) == ("EC", "P-256"), "{self:?}");
        let (x, y) = (URL_SAFE_NO_PAD.decode(&self.x)?, URL_SAFE_NO_PAD.decode(&self.y)?);
        Ok([&[4], x.as_slice(), y.as_slice()].concat())
    }
}

impl Signed {
    /// Reads a request that was sent to `url`.
    pub(crate) fn read(body: &[u8], url: &str) -> Result<Self> {
        let Flattened { protected, payload, signature } = serde_json::from_slice(body)?;
        let head: Protected = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&protected)?)?;
        ensure!(head.alg == "ES256", "signed by {}", head.alg);
        ensure!(head.url == url, "signed for {} and sent to {url}", head.url);
        let signer = match (head.jwk, head.kid) {
            (Some(key), None) => Signer::Key(key),
            (None, Some(account)) => Signer::Account(account),
            _ => anyhow::bail!("exactly one of jwk and kid is required"),
        };
        Ok(Self {
            signer,
            nonce: head.nonce,
            message: format!("{protected}.{payload}"),
            payload: URL_SAFE_NO_PAD.decode(&payload)?,
            signature: URL_SAFE_NO_PAD.decode(&signature)?,
        })
    }

    /// Verifies the signature.
    pub(crate) fn verify(&self, key: &Jwk) -> Result<()> {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.point()?);
        key.verify(self.message.as_bytes(), &self.signature).ok().context("a wrong signature")
    }
}
