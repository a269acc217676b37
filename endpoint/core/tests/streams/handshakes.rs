//! Handshakes: accepted, refused, repeated, damaged and limited.

use std::time::Duration;

use bytes::Bytes;
use rendez_endpoint::{Closed, Connect, ConnectError, Event, Misbehaviour, Refusal, SendError};
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::limits::{
    AUTHORIZATION_TIMEOUT, HANDSHAKE_COOLDOWN, HANDSHAKE_TIMEOUT, STREAMS_PER_EXECUTOR,
};
use rendez_proto::profile::Profile;

use crate::pair::{
    Pair, STREAM, authorized_elsewhere, identity, kinds, open, pair, registration, reset, stream,
};

const CODEX_RESET: &str = "reset noise_relay_protocol_error";
const OUR_RESET: &str = "reset handshake_refused";

fn refusal_of(profile: Profile) -> &'static str {
    if profile.is_reliable() { OUR_RESET } else { CODEX_RESET }
}

fn closed(events: &[Event]) -> Option<Closed> {
    events.iter().find_map(|event| match event {
        Event::Closed { why, .. } => Some(*why),
        _ => None,
    })
}

/// An unauthenticated handshake frame.
fn handshake(id: &str, profile: &str, message: &'static [u8]) -> Bytes {
    let body =
        Body::Handshake { message: Bytes::from_static(message), profile: profile.to_owned() };
    Frame::bare(stream(id), body).encode()
}

