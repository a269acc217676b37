//! Who knocks, and the registry's verdict on it.
//!
//! Every handshake of an orchestrator waits here: its key is proven, and only
//! the registry can say whether it may come in. Whatever goes wrong is a no.

use rendez_endpoint::Refusal;
use rendez_proto::registry::ValidateRequest;
use rendez_proto::ticket::TicketText;
use rendez_rpc::AuthorizationRequest;

use crate::registry::{Registry, Verdict};

/// Answers one request; the answer also ends the wait of the handshake.
pub(crate) async fn decide(registry: &Registry, request: AuthorizationRequest) {
    let authorization =
        std::str::from_utf8(&request.authorization).ok().and_then(|text| text.parse().ok());
    let verdict = match authorization {
        Some(authorization) => ask(registry, &request, authorization).await,
        None => Verdict::Invalid("the authorization is not a text of the right length".into()),
    };
    tracing::debug!(stream = %request.stream, peer = ?request.peer, ?verdict, "orchestrator knocked");
    match verdict {
        Verdict::Valid => request.authorize(),
        Verdict::Invalid(_) => request.refuse(Refusal::Denied),
        Verdict::AuthenticationRejected => request.refuse(Refusal::AuthenticationRejected),
    }
}

async fn ask(
    registry: &Registry,
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
