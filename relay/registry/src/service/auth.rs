//! Who is asking.

use std::net::IpAddr;

use super::Registry;
use crate::jwt::JwtError;
use crate::model::{Caller, Grant};
use crate::store::StoreError;
use crate::token::BearerToken;

/// The bearer token was not accepted. Its bearer is at fault, except for
/// `Store`.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// There is none.
    #[error("a bearer token is required")]
    Missing,
    /// Not a token of this registry, or the wrong secret.
    #[error("the token is not known here")]
    Unknown,
    /// Genuine, and withdrawn.
    #[error("the token was revoked")]
    Revoked,
    /// Genuine, and past its time.
    #[error("the token is expired")]
    Expired,
    /// Genuine, and used from elsewhere.
    #[error("the token may not be used from {}", match .0 {
        Some(source) => source.to_string(),
        None => "an address that this registry cannot tell".to_owned(),
    })]
    Source(Option<IpAddr>),
    /// A token of another issuer; see there.
    #[error(transparent)]
    Foreign(#[from] JwtError),
    /// We could not look.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Registry {
    /// Finds out who bears this token, at `source` if that is known.
    ///
    /// # Errors
    /// See [`AuthError`].
    pub async fn authenticate(
        &self,
        bearer: &str,
        source: Option<IpAddr>,
    ) -> Result<Caller, AuthError> {
        if self.issuers().are_for(bearer) {
            let fetch = &self.inner.options.fetch_keys;
            let caller = self.issuers().authenticate(bearer, self.now(), fetch).await?;
            let blocked = self.persist(|| self.store().is_blocked(&caller.subject)).await?;
            return if blocked { Err(AuthError::Revoked) } else { Ok(caller) };
        }
        let bearer = BearerToken::parse(bearer).map_err(|_| AuthError::Unknown)?;
        let stored = self.persist(|| self.store().token(bearer.id())).await?;
        let stored = stored.ok_or(AuthError::Unknown)?;
        let now = self.now();
        let proven = stored.credential.is_proven_by(&bearer.secret_hash(), now);
        if !proven || bearer.role() != stored.role {
            return Err(AuthError::Unknown);
        }
        if stored.revoked_at.is_some() {
            return Err(AuthError::Revoked);
        }
        if !stored.is_active(now) {
            return Err(AuthError::Expired);
        }
        if !stored.sources.permit(source) {
            return Err(AuthError::Source(source));
        }
        Ok(Caller {
            subject: stored.id.into(),
            grants: vec![Grant { role: stored.role, environments: stored.environments }],
            until: None,
        })
    }
}
