//! A [`Mux`] against a peer that holds the keys and breaks every rule: records
//! with any number, content, acknowledgement and credit, and proofs of
//! anything.
//!
//! Checked, besides the absence of panics: only the attacker's own stream
//! suffers (a bystander on the same socket still gets its messages), unread
//! data stays bounded, and no deadline stays due.

use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Result, Unstructured};
use bytes::Bytes;
use rendez_endpoint::noise::{Established, Opener, Sealer, initiate, respond};
use rendez_endpoint::{Closed, Config, Connect, Event, Key, Mux};
use rendez_proto::frame::{Ack, Body, Frame, Proof, ResetReason};
use rendez_proto::ids::Seq;
use rendez_proto::limits::{
    RECORD_PLAINTEXT_MAX_BYTES, STREAM_GRACE, TAG_BYTES, WINDOW_MAX_RECORDS,
};
use rendez_proto::profile::Profile;
use zeroize::Zeroizing;

use crate::frames;
use crate::noise::{environment, executor, orchestrator, prologue, registration, stream};
use crate::time::origin;

const STEPS: usize = 300;
const ATTACKER: u8 = 0;
const BYSTANDER: u8 = 1;
/// The memory cost of a queued message beside its bytes.
const HANDLE_BYTES: usize = size_of::<Bytes>();

#[derive(Debug, Arbitrary)]
enum Op<'a> {
    /// A record with the next number.
    Next {
        plaintext: &'a [u8],
        ack: u8,
        bits: u32,
        credit: u8,
    },
    /// A record with any number.
    Any {
        seq: u8,
        plaintext: &'a [u8],
        ack: u32,
        credit: u32,
    },
    /// Full records of messages of one length.
    Full {
        times: u8,
        len: u8,
    },
    /// One record above the limit.
    Oversized,
    /// A frame without a record, with a genuine proof.
    Control {
        kind: u8,
        skip: u8,
        ack: u8,
        bits: u32,
        credit: u32,
        next: u32,
    },
    /// Any frame.
    Made,
    Handshake {
        bytes: &'a [u8],
    },
    /// An operation of the victim's application or socket.
    Send {
        times: u8,
        len: u16,
    },
    Recv {
        times: u8,
    },
    Close,
    Drain {
        frames: u8,
    },
    Pass {
        ms: u16,
    },
    Socket,
    Bystander,
}

struct Peer {
    sealer: Sealer,
    opener: Opener,
    seq: u32,
    counter: u64,
}

struct World {
    now: Instant,
    mux: Mux,
    profile: Profile,
    keys: [Key; 2],
    peers: [Peer; 2],
    /// Whether each stream has ended.
    over: [bool; 2],
    /// Messages sent to the bystander.
    sent: u32,
}

/// Follows the operations in `data`. The first byte chooses profile and role.
pub fn run(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    let profile = match how % 16 {
        0 => Profile::RendezHybridIkV1,
        1 | 2 => Profile::NoiseHybridIkV1,
        _ => Profile::RendezIkV1,
    };
    let mut world = World::new(profile, how >= 128);
    let mut u = Unstructured::new(rest);
    for _ in 0..STEPS {
        if u.is_empty() || world.step(&mut u).is_err() {
            break;
        }
        world.events();
    }
    world.finish();
}

impl World {
    fn new(profile: Profile, victim_is_executor: bool) -> Self {
        let now = origin();
        let config = if victim_is_executor {
            Config::executor(executor().clone(), environment(), Profile::ALL.to_vec())
        } else {
            let config = Config::orchestrator(orchestrator().clone(), environment());
            Config { profiles: Profile::ALL.to_vec(), ..config }
        };
        let mut mux = Mux::new(config, [1; 32]);
        mux.socket_opened(now, registration(0));
        let open = if victim_is_executor { open_to_executor } else { open_from_orchestrator };
        let [(a, attacker), (b, bystander)] =
            [ATTACKER, BYSTANDER].map(|number| open(&mut mux, now, profile, number));
        while mux.poll_event().is_some() {}
        let peers = [attacker, bystander].map(|keys| Peer {
            sealer: keys.sealer,
            opener: keys.opener,
            seq: first(profile),
            counter: 0,
        });
        Self { now, mux, profile, keys: [a, b], peers, over: [false; 2], sent: 0 }
    }

