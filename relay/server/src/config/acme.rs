//! Values of the settings for certificates by ACME.
//!
//! Names that TLS-ALPN-01 (RFC 8737) cannot prove, such as wildcards, are refused
//! when the settings are read.

use std::net::IpAddr;

use rendez_program::settings::Value;
use reqwest::Url;
use rustls::pki_types::DnsName;

/// Names of one certificate, and so proofs that are pending at once. Public
/// authorities take no more (Let's Encrypt: 100).
const ACME_DOMAINS_MAX: usize = 100;
/// Addresses of an account's contacts.
const ACME_CONTACTS_MAX: usize = 10;

/// Names of a certificate: lower case, without a dot at the end, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Domains(Vec<String>);

/// E-mail addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contacts(Vec<String>);

/// The URL of an ACME server's directory; `https://`, because RFC 8555, section
/// 6.1 has nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory(String);

impl Domains {
    /// The names.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

impl Contacts {
    /// As `mailto:` URLs.
    pub fn urls(&self) -> Vec<String> {
        self.0.iter().map(|address| format!("mailto:{address}")).collect()
    }
}

impl Directory {
    /// The URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Directory {
    /// The directory of Let's Encrypt, which common trust stores contain.
    fn default() -> Self {
        Self("https://acme-v02.api.letsencrypt.org/directory".to_owned())
    }
}

impl Value for Domains {
    fn parse(text: &str) -> Result<Self, String> {
        let mut names = Vec::new();
        for word in text.split_whitespace() {
            let name = domain(word)?;
            if names.contains(&name) {
                return Err(format!("{name} is listed twice"));
            }
            names.push(name);
        }
        if names.len() > ACME_DOMAINS_MAX {
            return Err(format!("a certificate has at most {} names", ACME_DOMAINS_MAX));
        }
        Ok(Self(names))
    }

    fn text(&self) -> String {
        self.0.join(" ")
    }
}

fn domain(word: &str) -> Result<String, String> {
    if word.contains('*') {
        return Err(format!(
            "{word:?} is a wildcard, which can be proved by DNS only; a relay proves its names \
             by TLS (TLS-ALPN-01), so list them one by one, or take tls.cert"
        ));
    }
    if word.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return Err(format!("{word:?} is an address; certificates by ACME are for names here"));
    }
    let name = word.trim_end_matches('.').to_ascii_lowercase();
    match DnsName::try_from(name.as_str()) {
        Ok(_) => Ok(name),
        Err(_) => Err(format!("{word:?} is no domain name; other letters are written as xn--...")),
    }
}

impl Value for Contacts {
    fn parse(text: &str) -> Result<Self, String> {
        let addresses: Vec<_> =
            text.split_whitespace().map(address).collect::<Result<_, String>>()?;
        if addresses.len() > ACME_CONTACTS_MAX {
            return Err(format!("at most {} contact addresses are allowed", ACME_CONTACTS_MAX));
        }
        Ok(Self(addresses))
    }

    fn text(&self) -> String {
        self.0.join(" ")
    }
}

/// RFC 8555, section 7.3: one address per URL, and no header fields.
fn address(word: &str) -> Result<String, String> {
    let address = word.strip_prefix("mailto:").unwrap_or(word);
    match address.split_once('@') {
        Some((user, host))
            if !user.is_empty()
                && !address.contains(['?', ','])
                && address.is_ascii()
                && DnsName::try_from(host).is_ok() =>
        {
            Ok(address.to_owned())
        }
        _ => Err(format!("{word:?} is no e-mail address")),
    }
}

impl Value for Directory {
    fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| format!("{text:?}: {error}"))?;
        let user = !url.username().is_empty() || url.password().is_some();
        if url.scheme() != "https" || user || url.fragment().is_some() {
            return Err(format!("{text:?}: expected an https:// URL without a user"));
        }
        Ok(Self(text.to_owned()))
    }

    fn text(&self) -> String {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_in_one_way() {
        let domains = Domains::parse("Relay.Example.com.  b.example").unwrap();
        assert_eq!(domains.names(), ["relay.example.com", "b.example"]);
        assert_eq!(Domains::parse(&domains.text()).unwrap(), domains);
        assert!(Domains::parse("").unwrap().names().is_empty());
    }

    #[test]
    fn unprovable_names_are_refused_with_reasons() {
        for (text, expected) in [
            ("*.example.com", "by DNS only"),
            ("a.example *.a.example", "by DNS only"),
            ("192.0.2.1", "is an address"),
            ("2001:db8::1", "is an address"),
            ("[2001:db8::1]", "is an address"),
            ("a.example A.example", "twice"),
            ("bücher.example", "xn--"),
            ("a..example", "no domain name"),
            ("https://a.example", "no domain name"),
        ] {
            let said = Domains::parse(text).unwrap_err();
            assert!(said.contains(expected), "{text}: {said}");
        }
        let names = |n: usize| (0..n).map(|i| format!("a{i}.example ")).collect::<String>();
        assert!(Domains::parse(&names(ACME_DOMAINS_MAX)).is_ok());
        assert!(Domains::parse(&names(ACME_DOMAINS_MAX + 1)).is_err());
    }

    #[test]
    fn contacts_are_addresses() {
        let contacts = Contacts::parse("mailto:a@example.com b@example.com").unwrap();
        assert_eq!(contacts.urls(), ["mailto:a@example.com", "mailto:b@example.com"]);
        assert_eq!(Contacts::parse(&contacts.text()).unwrap(), contacts);
        for text in ["a", "@a", "a@", "a@b?subject=x", "a@b,c@d", "ä@example.com"] {
            assert!(Contacts::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_directory_is_reached_by_https() {
        let default = Directory::default();
        assert_eq!(Directory::parse(&default.text()).unwrap(), default);
        for text in ["", "http://a.example/d", "https://u:p@a.example/d", "a.example"] {
            assert!(Directory::parse(text).is_err(), "{text}");
        }
    }
}
