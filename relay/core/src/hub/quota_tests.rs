//! Tests of accounts and of the handshake guard.

use std::time::Duration;

use rendez_proto::frame::{Body, ResetReason};
use rendez_proto::limits::{
    HANDSHAKE_COOLDOWN, HANDSHAKE_FAILURES, HANDSHAKE_FAILURES_PER_TOKEN, HANDSHAKE_TIMEOUT,
};

use super::tests::{Bench, OURS, STOCK, data, frame, reset_of};
use super::*;
use crate::claim::RESET_LINGER;
use crate::handshake::HANDSHAKE_REPEAT;
use crate::handshake_guard::{
    EARLY_FAILURE, HANDSHAKE_FAILURE_RECOVERY, HANDSHAKE_FAILURES_RESERVED, PENALIZED_TOKENS_MAX,
};
use crate::hub::routing::STREAMS_PER_ORCHESTRATOR;
use crate::lane::{FRAME_COPY_BYTES, FRAME_COST_BYTES};
use crate::outbox::RESETS_MAX_FRAMES;
use crate::overflow::LANE_MIN_BYTES;
use crate::testing::t0;

const MIB: usize = 1024 * 1024;

fn memory(bytes: usize) -> Arc<Account> {
    Account::new(Quota { memory_bytes: bytes as u64, ..Quota::UNLIMITED })
}

fn fingerprint(n: usize) -> KeyFingerprint {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    KeyFingerprint(bytes)
}

fn join(b: &mut Bench, n: usize, capabilities: Capabilities, token: &Arc<Account>) -> PortKey {
    b.hub.join_orchestrator(fingerprint(n), capabilities, token.clone()).unwrap()
}

fn handshake(stream: &str) -> Bytes {
    frame(stream, Body::Handshake { message: Bytes::from_static(b"hello"), profile: String::new() })
}

fn reset(stream: &str) -> Bytes {
    frame(stream, Body::Reset { reason: "noise_relay_protocol_error".into() })
}

/// Fills the lane of `stream` towards a reader that does not read; returns
/// what it holds.
fn fill(b: &mut Bench, stream: &str) -> usize {
    let before = b.hub.stats().dropped(Dropped::LaneFull);
    let mut bytes = 0;
    while b.hub.stats().dropped(Dropped::LaneFull) == before {
        let message = data(stream, 1, 60_000);
        bytes += cost(&message);
        b.send(b.executor, &message);
    }
    bytes - cost(&data(stream, 1, 60_000))
}

#[test]
fn slow_readers_leave_memory_to_others() {
    let environment = memory(32 * MIB);
    let mut b =
        Bench::with(HubAccounts { environment: environment.clone(), ..HubAccounts::default() });
    let token = Arc::default();
    let streams: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
    let ports: Vec<PortKey> = (0..20)
        .map(|n| {
            let port = join(&mut b, n, OURS, &token);
            b.send(port, &data(&streams[n], 1, 1));
            port
        })
        .collect();
    b.drain(b.executor);
    let held: Vec<usize> = streams.iter().map(|stream| fill(&mut b, stream)).collect();
    assert!(held[0] >= 14 * MIB && held[0] <= 16 * MIB, "the first gets half: {held:?}");
    assert!(held[1] >= 7 * MIB && held[1] <= 8 * MIB, "the next half of the rest: {held:?}");
    assert!(held.iter().all(|held| *held >= 250_000), "every lane gets some: {held:?}");
    let waiting = environment.usage().memory_bytes;
    assert_eq!(waiting, held.iter().sum::<usize>());
    assert!(waiting <= 32 * MIB + 20 * LANE_MIN_BYTES);
    // memory of frames that were read is free again
    for port in ports {
        b.drain(port);
    }
    assert_eq!(environment.usage().memory_bytes, 0);
}

/// A stock endpoint cannot resend, so its frames must not be lost because the memory of its
/// token runs out: its websockets are stopped before.
#[test]
fn slow_readers_stop_a_token_before_its_memory_runs_out() {
    let token = memory(16 * MIB);
    let mut b = Bench::new();
    let ports: Vec<PortKey> = (0..64).map(|n| join(&mut b, n, STOCK, &token)).collect();
    let streams: Vec<String> = (0..64).map(|n| format!("s{n}")).collect();
    let mut sent = 0;
    let mut fill = |b: &mut Bench| {
        let before = sent;
        for seq in 0..1000 {
            for (port, stream) in ports.iter().zip(&streams) {
                if b.hub.wants_read(*port) {
                    b.send(*port, &data(stream, seq, 60_000));
                    sent += 1;
                }
            }
        }
        sent - before
    };
    let first = fill(&mut b);
    assert!(first >= 64 && token.usage().memory_bytes <= 16 * MIB);
    assert_eq!(b.drain(b.executor).len(), first, "none was lost");
    assert!(ports.iter().all(|port| b.hub.wants_read(*port)), "all go on");
    let second = fill(&mut b);
    assert_eq!(b.drain(b.executor).len(), second);
    assert_eq!(b.hub.stats().dropped(Dropped::Quota), 0);
}

