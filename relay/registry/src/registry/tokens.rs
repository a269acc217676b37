//! Tokens: authentication, and their life from creation to revocation.

use std::net::IpAddr;

use rendez_proto::audit::AuditKind;
use rendez_proto::limits;
use rendez_proto::registry::admin::{
    CreateToken, RotateToken, TokenCreated, TokenEntry, TokenList, TokenText,
};
use zeroize::Zeroizing;

use super::context::Context;
use crate::bearer_token::{BearerToken, SECRET_BYTES};
use crate::jwt::JwtError;
use crate::model::source::InvalidSource;
use crate::model::{
    Caller, Credential, Grant, InvalidPattern, Role, SourceCidrs, Subject, Token, TokenId,
    TokenPattern,
};
use crate::page;
use crate::store::{RotateOutcome, StoreError};
use crate::store_retry::StoreRetry;
use crate::traits::NoRandomness;

/// The bearer token was refused. Its bearer is at fault, except for `Store`.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The token is missing.
    #[error("a bearer token is required")]
    Missing,
    /// It is not a token of this registry, or has the wrong secret.
    #[error("the token is unknown")]
    Unknown,
    /// It was revoked.
    #[error("the token was revoked")]
    Revoked,
    /// It has expired.
    #[error("the token is expired")]
    Expired,
    /// It is used from another network.
    #[error("the token may not be used from {}", match .0 {
        Some(source) => source.to_string(),
        None => "an unknown address".to_owned(),
    })]
    Source(Option<IpAddr>),
    /// A token of another issuer was refused.
    #[error(transparent)]
    Foreign(#[from] JwtError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a token was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateTokenError {
    /// The pattern is invalid.
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    /// The label is invalid.
    #[error(
        "a label has at most {} bytes and no control characters",
        limits::TOKEN_LABEL_MAX_BYTES
    )]
    Label,
    /// The token would expire at once.
    #[error("a token must be valid for at least 1 second")]
    ExpiresAtOnce,
    /// The networks are invalid.
    #[error(transparent)]
    Source(#[from] InvalidSource),
    /// The token would permit no use.
    #[error("a token must permit at least 1 use")]
    NoUses,
    /// Uses of admin tokens are not counted.
    #[error("uses of an admin token are not counted; set an expiry instead")]
    UsesOfAdmin,
    /// An admin token covers every environment.
    #[error("an admin token covers the whole relay: its environments must be \"*\"")]
    EnvironmentsOfAdmin,
    /// The store failed; a retry may succeed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry failed.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// Why a token was not rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The token does not exist.
    #[error("there is no such token")]
    Unknown,
    /// The token has ended.
    #[error("the token is revoked or expired; make a new one")]
    Inactive,
    /// The token is an enrolled executor, which has no secret.
    #[error(
        "this is an enrolled executor, which has a key and no secret; revoke it and enrol it again"
    )]
    HasKey,
    /// The overlap is too long.
    #[error(
        "the overlap must be at most {} seconds",
        limits::ROTATION_OVERLAP_MAX.as_secs()
    )]
    Overlap,
    /// The store failed; a retry may succeed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry failed.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// The tokens of a registry.
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    ctx: &'a Context,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(ctx: &'a Context) -> Self {
        Self { ctx }
    }
}

