-- Times are seconds since 1970. No column holds a secret in clear: of a token,
-- only the SHA-256 of its 32 random bytes is kept; of a ticket, only its id.

CREATE TABLE tokens (
    id            TEXT    PRIMARY KEY,
    role          TEXT    NOT NULL CHECK (role IN ('executor', 'orchestrator', 'admin')),
    environments  TEXT    NOT NULL,
    label         TEXT    NOT NULL,
    secret_sha256 BLOB    NOT NULL CHECK (length(secret_sha256) = 32),
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER,
    revoked_at    INTEGER
) STRICT, WITHOUT ROWID;

-- An environment is created by its first registration and never deleted, so
-- that its generation only grows.
CREATE TABLE environments (
    id         TEXT    PRIMARY KEY,
    generation INTEGER NOT NULL CHECK (generation > 0),
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The current registration of each environment; older ones are not kept.
CREATE TABLE registrations (
    environment   TEXT    PRIMARY KEY REFERENCES environments (id),
    id            TEXT    NOT NULL UNIQUE,
    generation    INTEGER NOT NULL,
    x25519        BLOB    NOT NULL CHECK (length(x25519) = 32),
    mlkem768      BLOB    CHECK (length(mlkem768) = 1184),
    profiles      TEXT    NOT NULL,
    token         TEXT    NOT NULL REFERENCES tokens (id),
    registered_at INTEGER NOT NULL
) STRICT;

-- Ids of tickets that were used; kept until the ticket is long expired.
CREATE TABLE redeemed_tickets (
    id         BLOB    PRIMARY KEY CHECK (length(id) = 16),
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX redeemed_tickets_by_expiry ON redeemed_tickets (expires_at);
