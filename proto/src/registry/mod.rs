//! Requests and replies of the registry's HTTP API
//! (docs/codex-wire.md#registry-api).
//!
//! ```text
//! POST /cloud/environment/{id}/register   executor       RegisterRequest -> RegisterReply
//! POST /cloud/environment/{id}/connect    orchestrator   ConnectRequest  -> ConnectReply
//! POST /cloud/environment/{id}/validate   executor       ValidateRequest -> ValidateReply
//! ```
//!
//! The bodies are those of stock Codex; ours add one optional member, `rendez`,
//! which stock peers neither send nor read. Members that we don't know are
//! ignored in both directions, and so are profiles in a list, so that peers of
//! different versions agree on what both know. [`admin`] has the bodies under
//! `/v1/`, [`error`] the body of every failure.

pub mod admin;
pub mod environments;
pub mod error;
pub mod status;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{EnvironmentId, Generation, RegistrationId};
use crate::keys::PublicKey;
use crate::profile::Profile;
use crate::ticket::{TicketText, secret_text};
use error::{ErrorCode, ErrorDetail};

/// Security profiles that one request may name.
pub const PROFILES_PER_REQUEST: usize = 16;

secret_text! {
    /// A websocket URL with its ticket in the query: a secret as a whole.
    RendezvousUrl
}

/// Request header of `/validate` with the stream's id, if it is a UUID.
pub const STREAM_ID_HEADER: &str = "x-codex-noise-stream-id";

// ---- /register -----------------------------------------------------------

/// An executor claims its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegisterRequest {
    /// The profile for peers that know only one. Always offered.
    #[serde(with = "profile_name")]
    pub security_profile: Profile,
    /// The executor's static key; hybrid unless it offers only IK profiles.
    pub executor_public_key: PublicKey,
    /// Our addition; stock executors send none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rendez: Option<Profiles>,
}

/// A list of profiles: offered by an executor, accepted by an orchestrator (best
/// first), or agreed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Profiles {
    /// Without repetition; names that we don't know are left out.
    #[serde(default, with = "profile_names")]
    pub profiles: Vec<Profile>,
}

impl RegisterRequest {
    /// Parses a request body, with a distinct error for each kind of failure: a
    /// legacy executor sends no key and profile, a foreign one another profile.
    ///
    /// # Errors
    /// The sender's: `legacy_registration`, `unsupported_profile` or
    /// `invalid_request`.
    pub fn parse(body: &[u8]) -> Result<Self, ErrorDetail> {
        #[derive(Deserialize)]
        struct Probe {
            security_profile: Option<String>,
            executor_public_key: Option<Value>,
        }
        #[derive(Deserialize)]
        struct Rest {
            executor_public_key: PublicKey,
            rendez: Option<Profiles>,
        }
        let legacy = || {
            ErrorDetail::new(
                ErrorCode::LegacyRegistration,
                "this is a legacy registration, without a security profile and an executor key; \
                 the relay carries only end-to-end encrypted streams, so use an executor that \
                 registers with one (Codex CLI 0.169.0 or later does)",
            )
        };
        if body.trim_ascii().is_empty() {
            return Err(legacy());
        }
        let probe: Probe = parse(body)?;
        let Some(name) = probe.security_profile else {
            return Err(match probe.executor_public_key {
                None => legacy(),
                Some(_) => ErrorDetail::new(
                    ErrorCode::InvalidRequest,
                    "the request has an executor_public_key but no security_profile",
                ),
            });
        };
        let security_profile = name.parse::<Profile>().map_err(|unknown| {
            let known = Profile::ALL.map(Profile::name).join(", ");
            ErrorDetail::new(
                ErrorCode::UnsupportedProfile,
                format!("{unknown}; this registry supports {known}"),
            )
        })?;
        let rest: Rest = parse(body)?;
        if rest.executor_public_key.for_suite(security_profile.suite()).is_none() {
            return Err(ErrorDetail::new(
                ErrorCode::InvalidRequest,
                format!("the executor_public_key's suite is not that of {security_profile}"),
            ));
        }
        Ok(Self {
            security_profile,
            executor_public_key: rest.executor_public_key,
            rendez: rest.rendez,
        })
    }

    /// The profiles that the executor offers and its key supports:
    /// `security_profile` first, then those of `rendez`.
    pub fn offered(&self) -> Vec<Profile> {
        let more = self.rendez.iter().flat_map(|rendez| &rendez.profiles).copied();
        let mut offered = Vec::new();
        for profile in std::iter::once(self.security_profile).chain(more) {
            let able = self.executor_public_key.for_suite(profile.suite()).is_some();
            if able && !offered.contains(&profile) {
                offered.push(profile);
            }
        }
        offered
    }
}