impl Tokens<'_> {
    /// Authenticates the bearer of a token, at `source` if that is known.
    ///
    /// # Errors
    /// See [`AuthError`].
    pub async fn authenticate(
        self,
        bearer: &str,
        source: Option<IpAddr>,
        retry: StoreRetry,
    ) -> Result<Caller, AuthError> {
        if self.ctx.issuers().accept_format(bearer) {
            let fetch = &self.ctx.options.fetch_keys;
            let caller = self.ctx.issuers().authenticate(bearer, self.ctx.now(), fetch).await?;
            let blocked = retry.call(|| self.ctx.store().is_blocked(&caller.subject)).await?;
            return if blocked { Err(AuthError::Revoked) } else { Ok(caller) };
        }
        let bearer = BearerToken::parse(bearer).map_err(|_| AuthError::Unknown)?;
        let stored = retry.call(|| self.ctx.store().token(bearer.id())).await?;
        let stored = stored.ok_or(AuthError::Unknown)?;
        let now = self.ctx.now();
        let proven = stored.credential.matches_secret(&bearer.secret_hash(), now);
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

    /// Creates a token. The caller has checked the permission: over HTTP an admin,
    /// on the machine a user who can write the state directory. The audit log
    /// names `actor`.
    ///
    /// # Errors
    /// See [`CreateTokenError`].
    pub async fn create(
        self,
        actor: Option<&Subject>,
        new: &CreateToken,
    ) -> Result<TokenCreated, CreateTokenError> {
        let environments = new.environments.parse::<TokenPattern>()?;
        if new.label.len() > limits::TOKEN_LABEL_MAX_BYTES
            || new.label.chars().any(char::is_control)
        {
            return Err(CreateTokenError::Label);
        }
        if new.expires_in_secs == Some(0) {
            return Err(CreateTokenError::ExpiresAtOnce);
        }
        // an admin could create a token for any environment
        if new.role == Role::Admin && environments.as_str() != "*" {
            return Err(CreateTokenError::EnvironmentsOfAdmin);
        }
        let sources = SourceCidrs::parse(&new.source_cidrs)?;
        let max_uses = match (new.role, new.max_uses) {
            (_, Some(0)) => return Err(CreateTokenError::NoUses),
            (Role::Admin, Some(_)) => return Err(CreateTokenError::UsesOfAdmin),
            (Role::Join, None) => Some(1),
            (_, max_uses) => max_uses,
        };
        let secret = Zeroizing::new(self.ctx.random::<SECRET_BYTES>()?);
        let bearer = BearerToken::new(new.role, TokenId::from_random(self.ctx.random()?), *secret);
        let now = self.ctx.now();
        let id = bearer.id().clone();
        let credential = Credential::Secret { hash: bearer.secret_hash(), previous: None };
        let token = Token {
            label: new.label.clone(),
            sources,
            max_uses,
            expires_at: new.expires_in_secs.map(|seconds| now.saturating_add(seconds)),
            ..Token::new(id, new.role, environments, credential, now)
        };
        let event = self
            .ctx
            .operator_event(AuditKind::Admin, actor, format!("token_created {}", token.id))
            .await?;
        self.ctx.store().insert_token(&token, &event).await?;
        tracing::info!(
            token = %token.id,
            role = ?token.role,
            environments = token.environments.as_str(),
            "token created"
        );
        Ok(TokenCreated { token: bearer.to_text(), entry: token_entry(token) })
    }

    /// Creates an admin token if there is no token at all, as on the first start.
    ///
    /// # Errors
    /// See [`CreateTokenError`].
    pub async fn bootstrap(self) -> Result<Option<TokenText>, CreateTokenError> {
        if !self.ctx.store().tokens(None, 1).await?.is_empty() {
            return Ok(None);
        }
        let first = CreateToken { label: "first".to_owned(), ..CreateToken::new(Role::Admin) };
        Ok(Some(self.create(None, &first).await?.token))
    }

    /// Returns one page of all tokens, revoked ones included. For admins.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(self, after: Option<&TokenId>) -> Result<TokenList, StoreError> {
        let page = self.ctx.store().tokens(after, limits::LIST_PAGE_MAX).await?;
        let next = page::next_cursor(&page, |last| last.id.to_string());
        Ok(TokenList { tokens: page.into_iter().map(token_entry).collect(), next })
    }

    /// Gives a token a new secret; the old one stays valid for a while. Its
    /// websockets stay open. For admins; the audit log names `actor`.
    ///
    /// # Errors
    /// See [`RotateError`].
    pub async fn rotate(
        self,
        actor: Option<&Subject>,
        id: &TokenId,
        request: &RotateToken,
    ) -> Result<TokenCreated, RotateError> {
        if request.overlap_secs > limits::ROTATION_OVERLAP_MAX.as_secs() {
            return Err(RotateError::Overlap);
        }
        let role = self.ctx.store().token(id).await?.ok_or(RotateError::Unknown)?.role;
        let secret = Zeroizing::new(self.ctx.random::<SECRET_BYTES>()?);
        let bearer = BearerToken::new(role, id.clone(), *secret);
        let hash = bearer.secret_hash();
        let (overlap, now) = (request.overlap_secs, self.ctx.now());
        let event =
            self.ctx.operator_event(AuditKind::Admin, actor, format!("token_rotated {id}")).await?;
        match self.ctx.store().rotate_token(id, &hash, overlap, now, &event).await? {
            RotateOutcome::Rotated(token) => {
                tracing::info!(token = %id, overlap_secs = overlap, "token rotated");
                Ok(TokenCreated { token: bearer.to_text(), entry: token_entry(*token) })
            }
            RotateOutcome::Inactive => Err(RotateError::Inactive),
            RotateOutcome::HasKey => Err(RotateError::HasKey),
            RotateOutcome::NotFound => Err(RotateError::Unknown),
        }
    }

    /// Revokes a subject: its bearer, its tickets and its authorizations are
    /// refused from now on, and its websockets close within seconds. Returns
    /// `false` if there is no such token. For admins.
    ///
    /// # Errors
    /// The store's.
    pub async fn revoke(
        self,
        actor: Option<&Subject>,
        subject: &Subject,
    ) -> Result<bool, StoreError> {
        let event = self
            .ctx
            .operator_event(AuditKind::Revoke, actor, format!("token_revoked {subject}"))
            .await?;
        let found = self.ctx.store().revoke(subject, self.ctx.now(), &event).await?;
        if found {
            tracing::info!(token = %subject, "token revoked");
        }
        Ok(found)
    }
}

