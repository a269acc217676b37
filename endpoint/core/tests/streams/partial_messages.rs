//! The memory that all streams of one endpoint share for incomplete messages.

use bytes::Bytes;
use rendez_endpoint::framing::{PARTIAL_MEMORY_BYTES, PARTIAL_MIN_BYTES};
use rendez_endpoint::{Closed, Event, Key};
use rendez_proto::frame::ResetReason;
use rendez_proto::limits::APPLICATION_MESSAGE_MAX_BYTES;
use rendez_proto::profile::Profile;

use crate::pair::{Pair, pair};

/// Streams that together exceed the memory, though no message is too long.
const STREAMS: usize = 3;
/// A whole message that is not read before the end, so that its stream stays.
const UNREAD: Bytes = Bytes::from_static(b"unread");
const _: () = assert!(
    STREAMS * (APPLICATION_MESSAGE_MAX_BYTES - PARTIAL_MIN_BYTES) > PARTIAL_MEMORY_BYTES
        && (STREAMS - 1) * (APPLICATION_MESSAGE_MAX_BYTES - PARTIAL_MIN_BYTES)
            <= PARTIAL_MEMORY_BYTES
);

/// The stream's key at the orchestrator and at the executor.
fn connect(pair: &mut Pair, id: &str, profile: Profile) -> (Key, Key) {
    let key = pair.connect(id, profile);
    pair.exchange();
    pair.authorize_all();
    pair.exchange();
    (key, pair.at_executor.expect("it was authorized"))
}

#[test]
fn stream_that_exceeds_shared_memory_ends_alone() {
    for (profile, reason) in [
        (Profile::RendezHybridIkV1, ResetReason::Overloaded),
        (Profile::NoiseHybridIkV1, ResetReason::ProtocolError),
    ] {
        let mut pair = pair();
        let streams: [(Key, Key); STREAMS] =
            std::array::from_fn(|n| connect(&mut pair, &format!("s{n}"), profile));
        let message = Bytes::from(vec![7; APPLICATION_MESSAGE_MAX_BYTES]);
        for (key, _) in streams {
            pair.orchestrator.send(key, &UNREAD).expect("there is room");
            pair.orchestrator.send(key, &message).expect("an empty queue takes it");
        }
        // The streams take turns, so that all are incomplete when the memory is exhausted.
        pair.exchange();
        let mut ended = pair.executor_events();
        ended.retain(|event| matches!(event, Event::Ended { .. } | Event::Closed { .. }));
        let [Event::Ended { key: exceeded }] = ended[..] else { panic!("{ended:?}") };
        for (at_orchestrator, at_executor) in streams {
            // What was whole can be read.
            assert_eq!(pair.executor.recv(at_executor), Some(UNREAD));
            if at_executor == exceeded {
                let why = Closed::MemoryExhausted;
                assert!(pair.executor_events().contains(&Event::Closed { key: exceeded, why }));
                let (key, why) = (at_orchestrator, Closed::Reset(reason));
                assert!(pair.orchestrator_events().contains(&Event::Closed { key, why }));
            } else {
                assert!(pair.executor.recv(at_executor) == Some(message.clone()));
            }
        }
        // The memory is free again.
        let (at_orchestrator, at_executor) = connect(&mut pair, "next", profile);
        pair.orchestrator.send(at_orchestrator, &message).expect("an empty queue takes it");
        pair.exchange();
        assert!(pair.executor.recv(at_executor) == Some(message));
    }
}
