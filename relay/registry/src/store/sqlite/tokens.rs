//! The tables of tokens and blocked subjects.

use async_trait::async_trait;
use rendez_proto::audit::AuditEvent;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::SqliteStore;
use super::rows::{number, optional_bytes, optional_number, role, seconds, text};
use super::{audit, revocations};
use crate::model::{Credential, Revocation, Subject, Token, TokenId};
use crate::stats::StoreCall;
use crate::store::capacity::{self, Capacity};
use crate::store::{EnrolOutcome, RotateOutcome, StoreError, TokenStore, UseOutcome};

#[async_trait]
impl TokenStore for SqliteStore {
    async fn insert_token(&self, token: &Token, event: &AuditEvent) -> Result<(), StoreError> {
        self.db
            .timer
            .time(StoreCall::WriteTokens, async {
                let mut tx = self.db.write_durable().await?;
                insert_row(&mut tx, self.db.capacity, token).await?;
                audit::append_event(&mut tx, event).await?;
                tx.commit().await
            })
            .await
    }

    async fn token(&self, id: &TokenId) -> Result<Option<Token>, StoreError> {
        self.db.timer.time(StoreCall::ReadTokens, async { get(&self.db.pool, id).await }).await
    }

    async fn token_by_key(&self, public: &[u8; 32]) -> Result<Option<Token>, StoreError> {
        self.db
            .timer
            .time(StoreCall::ReadTokens, async { by_key(&self.db.pool, public).await })
            .await
    }

    async fn tokens(&self, after: Option<&TokenId>, limit: u32) -> Result<Vec<Token>, StoreError> {
        self.db
            .timer
            .time(StoreCall::ReadTokens, async {
                sqlx::query("SELECT * FROM tokens WHERE id > ? ORDER BY id LIMIT ?")
                    .bind(after.map_or("", TokenId::as_str))
                    .bind(limit)
                    .fetch_all(&self.db.lists)
                    .await?
                    .iter()
                    .map(token)
                    .collect()
            })
            .await
    }

    async fn rotate_token(
        &self,
        id: &TokenId,
        new: &[u8; 32],
        overlap: u64,
        now: u64,
        event: &AuditEvent,
    ) -> Result<RotateOutcome, StoreError> {
        self.db
            .timer
            .time(StoreCall::WriteTokens, async {
                let mut tx = self.db.write_durable().await?;
                let Some(found) = get(&mut *tx, id).await? else {
                    return Ok(RotateOutcome::NotFound);
                };
                if !found.is_active(now) {
                    return Ok(RotateOutcome::Inactive);
                }
                let Credential::Secret { hash, .. } = found.credential else {
                    return Ok(RotateOutcome::HasKey);
                };
                let until = now.saturating_add(overlap);
                let previous = (overlap > 0).then_some((hash, until));
                sqlx::query(
                    "UPDATE tokens SET secret_sha256 = ?, previous_sha256 = ?, previous_until = ?, \
         rotated_at = ? WHERE id = ?",
                )
                .bind(new.as_slice())
                .bind(previous.as_ref().map(|(hash, _)| hash.as_slice()))
                .bind(previous.map(|(_, until)| seconds(until)))
                .bind(seconds(now))
                .bind(id.as_str())
                .execute(&mut *tx)
                .await?;
                audit::append_event(&mut tx, event).await?;
                tx.commit().await?;
                let credential = Credential::Secret { hash: *new, previous };
                Ok(RotateOutcome::Rotated(Box::new(Token {
                    credential,
                    rotated_at: Some(now),
                    ..found
                })))
            })
            .await
    }

    async fn use_token(&self, subject: &Subject, now: u64) -> Result<UseOutcome, StoreError> {
        self.db
            .timer
            .time(StoreCall::WriteTokens, async {
                // most tokens have no maximum and need no write
                let counted = match subject {
                    Subject::Token(id) => {
                        get(&self.db.pool, id).await?.is_some_and(|token| token.max_uses.is_some())
                    }
                    Subject::Foreign(_) => false,
                };
                if !counted {
                    let mut reading = self.db.pool.acquire().await?;
                    let active = is_active(&mut reading, subject, now).await?;
                    return Ok(if active { UseOutcome::Allowed } else { UseOutcome::Inactive });
                }
                let mut tx = self.db.write().await?;
                let used = count_use(&mut tx, subject, now).await?;
                tx.commit().await?;
                Ok(used)
            })
            .await
    }

