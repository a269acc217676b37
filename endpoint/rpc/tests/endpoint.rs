//! Two endpoints over a real websocket library, without a relay.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::pin::pin;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::poll;
use rendez_endpoint::{Closed, Config, Connect, Identity, IdentitySeed, Mux};
use rendez_proto::close::CloseFrame;
use rendez_proto::frame::ResetReason;
use rendez_proto::ids::RegistrationId;
use rendez_proto::profile::Profile;
use rendez_rpc::{Channel, Endpoint, Incoming, MessageStream, OpenError};
use rendez_transport::{Ended, pump, socket};
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

fn identity(seed: u8) -> Identity {
    Identity::from_seed(&IdentitySeed::from_bytes([seed; 96]))
}

fn registration() -> RegistrationId {
    "reg-1".parse().unwrap()
}

struct Pair {
    orchestrator: Endpoint,
    executor: Endpoint,
}

impl Pair {
    fn new() -> Self {
        let environment: rendez_proto::ids::EnvironmentId = "env".parse().unwrap();
        let executor = Config::executor(identity(1), environment.clone(), Profile::ALL.to_vec());
        let orchestrator = Config {
            profiles: Profile::ALL.to_vec(),
            ..Config::orchestrator(identity(2), environment)
        };
        Self {
            orchestrator: Endpoint::new(Mux::new(orchestrator, [3; 32])),
            executor: Endpoint::new(Mux::new(executor, [4; 32])),
        }
    }

    /// Connects the two by a new socket; aborting either task cuts it.
    async fn join(&self) -> [JoinHandle<Ended>; 2] {
        async fn drive(endpoint: Endpoint, io: DuplexStream, role: Role) -> Ended {
            let socket = WebSocketStream::from_raw_socket(io, role, Some(socket::config())).await;
            let mut driver = endpoint.attach(registration());
            pump(socket, &mut driver).await
        }
        let (left, right) = tokio::io::duplex(64 * 1024);
        [
            tokio::spawn(drive(self.orchestrator.clone(), left, Role::Client)),
            tokio::spawn(drive(self.executor.clone(), right, Role::Server)),
        ]
    }

    fn connect(&self, profile: Profile, stream: &str) -> Connect {
        Connect {
            stream: stream.parse().unwrap(),
            profile,
            registration: registration(),
            peer: identity(1).public().for_suite(profile.suite()).unwrap(),
            authorization: Bytes::from_static(b"let me in"),
        }
    }

    async fn open(&self, profile: Profile) -> (Channel, Channel) {
        let accept = async {
            loop {
                match self.executor.incoming().await {
                    Incoming::Authorization(request) => {
                        assert_eq!(request.authorization, "let me in");
                        request.authorize();
                    }
                    Incoming::Opened(channel) => break channel,
                }
            }
        };
        let connect = self.orchestrator.connect(self.connect(profile, "s"));
        let accept = async { Ok::<_, OpenError>(accept.await) };
        tokio::try_join!(connect, accept)
            .unwrap_or_else(|error| panic!("{profile}: {error}, {:?}", self.executor.stats()))
    }
}

fn big(fill: u8) -> Bytes {
    Bytes::from(vec![fill; 3_000_000])
}

#[tokio::test]
async fn every_profile_carries_large_messages_both_ways() {
    for profile in Profile::ALL {
        let pair = Pair::new();
        let _sockets = pair.join().await;
        let (ours, theirs) = pair.open(profile).await;
        let there = async {
            for fill in 0..5 {
                ours.send(big(fill)).await.unwrap();
            }
            for fill in 5..10 {
                assert_eq!(ours.recv().await.unwrap(), big(fill));
            }
        };
        let back = async {
            for fill in 0..5 {
                assert_eq!(theirs.recv().await.unwrap(), big(fill));
            }
            for fill in 5..10 {
                theirs.send(big(fill)).await.unwrap();
            }
        };
        tokio::join!(there, back);
        // messages sent before the end arrive before the end
        ours.send(big(10)).await.unwrap();
        drop(ours);
        assert_eq!(theirs.recv().await.unwrap(), big(10));
        assert_eq!(theirs.recv().await, None, "{profile}");
        assert!(theirs.send(big(11)).await.is_err());
    }
}

#[tokio::test]
async fn refused_stream_reports_the_refusal() {
    let pair = Pair::new();
    let _sockets = pair.join().await;
    let refuse = async {
        match pair.executor.incoming().await {
            Incoming::Authorization(request) => drop(request),
            Incoming::Opened(_) => panic!("opened without an authorization"),
        }
    };
    let connect = pair.connect(Profile::RendezHybridIkV1, "s");
    let (outcome, ()) = tokio::join!(pair.orchestrator.connect(connect), refuse);
    assert!(matches!(
        outcome.err(),
        Some(OpenError::Closed(Closed::Reset(ResetReason::HandshakeRefused)))
    ));
}

