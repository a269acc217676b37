//! The websocket endpoint: ticket, upgrade, a port in a hub, the pump.
//!
//! | status | when | reaction of stock endpoints (docs/codex-wire.md#duties-of-a-relay) |
//! | --- | --- | --- |
//! | 101 | the ticket is good | |
//! | 400 | not a websocket upgrade; the ticket is not used up | |
//! | 401 | no ticket, or one that is malformed, forged, expired, used, revoked or not for this address | an executor registers again, an orchestrator connects again |
//! | 409 | a newer registration is current | an executor registers again |
//! | 503 | full, shutting down, or the store does not answer | both retry later |
//!
//! Close codes: [`CloseFrame::BY_RELAY`](rendez_proto::close::CloseFrame::BY_RELAY).

mod admission;
mod port;
mod socket;

use std::pin::pin;
use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Extension, RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use futures_util::future::{Either, select};
use rendez_proto::limits;
use rendez_registry::{PeerAddr, Registry};
use rendez_transport::socket::WRITE_BUFFER_BYTES;
use rendez_transport::{Ended, pump};
use tracing::Span;
use tracing::field::Empty;

use self::admission::UpgradeRefused;
use self::port::HubPort;
use self::socket::AcceptedSocket;
use crate::connections::{ConnectionGuard, ConnectionPermit, ConnectionTable, End};
use crate::tls::ClientCertificate;

/// Bytes of a websocket's buffer for messages that it has not read whole: most
/// of the memory of an idle one. It grows for a larger message. It is filled from
/// larger reads, from the buffer that a thread's connections share.
const MESSAGE_BUFFER_BYTES: usize = 2 * 1024;

/// The state of the rendezvous route.
#[derive(Clone)]
pub(crate) struct Rendezvous {
    pub(crate) registry: Registry,
    pub(crate) connections: Arc<ConnectionTable>,
}

/// The TCP connection under a request.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) permit: ConnectionPermit,
    /// The address at the other end.
    pub(crate) address: PeerAddr,
    /// The certificate that the client presented.
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
}

/// `GET /v1/rendezvous?ticket=...`
pub(crate) async fn rendezvous(
    State(rendezvous): State<Rendezvous>,
    RawQuery(query): RawQuery,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    // Checked first, so that a request that cannot be upgraded uses up no ticket.
    let Ok(upgrade) = upgrade else {
        rendezvous.connections.connection_stats().count_not_an_upgrade();
        return UpgradeRefused::NotAnUpgrade.into_response();
    };
    let source = rendezvous.registry.source(Some(peer.address), &headers);
    let ticket = ticket_of(query.as_deref().unwrap_or_default());
    match rendezvous.admit(ticket, source, peer.permit).await {
        Ok(guard) => accept(upgrade, guard, peer.certificate),
        Err(refusal) => refusal.into_response(),
    }
}

/// Tickets are URL-safe text, so nothing needs decoding.
fn ticket_of(query: &str) -> &str {
    query.split('&').find_map(|pair| pair.strip_prefix("ticket=")).unwrap_or_default()
}

fn accept(
    upgrade: WebSocketUpgrade,
    guard: ConnectionGuard,
    certificate: Option<Arc<ClientCertificate>>,
) -> Response {
    upgrade
        .read_buffer_size(MESSAGE_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_BYTES + 2 * limits::MESSAGE_MAX_BYTES)
        .max_message_size(limits::MESSAGE_MAX_BYTES)
        .max_frame_size(limits::MESSAGE_MAX_BYTES)
        .on_upgrade(move |socket| async move {
            let span = log_connected(&guard, certificate.as_deref());
            let ended = drive(AcceptedSocket(socket), &guard).await;
            let end = End::from(&ended);
            span.record("why", end.as_str());
            log_disconnected(&guard, &ended);
            guard.end(end);
        })
}

/// A peer that does not read cannot keep an evicted websocket open.
async fn drive(socket: AcceptedSocket, guard: &ConnectionGuard) -> Ended {
    let mut port = HubPort::new(guard);
    match select(pin!(pump(socket, &mut port)), pin!(guard.eviction_overdue())).await {
        Either::Left((ended, _)) => ended,
        Either::Right((frame, _)) => Ended::ByUs(frame),
    }
}

/// The span lasts as long as the websocket. No code runs inside of it, so that
/// frames cost no more than without.
fn log_connected(guard: &ConnectionGuard, certificate: Option<&ClientCertificate>) -> Span {
    let connection = guard.connection();
    let certificate = certificate.map(tracing::field::display);
    tracing::info!(
        environment = %connection.environment,
        registration = %connection.registration,
        role = connection.role(),
        token = %connection.subject,
        profile = %connection.profile,
        certificate,
        "connected"
    );
    tracing::info_span!(
        "websocket",
        environment = %connection.environment,
        registration = %connection.registration,
        role = connection.role(),
        why = Empty
    )
}

fn log_disconnected(guard: &ConnectionGuard, ended: &Ended) {
    let connection = guard.connection();
    tracing::info!(
        environment = %connection.environment,
        registration = %connection.registration,
        role = connection.role(),
        why = %ended,
        "disconnected"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticket_is_found_among_other_parameters() {
        assert_eq!(ticket_of("ticket=a.b-c"), "a.b-c");
        assert_eq!(ticket_of("x=1&ticket=abc&y=2"), "abc");
        assert_eq!(ticket_of("notticket=abc"), "");
        assert_eq!(ticket_of(""), "");
    }
}