/// The executor has claimed the environment; its websocket is at `url`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RegisterReply {
    /// The environment of the request.
    pub environment_id: EnvironmentId,
    /// Where to open the executor's websocket, as often as needed while the
    /// registration is current.
    pub url: RendezvousUrl,
    /// The profile of the request.
    #[serde(with = "profile_name")]
    pub security_profile: Profile,
    /// Names the claim.
    pub executor_registration_id: RegistrationId,
    /// How the relay treats the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport_policy: Option<TransportPolicy>,
    /// The profiles that orchestrators may choose from; absent at a stock registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendez: Option<Profiles>,
}

/// How the relay treats sockets (docs/codex-wire.md#register).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportPolicy {
    /// 1.
    pub version: u32,
    /// Names the assignment to a relay; `"off"` disables what follows.
    pub assignment_epoch: String,
    /// The endpoint should set TCP_NODELAY.
    #[serde(default)]
    pub outbound_tcp_nodelay: bool,
    /// The relay has set TCP_NODELAY.
    #[serde(default)]
    pub rendezvous_accepted_tcp_nodelay: bool,
}

impl TransportPolicy {
    /// TCP_NODELAY at both ends, under `generation`'s number as epoch.
    pub fn nodelay(generation: Generation) -> Self {
        Self {
            version: 1,
            assignment_epoch: generation.to_string(),
            outbound_tcp_nodelay: true,
            rendezvous_accepted_tcp_nodelay: true,
        }
    }
}

// ---- /connect ------------------------------------------------------------

/// An orchestrator asks for one websocket and one handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// The orchestrator's static key.
    pub harness_public_key: PublicKey,
    /// Our addition: the profiles that it accepts, best first. Without it the
    /// Codex profile is the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendez: Option<Profiles>,
}

impl ConnectRequest {
    /// Parses a request body.
    ///
    /// # Errors
    /// The sender's: `invalid_request`.
    pub fn parse(body: &[u8]) -> Result<Self, ErrorDetail> {
        parse(body)
    }

    /// The first profile of the orchestrator's list that the executor offers
    /// and the orchestrator's key supports.
    pub fn choose(&self, offered: &[Profile]) -> Option<Profile> {
        let accepted = match &self.rendez {
            None => &[Profile::NoiseHybridIkV1],
            Some(rendez) => rendez.profiles.as_slice(),
        };
        accepted.iter().copied().find(|profile| {
            offered.contains(profile)
                && self.harness_public_key.for_suite(profile.suite()).is_some()
        })
    }
}

/// All that an orchestrator needs to reach the executor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConnectReply {
    /// The environment of the request.
    pub environment_id: EnvironmentId,
    /// Where to open one websocket, once, within
    /// [`ORCHESTRATOR_TICKET_TTL`](crate::limits::ORCHESTRATOR_TICKET_TTL).
    pub url: RendezvousUrl,
    /// The profile to speak.
    #[serde(with = "profile_name")]
    pub security_profile: Profile,
    /// The executor's current claim; part of the prologue.
    pub executor_registration_id: RegistrationId,
    /// The executor's key, in the form of the profile's suite.
    pub executor_public_key: PublicKey,
    /// For message 1 of the handshake: brings the executor's `/validate` to
    /// accept this orchestrator's key, once.
    pub harness_key_authorization: TicketText,
    /// How the relay treats the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport_policy: Option<TransportPolicy>,
    /// The profiles that the executor offers; absent at a stock registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendez: Option<Profiles>,
}

// ---- /validate -----------------------------------------------------------

/// An executor asks whether an orchestrator's key may complete its handshake.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ValidateRequest {
    /// The claim under which the stream was opened.
    pub executor_registration_id: RegistrationId,
    /// The key that the handshake proved, in the form of its suite.
    pub harness_public_key: PublicKey,
    /// The authorization that message 1 carried.
    pub harness_key_authorization: TicketText,
}

impl ValidateRequest {
    /// Parses a request body.
    ///
    /// # Errors
    /// The sender's: `invalid_request`.
    pub fn parse(body: &[u8]) -> Result<Self, ErrorDetail> {
        parse(body)
    }
}

/// The verdict. Anything but `true` is a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidateReply {
    /// Whether the handshake may complete.
    pub valid: bool,
}

// ---- helpers -------------------------------------------------------------

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ErrorDetail> {
    serde_json::from_slice(body).map_err(|error| {
        ErrorDetail::new(
            ErrorCode::InvalidRequest,
            format!("the request body is not valid: {error}"),
        )
    })
}

