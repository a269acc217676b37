//! The phases of an agent's connection to the relay, and the transitions between
//! them. Pure: no clock, no I/O; [`lifecycle`](super::lifecycle) does the work.
//!
//! ```text
//!   Register ──registered──► Dial ──connected──► Serve ──shut down──► Stopped
//!    ▲ │  │                  ▲  │                  │
//!    │ │  └─refused──► error │  │ failed           │ websocket closed
//!    │ │ unavailable         │  ▼                  │
//!    │ └─────────────────► BackOff ◄───────────────┘
//!    │                       │  │
//!    │                       │  └─ elapsed, registration usable ──► Dial
//!    └───────────────────────┘ elapsed, no registration or too many failed dials
//! ```

use std::time::Duration;

use rendez_proto::close::CloseFrame;
use rendez_proto::ids::RegistrationId;
use rendez_proto::registry::RegisterReply;
use rendez_registry_client::RegistryError;
use rendez_transport::Ended;
use rendez_transport::backoff::{self, Backoff};
use rendez_transport::dial::DialError;

/// Failed dials in a row before the agent registers again: the relay may have
/// moved, and only the registry knows where to.
pub(super) const DIALS_PER_REGISTRATION: u32 = 3;

const SUPERSEDED: u16 = CloseFrame::SUPERSEDED.code;
const TOKEN_REVOKED: u16 = CloseFrame::TOKEN_REVOKED.code;
const TOKEN_EXPIRED: u16 = CloseFrame::TOKEN_EXPIRED.code;
const REGISTRATION_ENDED: u16 = CloseFrame::REGISTRATION_ENDED.code;

/// A phase with the data that it needs; `S` is an open websocket.
pub(super) enum AgentPhase<S> {
    Register(Register),
    Dial(Dial),
    Serve(Serve, S),
    BackOff(BackOff),
    /// The endpoint was shut down.
    Stopped,
}

/// Asks the registry for a registration.
pub(super) struct Register {
    /// An earlier registration. It stays usable while the registry cannot answer:
    /// registry and relay often fail and recover together.
    known: Option<RegisterReply>,
}

/// Opens the websocket of a registration.
pub(super) struct Dial {
    registration: RegisterReply,
    /// Dials in a row that failed with this registration.
    failed: u32,
}

/// Serves streams over the open websocket of a registration.
pub(super) struct Serve {
    registration: RegisterReply,
}

/// Waits before the next attempt.
pub(super) struct BackOff {
    registration: Option<RegisterReply>,
    failed_dials: u32,
    /// Why the agent is not connected.
    pub(super) error: String,
    /// The relay asked its clients to reconnect, which is no failure.
    announced: bool,
}

impl<S> AgentPhase<S> {
    /// The phase of an agent that has just started.
    pub(super) fn start() -> Self {
        Self::Register(Register { known: None })
    }
}

impl Register {
    pub(super) fn registered(self, registration: RegisterReply) -> Dial {
        Dial { registration, failed: 0 }
    }

    /// # Errors
    /// `error`, if another attempt would fail in the same way.
    pub(super) fn failed(self, error: RegistryError) -> Result<BackOff, RegistryError> {
        if error.is_final() {
            return Err(error);
        }
        Ok(BackOff {
            registration: self.known,
            failed_dials: 0,
            error: error.to_string(),
            announced: false,
        })
    }
}

impl Dial {
    /// Where to dial.
    pub(super) fn url(&self) -> &str {
        self.registration.url.expose()
    }

    pub(super) fn connected(self) -> Serve {
        Serve { registration: self.registration }
    }

    pub(super) fn failed(self, error: &DialError) -> BackOff {
        let useless = matches!(error, DialError::Refused(_) | DialError::Url(_));
        BackOff {
            registration: (!useless).then_some(self.registration),
            failed_dials: self.failed + 1,
            error: error.to_string(),
            announced: false,
        }
    }
}

impl Serve {
    pub(super) fn registration(&self) -> &RegistrationId {
        &self.registration.executor_registration_id
    }

