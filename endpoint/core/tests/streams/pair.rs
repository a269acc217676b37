//! One executor and one orchestrator, directly connected.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_endpoint::{
    Authorized, Config, Connect, Event, Identity, IdentitySeed, Key, Mux, PendingHandshake,
    SendError, noise,
};
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::{EnvironmentId, RegistrationId, StreamId};
use rendez_proto::limits::RECORD_PLAINTEXT_MAX_BYTES;
use rendez_proto::profile::Profile;

pub(crate) const STREAM: &str = "00000000-0000-4000-8000-000000000001";

pub(crate) fn identity(byte: u8) -> Identity {
    Identity::from_seed(&IdentitySeed::from_bytes([byte; 96]))
}

pub(crate) fn stream(id: &str) -> StreamId {
    id.parse().expect("a valid id")
}

pub(crate) fn registration(id: &str) -> RegistrationId {
    id.parse().expect("a valid id")
}

/// The registry's consent to the key of `who`, from another handshake.
pub(crate) fn authorized_elsewhere(who: &Identity) -> Authorized {
    let (profile, executor) = (Profile::RendezHybridIkV1, identity(1));
    let suite = profile.suite();
    let environment: EnvironmentId = "env".parse().expect("a valid id");
    let prologue =
        noise::Prologue::new(profile, &environment, &registration("reg-1"), &stream("elsewhere"));
    let (_, message) =
        noise::initiate(suite, who, executor.public(), &prologue, b"", [8; 32].into())
            .expect("the keys fit");
    let responder = noise::respond(suite, &executor, &prologue, &message, [9; 32].into())
        .expect("a genuine message 1");
    responder.pending().authorize()
}

/// An unauthenticated reset, as relays send them.
pub(crate) fn reset(reason: ResetReason) -> Bytes {
    let body = Body::Reset { reason: reason.as_str().to_owned() };
    Frame::bare(stream(STREAM), body).encode()
}

pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) executor: Mux,
    pub(crate) orchestrator: Mux,
    /// The stream at each end, once there is one.
    pub(crate) at_executor: Option<Key>,
    pub(crate) at_orchestrator: Option<Key>,
}

/// A pair with attached sockets and no stream.
pub(crate) fn pair() -> Pair {
    #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
    let now = Instant::now();
    let environment: EnvironmentId = "env".parse().expect("a valid id");
    let mut executor = Mux::new(
        Config::executor(identity(1), environment.clone(), Profile::ALL.to_vec()),
        [1; 32],
    );
    let mut orchestrator = Mux::new(
        Config {
            profiles: Profile::ALL.to_vec(),
            ..Config::orchestrator(identity(2), environment)
        },
        [2; 32],
    );
    executor.socket_opened(now, registration("reg-1"));
    orchestrator.socket_opened(now, registration("reg-1"));
    Pair { now, executor, orchestrator, at_executor: None, at_orchestrator: None }
}

/// An open stream of `profile`.
pub(crate) fn open(profile: Profile) -> Pair {
    let mut pair = pair();
    pair.connect(STREAM, profile);
    pair.exchange();
    let events = pair.authorize_all();
    pair.exchange();
    let opened = |event: &Event| matches!(event, Event::Opened { .. });
    assert!(events.iter().any(opened));
    assert!(pair.orchestrator_events().iter().any(opened));
    pair
}

impl Pair {
    pub(crate) fn connect(&mut self, id: &str, profile: Profile) -> Key {
        self.connect_with(id, profile, Bytes::from_static(b"auth"))
    }

    pub(crate) fn connect_with(&mut self, id: &str, profile: Profile, authorization: Bytes) -> Key {
        let connect = Connect {
            stream: stream(id),
            profile,
            registration: registration("reg-1"),
            peer: identity(1).public().clone(),
            authorization,
        };
        let key = self.orchestrator.connect(self.now, connect).expect("a valid connect");
        self.at_orchestrator = Some(key);
        key
    }

    /// Authorizes every pending handshake. Returns all other events.
    pub(crate) fn authorize_all(&mut self) -> Vec<Event> {
        let mut others = Vec::new();
        while let Some(event) = self.executor.poll_event() {
            if let Event::AuthorizationNeeded { key, pending, .. } = event {
                self.at_executor = Some(key);
                self.executor.authorize(self.now, key, pending.authorize());
            } else {
                others.push(event);
            }
        }
        others
    }