/// A profile as its name; an unknown one is an error.
mod profile_name {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::profile::Profile;

    pub(super) fn serialize<S: Serializer>(profile: &Profile, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(profile.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Profile, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Profiles as a list of names, of which unknown ones are left out.
mod profile_names {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::PROFILES_PER_REQUEST;
    use crate::profile::Profile;

    pub(super) fn serialize<S: Serializer>(list: &[Profile], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(list.iter().map(|profile| profile.name()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<Profile>, D::Error> {
        let names = Vec::<String>::deserialize(from)?;
        if names.len() > PROFILES_PER_REQUEST {
            return Err(serde::de::Error::invalid_length(names.len(), &"a list of few profiles"));
        }
        let mut known = Vec::new();
        for profile in names.iter().filter_map(|name| name.parse::<Profile>().ok()) {
            if !known.contains(&profile) {
                known.push(profile);
            }
        }
        Ok(known)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::error::{Absence, ErrorBody};

    fn key() -> PublicKey {
        PublicKey::hybrid([1; 32], Box::new([2; 1184]))
    }

    fn register(body: Value) -> Result<RegisterRequest, ErrorCode> {
        RegisterRequest::parse(body.to_string().as_bytes()).map_err(|error| error.code)
    }

    fn names(list: &[&str]) -> Value {
        json!({ "profiles": list })
    }

    #[test]
    fn stock_registration_offers_only_the_codex_profile() {
        let body = json!({"security_profile": "noise_hybrid_ik_v1", "executor_public_key": key()});
        let request = register(body.clone()).unwrap();
        assert_eq!(request.offered(), [Profile::NoiseHybridIkV1]);
        assert_eq!(serde_json::to_value(&request).unwrap(), body);
    }

    #[test]
    fn our_registration_offers_profiles_of_its_key() {
        let offered = |key: PublicKey, first: &str, more: &[&str]| {
            register(json!({
                "security_profile": first, "executor_public_key": key,
                "rendez": names(more), "something": "newer",
            }))
            .map(|request| request.offered())
        };
        let all = ["rendez_hybrid_ik_v1", "from_the_future", "rendez_ik_v1", "rendez_ik_v1"];
        assert_eq!(
            offered(key(), "noise_hybrid_ik_v1", &all).unwrap(),
            [Profile::NoiseHybridIkV1, Profile::RendezHybridIkV1, Profile::RendezIkV1]
        );
        let ik = PublicKey::x25519_only([1; 32]);
        assert_eq!(offered(ik.clone(), "rendez_ik_v1", &all).unwrap(), [Profile::RendezIkV1]);
        assert_eq!(offered(ik, "noise_hybrid_ik_v1", &[]), Err(ErrorCode::InvalidRequest));
    }

    #[test]
    fn invalid_registrations_have_distinct_codes() {
        use ErrorCode::*;
        for body in ["", " \n", "{}", r#"{"name":"box"}"#, r#"{"security_profile":null}"#] {
            let error = RegisterRequest::parse(body.as_bytes()).unwrap_err();
            assert_eq!(error.code, LegacyRegistration, "{body:?}");
        }
        for body in ["not json", "[]", "7", r#"{"security_profile":"#, "\u{fffd}"] {
            let error = RegisterRequest::parse(body.as_bytes()).unwrap_err();
            assert_eq!(error.code, InvalidRequest, "{body:?}");
        }
        let profile = "noise_hybrid_ik_v1";
        let mut short = serde_json::to_value(key()).unwrap();
        short["mlkem768_public_key"] = json!("AQ==");
        let many = vec!["x"; PROFILES_PER_REQUEST + 1];
        for (body, code) in [
            (json!({"security_profile": "direct_jsonrpc_v1"}), UnsupportedProfile),
            (json!({"executor_public_key": key()}), InvalidRequest),
            (json!({"security_profile": profile}), InvalidRequest),
            (json!({"security_profile": 7, "executor_public_key": key()}), InvalidRequest),
            (json!({"security_profile": profile, "executor_public_key": short}), InvalidRequest),
            (
                json!({"security_profile": profile, "executor_public_key": key(),
                       "rendez": names(&many)}),
                InvalidRequest,
            ),
        ] {
            assert_eq!(register(body.clone()), Err(code), "{body}");
        }
    }

    #[test]
    fn our_reply_extends_the_stock_reply() {
        let stock = json!({
            "environment_id": "env-abc",
            "url": "ws://127.0.0.1:18080/rv/env-abc?role=executor&reg=reg-1",
            "security_profile": "noise_hybrid_ik_v1",
            "executor_registration_id": "reg-1",
            "transport_policy": {
                "version": 1, "assignment_epoch": "5",
                "outbound_tcp_nodelay": true, "rendezvous_accepted_tcp_nodelay": true,
            },
        });
        let mut reply: RegisterReply = serde_json::from_value(stock.clone()).unwrap();
        assert_eq!(serde_json::to_value(&reply).unwrap(), stock);
        assert_eq!(reply.transport_policy, Some(TransportPolicy::nodelay(Generation(5))));
        assert!(!format!("{reply:?}").contains("18080"), "the URL is a secret");

        reply.rendez = Some(Profiles { profiles: vec![Profile::RendezIkV1] });
        let mut ours = stock;
        ours["rendez"] = names(&["rendez_ik_v1"]);
        assert_eq!(serde_json::to_value(&reply).unwrap(), ours);
    }

    #[test]
    fn stock_connect_is_parsed_and_answered() {
        let body = json!({"harness_public_key": key()});
        let request = ConnectRequest::parse(body.to_string().as_bytes()).unwrap();
        assert_eq!(serde_json::to_value(&request).unwrap(), body);

        let reply = json!({
            "environment_id": "env-abc",
            "url": "ws://127.0.0.1:18080/x",
            "security_profile": "noise_hybrid_ik_v1",
            "executor_registration_id": "reg-1",
            "executor_public_key": key(),
            "harness_key_authorization": "auth-1",
        });
        let parsed: ConnectReply = serde_json::from_value(reply.clone()).unwrap();
        assert_eq!(serde_json::to_value(&parsed).unwrap(), reply);
        assert!(!format!("{parsed:?}").contains("auth-1"));
    }

    #[test]
    fn orchestrator_order_and_key_choose_the_profile() {
        use Profile::*;
        let connect = |key: PublicKey, accepted: Option<&[&str]>| {
            let mut body = json!({ "harness_public_key": key });
            if let Some(accepted) = accepted {
                body["rendez"] = names(accepted);
            }
            ConnectRequest::parse(body.to_string().as_bytes()).unwrap()
        };
        let offered = [NoiseHybridIkV1, RendezHybridIkV1, RendezIkV1];
        let both: &[&str] = &["unknown", "rendez_ik_v1", "rendez_hybrid_ik_v1"];
        let ik = PublicKey::x25519_only([1; 32]);

        assert_eq!(connect(key(), None).choose(&offered), Some(NoiseHybridIkV1));
        assert_eq!(connect(key(), None).choose(&[RendezHybridIkV1]), None);
        assert_eq!(connect(key(), Some(both)).choose(&offered), Some(RendezIkV1));
        assert_eq!(connect(key(), Some(both)).choose(&offered[..2]), Some(RendezHybridIkV1));
        assert_eq!(connect(key(), Some(&[])).choose(&offered), None);
        // an X25519 key cannot do the hybrid suite
        assert_eq!(connect(ik.clone(), None).choose(&offered), None);
        assert_eq!(
            connect(ik, Some(&["rendez_hybrid_ik_v1", "rendez_ik_v1"])).choose(&offered),
            Some(RendezIkV1)
        );
    }

    #[test]
    fn validation_bodies_have_the_stock_shape() {
        let body = json!({
            "executor_registration_id": "reg-1",
            "harness_public_key": key(),
            "harness_key_authorization": "auth-1",
        });
        let request = ValidateRequest::parse(body.to_string().as_bytes()).unwrap();
        assert_eq!(serde_json::to_value(&request).unwrap(), body);
        assert_eq!(
            serde_json::to_string(&ValidateReply { valid: true }).unwrap(),
            r#"{"valid":true}"#
        );
    }

    #[test]
    fn errors_have_the_stock_shape_and_closed_codes() {
        let body = ErrorBody {
            error: ErrorDetail::new(ErrorCode::EnvironmentOffline, "not here"),
            rendez: Some(Absence::UNKNOWN),
        };
        let text = r#"{"error":{"code":"environment_offline","message":"not here"},"rendez":{"state":"unknown"}}"#;
        assert_eq!(serde_json::to_string(&body).unwrap(), text);
        assert_eq!(serde_json::from_str::<ErrorBody>(text).unwrap(), body);

        let foreign = r#"{"error":{"code":"brand_new","message":""}}"#;
        let foreign: ErrorBody = serde_json::from_str(foreign).unwrap();
        assert_eq!(foreign.error.code, ErrorCode::Other);
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from(code.as_str().to_owned()), *code);
        }
    }
}
