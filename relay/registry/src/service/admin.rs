//! Tokens.

use rendez_proto::limits;
use rendez_proto::registry::admin::{CreateToken, TokenCreated, TokenEntry, TokenList, TokenText};
use zeroize::Zeroizing;

use super::Registry;
use crate::model::{InvalidPattern, Role, Token, TokenId, TokenPattern};
use crate::seam::NoRandomness;
use crate::store::StoreError;
use crate::token::{BearerToken, SECRET_BYTES};

/// Why a token was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateTokenError {
    /// The caller's fault.
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    /// The caller's fault.
    #[error(
        "a label has at most {} bytes and no control characters",
        limits::TOKEN_LABEL_MAX_BYTES
    )]
    Label,
    /// The caller's fault.
    #[error("a token cannot live for zero seconds")]
    ExpiresAtOnce,
    /// Ours, for now.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Ours.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

impl Registry {
    /// Makes a token. Whoever calls this has checked that it may: over HTTP, an
    /// admin; on the machine, whoever can write the state directory.
    ///
    /// # Errors
    /// See [`CreateTokenError`].
    pub async fn create_token(&self, new: &CreateToken) -> Result<TokenCreated, CreateTokenError> {
        let environments = new.environments.parse::<TokenPattern>()?;
        if new.label.len() > limits::TOKEN_LABEL_MAX_BYTES
            || new.label.chars().any(char::is_control)
        {
            return Err(CreateTokenError::Label);
        }
        if new.expires_in_secs == Some(0) {
            return Err(CreateTokenError::ExpiresAtOnce);
        }
        let secret = Zeroizing::new(self.random::<SECRET_BYTES>()?);
        let bearer = BearerToken::new(new.role, TokenId::from_random(self.random()?), *secret);
        let now = self.now();
        let token = Token {
            id: bearer.id().clone(),
            role: new.role,
            environments,
            label: new.label.clone(),
            secret_hash: bearer.secret_hash(),
            created_at: now,
            expires_at: new.expires_in_secs.map(|seconds| now.saturating_add(seconds)),
            revoked_at: None,
        };
        self.store().insert_token(&token).await?;
        tracing::info!(
            token = %token.id,
            role = ?token.role,
            environments = token.environments.as_str(),
            "token created"
        );
        Ok(TokenCreated { token: bearer.to_text(), entry: token_entry(token) })
    }

    /// Makes an admin token if there is no token at all, which is so on the
    /// first start.
    ///
    /// # Errors
    /// See [`CreateTokenError`].
    pub async fn bootstrap(&self) -> Result<Option<TokenText>, CreateTokenError> {
        if !self.store().tokens(None, 1).await?.is_empty() {
            return Ok(None);
        }
        let first = CreateToken {
            role: Role::Admin,
            environments: "*".to_owned(),
            label: "first".to_owned(),
            expires_in_secs: None,
        };
        Ok(Some(self.create_token(&first).await?.token))
    }

    /// All tokens, revoked ones included, one page of them. For admins.
    ///
    /// # Errors
    /// The store's.
    pub async fn list_tokens(&self, after: Option<&TokenId>) -> Result<TokenList, StoreError> {
        let page = self.store().tokens(after, limits::LIST_PAGE_MAX).await?;
        let full = page.len() >= limits::LIST_PAGE_MAX as usize;
        let next = page.last().filter(|_| full).map(|last| last.id.to_string());
        Ok(TokenList { tokens: page.into_iter().map(token_entry).collect(), next })
    }

    /// Ends a token at once: its bearer, its tickets and its authorizations
    /// are refused from then on. Websockets that are open stay open. `false`:
    /// there is no such token. For admins.
    ///
    /// # Errors
    /// The store's.
    pub async fn revoke_token(&self, id: &TokenId) -> Result<bool, StoreError> {
        let found = self.store().revoke_token(id, self.now()).await?;
        if found {
            tracing::info!(token = %id, "token revoked");
        }
        Ok(found)
    }
}