    /// The first handshake that waits for a verdict.
    pub(crate) fn pending(&mut self) -> (Key, PendingHandshake) {
        self.executor_events()
            .into_iter()
            .find_map(|event| match event {
                Event::AuthorizationNeeded { key, pending, .. } => Some((key, pending)),
                _ => None,
            })
            .expect("a handshake waits for a verdict")
    }

    pub(crate) fn drain_executor(&mut self) -> Vec<Bytes> {
        self.drain_executor_in(RECORD_PLAINTEXT_MAX_BYTES)
    }

    pub(crate) fn drain_orchestrator(&mut self) -> Vec<Bytes> {
        let now = self.now;
        let next = || self.orchestrator.poll_transmit(now, RECORD_PLAINTEXT_MAX_BYTES);
        std::iter::from_fn(next).collect()
    }

    /// Like [`drain_executor`](Self::drain_executor), in records of this size.
    pub(crate) fn drain_executor_in(&mut self, record_max_bytes: usize) -> Vec<Bytes> {
        let now = self.now;
        std::iter::from_fn(|| self.executor.poll_transmit(now, record_max_bytes)).collect()
    }

    pub(crate) fn deliver_to_executor(&mut self, wires: impl IntoIterator<Item = Bytes>) {
        wires.into_iter().for_each(|wire| self.executor.handle_message(self.now, wire));
    }

    pub(crate) fn deliver_to_orchestrator(&mut self, wires: impl IntoIterator<Item = Bytes>) {
        wires.into_iter().for_each(|wire| self.orchestrator.handle_message(self.now, wire));
    }

    /// Delivers all frames until neither end has any to send.
    pub(crate) fn exchange(&mut self) {
        loop {
            let (up, down) = (self.drain_orchestrator(), self.drain_executor());
            if up.is_empty() && down.is_empty() {
                return;
            }
            self.deliver_to_executor(up);
            self.deliver_to_orchestrator(down);
        }
    }

    /// Lets time pass, delivering all frames at each deadline.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(at) = self.next_deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.executor.handle_timeout(self.now);
            self.orchestrator.handle_timeout(self.now);
            self.exchange();
        }
        self.now = until;
    }

    /// Lets time pass while all frames are lost.
    pub(crate) fn pass_without_network(&mut self, time: Duration) -> (Vec<Bytes>, Vec<Bytes>) {
        let until = self.now + time;
        let (mut up, mut down) = (self.drain_orchestrator(), self.drain_executor());
        while let Some(at) = self.next_deadline().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.executor.handle_timeout(self.now);
            self.orchestrator.handle_timeout(self.now);
            up.extend(self.drain_orchestrator());
            down.extend(self.drain_executor());
        }
        self.now = until;
        (up, down)
    }

    fn next_deadline(&self) -> Option<Instant> {
        let deadlines = [self.executor.poll_timeout(), self.orchestrator.poll_timeout()];
        deadlines.into_iter().flatten().min()
    }

    pub(crate) fn executor_events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.executor.poll_event()).collect()
    }

    pub(crate) fn orchestrator_events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.orchestrator.poll_event()).collect()
    }

    pub(crate) fn send_request(&mut self, message: &'static str) -> Result<(), SendError> {
        let key = self.at_orchestrator.expect("there is a stream");
        self.orchestrator.send(key, &Bytes::from_static(message.as_bytes()))
    }

    pub(crate) fn send_response(&mut self, message: &'static str) -> Result<(), SendError> {
        let key = self.at_executor.expect("there is a stream");
        self.executor.send(key, &Bytes::from_static(message.as_bytes()))
    }

    pub(crate) fn recv_request(&mut self) -> Option<Bytes> {
        self.executor.recv(self.at_executor.expect("there is a stream"))
    }

    pub(crate) fn recv_response(&mut self) -> Option<Bytes> {
        self.orchestrator.recv(self.at_orchestrator.expect("there is a stream"))
    }
}

/// The bodies of encoded frames, as text.
pub(crate) fn kinds(wires: &[Bytes]) -> Vec<String> {
    wires
        .iter()
        .map(|wire| match Frame::decode(wire.clone()).expect("a frame").body {
            Body::Data { seq, .. } => format!("data {seq}"),
            Body::Ack => "ack".to_owned(),
            Body::Resume { next_seq } => format!("resume {next_seq}"),
            Body::Reset { reason } => format!("reset {reason}"),
            Body::Heartbeat => "heartbeat".to_owned(),
            Body::Handshake { message, profile } => {
                format!("handshake {profile:?} {}", message.len())
            }
        })
        .collect()
}