    async fn enrol(
        &self,
        token: &Token,
        join: &TokenId,
        now: u64,
        event: &AuditEvent,
    ) -> Result<EnrolOutcome, StoreError> {
        self.db
            .timer
            .time(StoreCall::WriteTokens, async {
                let mut tx = self.db.write_durable().await?;
                let Credential::Key { public, .. } = &token.credential else {
                    return Err(StoreError::Corrupt("enrolment"));
                };
                if by_key(&mut *tx, public).await?.is_some() {
                    return Ok(EnrolOutcome::KeyKnown);
                }
                match count_use(&mut tx, &join.clone().into(), now).await? {
                    UseOutcome::Allowed => {}
                    UseOutcome::UsedUp => return Ok(EnrolOutcome::UsedUp),
                    UseOutcome::Inactive => return Ok(EnrolOutcome::Inactive),
                }
                let revoked: Option<bool> = sqlx::query_scalar(
                    "SELECT revoked_seq > (SELECT made_seq FROM tokens WHERE id = ?) \
         FROM environments WHERE id = ? AND revoked_seq IS NOT NULL",
                )
                .bind(join.as_str())
                .bind(token.environments.as_str())
                .fetch_optional(&mut *tx)
                .await?;
                if revoked == Some(true) {
                    return Ok(EnrolOutcome::EnvironmentRevoked);
                }
                insert_row(&mut tx, self.db.capacity, token).await?;
                audit::append_event(&mut tx, event).await?;
                tx.commit().await?;
                Ok(EnrolOutcome::Enrolled)
            })
            .await
    }

    async fn revoke(
        &self,
        subject: &Subject,
        now: u64,
        event: &AuditEvent,
    ) -> Result<bool, StoreError> {
        self.db
            .timer
            .time(StoreCall::WriteTokens, async {
                let mut tx = self.db.write_durable().await?;
                let (known, changed) = match subject {
                    Subject::Token(id) => {
                        let done = sqlx::query(
                            "UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
                        )
                        .bind(seconds(now))
                        .bind(id.as_str())
                        .execute(&mut *tx)
                        .await?;
                        let changed = done.rows_affected() > 0;
                        (changed || get(&mut *tx, id).await?.is_some(), changed)
                    }
                    Subject::Foreign(_) => {
                        let count: i64 =
                            sqlx::query_scalar("SELECT count(*) FROM blocked_subjects")
                                .fetch_one(&mut *tx)
                                .await?;
                        if count >= i64::from(capacity::BLOCKED_SUBJECTS_MAX) {
                            let max = capacity::BLOCKED_SUBJECTS_MAX;
                            return Err(StoreError::LimitReached { what: "blocked subjects", max });
                        }
                        let done = sqlx::query(
                            "INSERT INTO blocked_subjects (subject, blocked_at) VALUES (?, ?) \
                 ON CONFLICT DO NOTHING",
                        )
                        .bind(subject.to_string())
                        .bind(seconds(now))
                        .execute(&mut *tx)
                        .await?;
                        (true, done.rows_affected() > 0)
                    }
                };
                if changed {
                    revocations::insert(&mut tx, &Revocation::Subject(subject.clone()), now)
                        .await?;
                    audit::append_event(&mut tx, event).await?;
                }
                tx.commit().await?;
                Ok(known)
            })
            .await
    }

    async fn is_blocked(&self, subject: &Subject) -> Result<bool, StoreError> {
        self.db
            .timer
            .time(StoreCall::ReadTokens, async { is_blocked(&self.db.pool, subject).await })
            .await
    }
}

/// Ensures that there is room for one more token, with or without a key.
async fn make_room(
    tx: &mut SqliteConnection,
    capacity: Capacity,
    key: bool,
    now: u64,
) -> Result<(), StoreError> {
    if !key {
        let kept = capacity::TOKENS_ENDED_KEPT.as_secs();
        purge_ended(tx, now.saturating_sub(kept)).await?;
    }
    let (what, max) = match key {
        true => ("enrolled executors", capacity.enrolled),
        false => ("tokens", capacity.tokens),
    };
    let count: i64 =
        sqlx::query_scalar("SELECT count(*) FROM tokens WHERE (ed25519 IS NOT NULL) = ?")
            .bind(key)
            .fetch_one(&mut *tx)
            .await?;
    if count < i64::from(max) {
        return Ok(());
    }
    // purging ended tokens early is better than refusing a new one
    let purged = if key { 0 } else { purge_ended(tx, now).await? };
    if purged > 0 { Ok(()) } else { Err(StoreError::LimitReached { what, max }) }
}

/// Removes some tokens that were revoked or expired before this time, those that
/// ended first. A removed token is refused as unknown, and elsewhere only its id
/// remains. Keys stay, since they must never be enrolled again. Returns the number
/// of removed tokens.
async fn purge_ended(tx: &mut SqliteConnection, before: u64) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "DELETE FROM tokens WHERE id IN \
         (SELECT id FROM tokens WHERE ed25519 IS NULL AND (revoked_at < ?1 OR expires_at < ?1) \
          ORDER BY min(coalesce(revoked_at, expires_at), coalesce(expires_at, revoked_at)) \
          LIMIT ?2)",
    )
    .bind(seconds(before))
    .bind(capacity::TOKENS_PURGE_BATCH)
    .execute(tx)
    .await?;
    Ok(done.rows_affected())
}

