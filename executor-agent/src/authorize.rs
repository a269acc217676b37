//! Asks the registry whether an orchestrator may connect.
//!
//! Every handshake of an orchestrator waits here. Its key is proven; only the
//! registry decides whether it may connect, and every failure is a refusal. A
//! closed handshake cancels its call, so there are never more calls than pending
//! handshakes ([`PENDING_HANDSHAKES`](rendez_proto::limits::PENDING_HANDSHAKES)).

use std::pin::pin;

use futures_util::future::{Either, select};
use rendez_endpoint::Refusal;
use rendez_proto::registry::ValidateRequest;
use rendez_proto::ticket::TicketText;
use rendez_registry_client::{ExecutorClient, Verdict};
use rendez_rpc::AuthorizationRequest;

/// Authorizes or refuses one handshake.
pub(crate) async fn authorize_handshake(registry: &ExecutorClient, request: AuthorizationRequest) {
    let stream = request.stream.clone();
    let Some(verdict) = verdict_unless_closed(registry, &request).await else {
        return tracing::debug!(%stream, "handshake closed before its validation");
    };
    tracing::debug!(%stream, peer = ?request.peer, ?verdict, "validated an orchestrator");
    match verdict {
        Verdict::Valid => request.authorize(),
        Verdict::Invalid(_) => request.refuse(Refusal::Denied),
        Verdict::AuthenticationRejected => request.refuse(Refusal::AuthenticationRejected),
    }
}

/// Returns `None` if the handshake closes first.
async fn verdict_unless_closed(
    registry: &ExecutorClient,
    request: &AuthorizationRequest,
) -> Option<Verdict> {
    match select(pin!(request.cancelled()), pin!(verdict(registry, request))).await {
        Either::Left(_) => None,
        Either::Right((verdict, _)) => Some(verdict),
    }
}

async fn verdict(registry: &ExecutorClient, request: &AuthorizationRequest) -> Verdict {
    let authorization =
        std::str::from_utf8(&request.authorization).ok().and_then(|text| text.parse().ok());
    match authorization {
        Some(authorization) => validate(registry, request, authorization).await,
        None => {
            Verdict::Invalid("the authorization is not valid text, or has a wrong length".into())
        }
    }
}

async fn validate(
    registry: &ExecutorClient,
    request: &AuthorizationRequest,
    authorization: TicketText,
) -> Verdict {
    let question = ValidateRequest {
        executor_registration_id: request.registration.clone(),
        harness_public_key: request.peer.clone(),
        harness_key_authorization: authorization,
    };
    let stream = request.stream.is_uuid().then(|| request.stream.as_str());
    registry.validate(&question, stream).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{config, identity};
    use rendez_endpoint::{Config, Connect, Identity, IdentitySeed, Mux};
    use rendez_proto::ids::StreamId;
    use rendez_proto::profile::Profile;
    use rendez_registry_client::testing::{FakeRegistry, HANG};
    use rendez_rpc::{Endpoint, Incoming};
    use rendez_transport::{pump, socket};
    use tokio::time::Instant;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    /// The endpoints of an executor and an orchestrator, connected in memory.
    async fn endpoints() -> [Endpoint; 2] {
        let other = Identity::from_seed(&IdentitySeed::from_bytes([9; IdentitySeed::BYTES]));
        let environment: rendez_proto::ids::EnvironmentId = "dev".parse().unwrap();
        let executor = Config::executor(identity(), environment.clone(), Profile::ALL.to_vec());
        let orchestrator = Config::orchestrator(other, environment);
        let endpoints = [executor, orchestrator].map(|core| Endpoint::new(Mux::new(core, [1; 32])));
        let (left, right) = tokio::io::duplex(64 * 1024);
        for (endpoint, io, role) in
            [(&endpoints[0], left, Role::Server), (&endpoints[1], right, Role::Client)]
        {
            let ws = WebSocketStream::from_raw_socket(io, role, Some(socket::config())).await;
            let mut driver = endpoint.attach("reg-1".parse().unwrap());
            tokio::spawn(async move { pump(ws, &mut driver).await });
        }
        endpoints
    }

    /// Otherwise a peer that reconnects again and again could cause any number of
    /// calls.
    #[tokio::test]
    async fn closed_handshake_cancels_its_validation() {
        let fake = FakeRegistry::start().await;
        fake.answer("validate", HANG, "");
        let config = config(&fake.url(), std::path::Path::new("/none"));
        let auth = crate::registry::auth(&config).unwrap();
        let base = config.relay.as_url().clone();
        let registry = ExecutorClient::new(base, config.environment, auth).unwrap();
        let [executor, orchestrator] = endpoints().await;
        let profile = Profile::RendezHybridIkV1;
        let connect = Connect {
            stream: StreamId::from_random([1; 16]),
            profile,
            registration: "reg-1".parse().unwrap(),
            peer: identity().public().for_suite(profile.suite()).unwrap(),
            authorization: bytes::Bytes::from_static(b"auth-1"),
        };
        let opening = tokio::spawn(async move { orchestrator.connect(connect).await.err() });
        let Incoming::Authorization(request) = executor.incoming().await else { panic!() };
        let mut authorizing = pin!(authorize_handshake(&registry, request));
        while fake.requests().is_empty() {
            assert!(futures_util::poll!(&mut authorizing).is_pending());
            tokio::task::yield_now().await;
        }
        opening.abort();
        // the rest happens in memory: time passes only while all tasks are idle
        tokio::time::pause();
        let before = Instant::now();
        authorizing.await;
        assert_eq!(before.elapsed(), std::time::Duration::ZERO, "it waited for the answer");
        fake.stop().await;
    }
}