    fn step(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        match u.arbitrary()? {
            Op::Next { plaintext, ack, bits, credit } => {
                let ack = Ack { up_to: ack.into(), bits };
                self.record(ATTACKER, plaintext, ack, u32::from(credit) * 8);
            }
            Op::Any { seq, plaintext, ack, credit } => {
                // its real next number stays free, so that no nonce is used
                // twice
                let next = self.peers[0].seq;
                self.peers[0].seq = next.wrapping_add(seq.into());
                self.record(ATTACKER, plaintext, Ack { up_to: ack % 100, bits: 0 }, credit);
                self.peers[0].seq = next;
            }
            Op::Full { times, len } => {
                let len = usize::from(len) + 1;
                let message = [&(len as u32).to_be_bytes(), vec![7; len].as_slice()].concat();
                let record = message.repeat(RECORD_PLAINTEXT_MAX_BYTES / message.len());
                // mostly a few, because they are slow
                let times = if times >= 240 { 100 } else { times % 8 };
                for _ in 0..=times {
                    self.record(ATTACKER, &record, Ack::default(), 0);
                }
            }
            Op::Oversized => {
                let record = vec![0; RECORD_PLAINTEXT_MAX_BYTES + 1];
                self.record(ATTACKER, &record, Ack::default(), 0);
            }
            Op::Control { kind, skip, ack, bits, credit, next } => {
                let body = match kind % 5 {
                    0 => Body::Ack,
                    1 => Body::Resume { next_seq: next },
                    2 => Body::Heartbeat,
                    _ => {
                        let reason = ResetReason::ALL[usize::from(kind) % ResetReason::ALL.len()];
                        Body::Reset { reason: reason.as_str().to_owned() }
                    }
                };
                self.control(body, skip, Ack { up_to: ack.into(), bits }, credit);
            }
            Op::Made => {
                let frame = frames::frame(u, stream(ATTACKER))?;
                self.mux.handle_message(self.now, frame.encode());
            }
            Op::Handshake { bytes } => {
                let message = Bytes::copy_from_slice(bytes);
                let profile =
                    String::from(if self.profile.is_reliable() { self.profile.name() } else { "" });
                let frame = Frame::bare(stream(ATTACKER), Body::Handshake { message, profile });
                self.mux.handle_message(self.now, frame.encode());
            }
            Op::Send { times, len } => {
                let message = Bytes::from(vec![9; usize::from(len) + 1]);
                for _ in 0..=times {
                    let _ = self.mux.send(self.keys[0], &message);
                }
            }
            Op::Recv { times } => {
                (0..=times).for_each(|_| drop(self.mux.recv(self.keys[0])));
            }
            Op::Close => self.mux.close(self.now, self.keys[0]),
            Op::Drain { frames } => self.drain(frames.into()),
            Op::Pass { ms } => self.pass(Duration::from_millis(u64::from(ms) * 2)),
            Op::Socket => {
                if self.profile.is_reliable() {
                    self.mux.socket_lost(self.now);
                    self.mux.socket_opened(self.now, registration(1));
                }
            }
            Op::Bystander => self.bystander(),
        }
        Ok(())
    }

    /// Seals and delivers a record of `from`.
    fn record(&mut self, from: u8, plaintext: &[u8], ack: Ack, credit: u32) {
        let peer = &mut self.peers[usize::from(from)];
        let (seq, reliable) = (peer.seq, self.profile.is_reliable());
        peer.seq = peer.seq.wrapping_add(1);
        let mut ad = Vec::new();
        if reliable {
            for number in [ack.up_to, ack.bits, credit, seq] {
                ad.extend_from_slice(&number.to_be_bytes());
            }
        }
        let nonce = u64::from(seq.wrapping_sub(first(self.profile)));
        let record = peer.sealer.seal(nonce, &ad, plaintext).expect("it is short");
        let body = Body::Data { seq: Seq(seq), record };
        let frame = Frame { ack, credit, ..Frame::bare(stream(from), body) };
        if self.mux.wants_read() {
            self.mux.handle_message(self.now, frame.encode());
        } else {
            self.peers[usize::from(from)].seq = seq;
        }
    }

    /// Proves and delivers a frame without a record.
    fn control(&mut self, body: Body, skip: u8, ack: Ack, credit: u32) {
        let peer = &mut self.peers[0];
        peer.counter += u64::from(skip) + 1;
        let mut rest = Vec::new();
        let kind = match &body {
            Body::Resume { next_seq } => {
                rest.extend_from_slice(&next_seq.to_be_bytes());
                7
            }
            Body::Reset { reason } => {
                rest.extend_from_slice(reason.as_bytes());
                8
            }
            Body::Heartbeat => 9,
            _ => 6,
        };
        let mut ad = vec![kind];
        for number in [ack.up_to, ack.bits, credit] {
            ad.extend_from_slice(&number.to_be_bytes());
        }
        ad.extend_from_slice(&rest);
        let tag: [u8; TAG_BYTES] =
            peer.sealer.prove(1 << 63 | peer.counter, &ad).expect("it is short");
        let proof = Some(Proof { counter: peer.counter, tag });
        let frame = Frame { ack, credit, proof, ..Frame::bare(stream(ATTACKER), body) };
        self.mux.handle_message(self.now, frame.encode());
    }

    /// Sends an honest message on the other stream. Its application reads at
    /// once.
    fn bystander(&mut self) {
        self.events();
        if self.over[1] {
            return;
        }
        if !self.mux.wants_read() {
            while self.mux.recv(self.keys[0]).is_some() {}
        }
        assert!(self.mux.wants_read(), "held back with nothing unread");
        let text = self.sent.to_be_bytes();
        self.sent += 1;
        self.record(BYSTANDER, &[&4u32.to_be_bytes()[..], &text].concat(), Ack::default(), 0);
        let got = self.mux.recv(self.keys[1]);
        assert_eq!(got.as_deref(), Some(&text[..]), "another stream's peer did harm");
    }