fn token_entry(token: Token) -> TokenEntry {
    TokenEntry {
        id: token.id.to_string(),
        role: token.role,
        environments: token.environments.as_str().to_owned(),
        label: token.label,
        created_at_unix_secs: token.created_at,
        expires_at_unix_secs: token.expires_at,
        revoked_at_unix_secs: token.revoked_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::AuthError;
    use crate::testing::{Fixture, START};

    fn request(role: Role) -> CreateToken {
        CreateToken {
            role,
            environments: "dev-*".to_owned(),
            label: "laptop".to_owned(),
            expires_in_secs: None,
        }
    }

    #[tokio::test]
    async fn a_token_works_until_it_is_revoked_or_expired() {
        let fixture = Fixture::new().await;
        let registry = &fixture.registry;
        let short = CreateToken { expires_in_secs: Some(10), ..request(Role::Orchestrator) };
        let short = registry.create_token(&short).await.unwrap();
        let long = registry.create_token(&request(Role::Executor)).await.unwrap();
        assert_eq!(short.entry.expires_at_unix_secs, Some(START + 10));

        let caller = registry.authenticate(long.token.expose()).await.unwrap();
        assert_eq!(caller.token.as_str(), long.entry.id);
        assert_eq!((caller.role, caller.environments.as_str()), (Role::Executor, "dev-*"));

        fixture.advance(9);
        registry.authenticate(short.token.expose()).await.unwrap();
        fixture.advance(1);
        let result = registry.authenticate(short.token.expose()).await;
        assert!(matches!(result, Err(AuthError::Expired)));

        assert!(registry.revoke_token(&caller.token).await.unwrap());
        let result = registry.authenticate(long.token.expose()).await;
        assert!(matches!(result, Err(AuthError::Revoked)));

        let list = registry.list_tokens(None).await.unwrap();
        assert_eq!((list.tokens.len(), list.next), (2, None));
        let revoked = list.tokens.iter().find(|entry| entry.id == long.entry.id).unwrap();
        assert_eq!(revoked.revoked_at_unix_secs, Some(START + 10));
    }

    #[tokio::test]
    async fn a_changed_token_is_unknown() {
        let fixture = Fixture::new().await;
        let token = fixture.token(Role::Executor, "*").await;
        let (head, secret) = token.split_at(token.len() - 43);
        let other = fixture.token(Role::Executor, "*").await;
        let (_, other_secret) = other.split_at(other.len() - 43);
        for forged in [
            format!("{head}{other_secret}"),
            format!("{}{secret}", head.replace("rdz_e", "rdz_a")),
            format!("rdz_e_0000000000000000_{secret}"),
            String::new(),
        ] {
            let result = fixture.registry.authenticate(&forged).await;
            assert!(matches!(result, Err(AuthError::Unknown)), "{forged}");
        }
    }

    #[tokio::test]
    async fn nonsense_makes_no_token() {
        let fixture = Fixture::new().await;
        let registry = &fixture.registry;
        let long = "x".repeat(limits::TOKEN_LABEL_MAX_BYTES + 1);
        for label in [long, "line\nbreak".to_owned()] {
            let new = CreateToken { label, ..request(Role::Admin) };
            let result = registry.create_token(&new).await;
            assert!(matches!(result, Err(CreateTokenError::Label)));
        }
        let new = CreateToken { environments: "a b".to_owned(), ..request(Role::Admin) };
        assert!(matches!(registry.create_token(&new).await, Err(CreateTokenError::Pattern(_))));
        let new = CreateToken { expires_in_secs: Some(0), ..request(Role::Admin) };
        assert!(matches!(registry.create_token(&new).await, Err(CreateTokenError::ExpiresAtOnce)));
        assert!(registry.list_tokens(None).await.unwrap().tokens.is_empty());
    }

    #[tokio::test]
    async fn bootstrap_makes_one_admin() {
        let fixture = Fixture::new().await;
        let token = fixture.registry.bootstrap().await.unwrap().unwrap();
        let caller = fixture.registry.authenticate(token.expose()).await.unwrap();
        assert_eq!(caller.role, Role::Admin);
        assert!(fixture.registry.bootstrap().await.unwrap().is_none());
    }
}
