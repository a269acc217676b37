//! A model of the registry (`relay/registry/src/registry`), in memory:
//! generations, presence, single-use tickets and authorizations that expire,
//! and outages.

use bytes::Bytes;
use rendez_proto::ids::{Generation, RegistrationId};
use rendez_proto::keys::PublicKey;
use rendez_proto::limits::ORCHESTRATOR_TICKET_TTL;
use rendez_proto::profile::Profile;

use crate::Micros;
use crate::plan::NodeId;

/// One executor's claim.
#[derive(Debug, Clone)]
pub(crate) struct Registration {
    pub(crate) id: RegistrationId,
    pub(crate) generation: Generation,
    pub(crate) key: PublicKey,
}

/// The reply to an orchestrator.
#[derive(Debug, Clone)]
pub(crate) struct ConnectReply {
    pub(crate) ticket: usize,
    pub(crate) registration: RegistrationId,
    pub(crate) executor: PublicKey,
    pub(crate) authorization: Bytes,
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum No {
    /// For now.
    Unavailable,
    /// No executor is connected under the current registration.
    Offline,
    /// A 4xx: the ticket or the registration is not valid.
    Refused,
}

/// The verdict on an orchestrator's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Valid,
    Denied,
}

#[derive(Debug)]
struct Grant {
    registration: RegistrationId,
    binding: [u8; 32],
    expires: Micros,
    used: bool,
}

/// The registry.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// It answers nothing until then.
    pub(crate) away_until: Micros,
    /// Requests get no answer at all until then.
    pub(crate) hangs_until: Micros,
    current: Option<Registration>,
    generations: u64,
    tickets: Vec<Grant>,
    authorizations: Vec<Grant>,
}

impl Registry {
    fn available(&self, now: Micros) -> Result<(), No> {
        if now < self.away_until || self.hangs(now) { Err(No::Unavailable) } else { Ok(()) }
    }

    /// Whether a request of now gets no answer.
    pub(crate) fn hangs(&self, now: Micros) -> bool {
        now < self.hangs_until
    }

    /// The newest claim wins.
    pub(crate) fn register(&mut self, now: Micros, key: PublicKey) -> Result<Registration, No> {
        self.available(now)?;
        self.generations += 1;
        let id = format!("reg_{}", self.generations).parse().expect("a valid id");
        let registration = Registration { id, generation: Generation(self.generations), key };
        self.current = Some(registration.clone());
        Ok(registration)
    }

    /// Whether a registration is the newest.
    pub(crate) fn is_current(&self, registration: &RegistrationId) -> bool {
        self.current.as_ref().is_some_and(|current| current.id == *registration)
    }

    /// `connected`: the registration whose executor the relay holds.
    pub(crate) fn connect(
        &mut self,
        now: Micros,
        connected: Option<&RegistrationId>,
        orchestrator: &PublicKey,
        profile: Profile,
    ) -> Result<ConnectReply, No> {
        self.available(now)?;
        let current = self.current.as_ref().ok_or(No::Offline)?;
        if connected != Some(&current.id) {
            return Err(No::Offline);
        }
        let executor = current.key.for_suite(profile.suite()).ok_or(No::Refused)?;
        let orchestrator = orchestrator.for_suite(profile.suite()).ok_or(No::Refused)?;
        let registration = current.id.clone();
        let expires = now + ORCHESTRATOR_TICKET_TTL.as_micros() as Micros;
        let grant =
            |binding| Grant { registration: registration.clone(), binding, expires, used: false };
        self.tickets.push(grant(orchestrator.fingerprint()));
        self.authorizations.push(grant(binding(&orchestrator, &executor)));
        Ok(ConnectReply {
            ticket: self.tickets.len() - 1,
            authorization: format!("authorization-{}", self.authorizations.len() - 1).into(),
            registration,
            executor,
        })
    }

    /// Lets an orchestrator's ticket open its one websocket; returns the
    /// fingerprint that it names.
    pub(crate) fn redeem_ticket(&mut self, now: Micros, ticket: usize) -> Result<[u8; 32], No> {
        self.available(now)?;
        let ticket = self.tickets.get_mut(ticket).ok_or(No::Refused)?;
        if ticket.expires <= now || std::mem::replace(&mut ticket.used, true) {
            return Err(No::Refused);
        }
        Ok(ticket.binding)
    }

    /// Lets an executor's ticket open a websocket while it is the current one.
    pub(crate) fn check_executor(&self, now: Micros, claim: &Registration) -> Result<(), No> {
        self.available(now)?;
        match &self.current {
            Some(current) if current.generation == claim.generation => Ok(()),
            _ => Err(No::Refused),
        }
    }

    /// Checks the key that a handshake proved, and consumes the authorization.
    pub(crate) fn validate(
        &mut self,
        now: Micros,
        registration: &RegistrationId,
        peer: &PublicKey,
        authorization: &[u8],
    ) -> Result<Verdict, No> {
        self.available(now)?;
        let Some(current) = self.current.as_ref().filter(|current| current.id == *registration)
        else {
            return Err(No::Refused);
        };
        let Some(executor) = current.key.for_suite(peer.suite()) else {
            return Ok(Verdict::Denied);
        };
        let number = std::str::from_utf8(authorization)
            .ok()
            .and_then(|text| text.strip_prefix("authorization-"))
            .and_then(|number| number.parse::<usize>().ok());
        let Some(grant) = number.and_then(|number| self.authorizations.get_mut(number)) else {
            return Ok(Verdict::Denied);
        };
        let good = grant.registration == *registration
            && grant.binding == binding(peer, &executor)
            && now < grant.expires;
        if !good || std::mem::replace(&mut grant.used, true) {
            return Ok(Verdict::Denied);
        }
        Ok(Verdict::Valid)
    }
}

fn binding(orchestrator: &PublicKey, executor: &PublicKey) -> [u8; 32] {
    rendez_proto::ticket::binding(orchestrator, executor)
}

/// A dial with its ticket; answered after a round trip.
#[derive(Debug, Clone)]
pub(crate) enum Dialled {
    Executor(Registration),
    Orchestrator(NodeId, usize),
}