    /// The websocket is closed. A final close code ends the registration, too.
    pub(super) fn closed(self, ended: &Ended) -> BackOff {
        let is_final = matches!(
            ended,
            Ended::ByPeer(Some(TOKEN_REVOKED | TOKEN_EXPIRED | REGISTRATION_ENDED))
        );
        BackOff {
            registration: (!is_final).then_some(self.registration),
            failed_dials: 0,
            error: describe(ended),
            announced: matches!(ended, Ended::ReconnectWithin(_)),
        }
    }
}

impl BackOff {
    pub(super) fn elapsed<S>(self) -> AgentPhase<S> {
        match self.registration {
            Some(registration) if self.failed_dials < DIALS_PER_REGISTRATION => {
                AgentPhase::Dial(Dial { registration, failed: self.failed_dials })
            }
            known => AgentPhase::Register(Register { known }),
        }
    }
}

fn describe(ended: &Ended) -> String {
    match ended {
        Ended::ByPeer(Some(SUPERSEDED)) => {
            "another executor has registered for this environment".to_owned()
        }
        Ended::ByPeer(Some(TOKEN_REVOKED)) => "this agent's token was revoked".to_owned(),
        Ended::ByPeer(Some(TOKEN_EXPIRED)) => "this agent's token has expired".to_owned(),
        Ended::ByPeer(Some(REGISTRATION_ENDED)) => {
            "the registration of this agent was ended by an operator".to_owned()
        }
        Ended::ByPeer(_) | Ended::ReconnectWithin(_) => format!("the relay: {ended}"),
        other => other.to_string(),
    }
}

/// How long to back off and how loud to report it, over all attempts.
#[derive(Default)]
pub(super) struct Retries {
    backoff: Backoff,
    /// A warning was logged since the agent was connected last.
    warned: bool,
}

impl Retries {
    /// Notes the end of a connection that lived for `lifetime`.
    pub(super) fn disconnected(&mut self, ended: &Ended, lifetime: Duration) {
        self.warned = false;
        self.backoff.connected_for(lifetime);
        match ended {
            Ended::ByPeer(Some(SUPERSEDED)) => self.backoff.delay_next(),
            Ended::ReconnectWithin(within) => self.backoff.reconnect_within(*within),
            _ => {}
        }
    }

    /// The wait before the next attempt. It is shorter with open streams, which
    /// wait for a resume. `random` is uniform in `0..=u32::MAX`.
    pub(super) fn next_delay(&mut self, has_streams: bool, random: u32) -> Duration {
        let cap = if has_streams { backoff::RESUME_CAP } else { backoff::CAP };
        self.backoff.next_delay(cap, random)
    }

    /// Whether to log a warning: once until the agent is connected again, so that
    /// an operator looks, and never for an announced reconnect.
    pub(super) fn warns(&mut self, back_off: &BackOff) -> bool {
        !back_off.announced && !std::mem::replace(&mut self.warned, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(id: &str) -> RegisterReply {
        let body = format!(
            r#"{{"environment_id":"dev","url":"ws://h/x","executor_registration_id":"{id}",
            "security_profile":"noise_hybrid_ik_v1"}}"#
        );
        serde_json::from_str(&body).unwrap()
    }

    fn register(known: Option<&str>) -> Register {
        Register { known: known.map(reply) }
    }

    fn dial(id: &str, failed: u32) -> Dial {
        Dial { registration: reply(id), failed }
    }

    fn closed(ended: Ended) -> BackOff {
        Serve { registration: reply("reg-1") }.closed(&ended)
    }

    /// The phase after the wait, in words.
    fn next(back_off: BackOff) -> String {
        match back_off.elapsed::<()>() {
            AgentPhase::Register(Register { known: None }) => "register".to_owned(),
            AgentPhase::Register(Register { known: Some(known) }) => {
                format!("register, knows {}", known.executor_registration_id)
            }
            AgentPhase::Dial(Dial { registration, failed }) => {
                format!("dial {} after {failed}", registration.executor_registration_id)
            }
            _ => panic!("no wait leads here"),
        }
    }

