//! The bounds that cross a wire or that two or more crates use, each with its
//! reason. The assertions at the end relate them to each other: if a relation
//! breaks, the crate does not compile. A bound that only one crate uses is a
//! constant of the module that enforces it.
//!
//! "Codex" marks values that the stock binary fixes (`docs/codex-wire.md`).

use std::time::Duration;

// ---- websocket and frame -------------------------------------------------

/// Largest websocket message in bytes. Codex: its ends close the
/// socket above it (docs/codex-wire.md#rendezvous-websocket).
pub const MESSAGE_MAX_BYTES: usize = 256 * 1024;
/// Longest environment id in bytes: fits a DNS label twice and any log line.
pub const ENVIRONMENT_ID_MAX_BYTES: usize = 128;

// ---- records and messages ------------------------------------------------

/// Most plaintext bytes in one record. Codex: 61,441 is a reset
/// (docs/codex-wire.md#messages-and-sequence-numbers).
pub const RECORD_PLAINTEXT_MAX_BYTES: usize = 60 * 1024;
/// AES-GCM tag in bytes.
pub const TAG_BYTES: usize = 16;
/// Largest Noise message in bytes, by the Noise specification.
pub const NOISE_MESSAGE_MAX_BYTES: usize = 65_535;
/// Largest application message in bytes. Codex: more is a reset
/// (docs/codex-wire.md#messages-and-sequence-numbers).
pub const APPLICATION_MESSAGE_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Room for a frame's fields around its payload: a stream id, numbers, a proof
/// and two trace fields.
pub const FRAME_OVERHEAD_MAX_BYTES: usize = 2 * 1024;
/// Largest frame with a record that our own profiles send.
pub const FRAME_MAX_BYTES: usize =
    RECORD_PLAINTEXT_MAX_BYTES + TAG_BYTES + FRAME_OVERHEAD_MAX_BYTES;
/// Longest harness key authorization in bytes. Codex
/// (docs/codex-wire.md#connect).
pub const AUTHORIZATION_MAX_BYTES: usize = 4096;

// ---- windows -------------------------------------------------------------

/// Records in flight to which a window may grow: 1 Gbit/s at a round trip of
/// 200 ms is 25 MB, in records of 60 KiB.
pub const WINDOW_MAX_RECORDS: u32 = 448;
/// First retransmission timeout, before any round trip was measured.
pub const RTO_INITIAL: Duration = Duration::from_secs(1);

// ---- streams -------------------------------------------------------------

/// Open streams per executor websocket. Codex: the 129th is reset
/// (docs/codex-wire.md#handshake-limits).
pub const STREAMS_PER_EXECUTOR: usize = 128;
/// Handshakes that wait for the registry's verdict. Codex
/// (docs/codex-wire.md#handshake-limits).
pub const PENDING_HANDSHAKES: usize = 32;
/// Failed handshakes before an executor refuses all for
/// [`HANDSHAKE_COOLDOWN`]. Codex (docs/codex-wire.md#handshake-limits).
pub const HANDSHAKE_FAILURES: u32 = 8;
/// How long an executor refuses handshakes after too many failures.
pub const HANDSHAKE_COOLDOWN: Duration = Duration::from_secs(10);
/// How long an initiator waits for message 2. Codex
/// (docs/codex-wire.md#handshake-limits).
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an executor waits for the registry's verdict: its own HTTP time
/// limit (Codex: 10 s, docs/codex-wire.md#validate) and some.
pub const AUTHORIZATION_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a stream of a reliable profile outlives its websocket, unless an end
/// is configured otherwise.
pub const STREAM_GRACE: Duration = Duration::from_secs(90);

// ---- relay ---------------------------------------------------------------

/// Handshakes of one token that may fail at an executor before the token is
/// refused. Executors refuse all handshakes after [`HANDSHAKE_FAILURES`], so one
/// token gets less than half of those.
pub const HANDSHAKE_FAILURES_PER_TOKEN: u64 = 3;
/// Orchestrator websockets per executor at one relay: each may carry one or
/// more of the executor's [`STREAMS_PER_EXECUTOR`].
pub const ORCHESTRATORS_PER_EXECUTOR: usize = 128;
/// How long the executor is not read for the sake of one orchestrator that
/// cannot take resends and does not read. Then that stream is reset.
pub const STALL_MAX: Duration = Duration::from_secs(2);

// ---- liveness ------------------------------------------------------------

/// How often an end sends a websocket ping. Codex
/// (docs/codex-wire.md#rendezvous-websocket).
pub const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Silence after which a websocket is given up. Codex
/// (docs/codex-wire.md#rendezvous-websocket).
pub const PONG_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a peer may take for one message, from its first byte, before the relay ends
/// its websocket. Stock ends send messages of up to 61.5 kB, so 50 kbit/s suffice.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

// ---- registry ------------------------------------------------------------

