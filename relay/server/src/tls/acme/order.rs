//! One order, from the names to a certificate that is good for them.

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

use super::challenge::{Challenges, Pending};
use super::failure::{Failure, words};
use super::leaf::Leaf;

/// How long an ACME server may take to prove all names, and then to issue.
const POLL_TIMEOUT: Duration = Duration::from_secs(120);

/// How a server is asked whether it is done: after a quarter of a second, then
/// after twice as long each time, unless it says when.
const POLL: RetryPolicy = RetryPolicy::new().timeout(POLL_TIMEOUT);

/// Private key and chain of a new certificate, in PEM.
pub(super) async fn certificate(
    account: &Account,
    domains: &[String],
    challenges: &Challenges,
) -> Result<Zeroizing<String>, Failure> {
    let identifiers: Vec<_> = domains.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    // What was proved lately may stay proved for a while.
    if order.state().status != OrderStatus::Ready {
        let _shown = prove(&mut order, domains, challenges).await?;
        match order.poll_ready(&POLL).await {
            Ok(OrderStatus::Ready) => {}
            ended => return Err(unproven(&mut order, ended.err().map(Failure::from)).await),
        }
    }
    // A new key for each certificate.
    let mut params = CertificateParams::new(domains.to_vec())?;
    params.distinguished_name = DistinguishedName::new();
    let key = KeyPair::generate()?;
    order.finalize_csr(params.serialize_request(&key)?.der()).await?;
    let chain = order.poll_certificate(&POLL).await?;
    let key = Zeroizing::new(key.serialize_pem());
    check(&chain, &key, domains).map_err(Failure::Unusable)?;
    Ok(Zeroizing::new(format!("{}{chain}", *key)))
}

/// Shows what proves each name and asks the server to look.
async fn prove(
    order: &mut Order,
    domains: &[String],
    challenges: &Challenges,
) -> Result<Vec<Pending>, Failure> {
    let mut shown = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let domain = authorization.identifier().to_string();
        if !domains.contains(&domain) {
            return Err(Failure::Unusable(format!("a proof of {}", words(&domain))));
        }
        let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
        let no_way = || Failure::NoWayToProve { domain: domain.clone() };
        let mut challenge = challenge.ok_or_else(no_way)?;
        let digest = challenge.key_authorization().digest();
        let digest = digest.as_ref().try_into().map_err(|_| no_way())?;
        shown.push(challenges.show(&domain, digest)?);
        challenge.set_ready().await?;
    }
    Ok(shown)
}

/// The name that was not proved, by what the server says about each. If it says
/// nothing, what ended the wait.
async fn unproven(order: &mut Order, otherwise: Option<Failure>) -> Failure {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else { break };
        let domain = authorization.identifier().to_string();
        let Ok(state) = authorization.refresh().await else { break };
        if state.status != AuthorizationStatus::Invalid {
            continue;
        }
        let error = state.challenges.iter().find_map(|challenge| challenge.error.as_ref());
        let why = error.map_or_else(|| "nothing".to_owned(), words);
        return Failure::Unproven { domain, why };
    }
    otherwise.unwrap_or(Failure::Late)
}

/// Whether a chain begins with a certificate for this key and all names.
fn check(chain: &str, key: &str, domains: &[String]) -> Result<(), String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
    let chain = chain.map_err(|error| error.to_string())?;
    let leaf = chain.first().and_then(Leaf::of).ok_or("it is no certificate")?;
    if !leaf.is_for(domains) {
        return Err("it is not for all names that were asked for".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| error.to_string())?;
    let fits = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
    fits.map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_certificate_for_the_key_and_all_names_is_good() {
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
        assert!(check(&chain, &key, &["c.example"]).contains("not for all names"));
        assert!(!check(&chain, &KeyPair::generate().unwrap(), &["a.example"]).is_empty());
        assert!(check("", &key, &["a.example"]).contains("no certificate"));
    }
}
