//! Where websockets arrive: ticket, upgrade, a port in a hub, the pump.
//!
//! | answer | when | what stock ends do (WIRE.md, sections 1 and 2) |
//! | --- | --- | --- |
//! | 101 | the ticket is good | |
//! | 400 | not a websocket upgrade; the ticket is not used up | |
//! | 401 | no ticket, or one that is malformed, forged, expired, used, revoked or not for this address | an executor registers again, an orchestrator connects again |
//! | 409 | a newer registration is current | an executor registers again |
//! | 503 | full, shutting down, or the store cannot be asked | both try again later |
//!
//! Close codes: [`CloseFrame::BY_RELAY`](rendez_proto::close::CloseFrame::BY_RELAY).

pub(crate) mod guests;
pub mod port;
mod socket;
pub mod stats;
pub mod traffic;

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Extension, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures_util::future::{Either, select};
use rendez_proto::audit::{AuditEvent, AuditKind};
use rendez_proto::limits;
use rendez_proto::registry::error::{ErrorBody, ErrorCode, ErrorDetail};
use rendez_proto::ticket::{Claims, Purpose};
use rendez_registry::{Admitted, Registry, TicketRefused};
use rendez_relay_core::{Capabilities, JoinError, KeyFingerprint, Level};
use rendez_transport::socket::WRITE_BUFFER_BYTES;
use rendez_transport::{Ended, pump};
use tokio_util::task::TaskTracker;
use tracing::Span;
use tracing::field::Empty;

use self::guests::{Guests, Stay};
use self::port::HubPort;
use self::socket::AcceptedSocket;
use self::stats::{EdgeStats, End};
use crate::directory::Directory;
use crate::drain::Drain;
use crate::listen::Place;
use crate::roster::Visit;

/// Bytes of a websocket's buffer for messages that it has not read whole: most
/// of the memory of an idle one. It grows for a larger message. What it is
/// filled from is read in larger pieces ([`Gulp`](crate::gulp::Gulp)).
const MESSAGE_BUFFER_BYTES: usize = 2 * 1024;

/// What the rendezvous route needs.
#[derive(Clone)]
pub(crate) struct Edge {
    pub(crate) registry: Registry,
    pub(crate) directory: Arc<Directory>,
    pub(crate) guests: Arc<Guests>,
    /// Every websocket's task.
    pub(crate) sockets: TaskTracker,
    pub(crate) drain: Arc<Drain>,
    pub(crate) stats: Arc<EdgeStats>,
}

/// `GET /v1/rendezvous?ticket=...`
pub(crate) async fn rendezvous(
    State(edge): State<Edge>,
    RawQuery(query): RawQuery,
    Extension(place): Extension<Place>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    // First, so that a request that cannot be upgraded uses up no ticket.
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(_) => {
            edge.stats.count_not_an_upgrade();
            return Refusal::NotAnUpgrade.into_response();
        }
    };
    let source = edge.registry.source(Some(place.peer), &headers);
    match edge.admit(ticket_of(query.as_deref().unwrap_or_default()), source).await {
        Ok(arrival) => edge.upgrade(upgrade, arrival, place),
        Err(refusal) => refusal.into_response(),
    }
}

/// Tickets are URL-safe text, so nothing needs decoding.
fn ticket_of(query: &str) -> &str {
    query.split('&').find_map(|pair| pair.strip_prefix("ticket=")).unwrap_or_default()
}

/// A websocket whose ticket is good, and its entries in all lists.
struct Arrival {
    admitted: Admitted,
    port: HubPort,
    stay: Stay,
    visit: Visit,
}

impl Edge {
    async fn admit(&self, ticket: &str, source: Option<IpAddr>) -> Result<Arrival, Refusal> {
        if self.drain.is_closed() {
            return Err(Refusal::ShuttingDown);
        }
        let admitted = self.registry.admit(ticket, source).await?;
        let mut port = self.join(&admitted).inspect_err(|error| self.note(&admitted, error))?;
        if admitted.claims.purpose != Purpose::Executor {
            self.listen(&mut port, &admitted);
        }
        let stay = self.guests.arrive(&admitted, port.door());
        if !self.registry.is_still_good(&admitted).await.map_err(TicketRefused::from)? {
            return Err(TicketRefused::Revoked.into());
        }
        let visit = self.directory.roster().enter(&self.registry, &admitted, port.watch());
        Ok(Arrival { admitted, port, stay, visit })
    }