    fn drain(&mut self, frames: usize) {
        for frame in 0..frames {
            let record_max_bytes = if frame % 2 == 0 { RECORD_PLAINTEXT_MAX_BYTES } else { 1024 };
            let Some(wire) = self.mux.poll_transmit(self.now, record_max_bytes) else { return };
            let frame = Frame::decode(wire).expect("an end sends frames");
            // the attacker may read along
            if let Body::Data { seq, record } = frame.body
                && self.profile.is_reliable()
            {
                let mut ad = Vec::new();
                for number in [frame.ack.up_to, frame.ack.bits, frame.credit, seq.0] {
                    ad.extend_from_slice(&number.to_be_bytes());
                }
                let opened = self.peers[0].opener.open(u64::from(seq.0) - 1, &ad, record);
                assert!(opened.is_ok(), "a record that its peer cannot open");
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.mux.handle_timeout(self.now);
        let next = self.mux.poll_timeout();
        assert!(next.is_none_or(|at| at > self.now), "a deadline stays due");
    }

    fn events(&mut self) {
        while let Some(event) = self.mux.poll_event() {
            match event {
                Event::Closed { key, .. } if key == self.keys[0] => {
                    assert!(!std::mem::replace(&mut self.over[0], true), "closed twice");
                }
                // silent for too long while the sockets changed, or never
                // answered
                Event::Closed { key, why } if key == self.keys[1] => {
                    let lost = why == Closed::Lost && self.now >= origin() + STREAM_GRACE;
                    assert!(lost, "another stream's peer ended this one: {why}");
                    self.over[1] = true;
                }
                _ => {}
            }
        }
    }

    /// Checks that unread data is bounded and that the bystander is unharmed.
    fn finish(mut self) {
        self.drain(10_000);
        let mut waiting = 0;
        let mut largest = 0;
        while let Some(message) = self.mux.recv(self.keys[0]) {
            waiting += message.len() + HANDLE_BYTES;
            largest = largest.max(message.len() + HANDLE_BYTES);
        }
        // The credit may be used for messages of one byte, each of which costs
        // a handle; then there is no more credit.
        let window = WINDOW_MAX_RECORDS as usize * RECORD_PLAINTEXT_MAX_BYTES;
        let bound = window / 5 * (1 + HANDLE_BYTES) + largest;
        assert!(waiting <= bound, "{waiting} bytes wait");
        self.bystander();
    }
}

fn first(profile: Profile) -> u32 {
    profile.is_reliable().into()
}

fn handshake(profile: Profile, number: u8, message: Bytes) -> Bytes {
    let profile = String::from(if profile.is_reliable() { profile.name() } else { "" });
    Frame::bare(stream(number), Body::Handshake { message, profile }).encode()
}

/// The next handshake message that the victim sends.
fn next_message(mux: &mut Mux, now: Instant) -> Bytes {
    let frames = std::iter::from_fn(|| mux.poll_transmit(now, RECORD_PLAINTEXT_MAX_BYTES));
    frames
        .filter_map(|wire| match Frame::decode(wire).expect("an end sends frames").body {
            Body::Handshake { message, .. } => Some(message),
            _ => None,
        })
        .last()
        .expect("it shakes hands")
}

/// Opens a stream to a victim that is an executor.
fn open_to_executor(
    mux: &mut Mux,
    now: Instant,
    profile: Profile,
    number: u8,
) -> (Key, Established) {
    let (suite, prologue) = (profile.suite(), prologue(profile, number));
    let peer = executor().public_for(suite);
    let seed = Zeroizing::new([number; 32]);
    let (waiting, message) =
        initiate(suite, orchestrator(), peer, &prologue, b"", seed).expect("the keys fit");
    mux.handle_message(now, handshake(profile, number, message));
    let key = std::iter::from_fn(|| mux.poll_event()).find_map(|event| match event {
        Event::AuthorizationNeeded { key, pending, .. } => Some((key, pending)),
        _ => None,
    });
    let (key, pending) = key.expect("it asks");
    mux.authorize(now, key, pending.authorize());
    let message = next_message(mux, now);
    (key, waiting.finish(&message).expect("a genuine message 2"))
}

/// Opens a stream from a victim that is an orchestrator.
fn open_from_orchestrator(
    mux: &mut Mux,
    now: Instant,
    profile: Profile,
    number: u8,
) -> (Key, Established) {
    let (suite, prologue) = (profile.suite(), prologue(profile, number));
    let connect = Connect {
        stream: stream(number),
        profile,
        registration: registration(0),
        peer: executor().public_for(suite).clone(),
        authorization: Bytes::new(),
    };
    let key = mux.connect(now, connect).expect("a valid connect");
    let message = next_message(mux, now);
    let seed = Zeroizing::new([number; 32]);
    let responder =
        respond(suite, executor(), &prologue, &message, seed).expect("a genuine message 1");
    let proof = responder.pending().authorize();
    let (keys, message) = responder.authorize(proof).expect("the right key");
    mux.handle_message(now, handshake(profile, number, message));
    (key, keys)
}