#[test]
fn every_account_bounds_queued_bytes() {
    let quota = |bytes| Quota { memory_bytes: bytes as u64, ..Quota::UNLIMITED };
    for level in 0..4 {
        let small = |this| if this == level { quota(4 * MIB) } else { Quota::UNLIMITED };
        let mut b = Bench::with(HubAccounts {
            node: Account::new(small(0)),
            environment: Account::new(small(1)),
            connection: small(3),
        });
        let port = join(&mut b, 1, OURS, &Account::new(small(2)));
        b.send(port, &data("s", 1, 1));
        let held = fill(&mut b, "s");
        assert!((MIB..=3 * MIB).contains(&held), "account {level}: {held}");
    }
}

/// For any number of streams, in both directions, of both kinds of endpoints.
#[test]
fn token_and_websocket_memory_is_never_overdrawn() {
    let small = |bytes| Quota { memory_bytes: bytes as u64, ..Quota::UNLIMITED };
    for can in [OURS, STOCK] {
        let accounts = HubAccounts { connection: small(2 * MIB), ..HubAccounts::default() };
        let mut b = Bench::with(accounts);
        let token = Account::new(small(6 * MIB));
        let ports: Vec<PortKey> = (0..8).map(|n| join(&mut b, n, can, &token)).collect();
        let stream = |port: usize, n: usize| format!("s{port}-{n}");
        for (at, port) in ports.iter().enumerate() {
            for n in 0..STREAMS_PER_ORCHESTRATOR {
                b.send(*port, &data(&stream(at, n), 1, 1));
            }
        }
        // no port reads any more, and all of them send, also those not to be read
        for seq in 2..20 {
            for (at, port) in ports.iter().enumerate() {
                for n in 0..STREAMS_PER_ORCHESTRATOR {
                    b.send(b.executor, &data(&stream(at, n), seq, 60_000));
                    b.send(*port, &data(&stream(at, n), seq, 60_000));
                }
            }
        }
        let control = 256 * 2 * FRAME_COPY_BYTES;
        let waiting = token.usage().memory_bytes;
        assert!((3 * MIB..6 * MIB + control).contains(&waiting), "{waiting}");
        for port in &ports {
            let waiting = b.hub.ports.get(*port).unwrap().accounts.connection.usage().memory_bytes;
            assert!(waiting <= 2 * MIB + control / 8, "{waiting}");
        }
        assert!(b.hub.stats().dropped(Dropped::Quota) > 0);
        // streams that cannot resend are reset, since data is missing
        let resets =
            ports.iter().flat_map(|port| b.drain(*port)).filter_map(|wire| reset_of(&wire));
        assert_eq!(resets.count() > 0, can == STOCK);
    }
}

#[test]
fn stock_sender_loses_nothing_without_memory() {
    let environment = memory(4 * MIB);
    let mut b = Bench::with(HubAccounts { environment, ..HubAccounts::default() });
    let token = Arc::default();
    let (up, hog) = (join(&mut b, 1, STOCK, &token), join(&mut b, 2, STOCK, &token));
    let mut sent = 0;
    b.send(up, &data("up", sent, 60_000));
    while b.hub.wants_read(hog) {
        b.send(hog, &data("hog", 0, 60_000));
    }
    // the memory of the other stream makes this lane full sooner, after one more message
    while b.hub.wants_read(up) {
        sent += 1;
        b.send(up, &data("up", sent, 60_000));
    }
    let out = b.drain(b.executor);
    let ups = out.iter().filter(|wire| rendez_proto::peek::peek(wire).unwrap().stream == "up");
    assert_eq!(ups.count() as u32, sent + 1);
    assert_eq!(b.hub.stats().dropped(Dropped::LaneFull), 0);
    assert!(b.hub.wants_read(up) && b.hub.wants_read(hog));
}