    #[test]
    fn each_outcome_leads_to_its_next_phase() {
        let down = || RegistryError::Unavailable("HTTP 503".into());
        let unreachable = || DialError::Timeout("h:1".into());
        for (back_off, expected) in [
            (register(None).failed(down()).unwrap(), "register"),
            (register(Some("reg-1")).failed(down()).unwrap(), "dial reg-1 after 0"),
            (dial("reg-1", 0).failed(&unreachable()), "dial reg-1 after 1"),
            (dial("reg-1", 1).failed(&unreachable()), "dial reg-1 after 2"),
            (dial("reg-1", 2).failed(&unreachable()), "register, knows reg-1"),
            (dial("reg-1", 0).failed(&DialError::Unavailable(503)), "dial reg-1 after 1"),
            (dial("reg-1", 0).failed(&DialError::Refused(403)), "register"),
            (dial("reg-1", 0).failed(&DialError::Url("x".into())), "register"),
            (closed(Ended::Silent), "dial reg-1 after 0"),
            (closed(Ended::ByPeer(None)), "dial reg-1 after 0"),
            (closed(Ended::ByPeer(Some(1012))), "dial reg-1 after 0"),
            (closed(Ended::ReconnectWithin(Duration::from_secs(5))), "dial reg-1 after 0"),
            (closed(Ended::ByPeer(Some(SUPERSEDED))), "dial reg-1 after 0"),
            (closed(Ended::ByPeer(Some(TOKEN_REVOKED))), "register"),
            (closed(Ended::ByPeer(Some(TOKEN_EXPIRED))), "register"),
            (closed(Ended::ByPeer(Some(REGISTRATION_ENDED))), "register"),
        ] {
            let error = back_off.error.clone();
            assert_eq!(next(back_off), expected, "{error}");
        }
        let registered = register(Some("reg-1")).registered(reply("reg-2"));
        assert_eq!(
            (registered.failed, registered.connected().registration().as_str()),
            (0, "reg-2")
        );
    }

    #[test]
    fn refused_registration_ends_the_agent() {
        for error in [
            RegistryError::TokenRefused("x".into()),
            RegistryError::RegistrationRefused("x".into()),
        ] {
            assert_eq!(register(Some("reg-1")).failed(error.clone()).err(), Some(error));
        }
    }

    #[test]
    fn first_delay_depends_on_how_the_connection_ended() {
        const WORKED: Duration = Duration::from_secs(10);
        for (ended, lifetime, delay) in [
            (Ended::Silent, WORKED, Duration::ZERO),
            (Ended::Silent, Duration::ZERO, backoff::BASE),
            (Ended::ByPeer(Some(SUPERSEDED)), WORKED, backoff::BASE),
            (Ended::ReconnectWithin(Duration::from_secs(7)), WORKED, Duration::from_secs(7)),
        ] {
            let mut retries = Retries::default();
            retries.disconnected(&ended, lifetime);
            assert_eq!(retries.next_delay(false, u32::MAX), delay, "{ended}");
        }
    }

    #[test]
    fn open_streams_shorten_the_delay() {
        let mut retries = Retries::default();
        for _ in 0..9 {
            retries.next_delay(false, u32::MAX);
        }
        assert_eq!(retries.next_delay(false, u32::MAX), backoff::CAP);
        assert_eq!(retries.next_delay(true, u32::MAX), backoff::RESUME_CAP);
    }

    #[test]
    fn one_warning_until_connected_again() {
        let mut retries = Retries::default();
        let dial_failed = || dial("reg-1", 0).failed(&DialError::Unavailable(503));
        let mut warned = |ended: Option<Ended>| {
            let back_off = match ended {
                Some(ended) => {
                    retries.disconnected(&ended, Duration::ZERO);
                    closed(ended)
                }
                None => dial_failed(),
            };
            retries.warns(&back_off)
        };
        let away = || Some(Ended::ReconnectWithin(Duration::ZERO));
        for (ended, expected) in [
            (None, true),
            (None, false),
            (Some(Ended::Silent), true),
            (None, false),
            (away(), false),
            (None, true),
            (None, false),
            (away(), false),
        ] {
            assert_eq!(warned(ended), expected);
        }
    }
}