    /// Who runs into a limit stands in the audit log.
    fn note(&self, Admitted { claims, subject, .. }: &Admitted, error: &JoinError) {
        let limit = match error {
            JoinError::Stale { .. } => return,
            JoinError::TooManyOrchestrators => "orchestrators of the executor",
            JoinError::Quota(Level::Node) => "connections of the node",
            JoinError::Quota(Level::Environment) => "connections of the environment",
            JoinError::Quota(Level::Token) => "connections of the token",
        };
        refused(&self.registry, subject.to_string(), claims, limit);
    }

    /// So does whose streams or handshakes do.
    fn listen(&self, port: &mut HubPort, Admitted { claims, subject, .. }: &Admitted) {
        let registry = self.registry.clone();
        let (token, claims) = (subject.to_string(), claims.clone());
        port.on_refusal(move |refusal| {
            refused(&registry, token.clone(), &claims, refusal.as_str());
        });
    }

    fn join(&self, Admitted { claims, subject, .. }: &Admitted) -> Result<HubPort, JoinError> {
        let token = subject.to_string();
        if claims.purpose == Purpose::Executor {
            self.directory.join_executor(
                &claims.environment,
                &claims.registration,
                claims.generation,
                &token,
                Instant::now(),
            )
        } else {
            // The ticket names the orchestrator's key: streams are its own.
            let can = Capabilities { resends: claims.profile.is_reliable() };
            let key = KeyFingerprint(claims.binding);
            self.directory.join_orchestrator(&claims.environment, key, can, &token)
        }
    }

    fn upgrade(&self, upgrade: WebSocketUpgrade, arrival: Arrival, place: Place) -> Response {
        let Arrival { admitted, mut port, stay, mut visit } = arrival;
        let token = self.sockets.token();
        let stats = self.stats.clone();
        upgrade
            .read_buffer_size(MESSAGE_BUFFER_BYTES)
            .write_buffer_size(WRITE_BUFFER_BYTES)
            .max_write_buffer_size(WRITE_BUFFER_BYTES + 2 * limits::MESSAGE_MAX_BYTES)
            .max_message_size(limits::MESSAGE_MAX_BYTES)
            .max_frame_size(limits::MESSAGE_MAX_BYTES)
            .on_upgrade(move |socket| async move {
                let span = opened(&admitted, &place);
                let _held = (token, place);
                let ended = drive(AcceptedSocket(socket), &mut port, &stay).await;
                let end = End::from(&ended);
                visit.ends(end.reason());
                // In this order: whoever then finds no executor finds out why.
                drop(visit);
                drop(port);
                stats.count_ended(end);
                span.record("why", end.as_str());
                closed(&admitted.claims, &ended);
            })
    }
}

/// A peer that does not read cannot keep an evicted websocket open.
async fn drive(socket: AcceptedSocket, port: &mut HubPort, stay: &Stay) -> Ended {
    match select(pin!(pump(socket, port)), pin!(stay.overstayed())).await {
        Either::Left((ended, _)) => ended,
        Either::Right((frame, _)) => Ended::ByUs(frame),
    }
}

/// The span is the websocket's life. Nothing runs inside of it, so that frames
/// cost no more than without.
fn opened(Admitted { claims, subject, .. }: &Admitted, place: &Place) -> Span {
    let certificate = place.certificate.as_ref().map(tracing::field::display);
    tracing::info!(
        environment = %claims.environment,
        registration = %claims.registration,
        role = role(claims),
        token = %subject,
        profile = %claims.profile,
        certificate,
        "connected"
    );
    tracing::info_span!(
        "websocket",
        environment = %claims.environment,
        registration = %claims.registration,
        role = role(claims),
        why = Empty
    )
}

fn closed(claims: &Claims, ended: &Ended) {
    tracing::info!(
        environment = %claims.environment,
        registration = %claims.registration,
        role = role(claims),
        why = %ended,
        "disconnected"
    );
}

/// Says in the audit log who ran into which limit.
fn refused(registry: &Registry, token: String, claims: &Claims, limit: &str) {
    let audit = registry.audit();
    audit.record_refusal(AuditEvent {
        actor: Some(token),
        environment: Some(claims.environment.clone()),
        registration: Some(claims.registration.clone()),
        what: Some(limit.to_owned()),
        count: Some(1),
        ..audit.event(AuditKind::Quota)
    });
}