#[test]
fn rate_limit_pauses_only_one_socket() {
    let mut b = Bench::new();
    let limited = Account::new(Quota { bytes_per_second: 100_000, ..Quota::UNLIMITED });
    let (fast, other) = (join(&mut b, 1, OURS, &limited), join(&mut b, 2, OURS, &Arc::default()));
    for seq in 0..3 {
        b.send(fast, &data("fast", seq, 60_000));
        b.send(other, &data("other", seq, 60_000));
    }
    assert!(!b.hub.wants_read(fast) && b.hub.wants_read(other));
    assert_eq!(b.drain(b.executor).len(), 6, "what was read is forwarded");
    let until = b.hub.poll_port_timeout(fast).unwrap();
    assert!(
        (t0() + Duration::from_millis(700)..t0() + Duration::from_millis(900)).contains(&until)
    );
    b.hub.handle_port_timeout(fast, until - Duration::from_millis(1));
    assert!(!b.hub.wants_read(fast));
    b.hub.handle_port_timeout(fast, until);
    assert!(b.hub.wants_read(fast));
    assert_eq!(b.hub.poll_port_timeout(fast), None);
    assert_eq!(b.hub.stats().throttled, 1);
}

#[test]
fn connection_and_stream_quotas_are_refunded() {
    let quota = Quota { connections: 2, streams: 1, ..Quota::UNLIMITED };
    let mut b = Bench::new();
    let token = Account::new(quota);
    let a = join(&mut b, 1, OURS, &token);
    let c = join(&mut b, 2, OURS, &token);
    let full = b.hub.join_orchestrator(fingerprint(3), OURS, token.clone());
    assert_eq!(full, Err(JoinError::Quota(Level::Token)));
    assert_eq!(b.hub.orchestrators(), 2);

    b.send(a, &data("one", 1, 1));
    let refused = refused(&mut b, c, &data("two", 1, 1));
    assert_eq!(refused, Some(Refusal::Streams(Level::Token)));
    assert_eq!(reset_of(&b.drain(c)[0]), Some(ResetReason::Overloaded));
    assert_eq!(b.hub.stats().dropped(Dropped::Quota), 1);
    // the same stream on another websocket of its owner needs no second place
    b.hub.leave(c, t0());
    let again = join(&mut b, 1, OURS, &token);
    b.send(again, &data("one", 2, 1));
    assert_eq!(b.drain(again), [] as [Bytes; 0]);
    assert_eq!(b.drain(b.executor).len(), 2);

    b.hub.leave(a, t0());
    b.hub.leave(again, t0());
    b.drain(b.executor);
    b.hub.handle_timeout(t0() + limits::STREAM_GRACE);
    assert_eq!(token.usage(), crate::Usage::default());
}

/// Sends a message; returns the limit that it ran into.
fn refused(b: &mut Bench, port: PortKey, message: &Bytes) -> Option<Refusal> {
    b.hub.handle_message(port, message.clone(), t0()).unwrap()
}

#[test]
fn refusal_names_the_limit() {
    let rate = |n| Account::new(Quota { handshakes_per_minute: n, ..Quota::UNLIMITED });
    for (level, refusal) in [
        (Level::Node, Refusal::Handshakes(Level::Node)),
        (Level::Environment, Refusal::Handshakes(Level::Environment)),
        (Level::Token, Refusal::Handshakes(Level::Token)),
    ] {
        let small = |this| if this == level { rate(1) } else { Arc::default() };
        let mut b = Bench::with(HubAccounts {
            node: small(Level::Node),
            environment: small(Level::Environment),
            ..HubAccounts::default()
        });
        let port = join(&mut b, 1, OURS, &small(Level::Token));
        assert_eq!(refused(&mut b, port, &handshake("one")), None);
        assert_eq!(refused(&mut b, port, &handshake("two")), Some(refusal));
        // the next message passes without a refusal
        assert_eq!(refused(&mut b, port, &data("three", 1, 1)), None);
    }
    let mut b = Bench::new();
    let port = join(&mut b, 1, OURS, &Arc::default());
    for n in 0..STREAMS_PER_ORCHESTRATOR {
        assert_eq!(refused(&mut b, port, &data(&format!("s{n}"), 1, 1)), None);
    }
    let one_more = data("one more", 1, 1);
    assert_eq!(refused(&mut b, port, &one_more), Some(Refusal::StreamsOfWebsocket));
    // another owner's stream is refused, but not because of a limit
    let other = join(&mut b, 2, OURS, &Arc::default());
    assert_eq!(refused(&mut b, other, &data("s1", 1, 1)), None);
}

fn guarded() -> Arc<Account> {
    let quota = Quota { handshake_failures: HANDSHAKE_FAILURES_PER_TOKEN, ..Quota::UNLIMITED };
    Account::new(quota)
}

