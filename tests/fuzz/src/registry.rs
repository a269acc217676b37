//! The bodies of registry requests and replies: any bytes are accepted or
//! refused without a panic, and the agreed profile is one that both sides named
//! and support.

use rendez_proto::keys::PublicKey;
use rendez_proto::profile::Profile;
use rendez_proto::registry::{
    ConnectReply, ConnectRequest, RegisterReply, RegisterRequest, ValidateRequest,
};

/// Reads `data` as each of the bodies.
pub fn run(data: &[u8]) {
    if let Ok(request) = RegisterRequest::parse(data) {
        let offered = request.offered();
        assert!(offered.contains(&request.security_profile), "its own profile is not offered");
        for profile in &offered {
            able(&request.executor_public_key, *profile);
        }
        let bytes = serde_json::to_vec(&request).expect("it has string keys only");
        assert_eq!(RegisterRequest::parse(&bytes).ok(), Some(request));
    }
    if let Ok(request) = ConnectRequest::parse(data) {
        for profile in Profile::ALL {
            if let Some(chosen) = request.choose(&[profile]) {
                assert_eq!(chosen, profile, "a profile that the executor does not offer");
                able(&request.harness_public_key, chosen);
            }
        }
        let bytes = serde_json::to_vec(&request).expect("it has string keys only");
        assert_eq!(ConnectRequest::parse(&bytes).ok(), Some(request));
    }
    if let Ok(request) = ValidateRequest::parse(data) {
        let bytes = serde_json::to_vec(&request).expect("it has string keys only");
        let again = ValidateRequest::parse(&bytes).expect("our own words are understood");
        assert_eq!(again.harness_public_key, request.harness_public_key);
        let texts = [&again, &request].map(|of| of.harness_key_authorization.expose().to_owned());
        assert_eq!(texts[0], texts[1]);
    }
    let _ = serde_json::from_slice::<RegisterReply>(data);
    let _ = serde_json::from_slice::<ConnectReply>(data);
}

fn able(key: &PublicKey, profile: Profile) {
    assert!(key.for_suite(profile.suite()).is_some(), "{profile} with a key that cannot");
}
