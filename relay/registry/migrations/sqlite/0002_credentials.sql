-- Tokens with bounds, rotation and keys instead of secrets; subjects that are
-- not tokens; a journal of what was withdrawn, which every relay on this
-- database reads.

-- What was withdrawn, in order: a relay closes the live websockets that came
-- from it. AUTOINCREMENT: a number is never used twice, also after old rows
-- have gone.
CREATE TABLE withdrawals (
    seq  INTEGER PRIMARY KEY AUTOINCREMENT,
    at   INTEGER NOT NULL,
    kind TEXT    NOT NULL CHECK (kind IN ('subject', 'environment', 'registration')),
    what TEXT    NOT NULL
) STRICT;

-- Subjects without a row of their own (bearers of foreign tokens) that may do
-- nothing any more.
CREATE TABLE blocked_subjects (
    subject    TEXT    PRIMARY KEY,
    blocked_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Of a revoked environment: only credentials that were made later (made_seq)
-- may register in it.
ALTER TABLE environments ADD COLUMN revoked_seq INTEGER;

-- A token is known by its secret, or, if it is an enrolled executor, by its
-- public key.
CREATE TABLE tokens_with_keys (
    id              TEXT    PRIMARY KEY,
    role            TEXT    NOT NULL
                            CHECK (role IN ('executor', 'orchestrator', 'admin', 'join')),
    environments    TEXT    NOT NULL,
    label           TEXT    NOT NULL,
    secret_sha256   BLOB    CHECK (length(secret_sha256) = 32),
    previous_sha256 BLOB    CHECK (length(previous_sha256) = 32),
    previous_until  INTEGER,
    rotated_at      INTEGER,
    ed25519         BLOB    UNIQUE CHECK (length(ed25519) = 32),
    enrolled_by     TEXT,
    source_cidrs    TEXT    NOT NULL DEFAULT '',
    max_uses        INTEGER CHECK (max_uses > 0),
    uses            INTEGER NOT NULL DEFAULT 0,
    made_seq        INTEGER NOT NULL DEFAULT 0,
    created_at      INTEGER NOT NULL,
    expires_at      INTEGER,
    revoked_at      INTEGER,
    CHECK ((secret_sha256 IS NULL) <> (ed25519 IS NULL))
) STRICT, WITHOUT ROWID;

INSERT INTO tokens_with_keys
    (id, role, environments, label, secret_sha256, created_at, expires_at, revoked_at)
SELECT id, role, environments, label, secret_sha256, created_at, expires_at, revoked_at
FROM tokens;

-- The subject may be no token, so it refers to none.
CREATE TABLE registrations_of_subjects (
    environment   TEXT    PRIMARY KEY REFERENCES environments (id),
    id            TEXT    NOT NULL UNIQUE,
    generation    INTEGER NOT NULL,
    x25519        BLOB    NOT NULL CHECK (length(x25519) = 32),
    mlkem768      BLOB    CHECK (length(mlkem768) = 1184),
    profiles      TEXT    NOT NULL,
    subject       TEXT    NOT NULL,
    registered_at INTEGER NOT NULL
) STRICT;

INSERT INTO registrations_of_subjects
    (environment, id, generation, x25519, mlkem768, profiles, subject, registered_at)
SELECT environment, id, generation, x25519, mlkem768, profiles, token, registered_at
FROM registrations;

-- The old registrations refer to the old tokens, so they go first.
DROP TABLE registrations;
DROP TABLE tokens;
ALTER TABLE tokens_with_keys RENAME TO tokens;
ALTER TABLE registrations_of_subjects RENAME TO registrations;