/// Fails a handshake of `token`; `false` if the hub did not let it through.
fn fail(b: &mut Bench, n: usize, token: &Arc<Account>, now: Instant) -> bool {
    let port = join(b, n, STOCK, token);
    let stream = format!("h{n}");
    b.hub.handle_message(port, handshake(&stream), now).unwrap();
    let passed = !b.drain(b.executor).is_empty();
    if passed {
        b.hub.handle_message(b.executor, reset(&stream), now).unwrap();
        b.drain(port);
    } else {
        assert!(reset_of(&b.drain(port)[0]).is_some());
    }
    b.hub.leave(port, now);
    b.drain(b.executor);
    passed
}

#[test]
fn one_token_cannot_start_the_cooldown() {
    let mut b = Bench::new();
    // The change of the registration is long ago.
    let begun = t0() + HANDSHAKE_TIMEOUT;
    let (hostile, honest) = (guarded(), guarded());
    let passed = (0..100).filter(|n| fail(&mut b, *n, &hostile, begun)).count();
    assert_eq!(passed as u64, HANDSHAKE_FAILURES_PER_TOKEN);
    assert!(b.hub.stats().dropped(Dropped::HandshakeGuard) == 97);
    let port = join(&mut b, 99, STOCK, &hostile);
    assert_eq!(refused(&mut b, port, &handshake("h99")), Some(Refusal::FailedHandshakes));
    b.hub.leave(port, begun);
    b.drain(b.executor);
    assert!(fail(&mut b, 1000, &honest, begun), "others get through");

    // in an hour of tries, it fails far less often than the cooldown needs
    let minutes = (1..=60).map(|minute| begun + Duration::from_secs(60 * minute));
    let passed =
        minutes.enumerate().filter(|(n, now)| fail(&mut b, 2000 + n, &hostile, *now)).count();
    assert!(passed < 12, "{passed} failures in an hour");
}

#[test]
fn failures_count_per_executor() {
    let (mut sick, mut well) = (Bench::new(), Bench::new());
    let token = guarded();
    assert_eq!((0..10).filter(|n| fail(&mut sick, *n, &token, t0())).count(), 3);
    assert!(fail(&mut well, 1, &token, t0()));
}

#[test]
fn oldest_penalized_token_is_forgotten_first() {
    let mut b = Bench::new();
    let far = |n: usize| t0() + Duration::from_secs(20 * n as u64);
    let first = guarded();
    assert!(fail(&mut b, 0, &first, t0()));
    for n in 1..3 * PENALIZED_TOKENS_MAX {
        b.hub.guard.failed(Some(&guarded()), far(n));
    }
    assert!(b.hub.guard.penalized_tokens() <= PENALIZED_TOKENS_MAX);
    assert_eq!(b.hub.guard.failures_of(&first, t0()), 0);
}

#[test]
fn waiting_handshake_is_charged() {
    let token =
        Account::new(Quota { memory_bytes: 100_000, handshake_failures: 1, ..Quota::UNLIMITED });
    let mut b = Bench::new();
    let port = join(&mut b, 1, STOCK, &token);
    let large = |stream: &str| {
        let message = Bytes::from(vec![1; 40_000]);
        frame(stream, Body::Handshake { message, profile: String::new() })
    };
    b.send(port, &large("passes"));
    assert_eq!(offered(&mut b), ["passes"]);
    assert_eq!(token.usage().memory_bytes, 0);
    for stream in ["waits", "waits too", "is too much"] {
        b.send(port, &large(&stream.replace(' ', "-")));
    }
    let waiting = token.usage().memory_bytes;
    assert!((80_000..100_000).contains(&waiting), "{waiting}");
    assert_eq!(b.hub.stats().dropped(Dropped::Quota), 1);
    assert_eq!(reset_of(&b.drain(port)[0]), Some(ResetReason::Overloaded));
    b.send(port, &reset("waits"));
    assert!(token.usage().memory_bytes < waiting);
    b.hub.leave(port, t0());
    b.drain(b.executor);
    assert_eq!(token.usage().memory_bytes, 0);
}

#[test]
fn frames_beyond_the_memory_quota_are_reported() {
    let token = Account::new(Quota { memory_bytes: 100_000, ..Quota::UNLIMITED });
    let mut b = Bench::new();
    let port = join(&mut b, 1, OURS, &token);
    b.send(port, &data("s", 1, 1));
    b.drain(b.executor);
    let fits = |b: &mut Bench, from, seq| refused(b, from, &data("s", seq, 40_000)).is_none();
    assert!(fits(&mut b, port, 2) && fits(&mut b, port, 3));
    for from in [port, b.executor] {
        let seen = refused(&mut b, from, &data("s", 4, 40_000));
        assert_eq!(seen, Some(Refusal::QueueMemory));
    }
    assert_eq!(b.hub.stats().dropped(Dropped::Quota), 2);
}

