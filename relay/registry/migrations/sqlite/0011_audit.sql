-- The audit log. Rows are only added, one after the other, and removed from the
-- beginning once a checkpoint says so. The triggers refuse everything else, so
-- that a mistake is noticed at once; against somebody who drops them there are
-- the hashes.

CREATE TABLE audit (
    seq            INTEGER PRIMARY KEY,
    at             INTEGER NOT NULL,
    kind           TEXT    NOT NULL,
    actor          TEXT,
    environment    TEXT,
    registration   TEXT,
    stream         TEXT,
    what           TEXT,
    received_bytes INTEGER,
    sent_bytes     INTEGER,
    count          INTEGER,
    previous       BLOB    NOT NULL CHECK (length(previous) = 32),
    hash           BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;

CREATE INDEX audit_checkpoints ON audit (count) WHERE kind = 'checkpoint';

CREATE TRIGGER audit_is_appended BEFORE INSERT ON audit
WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM audit)
BEGIN
    SELECT RAISE(ABORT, 'the audit log only grows at its end');
END;

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is not changed');
END;

CREATE TRIGGER audit_is_pruned_behind_a_checkpoint BEFORE DELETE ON audit
WHEN OLD.seq > coalesce((SELECT max(count) FROM audit WHERE kind = 'checkpoint'), 0)
BEGIN
    SELECT RAISE(ABORT, 'the audit log is pruned behind a checkpoint only');
END;
