//! Issues certificates for the key and the names in a request, and for nothing else.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::{
    CertificateParams, DistinguishedName, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use rendez_tests::tls::Authority;
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509CertificationRequest};

/// The age of a certificate when it is issued, and its remaining lifetime.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validity {
    pub(crate) elapsed: Duration,
    pub(crate) remaining: Duration,
}

/// Issues a chain for a request (PKCS #10). The request must be signed by its key
/// and be for exactly these names.
pub(crate) fn issue(
    authority: &Authority,
    request: &[u8],
    names: &[String],
    validity: Validity,
) -> Result<String> {
    let (_, request) = X509CertificationRequest::from_der(request)?;
    let info = &request.certification_request_info;
    let key = Key(info.subject_pki.subject_public_key.data.to_vec());
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &key.0)
        .verify(info.raw, &request.signature_value.data)
        .ok()
        .context("the request is not signed by its key")?;
    let mut asked: Vec<_> = request.requested_extensions().context("no extensions")?.collect();
    let Some(ParsedExtension::SubjectAlternativeName(asked)) = asked.pop() else {
        anyhow::bail!("the request must ask for names only");
    };
    let asked: Vec<_> = asked.general_names.iter().map(dns).collect::<Result<_>>()?;
    ensure!(asked == names, "the request is for {asked:?}, the order for {names:?}");

    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    let now = SystemTime::now();
    params.not_before = now.checked_sub(validity.elapsed).context("a clock after 1970")?.into();
    params.not_after = now.checked_add(validity.remaining).context("a clock before 9999")?.into();
    let issuer = authority.issuer();
    Ok(params.signed_by(&key, issuer)?.pem() + &issuer.pem())
}

fn dns(name: &GeneralName<'_>) -> Result<String> {
    match name {
        GeneralName::DNSName(name) => Ok((*name).to_owned()),
        other => anyhow::bail!("{other:?} is not a DNS name"),
    }
}

/// The key in a request: a point on P-256.
struct Key(Vec<u8>);

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}
