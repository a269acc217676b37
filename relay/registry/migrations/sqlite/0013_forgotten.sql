-- Environments whose executor has been away for long make room for new ones. A
-- name that comes back begins above every generation that was forgotten, so that
-- generations only grow, whatever relays and tickets still remember.

CREATE TABLE forgotten (
    only       INTEGER PRIMARY KEY CHECK (only = 1),
    generation INTEGER NOT NULL CHECK (generation >= 0)
) STRICT;

INSERT INTO forgotten (only, generation) VALUES (1, 0);
