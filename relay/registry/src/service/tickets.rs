//! Judging the tickets that arrive in websocket URLs, for the relay.

use rendez_proto::registry::error::ErrorCode;
use rendez_proto::ticket::{Claims, Purpose, Ticket, TicketError};

use super::Registry;
use super::registrations::redemption;
use crate::model::TokenId;
use crate::stats::{Operation, Outcome, TicketFault};
use crate::store::{Redeemed, StoreError};

/// Why a websocket may not be opened.
///
/// All but [`Unavailable`](TicketRefused::Unavailable) are final for this
/// ticket: answer the upgrade with a 4xx, upon which a stock executor
/// registers again (WIRE.md, section 2). `Unavailable` is ours: answer 503,
/// and it tries the same URL again.
#[derive(Debug, thiserror::Error)]
pub enum TicketRefused {
    /// Not a good ticket for this purpose now. Its bearer is at fault.
    #[error(transparent)]
    Invalid(#[from] TicketError),
    /// An orchestrator's ticket that was used before.
    #[error("the ticket was used before")]
    Used,
    /// The token that asked for it was revoked or is expired.
    #[error("the ticket's token is not active any more")]
    Revoked,
    /// A newer registration took over.
    #[error("the ticket's registration is not the current one any more")]
    Superseded,
    /// This registry does not know the environment (any more).
    #[error("the ticket's environment is not known here")]
    Unknown,
    /// We could not look.
    #[error(transparent)]
    Unavailable(#[from] StoreError),
}

impl TicketRefused {
    /// For counting; `None` if the ticket is not at fault.
    pub fn fault(&self) -> Option<TicketFault> {
        Some(match self {
            TicketRefused::Invalid(TicketError::Malformed) => TicketFault::Malformed,
            TicketRefused::Invalid(TicketError::BadSignature) => TicketFault::BadSignature,
            TicketRefused::Invalid(TicketError::Expired) => TicketFault::Expired,
            TicketRefused::Invalid(TicketError::WrongPurpose) => TicketFault::WrongPurpose,
            TicketRefused::Used => TicketFault::Used,
            TicketRefused::Revoked => TicketFault::Revoked,
            TicketRefused::Superseded => TicketFault::Superseded,
            TicketRefused::Unknown => TicketFault::Unknown,
            TicketRefused::Unavailable(_) => return None,
        })
    }
}

impl Registry {
    /// Lets a ticket open a websocket, of whichever kind it is for:
    /// [`Claims::purpose`] tells. Never a key authorization.
    ///
    /// # Errors
    /// See [`TicketRefused`].
    pub async fn admit(&self, ticket: &str) -> Result<Claims, TicketRefused> {
        let key = self.verifying_key();
        match Ticket::verify(ticket, &key, Purpose::Executor, self.now()) {
            Ok(_) => self.check_executor(ticket).await,
            // the signature was good, so it may be the other kind
            Err(TicketError::WrongPurpose) => self.redeem_orchestrator(ticket).await,
            Err(error) => Err(self.refuse(Operation::UnknownTicket, error.into())),
        }
    }

    /// Lets an orchestrator's ticket open its one websocket.
    ///
    /// # Errors
    /// See [`TicketRefused`]; never `Superseded` or `Unknown`.
    pub async fn redeem_orchestrator(&self, ticket: &str) -> Result<Claims, TicketRefused> {
        let result = async {
            let now = self.now();
            let claims = Ticket::verify(ticket, &self.verifying_key(), Purpose::Orchestrator, now)?;
            let redemption = redemption(&claims).ok_or(TicketError::Malformed)?;
            match self.store().redeem(&redemption, now).await? {
                Redeemed::Now => Ok(claims),
                Redeemed::Before => Err(TicketRefused::Used),
                Redeemed::TokenInactive => Err(TicketRefused::Revoked),
            }
        }
        .await;
        self.counted(Operation::OrchestratorTicket, result)
    }

    /// Lets an executor's ticket open a websocket, as often as it likes while
    /// its registration is current and its token active.
    ///
    /// # Errors
    /// See [`TicketRefused`]; never `Used`.
    pub async fn check_executor(&self, ticket: &str) -> Result<Claims, TicketRefused> {
        let result = async {
            let now = self.now();
            let claims = Ticket::verify(ticket, &self.verifying_key(), Purpose::Executor, now)?;
            let current = self
                .store()
                .registration(&claims.environment)
                .await?
                .ok_or(TicketRefused::Unknown)?;
            if current.id != claims.registration || current.generation != claims.generation {
                return Err(TicketRefused::Superseded);
            }
            let subject = claims.subject.parse::<TokenId>().map_err(|_| TicketError::Malformed)?;
            match self.store().token(&subject).await? {
                Some(token) if token.is_active(now) => Ok(claims),
                _ => Err(TicketRefused::Revoked),
            }
        }
        .await;
        self.counted(Operation::ExecutorTicket, result)
    }

    fn counted(
        &self,
        operation: Operation,
        result: Result<Claims, TicketRefused>,
    ) -> Result<Claims, TicketRefused> {
        match result {
            Ok(claims) => {
                self.stats().count(operation, Outcome::Ok);
                Ok(claims)
            }
            Err(refused) => Err(self.refuse(operation, refused)),
        }
    }

    fn refuse(&self, operation: Operation, refused: TicketRefused) -> TicketRefused {
        match refused.fault() {
            Some(fault) => {
                tracing::debug!(?operation, why = %refused, "ticket refused");
                self.stats().count(operation, Outcome::Ticket(fault));
            }
            None => {
                tracing::warn!(?operation, why = %refused, "a ticket could not be judged");
                self.stats().count(operation, Outcome::Error(ErrorCode::Unavailable));
            }
        }
        refused
    }
}
