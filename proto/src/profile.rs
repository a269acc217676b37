//! Security profiles: a Noise suite together with a stream layer.
//!
//! A registration names one (stock) or several (ours). There is no negotiation
//! on the frame's wire beyond the profile's name, and the prologue binds that
//! name and the features, so stripping one breaks the handshake.

use std::fmt;
use std::str::FromStr;

/// The agreement of two endpoints before the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Profile {
    /// The Codex profile: hybrid IK, sequence from 0, no acks, no resume.
    NoiseHybridIkV1,
    /// Ours over the same suite: acks, retransmission, credit, resume,
    /// authenticated control. The default between our own endpoints.
    RendezHybridIkV1,
    /// Ours over `Noise_IK_25519_AESGCM_SHA256`, for constrained or
    /// policy-bound peers; off unless both ends allow it.
    RendezIkV1,
}

/// The Noise pattern and primitives of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suite {
    /// X25519 and ML-KEM-768 together, AES-256-GCM, SHA-256.
    HybridIk,
    /// X25519, AES-256-GCM, SHA-256.
    Ik,
}

impl Profile {
    /// All profiles, in the order in which our endpoints prefer them.
    pub const ALL: [Profile; 3] =
        [Profile::RendezHybridIkV1, Profile::RendezIkV1, Profile::NoiseHybridIkV1];

    /// The name in the registry's `security_profile` fields.
    pub fn name(self) -> &'static str {
        match self {
            Profile::NoiseHybridIkV1 => "noise_hybrid_ik_v1",
            Profile::RendezHybridIkV1 => "rendez_hybrid_ik_v1",
            Profile::RendezIkV1 => "rendez_ik_v1",
        }
    }

    /// The profile's Noise suite.
    pub fn suite(self) -> Suite {
        match self {
            Profile::NoiseHybridIkV1 | Profile::RendezHybridIkV1 => Suite::HybridIk,
            Profile::RendezIkV1 => Suite::Ik,
        }
    }

    /// Whether records are acknowledged and resent, and control is
    /// authenticated (the `rendez_` profiles).
    pub fn is_reliable(self) -> bool {
        !matches!(self, Profile::NoiseHybridIkV1)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No profile has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown security profile {0:?}")]
pub struct UnknownProfile(pub String);

impl FromStr for Profile {
    type Err = UnknownProfile;
    fn from_str(name: &str) -> Result<Self, UnknownProfile> {
        Profile::ALL
            .into_iter()
            .find(|profile| profile.name() == name)
            .ok_or_else(|| UnknownProfile(name.chars().take(64).collect()))
    }
}