#[test]
fn waiting_acks_are_charged_and_large_ones_queued() {
    let mut b = Bench::new();
    let token: Arc<Account> = Account::new(Quota::UNLIMITED);
    let port = join(&mut b, 1, OURS, &token);
    b.send(port, &data("s", 1, 1));
    b.drain(b.executor);
    let padded = |bytes: usize| {
        let mut ack = frame("s", Body::Ack).to_vec();
        // an unknown field of this length
        ack.extend([0xfa, 0x7f, (bytes & 0x7f) as u8 | 0x80, (bytes >> 7) as u8]);
        ack.extend(vec![0; bytes]);
        Bytes::from(ack)
    };
    b.send(b.executor, &data("s", 1, 60_000));
    b.send(b.executor, &padded(10_000));
    b.send(b.executor, &padded(1_000));
    assert!(token.usage().memory_bytes >= 71_000);
    let lengths: Vec<usize> = b.drain(port).iter().map(|frame| frame.len() / 1000).collect();
    assert_eq!(lengths, [1, 60, 10]);
    assert_eq!(token.usage().memory_bytes, 0);
    b.send(b.executor, &padded(1_000));
    b.hub.leave(port, t0());
    b.drain(b.executor);
    assert_eq!(token.usage().memory_bytes, 0);
}

/// An executor's acks for orchestrators that do not read.
#[test]
fn flood_of_acks_stays_within_the_quota() {
    let mut b = Bench::new();
    let token = Account::new(Quota { memory_bytes: 10_000, ..Quota::UNLIMITED });
    let ports: Vec<PortKey> = (0..10).map(|n| join(&mut b, n, OURS, &token)).collect();
    let padded = |stream: &str| {
        let mut ack = frame(stream, Body::Ack).to_vec();
        ack.extend([0xfa, 0x7f, 0xec, 0x0e]); // an unknown field of 1,900 bytes
        ack.extend(vec![0; 1_900]);
        Bytes::from(ack)
    };
    for (n, port) in ports.iter().enumerate() {
        b.send(*port, &data(&format!("s{n}"), 1, 1));
    }
    b.drain(b.executor);
    for n in 0..1000 {
        b.send(b.executor, &padded(&format!("s{}", n % 10)));
        assert!(token.usage().memory_bytes <= 10_000);
    }
    assert!(b.hub.stats().dropped(Dropped::Quota) > 0);
    assert!(b.hub.stats().dropped(Dropped::ExpressFull) > 0);
    let sent: usize = ports.iter().map(|port| b.drain(*port).len()).sum();
    assert_eq!((sent, token.usage().memory_bytes), (5, 0));
}

/// An orchestrator without memory that does not read its refusals.
#[test]
fn unread_refusals_stay_within_the_quota() {
    let mut b = Bench::new();
    let token = Account::new(Quota { memory_bytes: 1_000, streams: 0, ..Quota::UNLIMITED });
    let port = join(&mut b, 1, OURS, &token);
    for n in 0..1000 {
        b.send(port, &handshake(&format!("s{n}")));
        assert!(token.usage().memory_bytes <= 1_000);
    }
    token.set_quota(Quota { memory_bytes: 0, streams: 0, ..Quota::UNLIMITED });
    assert!(!b.drain(port).is_empty());
    b.send(port, &handshake("one"));
    b.send(port, &handshake("two"));
    assert_eq!(b.drain(port).len(), 1, "a reader hears why without memory too");
    token.set_quota(Quota { streams: 0, ..Quota::UNLIMITED });
    for n in 0..1000 {
        b.send(port, &handshake(&format!("s{n}")));
    }
    assert_eq!(b.drain(port).len(), RESETS_MAX_FRAMES);
    assert_eq!(token.usage().memory_bytes, 0);
}

/// Small frames are charged their overhead, and keep no larger buffer.
#[test]
fn small_frames_are_charged_their_overhead() {
    let mut b = Bench::new();
    let token: Arc<Account> = Account::new(Quota::UNLIMITED);
    let port = join(&mut b, 1, OURS, &token);
    let small = data("s", 1, 1);
    for _ in 0..1000 {
        b.send(port, &small);
    }
    let waiting = token.usage().memory_bytes;
    assert_eq!(waiting, 1000 * (small.len() + FRAME_COST_BYTES));
    assert!(b.drain(b.executor).iter().all(|frame| frame.as_ptr() != small.as_ptr()));
    let large = data("s", 1, 10_000);
    b.send(port, &large);
    b.send(port, &large);
    let out: Vec<_> = b.drain(b.executor);
    assert_eq!(out[0].as_ptr(), large.as_ptr(), "the first one is not copied");
    assert_ne!(out[1].as_ptr(), large.as_ptr());
    assert_eq!(token.usage().memory_bytes, 0);
}