fn token_entry(token: Token) -> TokenEntry {
    let (previous, enrolled_by) = match token.credential {
        Credential::Secret { previous, .. } => (previous.map(|(_, until)| until), None),
        Credential::Key { enrolled_by, .. } => (None, Some(enrolled_by.to_string())),
    };
    TokenEntry {
        id: token.id.to_string(),
        role: token.role,
        environments: token.environments.as_str().to_owned(),
        label: token.label,
        created_at_unix_secs: token.created_at,
        expires_at_unix_secs: token.expires_at,
        revoked_at_unix_secs: token.revoked_at,
        source_cidrs: token.sources.texts(),
        max_uses: token.max_uses,
        uses: token.max_uses.map(|_| token.uses),
        rotated_at_unix_secs: token.rotated_at,
        previous_secret_until_unix_secs: previous,
        enrolled_by,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Grant;
    use crate::registry::tokens::AuthError;
    use crate::testing::{Fixture, START};

    fn request(role: Role) -> CreateToken {
        let environments = if role == Role::Admin { "*" } else { "dev-*" }.to_owned();
        CreateToken { environments, label: "laptop".to_owned(), ..CreateToken::new(role) }
    }

    #[tokio::test]
    async fn token_works_until_revoked_or_expired() {
        let fixture = Fixture::new().await;
        let registry = &fixture.registry;
        let short = CreateToken { expires_in_secs: Some(10), ..request(Role::Orchestrator) };
        let short = registry.tokens().create(None, &short).await.unwrap();
        let long = registry.tokens().create(None, &request(Role::Executor)).await.unwrap();
        assert_eq!(short.entry.expires_at_unix_secs, Some(START + 10));

        let caller = registry
            .tokens()
            .authenticate(long.token.expose(), None, StoreRetry::NEVER)
            .await
            .unwrap();
        assert_eq!(caller.subject.to_string(), long.entry.id);
        let grant = Grant { role: Role::Executor, environments: "dev-*".parse().unwrap() };
        assert_eq!((caller.grants, caller.until), (vec![grant], None));

        fixture.advance(9);
        registry
            .tokens()
            .authenticate(short.token.expose(), None, StoreRetry::NEVER)
            .await
            .unwrap();
        fixture.advance(1);
        let result =
            registry.tokens().authenticate(short.token.expose(), None, StoreRetry::NEVER).await;
        assert!(matches!(result, Err(AuthError::Expired)));

        assert!(registry.tokens().revoke(None, &caller.subject).await.unwrap());
        let result =
            registry.tokens().authenticate(long.token.expose(), None, StoreRetry::NEVER).await;
        assert!(matches!(result, Err(AuthError::Revoked)));

        let list = registry.tokens().list(None).await.unwrap();
        assert_eq!((list.tokens.len(), list.next), (2, None));
        let revoked = list.tokens.iter().find(|entry| entry.id == long.entry.id).unwrap();
        assert_eq!(revoked.revoked_at_unix_secs, Some(START + 10));
    }

    #[tokio::test]
    async fn altered_token_is_unknown() {
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
            let result =
                fixture.registry.tokens().authenticate(&forged, None, StoreRetry::NEVER).await;
            assert!(matches!(result, Err(AuthError::Unknown)), "{forged}");
        }
    }

    #[tokio::test]
    async fn invalid_token_requests_are_refused() {
        let fixture = Fixture::new().await;
        let registry = &fixture.registry;
        let long = "x".repeat(limits::TOKEN_LABEL_MAX_BYTES + 1);
        for label in [long, "line\nbreak".to_owned()] {
            let new = CreateToken { label, ..request(Role::Admin) };
            let result = registry.tokens().create(None, &new).await;
            assert!(matches!(result, Err(CreateTokenError::Label)));
        }
        let new = CreateToken { environments: "a b".to_owned(), ..request(Role::Admin) };
        assert!(matches!(
            registry.tokens().create(None, &new).await,
            Err(CreateTokenError::Pattern(_))
        ));
        let new = CreateToken { expires_in_secs: Some(0), ..request(Role::Admin) };
        assert!(matches!(
            registry.tokens().create(None, &new).await,
            Err(CreateTokenError::ExpiresAtOnce)
        ));
        let new = CreateToken { environments: "dev-*".to_owned(), ..request(Role::Admin) };
        let result = registry.tokens().create(None, &new).await;
        assert!(matches!(result, Err(CreateTokenError::EnvironmentsOfAdmin)));
        assert!(registry.tokens().list(None).await.unwrap().tokens.is_empty());
        assert!(registry.audit().page(0).await.unwrap().rows.is_empty(), "nothing was done");
    }

    /// A completed change has one row; a failed one has none.
    #[tokio::test]
    async fn audit_log_records_only_completed_changes() {
        let fixture = Fixture::new().await;
        let registry = &fixture.registry;
        let made = registry.tokens().create(None, &request(Role::Orchestrator)).await.unwrap();
        let id: TokenId = made.entry.id.parse().unwrap();
        let unknown = TokenId::from_random([9; 8]);
        let rotate = RotateToken { overlap_secs: 0 };
        registry.tokens().rotate(None, &id, &rotate).await.unwrap();
        registry.tokens().rotate(None, &unknown, &rotate).await.unwrap_err();
        assert!(!registry.tokens().revoke(None, &unknown.into()).await.unwrap());
        assert!(registry.tokens().revoke(None, &id.clone().into()).await.unwrap());
        registry.tokens().rotate(None, &id, &rotate).await.unwrap_err();
        assert!(!registry.environments().revoke(None, &"never".parse().unwrap()).await.unwrap());
        let ended = registry.registrations().end(None, &"never".parse().unwrap()).await.unwrap();
        assert_eq!(ended, None);
        let rows = registry.audit().page(0).await.unwrap().rows;
        let what: Vec<_> = rows.into_iter().filter_map(|row| row.event.what).collect();
        let done = ["token_created", "token_rotated", "token_revoked"];
        assert_eq!(what, done.map(|word| format!("{word} {id}")));
    }

    #[tokio::test]
    async fn token_works_only_from_its_networks() {
        let fixture = Fixture::new().await;
        let source_cidrs = vec!["10.0.0.0/8".to_owned(), "2001:db8::1".to_owned()];
        let new = CreateToken { source_cidrs, ..request(Role::Executor) };
        let created = fixture.registry.tokens().create(None, &new).await.unwrap();
        assert_eq!(created.entry.source_cidrs, ["10.0.0.0/8", "2001:db8::1/128"]);
        let from = async |source: Option<&str>| {
            let source = source.map(|source| source.parse().unwrap());
            fixture
                .registry
                .tokens()
                .authenticate(created.token.expose(), source, StoreRetry::NEVER)
                .await
        };
        from(Some("10.1.2.3")).await.unwrap();
        from(Some("2001:db8::1")).await.unwrap();
        for elsewhere in [Some("192.0.2.1"), Some("2001:db8::2"), None] {
            assert!(matches!(from(elsewhere).await, Err(AuthError::Source(_))));
        }
        let bad = CreateToken { source_cidrs: vec!["here".into()], ..request(Role::Executor) };
        let result = fixture.registry.tokens().create(None, &bad).await;
        assert!(matches!(result, Err(CreateTokenError::Source(_))));
    }

    #[tokio::test]
    async fn rotated_secret_expires_after_overlap() {
        let fixture = Fixture::new().await;
        let registry = &fixture.registry;
        let works = async |token: &TokenCreated| {
            registry
                .tokens()
                .authenticate(token.token.expose(), None, StoreRetry::NEVER)
                .await
                .is_ok()
        };
        let first = registry.tokens().create(None, &request(Role::Orchestrator)).await.unwrap();
        let id: TokenId = first.entry.id.parse().unwrap();
        let rotate = async |overlap_secs| {
            registry.tokens().rotate(None, &id, &RotateToken { overlap_secs }).await
        };
        let second = rotate(60).await.unwrap();
        assert_eq!(second.entry.id, first.entry.id);
        assert_eq!(second.entry.rotated_at_unix_secs, Some(START));
        assert_eq!(second.entry.previous_secret_until_unix_secs, Some(START + 60));
        assert!(works(&first).await && works(&second).await);
        fixture.advance(60);
        assert!(!works(&first).await && works(&second).await);
        // a second rotation within the overlap ends the oldest secret; overlap 0
        // ends it at once
        let third = rotate(60).await.unwrap();
        let fourth = rotate(60).await.unwrap();
        assert!(!works(&second).await && works(&third).await && works(&fourth).await);
        let fifth = rotate(0).await.unwrap();
        assert!(!works(&fourth).await && works(&fifth).await);
        assert_eq!(fifth.entry.previous_secret_until_unix_secs, None);

        let long = limits::ROTATION_OVERLAP_MAX.as_secs() + 1;
        assert!(matches!(rotate(long).await, Err(RotateError::Overlap)));
        registry.tokens().revoke(None, &id.clone().into()).await.unwrap();
        assert!(matches!(rotate(0).await, Err(RotateError::Inactive)));
        let unknown = TokenId::from_random([9; 8]);
        let result =
            registry.tokens().rotate(None, &unknown, &RotateToken { overlap_secs: 0 }).await;
        assert!(matches!(result, Err(RotateError::Unknown)));
    }

    #[tokio::test]
    async fn uses_are_counted_only_with_maximum() {
        let fixture = Fixture::new().await;
        let made = async |role, max_uses| {
            let new = CreateToken { max_uses, ..request(role) };
            fixture.registry.tokens().create(None, &new).await
        };
        for (role, asked, max, uses) in [
            (Role::Executor, None, None, None),
            (Role::Orchestrator, Some(2), Some(2), Some(0)),
            (Role::Join, None, Some(1), Some(0)),
            (Role::Join, Some(5), Some(5), Some(0)),
        ] {
            let entry = made(role, asked).await.unwrap().entry;
            assert_eq!((entry.max_uses, entry.uses), (max, uses));
        }
        assert!(matches!(made(Role::Join, Some(0)).await, Err(CreateTokenError::NoUses)));
        let admin = made(Role::Admin, Some(3)).await;
        assert!(matches!(admin, Err(CreateTokenError::UsesOfAdmin)));
    }

    #[tokio::test]
    async fn bootstrap_creates_one_admin() {
        let fixture = Fixture::new().await;
        let token = fixture.registry.tokens().bootstrap().await.unwrap().unwrap();
        let caller = fixture
            .registry
            .tokens()
            .authenticate(token.expose(), None, StoreRetry::NEVER)
            .await
            .unwrap();
        assert_eq!(caller.require_role(&[Role::Admin]), Ok(()));
        assert!(fixture.registry.tokens().bootstrap().await.unwrap().is_none());
    }
}