/// Largest request body in bytes: two public keys and an authorization are
/// under 8 KiB.
pub const REGISTRY_BODY_MAX_BYTES: usize = 64 * 1024;
/// How long an orchestrator's ticket and its key authorization live.
pub const ORCHESTRATOR_TICKET_TTL: Duration = Duration::from_secs(60);
/// Longest subject of a ticket in bytes: the id of a token has 16.
pub const TICKET_SUBJECT_MAX_BYTES: usize = 64;
/// Entries of one page of a list.
pub const LIST_PAGE_MAX: u32 = 1000;
/// Longest label of a token in bytes.
pub const TOKEN_LABEL_MAX_BYTES: usize = 128;
/// Connections of its executors that an environment's history keeps, the
/// newest, unless configured: enough to see a pattern, and for all environments
/// of a full registry a few GiB.
pub const CONNECTIONS_PER_ENVIRONMENT: u32 = 50;
/// How long connections are kept, unless configured; the last one of each
/// environment stays.
pub const CONNECTIONS_KEEP_AGE: Duration = Duration::from_secs(365 * 86_400);
/// Rows of the audit log that are kept, unless configured: about 300 MiB.
pub const AUDIT_KEEP_ROWS: u64 = 1_000_000;
/// How long rows of the audit log are kept, unless configured.
pub const AUDIT_KEEP_AGE: Duration = Duration::from_secs(365 * 86_400);
/// The shortest time that they may be kept.
pub const KEEP_MIN: Duration = Duration::from_secs(3600);
/// How long `/connect` waits for an executor that is away, unless configured.
/// Codex: its orchestrators give up one try after about 6 s
/// (docs/codex-wire.md#connect).
pub const CONNECT_WAIT: Duration = Duration::from_secs(4);
/// The longest that it may be configured to: our own orchestrators give up
/// after 15 s.
pub const CONNECT_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a probe of an environment waits for the pong.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Networks that one token may be bound to: sites of one company, not lists of
/// addresses.
pub const TOKEN_CIDRS_MAX: usize = 32;
/// The longest time that the old secret of a rotated token stays valid: beyond
/// it there are two tokens, not a rotation.
pub const ROTATION_OVERLAP_MAX: Duration = Duration::from_secs(30 * 86_400);
/// How far the clock of an enrolled executor may be off when it signs a
/// request: machines without time synchronisation drift by minutes.
pub const PROOF_WINDOW: Duration = Duration::from_secs(300);
/// Largest set of an issuer's keys in bytes: a few dozen keys with chains.
pub const JWKS_MAX_BYTES: usize = 256 * 1024;
/// How long an issuer may take to answer.
pub const JWKS_FETCH_TIMEOUT: Duration = Duration::from_secs(4);
/// Withdrawals that are read at once.
pub const REVOCATIONS_PAGE: u32 = 1000;

// ---- processes and files ---------------------------------------------------

/// Largest chunk of process output in bytes. Codex
/// (docs/codex-wire.md#processes).
pub const PROCESS_CHUNK_MAX_BYTES: usize = 8 * 1024;
/// Largest chunk of process output for an orchestrator that supports such ones:
/// the size of a pipe, so one read empties it.
pub const PROCESS_CHUNK_LARGE_MAX_BYTES: usize = 64 * 1024;
/// Largest file that `fs/readFile` returns: its base64 in JSON must fit one
/// application message, or the whole stream would end.
pub const READ_FILE_MAX_BYTES: usize = 47 * 1024 * 1024;
/// Writes to one process's stdin that wait for it to read; the next one is
/// refused.
pub const WRITES_UNANSWERED_PER_PROCESS: usize = 32;
/// Bytes of such writes that any process may have; one write of any size is
/// accepted when none waits.
pub const STDIN_QUEUED_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of such writes of a process whose client has asked for a window: 1
/// Gbit/s at a round trip of 200 ms.
pub const STDIN_WINDOW_MAX_BYTES: usize = 3 * STDIN_QUEUED_BYTES;

const _: () = {
    assert!(RECORD_PLAINTEXT_MAX_BYTES + TAG_BYTES <= NOISE_MESSAGE_MAX_BYTES);
    assert!(NOISE_MESSAGE_MAX_BYTES + FRAME_OVERHEAD_MAX_BYTES <= MESSAGE_MAX_BYTES);
    // 200 ms at 1 Gbit/s
    assert!(WINDOW_MAX_RECORDS as usize * RECORD_PLAINTEXT_MAX_BYTES >= 200 * 125_000);
    assert!(HANDSHAKE_FAILURES_PER_TOKEN * 2 < HANDSHAKE_FAILURES as u64);
    assert!((HANDSHAKE_FAILURES as usize) <= PENDING_HANDSHAKES);
    assert!(PONG_TIMEOUT.as_secs() >= 2 * PING_INTERVAL.as_secs());
    // A pong may wait behind a message.
    assert!(PING_INTERVAL.as_secs() + MESSAGE_TIMEOUT.as_secs() < PONG_TIMEOUT.as_secs());
    assert!(READ_FILE_MAX_BYTES / 3 * 4 + 4096 < APPLICATION_MESSAGE_MAX_BYTES);
    assert!(STDIN_WINDOW_MAX_BYTES >= 200 * 125_000);
    assert!(PENDING_HANDSHAKES <= STREAMS_PER_EXECUTOR);
    assert!(CONNECT_WAIT.as_secs() < 6);
    assert!(AUDIT_KEEP_AGE.as_secs() >= KEEP_MIN.as_secs());
    assert!(CONNECTIONS_KEEP_AGE.as_secs() >= KEEP_MIN.as_secs());
    assert!(CONNECT_WAIT_MAX.as_secs() < 15);
    assert!(CONNECT_WAIT.as_secs() <= CONNECT_WAIT_MAX.as_secs());
};