#[test]
fn refused_executor_does_not_supersede() {
    let mut b = Bench::new();
    let full = Account::new(Quota { connections: 0, ..Quota::UNLIMITED });
    let refused = b.hub.join_executor(Generation(2), full, t0());
    assert_eq!(refused, Err(JoinError::Quota(Level::Token)));
    assert!(b.hub.is_joined(b.executor));
    // and an older generation than the refused one is not stale
    let one = Account::new(Quota { connections: 1, ..Quota::UNLIMITED });
    let first = b.hub.join_executor(Generation(1), one.clone(), t0()).unwrap();
    assert!(!b.hub.is_joined(b.executor));
    // the executor that supersedes it may use its place
    let second = b.hub.join_executor(Generation(1), one.clone(), t0()).unwrap();
    assert!(!b.hub.is_joined(first));
    assert_eq!(one.usage().connections, 1);
    b.hub.leave(second, t0());
    assert_eq!(one.usage().connections, 0);
}

#[test]
fn last_failures_are_reserved_for_clean_tokens() {
    let mut b = Bench::new();
    let tokens: Vec<Arc<Account>> = (0..4).map(|_| guarded()).collect();
    let free = HANDSHAKE_FAILURES - HANDSHAKE_FAILURES_RESERVED;
    let mut failed = 0;
    for n in 0..free as usize {
        failed += u32::from(fail(&mut b, n, &tokens[n % 3], t0()));
    }
    assert_eq!(failed, free);
    assert!(!fail(&mut b, 100, &tokens[0], t0()), "two failures, and few are left");
    assert!(fail(&mut b, 101, &tokens[3], t0()));
    assert!(!fail(&mut b, 102, &tokens[3], t0()));
    // refusals of an executor in its cooldown are not charged to any token
    let other: Arc<Account> = guarded();
    assert!(fail(&mut b, 103, &other, t0()));
    assert!(!fail(&mut b, 104, &guarded(), t0()), "in cooldown");
    assert!(fail(&mut b, 105, &guarded(), t0() + HANDSHAKE_COOLDOWN));
    assert_eq!(b.hub.guard.failures_of(&other, t0() + HANDSHAKE_FAILURE_RECOVERY), 0);
}

#[test]
fn cancelled_handshake_counts_as_a_failure() {
    let mut b = Bench::new();
    let token: Arc<Account> = guarded();
    let port = join(&mut b, 1, STOCK, &token);
    b.send(port, &handshake("good"));
    b.send(b.executor, &handshake("good"));
    b.send(b.executor, &reset("good"));
    assert_eq!(b.hub.guard.failures_of(&token, t0()), 0);
    b.send(port, &handshake("left"));
    b.hub.leave(port, t0());
    assert_eq!(b.hub.guard.failures_of(&token, t0()), 1);
    let port = join(&mut b, 1, STOCK, &token);
    b.send(port, &handshake("taken back"));
    b.send(port, &reset("taken back"));
    assert_eq!(b.hub.guard.failures_of(&token, t0()), 2);
}

/// As while a laptop sleeps: a token that tries it then may try it afterwards.
#[test]
fn unresponsive_executor_does_not_penalize_tokens() {
    let mut b = Bench::new();
    let token: Arc<Account> = guarded();
    let mut now = t0();
    for n in 0..HANDSHAKE_FAILURES {
        let port = join(&mut b, 1, OURS, &token);
        b.hub.handle_message(port, handshake(&format!("h{n}")), now).unwrap();
        // repetitions do not count as new handshakes
        b.hub.handle_message(port, handshake(&format!("h{n}")), now + HANDSHAKE_REPEAT).unwrap();
        assert_eq!(offered(&mut b).len(), 2, "{n}");
        now += EARLY_FAILURE;
        let from = if n % 2 == 0 { port } else { b.executor };
        b.hub.handle_message(from, reset(&format!("h{n}")), now).unwrap();
        b.hub.leave(port, now);
        b.drain(b.executor);
    }
    assert_eq!(b.hub.guard.failures_of(&token, now), 0);
    // but a stock executor may have counted them
    assert!(!fail(&mut b, 2, &token, now), "in cooldown");
    assert!(fail(&mut b, 3, &token, now + HANDSHAKE_COOLDOWN));
}

