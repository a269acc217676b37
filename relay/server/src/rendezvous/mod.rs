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
mod frame_parser;
mod port;
mod socket;

use std::pin::pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, RawQuery, Request, State};
use axum::response::Response;
use futures_util::future::{Either, select};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rendez_registry::{PeerAddr, Registry};
use rendez_transport::{Ended, Socket, pump};
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tracing::Span;
use tracing::field::Empty;

use self::admission::UpgradeRefused;
use self::port::HubPort;
use self::socket::AcceptedSocket;
use crate::connections::{ConnectionGuard, ConnectionPermit, ConnectionTable, End};
use crate::tls::ClientCertificate;

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
    /// Bytes that TLS on this connection may take and not have sent.
    pub(crate) unsent_in_tls: usize,
}

/// `GET /v1/rendezvous?ticket=...`
pub(crate) async fn rendezvous(
    State(rendezvous): State<Rendezvous>,
    RawQuery(query): RawQuery,
    Extension(peer): Extension<Peer>,
    mut request: Request,
) -> Response {
    // Checked first, so that a request that cannot be upgraded uses up no ticket.
    let Ok(response) = create_response_with_body(&request, Body::empty) else {
        rendezvous.connections.connection_stats().count_not_an_upgrade();
        return UpgradeRefused::NotAnUpgrade.into_response();
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let source = rendezvous.registry.source(Some(peer.address), request.headers());
    let ticket = ticket_of(query.as_deref().unwrap_or_default());
    match rendezvous.admit(ticket, source, peer.permit).await {
        Ok(guard) => {
            tokio::spawn(serve(upgrade, guard, peer.certificate, peer.unsent_in_tls));
            response
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// Tickets are URL-safe text, so nothing needs decoding.
fn ticket_of(query: &str) -> &str {
    query.split('&').find_map(|pair| pair.strip_prefix("ticket=")).unwrap_or_default()
}

/// Runs a websocket from its upgrade to its end.
async fn serve(
    upgrade: OnUpgrade,
    guard: ConnectionGuard,
    certificate: Option<Arc<ClientCertificate>>,
    unsent_in_tls: usize,
) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => TokioIo::new(upgraded),
        Err(error) => return tracing::debug!(%error, "an upgrade failed"),
    };
    let span = log_connected(&guard, certificate.as_deref());
    let ended = drive(AcceptedSocket::new(upgraded, &guard, unsent_in_tls), &guard).await;
    let end = End::from(&ended);
    span.record("why", end.as_str());
    log_disconnected(&guard, &ended);
    guard.end(end);
}

/// A peer that does not read cannot keep an evicted websocket open.
async fn drive(socket: impl Socket, guard: &ConnectionGuard) -> Ended {
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
