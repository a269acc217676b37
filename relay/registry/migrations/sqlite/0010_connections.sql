-- The newest connections of each environment's executors. Written when one
-- begins and when it ends, never in between: bytes are those at its end.

CREATE TABLE connections (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    id             TEXT    NOT NULL UNIQUE,
    environment    TEXT    NOT NULL,
    registration   TEXT    NOT NULL,
    generation     INTEGER NOT NULL,
    connected_at   INTEGER NOT NULL,
    ended_at       INTEGER,
    ended_because  TEXT    CHECK ((ended_because IS NULL) = (ended_at IS NULL)),
    received_bytes INTEGER NOT NULL,
    sent_bytes     INTEGER NOT NULL
) STRICT;

CREATE INDEX connections_by_environment ON connections (environment, seq);
CREATE INDEX connections_open ON connections (environment) WHERE ended_at IS NULL;