/// The simulator's seed 70118419: while the executor slept, an orchestrator's messages
/// waited for their turn and were offered shortly before it gave up. Its token was
/// locked out for a quarter of an hour.
#[test]
fn time_in_the_hub_does_not_penalize_tokens() {
    let mut b = Bench::new();
    let token = guarded();
    let port = join(&mut b, 1, OURS, &token);
    for stream in ["a", "b", "c", "waits", "waits too"] {
        b.send(port, &handshake(stream));
    }
    assert_eq!(offered(&mut b), ["a", "b", "c"]);
    let late = t0() + 2 * EARLY_FAILURE;
    for stream in ["a", "b", "c"] {
        b.hub.handle_message(port, reset(stream), late).unwrap();
    }
    b.drain(b.executor);
    for stream in ["waits", "waits too"] {
        assert!(b.hub.claims[b.hub.claims.find(stream).unwrap()].handshake().is_offered());
        b.hub.handle_message(port, reset(stream), late).unwrap();
    }
    assert_eq!(b.hub.guard.failures_of(&token, late), 0);
}

/// The simulator's seeds 70105437 and 900003460: handshakes that were made for one
/// registration reached the executor of the next.
#[test]
fn new_registration_forgives_failures_once() {
    let mut b = Bench::new();
    let token: Arc<Account> = guarded();
    let mut now = t0() + 2 * HANDSHAKE_TIMEOUT;
    b.executor = b.hub.join_executor(Generation(2), Arc::default(), now).unwrap();
    let mut passed = 0;
    for n in 0..20 {
        passed += u64::from(fail(&mut b, n, &token, now));
    }
    assert_eq!(passed, HANDSHAKE_FAILURES_PER_TOKEN, "not unlimited before");
    now += HANDSHAKE_TIMEOUT;
    for n in 20..40 {
        passed += u64::from(fail(&mut b, n, &token, now));
    }
    assert!(passed < u64::from(HANDSHAKE_FAILURES), "{passed}");
    // The same registration on another websocket forgives nothing.
    b.executor = b.hub.join_executor(Generation(2), Arc::default(), now).unwrap();
    assert!(!fail(&mut b, 41, &token, now + HANDSHAKE_TIMEOUT));
}

/// The streams of the handshakes that reached the executor.
fn offered(b: &mut Bench) -> Vec<String> {
    let frames = b.drain(b.executor);
    frames.iter().map(|wire| rendez_proto::peek::peek(wire).unwrap().stream.to_owned()).collect()
}