/// Otherwise handshakes that come and go would accumulate without bound.
#[tokio::test]
async fn ended_handshakes_withdraw_their_requests() {
    for profile in Profile::ALL {
        let pair = Pair::new();
        let _sockets = pair.join().await;
        let connect = |stream| pair.orchestrator.connect(pair.connect(profile, stream));
        let request = async {
            match pair.executor.incoming().await {
                Incoming::Authorization(request) => request,
                Incoming::Opened(_) => panic!("opened without an authorization"),
            }
        };
        let taken = {
            let mut opening = pin!(connect("taken"));
            match select(pin!(request), &mut opening).await {
                Either::Left((request, _)) => request,
                Either::Right((outcome, _)) => panic!("{:?}", outcome.err()),
            }
        };
        taken.cancelled().await;
        // a request that no task takes: it is gone when the next one is taken
        let seen = || pair.executor.stats().frames_in;
        // stock ends announce a stream before its handshake
        let asked = seen() + if profile.is_reliable() { 1 } else { 2 };
        {
            let mut opening = pin!(connect("not taken"));
            while seen() < asked {
                assert!(poll!(&mut opening).is_pending());
                tokio::task::yield_now().await;
            }
        }
        // its reset is in transit
        while seen() == asked {
            tokio::task::yield_now().await;
        }
        let waiting = async {
            let mut opening = pin!(connect("waits"));
            assert!(poll!(&mut opening).is_pending());
            opening.await
        };
        let answer = async {
            match pair.executor.incoming().await {
                Incoming::Authorization(request) => {
                    assert_eq!(request.stream.as_str(), "waits", "{profile}");
                    request.authorize();
                }
                Incoming::Opened(_) => panic!("opened without an authorization"),
            }
        };
        let (outcome, ()) = tokio::join!(waiting, answer);
        outcome.unwrap();
        taken.authorize(); // too late, and of no effect
    }
}

#[tokio::test]
async fn only_reliable_streams_outlive_their_socket() {
    let pair = Pair::new();
    let [mine, other] = pair.join().await;
    let (ours, theirs) = pair.open(Profile::RendezHybridIkV1).await;
    ours.send(big(1)).await.unwrap();
    mine.abort();
    let _ = other.await;
    let send = async { ours.send(big(2)).await.unwrap() };
    let receive = async {
        let _sockets = pair.join().await;
        assert_eq!(theirs.recv().await.unwrap(), big(1));
        assert_eq!(theirs.recv().await.unwrap(), big(2));
    };
    tokio::join!(send, receive);

    let pair = Pair::new();
    let [mine, other] = pair.join().await;
    let (ours, theirs) = pair.open(Profile::NoiseHybridIkV1).await;
    mine.abort();
    let _ = other.await;
    assert_eq!(ours.recv().await, None);
    assert_eq!(ours.closed().await, Closed::Lost);
    assert_eq!(theirs.recv().await, None);
}

/// A task that is busy with something else learns of the end without reading.
#[tokio::test]
async fn end_is_visible_before_unread_messages() {
    for profile in Profile::ALL {
        let pair = Pair::new();
        let _sockets = pair.join().await;
        let (ours, theirs) = pair.open(profile).await;
        for fill in 0..3 {
            ours.send(Bytes::from(vec![fill; 10])).await.unwrap();
        }
        assert_eq!(theirs.recv().await.unwrap(), vec![0; 10]);
        drop(ours);
        theirs.ended().await;
        theirs.ended().await;
        for fill in 1..3 {
            assert_eq!(theirs.recv().await.unwrap(), vec![fill; 10], "{profile}");
        }
        assert_eq!(theirs.recv().await, None);
        theirs.ended().await;
        theirs.closed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn grace_expires_without_a_socket() {
    let pair = Pair::new();
    let [mine, other] = pair.join().await;
    let (ours, _theirs) = pair.open(Profile::RendezHybridIkV1).await;
    mine.abort();
    let _ = other.await;
    let grace = rendez_proto::limits::STREAM_GRACE;
    pair.orchestrator.wait_detached(grace / 2).await;
    assert!(pair.orchestrator.has_streams());
    pair.orchestrator.wait_detached(grace).await;
    assert!(!pair.orchestrator.has_streams());
    assert_eq!(ours.recv().await, None);
    assert_eq!(ours.closed().await, Closed::Lost);
}

#[tokio::test]
async fn stalled_reader_blocks_writer() {
    for profile in Profile::ALL {
        let pair = Pair::new();
        let _sockets = pair.join().await;
        let (ours, theirs) = pair.open(profile).await;
        let mut sent = 0;
        let flood = async {
            loop {
                ours.send(big(0)).await.unwrap();
                sent += 1;
            }
        };
        // long enough for everything that is ready
        let mut flood = Box::pin(flood);
        for _ in 0..2000 {
            tokio::select! {
                biased;
                _ = &mut flood => {}
                () = tokio::task::yield_now() => {}
            }
        }
        drop(flood);
        assert!(sent < 20, "{profile} buffered {sent} messages of 3 MB");
        for _ in 0..sent {
            assert_eq!(theirs.recv().await.unwrap(), big(0));
        }
    }
}

#[tokio::test]
async fn shut_down_endpoint_closes_its_socket() {
    let pair = Pair::new();
    let [mine, other] = pair.join().await;
    pair.orchestrator.shut_down(CloseFrame::NORMAL);
    assert!(matches!(mine.await.unwrap(), Ended::ByUs(frame) if frame == CloseFrame::NORMAL));
    assert!(matches!(other.await.unwrap(), Ended::ByPeer(Some(1000))));
}
