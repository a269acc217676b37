//! Proofs that a call is made with the key that an executor has enrolled.

use std::time::{SystemTime, UNIX_EPOCH};

use ed25519_dalek::SigningKey;
use rendez_proto::ids::EnvironmentId;
use rendez_proto::proof::{self, Call, NONCE_BYTES, Proof};

/// Signs a proof for one request with this body.
///
/// # Errors
/// The operating system provides no random numbers.
pub(crate) fn prove(
    key: &SigningKey,
    environment: &EnvironmentId,
    call: Call,
    body: &[u8],
) -> Result<String, getrandom::Error> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let proof = Proof {
        call,
        environment: environment.clone(),
        key: key.verifying_key().to_bytes(),
        time: now.map_or(0, |now| now.as_secs()),
        nonce,
        body: proof::body_hash(body),
    };
    Ok(proof.sign(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_proof_has_a_new_nonce() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let environment = "dev".parse().unwrap();
        let new = || prove(&key, &environment, Call::Register, b"{}").unwrap();
        let [one, two] = [new(), new()].map(|text| Proof::verify(&text).unwrap());
        assert_ne!(one.nonce, two.nonce);
        assert_eq!(one.key, key.verifying_key().to_bytes());
        assert_eq!((one.environment.as_str(), one.body), ("dev", proof::body_hash(b"{}")));
    }
}
