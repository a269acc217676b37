//! The prologue: the facts that both ends must agree on. It is hashed before
//! any key is exchanged, so any difference breaks the handshake.
//!
//! ```text
//! prologue = (length as u64 big-endian, UTF-8 bytes) of each of
//!   Codex:  domain  environment  registration  stream
//!   ours:   domain  profile  environment  registration  stream  features
//! ```
//!
//! The Codex form is described in docs/codex-wire.md#noise-channel.

use rendez_proto::ids::{EnvironmentId, RegistrationId, StreamId};
use rendez_proto::profile::Profile;

const CODEX_DOMAIN: &str = "codex-exec-server-relay-noise/v1";
const OUR_DOMAIN: &str = "rendez-relay-noise/v1";
/// The features of the `rendez_` profiles beyond the Codex profile. An attacker
/// who strips a feature in transit changes this text on one side only.
const OUR_FEATURES: &str = "acks,control,credit,resume";

/// The bytes that a handshake hashes before its first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prologue(Vec<u8>);

impl Prologue {
    /// The prologue of one stream.
    pub fn new(
        profile: Profile,
        environment: &EnvironmentId,
        registration: &RegistrationId,
        stream: &StreamId,
    ) -> Self {
        let (environment, registration, stream) =
            (environment.as_str(), registration.as_str(), stream.as_str());
        if profile.is_reliable() {
            Self::encode(&[
                OUR_DOMAIN,
                profile.name(),
                environment,
                registration,
                stream,
                OUR_FEATURES,
            ])
        } else {
            Self::encode(&[CODEX_DOMAIN, environment, registration, stream])
        }
    }

    /// The encoded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn encode(parts: &[&str]) -> Self {
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| 8 + part.len()).sum());
        for part in parts {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        Self(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};

    fn prologue(profile: Profile) -> Prologue {
        Prologue::new(
            profile,
            &"env-abc".parse().unwrap(),
            &"reg-1".parse().unwrap(),
            &"00000000-0000-4000-8000-000000000001".parse().unwrap(),
        )
    }

    fn sha256(prologue: &Prologue) -> String {
        Sha256::digest(prologue.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The example in docs/codex-wire.md#noise-channel.
    #[test]
    fn codex_prologue_matches_frozen_bytes() {
        let prologue = prologue(Profile::NoiseHybridIkV1);
        assert_eq!(prologue.as_bytes().len(), 112);
        assert_eq!(
            sha256(&prologue),
            "2687c43c96c377ec805576043b09ec2c6e5d14bf620af9f9933c3234e7d0b1e9"
        );
    }

    #[test]
    fn rendez_prologue_matches_frozen_bytes() {
        let hybrid = prologue(Profile::RendezHybridIkV1);
        assert_eq!(
            sha256(&hybrid),
            "6d359eefe95eadc1cc6b4adc67c172f76d578794a0deb9275e25ce7e09e3699c"
        );
        assert_ne!(hybrid, prologue(Profile::RendezIkV1));
    }
}