#[test]
fn executor_answers_only_after_authorization() {
    for profile in Profile::ALL {
        let mut pair = pair();
        pair.connect(STREAM, profile);
        let wires = pair.drain_orchestrator();
        pair.deliver_to_executor(wires);
        assert!(pair.drain_executor().is_empty());
        let events = pair.executor_events();
        let [
            Event::AuthorizationNeeded {
                key,
                stream: id,
                registration: at,
                peer,
                authorization,
                ..
            },
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert_eq!(*id, stream(STREAM));
        assert_eq!(*at, registration("reg-1"));
        assert_eq!(peer, identity(2).public_for(profile.suite()));
        assert_eq!(authorization, "auth");
        assert_eq!(pair.executor.send(*key, &Bytes::from_static(b"x")), Err(SendError::Blocked));
    }
}

/// The bytes in docs/codex-wire.md#frame and docs/codex-wire.md#noise-channel.
#[test]
fn codex_opening_frames_match_stock() {
    let mut pair = pair();
    pair.connect_with(STREAM, Profile::NoiseHybridIkV1, Bytes::from_static(b"auth-1"));
    let wires = pair.drain_orchestrator();
    assert_eq!(kinds(&wires), ["resume 0", "handshake \"\" 3574"]);
    pair.deliver_to_executor(wires);
    pair.authorize_all();
    assert_eq!(kinds(&pair.drain_executor()), ["handshake \"\" 3424"]);
}

#[test]
fn rendez_opening_names_its_profile() {
    let mut pair = pair();
    pair.connect(STREAM, Profile::RendezIkV1);
    assert_eq!(kinds(&pair.drain_orchestrator()), ["handshake \"rendez_ik_v1\" 100"]);
}

#[test]
fn refused_peer_is_reset_without_an_event() {
    for profile in Profile::ALL {
        let mut pair = pair();
        pair.connect(STREAM, profile);
        let wires = pair.drain_orchestrator();
        pair.deliver_to_executor(wires);
        let (key, pending) = pair.pending();
        pair.executor.refuse(pair.now, key, Refusal::Denied);
        let wires = pair.drain_executor();
        assert_eq!(kinds(&wires), [refusal_of(profile)]);
        assert_eq!(pair.executor_events(), []);
        pair.deliver_to_orchestrator(wires);
        let why = closed(&pair.orchestrator_events());
        assert!(matches!(why, Some(Closed::Reset(_))), "{why:?}");
        assert_eq!(pair.executor.stats().handshake_failures, 1);
        // a late verdict has no effect
        pair.executor.authorize(pair.now, key, pending.authorize());
        assert_eq!(pair.executor_events(), []);
    }
}

/// The payload in docs/codex-wire.md#validate.
#[test]
fn rejected_credentials_are_reported_inside_noise() {
    for profile in Profile::ALL {
        let mut pair = pair();
        pair.connect(STREAM, profile);
        let wires = pair.drain_orchestrator();
        pair.deliver_to_executor(wires);
        let (key, _) = pair.pending();
        pair.executor.refuse(pair.now, key, Refusal::AuthenticationRejected);
        let wires = pair.drain_executor();
        assert!(kinds(&wires)[0].starts_with("handshake"));
        pair.deliver_to_orchestrator(wires);
        let why = closed(&pair.orchestrator_events());
        assert_eq!(why, Some(Closed::AuthenticationRejected));
    }
}

#[test]
fn authorization_of_another_key_refuses_peer() {
    let mut pair = pair();
    pair.connect(STREAM, Profile::RendezHybridIkV1);
    let wires = pair.drain_orchestrator();
    pair.deliver_to_executor(wires);
    let (key, _) = pair.pending();
    let proof = authorized_elsewhere(&identity(9));
    pair.executor.authorize(pair.now, key, proof);
    assert_eq!(kinds(&pair.drain_executor()), [OUR_RESET]);
    assert_eq!(pair.executor_events(), []);
}

#[test]
fn authorization_is_at_most_4096_utf8_bytes() {
    let refused = |authorization: Bytes| {
        let mut pair = pair();
        pair.connect_with(STREAM, Profile::NoiseHybridIkV1, authorization);
        let wires = pair.drain_orchestrator();
        pair.deliver_to_executor(wires);
        kinds(&pair.drain_executor()) == [CODEX_RESET]
    };
    assert!(!refused(Bytes::from(vec![b'a'; 4096])));
    assert!(refused(Bytes::from_static(b"\xff\xfe")));

    let connect = Connect {
        stream: stream(STREAM),
        profile: Profile::NoiseHybridIkV1,
        registration: registration("reg-1"),
        peer: identity(1).public().clone(),
        authorization: Bytes::from(vec![b'a'; 4097]),
    };
    let mut pair = pair();
    let result = pair.orchestrator.connect(pair.now, connect);
    assert_eq!(result, Err(ConnectError::AuthorizationTooLong));
}

#[test]
fn handshake_with_silent_executor_times_out() {
    for profile in Profile::ALL {
        let mut pair = pair();
        pair.connect(STREAM, profile);
        pair.pass_without_network(HANDSHAKE_TIMEOUT - Duration::from_millis(1));
        assert_eq!(closed(&pair.orchestrator_events()), None);
        pair.pass_without_network(Duration::from_millis(1));
        assert_eq!(closed(&pair.orchestrator_events()), Some(Closed::HandshakeTimeout));
        assert_eq!(pair.orchestrator.poll_timeout(), None, "nothing is left behind");
    }
}

#[test]
fn handshake_with_silent_registry_times_out() {
    let mut pair = pair();
    pair.connect(STREAM, Profile::NoiseHybridIkV1);
    let wires = pair.drain_orchestrator();
    pair.deliver_to_executor(wires);
    pair.pending();
    let (_, down) = pair.pass_without_network(AUTHORIZATION_TIMEOUT);
    assert_eq!(kinds(&down), [CODEX_RESET]);
    assert_eq!(closed(&pair.executor_events()), Some(Closed::HandshakeTimeout));
}

/// Both cancel the pending handshake (docs/codex-wire.md#handshake-limits).
#[test]
fn early_codex_data_cancels_the_handshake() {
    for early_data in [false, true] {
        let mut pair = pair();
        pair.connect(STREAM, Profile::NoiseHybridIkV1);
        let wires = pair.drain_orchestrator();
        pair.deliver_to_executor(wires.clone());
        pair.pending();
        if early_data {
            let body =
                Body::Data { seq: rendez_proto::ids::Seq(0), record: Bytes::from_static(&[0; 32]) };
            pair.deliver_to_executor([Frame::bare(stream(STREAM), body).encode()]);
        } else {
            pair.deliver_to_executor([wires[1].clone()]);
        }
        assert_eq!(kinds(&pair.drain_executor()), [CODEX_RESET]);
        let why = Closed::PeerMisbehaved(Misbehaviour::EarlyData);
        assert_eq!(closed(&pair.executor_events()), Some(why));
        assert_eq!(pair.executor.stats().handshake_failures, 1);
    }
}

/// A relay may repeat or damage any frame.
#[test]
fn repeated_handshake_is_harmless_in_rendez_profiles() {
    let mut pair = pair();
    pair.connect(STREAM, Profile::RendezHybridIkV1);
    let wires = pair.drain_orchestrator();
    pair.deliver_to_executor(wires.clone());
    pair.deliver_to_executor(wires.clone());
    pair.deliver_to_executor([handshake(STREAM, "rendez_hybrid_ik_v1", b"garbage")]);
    pair.authorize_all();
    let answer = pair.drain_executor();
    assert_eq!(kinds(&answer), ["handshake \"rendez_hybrid_ik_v1\" 3424"]);
    // the answer is lost; the same message 1 gets the same answer
    pair.deliver_to_executor(wires.clone());
    assert_eq!(pair.drain_executor(), answer);
    pair.deliver_to_orchestrator(answer);
    pair.exchange();
    pair.send_request("hello").expect("it is open");
    pair.exchange();
    assert_eq!(pair.recv_request().expect("it arrived"), "hello");
    // and none once the answer is known to have arrived
    pair.deliver_to_executor(wires);
    assert!(pair.drain_executor().is_empty());
}

/// The refusal in docs/codex-wire.md#frame.
#[test]
fn second_codex_handshake_leaves_stream_open() {
    let mut pair = open(Profile::NoiseHybridIkV1);
    pair.deliver_to_executor([handshake(STREAM, "", b"another")]);
    assert_eq!(kinds(&pair.drain_executor()), [CODEX_RESET]);
    pair.send_request("still there?").expect("it is open");
    pair.exchange();
    assert_eq!(pair.recv_request().expect("it arrived"), "still there?");
}

#[test]
fn only_rendez_profiles_resend_lost_handshakes() {
    let sent = |profile| {
        let mut pair = pair();
        pair.connect(STREAM, profile);
        let (up, _) = pair.pass_without_network(HANDSHAKE_TIMEOUT - Duration::from_millis(1));
        up
    };
    let ours = sent(Profile::RendezHybridIkV1);
    assert_eq!(ours.len(), 4, "at 0, 1, 3 and 7 seconds: {:?}", kinds(&ours));
    assert!(ours.windows(2).all(|two| two[0] == two[1]), "the same bytes");
    assert_eq!(
        kinds(&sent(Profile::NoiseHybridIkV1)),
        ["resume 0", "handshake \"\" 3574"].map(|kind| kind.replace("3574", "3572"))
    );
}

#[test]
fn new_socket_resends_handshake_immediately() {
    let mut pair = pair();
    pair.connect(STREAM, Profile::RendezHybridIkV1);
    let lost = pair.drain_orchestrator();
    pair.orchestrator.socket_lost(pair.now);
    pair.orchestrator.socket_opened(pair.now, registration("reg-1"));
    assert_eq!(pair.drain_orchestrator(), lost);
}

/// The simulator's seeds 900175253 and 900185879: the executor cannot read a message 1
/// that is bound to its former registration, and its refusals locked the orchestrator's
/// token out.
#[test]
fn handshake_ends_when_the_executor_registers_again() {
    let mut pair = pair();
    pair.connect(STREAM, Profile::RendezHybridIkV1);
    let _ = pair.drain_orchestrator();
    pair.orchestrator.socket_lost(pair.now);
    pair.orchestrator.socket_opened(pair.now, registration("reg-2"));
    assert_eq!(kinds(&pair.drain_orchestrator()), ["reset finished"]);
    assert!(matches!(pair.orchestrator_events()[..], [Event::Closed { why: Closed::Lost, .. }]));
}

#[test]
fn message_2_is_resent_until_confirmed() {
    let mut pair = pair();
    pair.connect(STREAM, Profile::RendezHybridIkV1);
    let wires = pair.drain_orchestrator();
    pair.deliver_to_executor(wires);
    pair.authorize_all();
    let (_, down) = pair.pass_without_network(Duration::from_millis(3_500));
    assert_eq!(down.len(), 3, "at 0, 1 and 3 seconds: {:?}", kinds(&down));
    pair.deliver_to_orchestrator(down);
    pair.exchange();
    let (_, down) = pair.pass_without_network(Duration::from_secs(30));
    assert_eq!(kinds(&down), [""; 0]);
}

/// Messages that do not decrypt (docs/codex-wire.md#handshake-limits).
#[test]
fn eight_failures_start_a_ten_second_cooldown() {
    let mut old = open(Profile::NoiseHybridIkV1);
    for n in 0..8 {
        old.deliver_to_executor([handshake(&format!("bad-{n}"), "", b"garbage")]);
    }
    assert_eq!(kinds(&old.drain_executor()), [CODEX_RESET; 8]);
    assert_eq!(old.executor.stats().handshake_failures, 8);
    let good = |pair: &mut Pair, id: &str| {
        pair.connect(id, Profile::NoiseHybridIkV1);
        let wires = pair.drain_orchestrator();
        pair.deliver_to_executor(wires);
        let asked = pair
            .executor_events()
            .iter()
            .any(|event| matches!(event, Event::AuthorizationNeeded { .. }));
        let _ = pair.drain_executor();
        asked
    };
    let at_orchestrator = old.at_orchestrator;
    assert!(!good(&mut old, "a"));
    assert_eq!(old.executor.stats().handshakes_throttled, 1);
    old.now += HANDSHAKE_COOLDOWN;
    assert!(good(&mut old, "b"));
    // the open stream is unaffected
    old.at_orchestrator = at_orchestrator;
    old.send_request("hello").expect("it is open");
    let wires = old.drain_orchestrator();
    old.deliver_to_executor(wires);
    assert_eq!(old.recv_request().expect("it arrived"), "hello");
}

#[test]
fn executor_limits_pending_handshakes_and_streams() {
    let mut pair = pair();
    let mut pending_events = Vec::new();
    for n in 0..=STREAMS_PER_EXECUTOR {
        if n < STREAMS_PER_EXECUTOR {
            pair.connect(&format!("s{n}"), Profile::RendezIkV1);
        } else {
            pair.orchestrator.close(pair.now, pair.at_orchestrator.expect("connected"));
            let _ = pair.drain_orchestrator();
            pair.connect("one-more", Profile::RendezIkV1);
        }
        let wires = pair.drain_orchestrator();
        pair.deliver_to_executor(wires);
        pending_events.extend(pair.executor_events());
        if pending_events.len() == 32 && n != 32 {
            continue; // let one more come while 32 wait
        }
        for event in pending_events.drain(..) {
            if let Event::AuthorizationNeeded { key, pending, .. } = event {
                pair.executor.authorize(pair.now, key, pending.authorize());
            }
        }
    }
    // the 33rd pending one was refused, which left room for one at the end
    assert_eq!(pair.executor.stats().handshakes_throttled, 1);
    pair.executor_events();
    pair.orchestrator.close(pair.now, pair.at_orchestrator.expect("connected"));
    let _ = pair.drain_orchestrator();
    pair.connect("too-many", Profile::RendezIkV1);
    let wires = pair.drain_orchestrator();
    pair.deliver_to_executor(wires);
    assert_eq!(pair.executor.stats().handshakes_throttled, 2);
}

#[test]
fn orchestrator_limits_its_streams() {
    let mut pair = pair();
    let connect = |id: &str| Connect {
        stream: stream(id),
        profile: Profile::RendezIkV1,
        registration: registration("reg-1"),
        peer: identity(1).public().clone(),
        authorization: Bytes::new(),
    };
    let now = pair.now;
    for n in 0..STREAMS_PER_EXECUTOR {
        pair.orchestrator.connect(now, connect(&format!("s{n}"))).expect("there is room");
    }
    let refused = |pair: &mut Pair, id| pair.orchestrator.connect(now, connect(id)).err();
    assert_eq!(refused(&mut pair, "s0"), Some(ConnectError::StreamInUse));
    assert_eq!(refused(&mut pair, "new"), Some(ConnectError::TooManyStreams));
    assert_eq!(pair.executor.connect(now, connect("s")).err(), Some(ConnectError::NotOrchestrator));
}

#[test]
fn profile_not_offered_is_refused() {
    let mut pair = pair();
    for name in ["rendez_ik_v2", "noise_hybrid_ik_v1"] {
        pair.deliver_to_executor([handshake(STREAM, name, b"whatever")]);
        assert_eq!(kinds(&pair.drain_executor()), [OUR_RESET]);
    }
    assert_eq!(pair.executor_events(), []);
}

#[test]
fn damaged_answers_are_tolerated_up_to_limit() {
    let mut pair = pair();
    pair.connect(STREAM, Profile::RendezHybridIkV1);
    let wires = pair.drain_orchestrator();
    pair.deliver_to_executor(wires);
    for _ in 0..7 {
        pair.deliver_to_orchestrator([handshake(STREAM, "", b"garbage")]);
    }
    pair.authorize_all();
    pair.exchange();
    assert!(matches!(pair.orchestrator_events()[..], [Event::Opened { .. }]));

    let mut pair = crate::pair::pair();
    pair.connect(STREAM, Profile::RendezHybridIkV1);
    for _ in 0..8 {
        pair.deliver_to_orchestrator([handshake(STREAM, "", b"garbage")]);
    }
    assert_eq!(closed(&pair.orchestrator_events()), Some(Closed::HandshakeRejected));
}

#[test]
fn any_reset_ends_an_opening_stream() {
    for profile in Profile::ALL {
        let mut pair = pair();
        pair.connect(STREAM, profile);
        pair.deliver_to_orchestrator([reset(ResetReason::ExecutorGone)]);
        let why = closed(&pair.orchestrator_events());
        assert_eq!(why, Some(Closed::Reset(ResetReason::ExecutorGone)));
    }
}

#[test]
fn new_registration_keeps_pending_handshakes() {
    let mut pair = pair();
    pair.connect(STREAM, Profile::RendezHybridIkV1);
    let wires = pair.drain_orchestrator();
    pair.deliver_to_executor(wires.clone());
    pair.executor.socket_lost(pair.now);
    pair.executor.socket_opened(pair.now, registration("reg-2"));
    pair.authorize_all();
    pair.deliver_to_executor(wires);
    pair.exchange();
    assert!(matches!(pair.orchestrator_events()[..], [Event::Opened { .. }]));
}

#[test]
fn unknown_streams_are_reset_for_data_or_proof() {
    let mut pair = open(Profile::RendezHybridIkV1);
    pair.send_request("x").expect("it is open");
    let record = pair.drain_orchestrator();
    pair.orchestrator.socket_lost(pair.now);
    pair.orchestrator.socket_opened(pair.now, registration("reg-1"));
    let resume = pair.drain_orchestrator();
    assert_eq!(kinds(&resume), ["resume 1"]);

    let mut other = crate::pair::pair();
    other.deliver_to_executor(record);
    assert_eq!(kinds(&other.drain_executor()), [CODEX_RESET]);
    other.deliver_to_executor(resume);
    assert_eq!(kinds(&other.drain_executor()), ["reset unknown_stream"]);
    let bare = |body| Frame::bare(stream("unknown"), body).encode();
    other.deliver_to_executor([
        bare(Body::Resume { next_seq: 0 }),
        bare(Body::Ack),
        bare(Body::Heartbeat),
        bare(Body::Reset { reason: "x".to_owned() }),
        Bytes::from_static(b"\xff\xff"),
    ]);
    assert!(other.drain_executor().is_empty());
    assert_eq!(other.executor.stats().malformed, 1);
}