fn role(claims: &Claims) -> &'static str {
    match claims.purpose {
        Purpose::Executor => "executor",
        Purpose::Orchestrator | Purpose::KeyAuthorization => "orchestrator",
    }
}

/// Why an upgrade was refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("this is a websocket endpoint; send an upgrade request")]
    NotAnUpgrade,
    #[error("the relay is shutting down; try again")]
    ShuttingDown,
    #[error(transparent)]
    Ticket(#[from] TicketRefused),
    #[error(transparent)]
    Join(#[from] JoinError),
}

impl Refusal {
    fn status(&self) -> (StatusCode, ErrorCode) {
        match self {
            Refusal::NotAnUpgrade => (StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest),
            Refusal::Ticket(TicketRefused::Unavailable(_))
            | Refusal::ShuttingDown
            | Refusal::Join(JoinError::TooManyOrchestrators | JoinError::Quota(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable)
            }
            Refusal::Ticket(TicketRefused::Superseded) | Refusal::Join(JoinError::Stale { .. }) => {
                (StatusCode::CONFLICT, ErrorCode::RegistrationSuperseded)
            }
            Refusal::Ticket(_) => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
        }
    }

    fn into_response(self) -> Response {
        let (status, code) = self.status();
        tracing::debug!(status = status.as_u16(), why = %self, "refused an upgrade");
        (
            status,
            axum::Json(ErrorBody { error: ErrorDetail::new(code, self.to_string()), rendez: None }),
        )
            .into_response()
    }
}

#[cfg(test)]
mod tests {
    use rendez_proto::audit::AuditKind;
    use rendez_proto::ids::Generation;
    use rendez_proto::profile::Profile;
    use rendez_registry::{Options, model};

    use super::*;

    /// As an issuer's token asks for it that ends with its websockets.
    #[tokio::test]
    async fn who_opens_closes_and_is_refused_is_who_asked_for_the_ticket() {
        let state = tempfile::tempdir().unwrap();
        let registry = Registry::open(state.path(), Options::default()).await.unwrap();
        let edge = Edge {
            registry: registry.clone(),
            directory: Arc::default(),
            guests: Arc::default(),
            sockets: TaskTracker::new(),
            drain: Arc::default(),
            stats: Arc::default(),
        };
        let subject = "jwt_03dba21c_d7BQaXTTBnDeFVeJi2qskQ".parse::<model::Subject>().unwrap();
        let until = Some(1_800_000_300);
        let ticket = model::TicketSubject { subject: subject.clone(), until };
        let claims = Claims {
            purpose: Purpose::Executor,
            environment: "box".parse().unwrap(),
            registration: "reg_a".parse().unwrap(),
            generation: Generation(1),
            subject: ticket.to_string(),
            profile: Profile::NoiseHybridIkV1,
            expires_at_unix_secs: None,
            id: [1; 16],
            binding: [0; 32],
        };
        let admitted = Admitted { claims, subject: subject.clone(), until };
        let port = edge.join(&admitted).unwrap();
        let visit = edge.directory.roster().enter(&registry, &admitted, port.watch());
        let open = edge.directory.roster().page(None, None, 10);
        // what `rendez token revoke` takes
        assert_eq!(open[0].entry().subject.parse(), Ok(subject.clone()));
        drop(visit);
        edge.note(&admitted, &JoinError::TooManyOrchestrators);

        registry.audit().flush().await.unwrap();
        let rows = registry.audit().page(0).await.unwrap().rows;
        let rows: Vec<_> = rows.into_iter().map(|row| (row.event.kind, row.event.actor)).collect();
        let by = |kind| (kind, Some(subject.to_string()));
        assert_eq!(rows, [AuditKind::Open, AuditKind::Close, AuditKind::Quota].map(by));
    }

    #[test]
    fn the_ticket_is_found_among_other_parameters() {
        assert_eq!(ticket_of("ticket=a.b-c"), "a.b-c");
        assert_eq!(ticket_of("x=1&ticket=abc&y=2"), "abc");
        assert_eq!(ticket_of("notticket=abc"), "");
        assert_eq!(ticket_of(""), "");
    }
}