#[test]
fn burst_of_handshakes_cannot_start_the_cooldown() {
    let mut b = Bench::new();
    let tokens: Vec<Arc<Account>> = (0..10).map(|_| guarded()).collect();
    let ports: Vec<PortKey> = (0..10).map(|n| join(&mut b, n, STOCK, &tokens[n])).collect();
    for (n, port) in ports.iter().enumerate() {
        for k in 0..5 {
            b.send(*port, &handshake(&format!("{n}.{k}")));
        }
    }
    let first = offered(&mut b);
    assert_eq!(first, ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2", "2.0"], "of any token few");
    assert!(first.len() < HANDSHAKE_FAILURES as usize);
    // answered ones make room for those that wait, in order
    b.send(b.executor, &handshake("0.1"));
    assert_eq!(offered(&mut b), ["0.3"]);
    b.send(b.executor, &handshake("2.0"));
    assert_eq!(offered(&mut b), ["2.1"]);
    // failed ones do not
    b.send(b.executor, &reset("0.0"));
    assert_eq!(offered(&mut b), [] as [&str; 0]);
}

#[test]
fn reused_stream_id_is_another_attempt() {
    let mut b = Bench::new();
    let token = guarded();
    let port = join(&mut b, 1, STOCK, &token);
    let mut passed = 0;
    for _ in 0..100 {
        b.send(port, &handshake("again"));
        b.send(port, &handshake("again"));
        passed += offered(&mut b).len();
        b.send(b.executor, &reset("again"));
        b.drain(port);
    }
    assert_eq!(passed as u64, HANDSHAKE_FAILURES_PER_TOKEN);
}

#[test]
fn message_1_may_be_repeated_after_a_while() {
    let mut b = Bench::new();
    let token = guarded();
    let port = join(&mut b, 1, OURS, &token);
    let send = |b: &mut Bench, at| {
        b.hub.handle_message(port, handshake("s"), t0() + at).unwrap();
        offered(b).len()
    };
    assert_eq!(send(&mut b, Duration::ZERO), 1);
    assert_eq!(send(&mut b, HANDSHAKE_REPEAT - Duration::from_millis(1)), 0);
    assert_eq!(send(&mut b, HANDSHAKE_REPEAT), 1);
    assert_eq!(send(&mut b, HANDSHAKE_REPEAT), 0);
    assert_eq!(b.hub.stats().dropped(Dropped::HandshakeRepeat), 2);
}

#[test]
fn waiting_handshake_can_be_cancelled_or_expires() {
    let mut b = Bench::new();
    let token = guarded();
    let port = join(&mut b, 1, STOCK, &token);
    for stream in ["a", "b", "c", "cancelled", "left", "expires"] {
        b.send(port, &handshake(stream));
    }
    assert_eq!(offered(&mut b), ["a", "b", "c"]);
    b.send(port, &data("expires", 1, 1));
    b.send(port, &reset("cancelled"));
    assert_eq!(b.hub.stats().dropped(Dropped::HandshakeWaits), 3);
    assert_eq!(offered(&mut b), [] as [&str; 0]);
    let late = t0() + HANDSHAKE_TIMEOUT;
    b.hub.handle_timeout(late);
    for stream in ["a", "b", "c"] {
        b.hub.handle_message(b.executor, handshake(stream), late).unwrap();
    }
    assert_eq!(offered(&mut b), [] as [&str; 0]);
    // Those that were never offered are counted, and their streams are over.
    assert_eq!(b.hub.stats().dropped(Dropped::HandshakeWaits), 5);
    assert!(b.hub.claims.find("expires").is_none());
    assert_eq!(b.hub.guard.failures_of(&token, late), 0);
    b.hub.leave(port, late);
    assert_eq!(b.hub.guard.failures_of(&token, late), 0, "what was answered is no failure");
}

/// A hub where three handshakes of a token are under way, so that its next one waits.
fn busy(token: &Arc<Account>) -> (Bench, PortKey) {
    let mut b = Bench::new();
    let port = join(&mut b, 1, OURS, token);
    for stream in ["a", "b", "c"] {
        b.send(port, &handshake(stream));
    }
    assert_eq!(offered(&mut b), ["a", "b", "c"]);
    (b, port)
}

/// The simulator's seeds 2000026466, 2000169790 and 2000182574: the refusal of an altered
/// message 1 passed, its orchestrator did not read it and tried again, and this message
/// was gone when the stream's linger was over.
#[test]
fn handshake_after_a_refusal_keeps_its_turn() {
    let token = guarded();
    let (mut b, port) = busy(&token);
    b.send(b.executor, &reset("a"));
    b.send(port, &handshake("a"));
    b.drain(port);
    let late = t0() + RESET_LINGER;
    b.hub.handle_timeout(late);
    b.hub.handle_message(b.executor, handshake("b"), late).unwrap();
    assert_eq!(offered(&mut b), ["a"]);
    assert_eq!(b.hub.stats().dropped(Dropped::HandshakeWaits), 0);
}

/// The simulator's seed 2000260010: the executor reset what a hostile relay had sent it
/// under the name of a stream whose handshake still waited.
#[test]
fn reset_does_not_end_a_handshake_that_the_executor_has_not_read() {
    let token = guarded();
    let (mut b, port) = busy(&token);
    b.send(port, &handshake("waits"));
    b.send(b.executor, &reset("waits"));
    assert_eq!(b.drain(port).len(), 1, "its orchestrator reads it all the same");
    let late = t0() + RESET_LINGER;
    b.hub.handle_timeout(late);
    b.hub.handle_message(b.executor, handshake("b"), late).unwrap();
    assert_eq!(offered(&mut b), ["waits"]);
}

/// The simulator's seeds 2000237492 and 2000329564: a message 1 that arrived while the
/// executor was away went to the next registration, which cannot read it.
#[test]
fn handshake_without_an_executor_is_dropped() {
    let token = guarded();
    let (mut b, port) = busy(&token);
    b.hub.leave(b.executor, t0());
    for stream in ["a", "b", "c", "a"] {
        b.send(port, &handshake(stream));
    }
    assert_eq!(b.hub.stats().dropped(Dropped::PeerAway), 4);
    b.executor = b.hub.join_executor(Generation(2), Arc::default(), t0()).unwrap();
    b.hub.handle_timeout(t0());
    assert_eq!(offered(&mut b), [] as [&str; 0]);
}

/// The simulator's seed 2000035833.
#[test]
fn handshakes_that_wait_are_counted_when_an_end_leaves() {
    let token = guarded();
    let (mut b, port) = busy(&token);
    b.send(port, &handshake("waits"));
    b.hub.leave(port, t0());
    assert_eq!(b.hub.stats().dropped(Dropped::HandshakeWaits), 1);
    let (mut b, port) = busy(&guarded());
    b.send(port, &handshake("waits"));
    b.hub.leave(b.executor, t0());
    assert_eq!(b.hub.stats().dropped(Dropped::PeerAway), 1);
}