async fn insert_row(
    tx: &mut SqliteConnection,
    capacity: Capacity,
    token: &Token,
) -> Result<(), StoreError> {
    let has_key = matches!(token.credential, Credential::Key { .. });
    make_room(&mut *tx, capacity, has_key, token.created_at).await?;
    let (hash, previous, public, enrolled_by) = match &token.credential {
        Credential::Secret { hash, previous } => (Some(hash), previous.as_ref(), None, None),
        Credential::Key { public, enrolled_by } => (None, None, Some(public), Some(enrolled_by)),
    };
    sqlx::query(
        "INSERT INTO tokens (id, role, environments, label, secret_sha256, previous_sha256, \
         previous_until, rotated_at, ed25519, enrolled_by, source_cidrs, max_uses, uses, \
         made_seq, created_at, expires_at, revoked_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(token.id.as_str())
    .bind(token.role.as_str())
    .bind(token.environments.as_str())
    .bind(&token.label)
    .bind(hash.map(|hash| hash.as_slice()))
    .bind(previous.map(|(hash, _)| hash.as_slice()))
    .bind(previous.map(|(_, until)| seconds(*until)))
    .bind(token.rotated_at.map(seconds))
    .bind(public.map(|public| public.as_slice()))
    .bind(enrolled_by.map(TokenId::as_str))
    .bind(token.sources.to_string())
    .bind(token.max_uses)
    .bind(token.uses)
    .bind(revocations::latest(&mut *tx).await?)
    .bind(seconds(token.created_at))
    .bind(token.expires_at.map(seconds))
    .bind(token.revoked_at.map(seconds))
    .execute(&mut *tx)
    .await?;
    Ok(())
}

pub(super) async fn get(
    db: impl sqlx::SqliteExecutor<'_>,
    id: &TokenId,
) -> Result<Option<Token>, StoreError> {
    let row = sqlx::query("SELECT * FROM tokens WHERE id = ?").bind(id.as_str());
    row.fetch_optional(db).await?.map(|row| token(&row)).transpose()
}

pub(super) async fn by_key(
    db: impl sqlx::SqliteExecutor<'_>,
    public: &[u8; 32],
) -> Result<Option<Token>, StoreError> {
    let row = sqlx::query("SELECT * FROM tokens WHERE ed25519 = ?").bind(public.as_slice());
    row.fetch_optional(db).await?.map(|row| token(&row)).transpose()
}

/// Whether the subject is active at `now`.
pub(super) async fn is_active(
    tx: &mut SqliteConnection,
    subject: &Subject,
    now: u64,
) -> Result<bool, StoreError> {
    match subject {
        Subject::Token(id) => Ok(get(tx, id).await?.is_some_and(|token| token.is_active(now))),
        Subject::Foreign(_) => Ok(!is_blocked(tx, subject).await?),
    }
}

pub(super) async fn is_blocked(
    db: impl sqlx::SqliteExecutor<'_>,
    subject: &Subject,
) -> Result<bool, StoreError> {
    let found: Option<i64> =
        sqlx::query_scalar("SELECT blocked_at FROM blocked_subjects WHERE subject = ?")
            .bind(subject.to_string())
            .fetch_optional(db)
            .await?;
    Ok(found.is_some())
}

/// Counts a use of a token with a maximum; other tokens are not counted.
pub(super) async fn count_use(
    tx: &mut SqliteConnection,
    subject: &Subject,
    now: u64,
) -> Result<UseOutcome, StoreError> {
    if !is_active(&mut *tx, subject, now).await? {
        return Ok(UseOutcome::Inactive);
    }
    let Subject::Token(id) = subject else { return Ok(UseOutcome::Allowed) };
    let done = sqlx::query(
        "UPDATE tokens SET uses = uses + (max_uses IS NOT NULL) \
         WHERE id = ? AND (max_uses IS NULL OR uses < max_uses)",
    )
    .bind(id.as_str())
    .execute(tx)
    .await?;
    Ok(if done.rows_affected() > 0 { UseOutcome::Allowed } else { UseOutcome::UsedUp })
}

fn token(row: &SqliteRow) -> Result<Token, StoreError> {
    let previous =
        match (optional_bytes(row, "previous_sha256")?, optional_number(row, "previous_until")?) {
            (Some(hash), Some(until)) => Some((hash, until)),
            _ => None,
        };
    let credential = match (optional_bytes(row, "secret_sha256")?, optional_bytes(row, "ed25519")?)
    {
        (Some(hash), None) => Credential::Secret { hash, previous },
        (None, Some(public)) => Credential::Key { public, enrolled_by: text(row, "enrolled_by")? },
        _ => return Err(StoreError::Corrupt("credential")),
    };
    let small = |n: u64, what| u32::try_from(n).map_err(|_| StoreError::Corrupt(what));
    Ok(Token {
        id: text(row, "id")?,
        role: role(row)?,
        environments: text(row, "environments")?,
        label: text(row, "label")?,
        credential,
        sources: text(row, "source_cidrs")?,
        max_uses: optional_number(row, "max_uses")?.map(|n| small(n, "max_uses")).transpose()?,
        uses: small(number(row, "uses")?, "uses")?,
        created_at: number(row, "created_at")?,
        rotated_at: optional_number(row, "rotated_at")?,
        expires_at: optional_number(row, "expires_at")?,
        revoked_at: optional_number(row, "revoked_at")?,
    })
}
