//! One order, from the names to a certificate that is valid for them.

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::challenge::{Challenges, PendingChallenge};
use super::leaf::Leaf;
use super::order_error::{OrderError, log_text};

/// How long an ACME server may take to verify all names, and then to issue.
const POLL_TIMEOUT: Duration = Duration::from_secs(120);

/// The polling of an order: after a quarter of a second, then with doubling pauses,
/// unless the server sets the pause.
const POLL: RetryPolicy = RetryPolicy::new().timeout(POLL_TIMEOUT);

/// Returns private key and chain of a new certificate, in PEM.
pub(super) async fn certificate(
    account: &Account,
    domains: &[String],
    challenges: &Challenges,
) -> Result<Zeroizing<String>, OrderError> {
    let identifiers: Vec<_> = domains.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    // A recent proof may still be valid.
    if order.state().status != OrderStatus::Ready {
        let _pending = prove(&mut order, domains, challenges).await?;
        match order.poll_ready(&POLL).await {
            Ok(OrderStatus::Ready) => {}
            ended => return Err(unproven(&mut order, ended.err().map(OrderError::from)).await),
        }
    }
    // Each certificate has a new key.
    let mut params = CertificateParams::new(domains.to_vec())?;
    params.distinguished_name = DistinguishedName::new();
    let key = KeyPair::generate()?;
    order.finalize_csr(params.serialize_request(&key)?.der()).await?;
    let chain = order.poll_certificate(&POLL).await?;
    let key = Zeroizing::new(key.serialize_pem());
    check(&chain, &key, domains).map_err(OrderError::Unusable)?;
    Ok(Zeroizing::new(format!("{}{chain}", *key)))
}

/// Serves the proof of each name and asks the server to verify it.
async fn prove(
    order: &mut Order,
    domains: &[String],
    challenges: &Challenges,
) -> Result<Vec<PendingChallenge>, OrderError> {
    let mut pending = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let domain = authorization.identifier().to_string();
        if !domains.contains(&domain) {
            return Err(OrderError::Unusable(format!("a challenge for {}", log_text(&domain))));
        }
        let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
        let unsupported = || OrderError::NoSupportedChallenge { domain: domain.clone() };
        let mut challenge = challenge.ok_or_else(unsupported)?;
        let digest = challenge.key_authorization().digest();
        let digest = digest.as_ref().try_into().map_err(|_| unsupported())?;
        pending.push(challenges.serve(&domain, digest)?);
        challenge.set_ready().await?;
    }
    Ok(pending)
}

/// The name that was not verified, by the server's state of each. If no state is
/// invalid, the error that ended the wait.
async fn unproven(order: &mut Order, otherwise: Option<OrderError>) -> OrderError {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else { break };
        let domain = authorization.identifier().to_string();
        let Ok(state) = authorization.refresh().await else { break };
        if state.status != AuthorizationStatus::Invalid {
            continue;
        }
        let error = state.challenges.iter().find_map(|challenge| challenge.error.as_ref());
        let why = error.map_or_else(|| "no reason".to_owned(), log_text);
        return OrderError::Unproven { domain, why };
    }
    otherwise.unwrap_or(OrderError::Timeout)
}

/// Checks that a chain begins with a certificate for this key and all names.
fn check(chain: &str, key: &str, domains: &[String]) -> Result<(), String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
    let chain = chain.map_err(|error| error.to_string())?;
    let leaf = chain.first().and_then(Leaf::parse).ok_or("it is not a certificate")?;
    if !leaf.covers(domains) {
        return Err("it lacks a name that was requested".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| error.to_string())?;
    let fits = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
    fits.map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_must_fit_key_and_all_names() {
        let names = |names: &[&str]| -> Vec<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names(&["a.example", "b.example"])).unwrap();
        let chain = params.self_signed(&key).unwrap().pem();
        let check = |chain: &str, key: &KeyPair, asked: &[&str]| {
            check(chain, &key.serialize_pem(), &names(asked)).err().unwrap_or_default()
        };
        assert_eq!(check(&chain, &key, &["a.example", "b.example"]), "");
        assert!(check(&chain, &key, &["c.example"]).contains("lacks a name"));
        assert!(!check(&chain, &KeyPair::generate().unwrap(), &["a.example"]).is_empty());
        assert!(check("", &key, &["a.example"]).contains("not a certificate"));
    }
}
