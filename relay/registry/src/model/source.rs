//! The networks from which a token may be used.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use rendez_proto::limits;

/// A list of networks. An empty list permits every source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceCidrs(Vec<IpNet>);

/// The texts are not a list of networks. Their author is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSource {
    /// One of them is not a network.
    #[error("{0:?} is not a network such as 10.0.0.0/8, 2001:db8::/32 or 192.0.2.7")]
    Network(String),
    /// The list is too long.
    #[error("a token can be bound to at most {} networks", limits::TOKEN_CIDRS_MAX)]
    TooMany,
}

/// Parses a network, or an address as a network of one. IPv4 in the notation of
/// IPv6 (`::ffff:10.0.0.0/104`) becomes IPv4, as sources do.
///
/// # Errors
/// [`InvalidSource::Network`]
pub fn network(text: &str) -> Result<IpNet, InvalidSource> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    // the address may have bits beyond the prefix
    net.map(|net| canonical(net.trunc())).map_err(|_| InvalidSource::Network(text.to_owned()))
}

/// Converts a network of IPv4-mapped addresses to IPv4.
fn canonical(net: IpNet) -> IpNet {
    let IpNet::V6(six) = net else { return net };
    let (address, prefix) = (six.network().to_ipv4_mapped(), six.prefix_len().checked_sub(96));
    let four = address.zip(prefix).and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok());
    four.map_or(net, IpNet::V4)
}

impl SourceCidrs {
    /// Parses a list of networks.
    ///
    /// # Errors
    /// See [`InvalidSource`].
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, InvalidSource> {
        if texts.len() > limits::TOKEN_CIDRS_MAX {
            return Err(InvalidSource::TooMany);
        }
        texts.iter().map(|text| network(text.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a client at `source` may use the token. An unknown source is
    /// permitted only if the list is empty.
    pub fn permit(&self, source: Option<IpAddr>) -> bool {
        self.0.is_empty()
            || source.is_some_and(|source| {
                let source = source.to_canonical();
                self.0.iter().any(|net| net.contains(&source))
            })
    }

    /// Returns the networks.
    pub fn networks(&self) -> &[IpNet] {
        &self.0
    }

    /// Returns the networks as texts.
    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(IpNet::to_string).collect()
    }
}

impl fmt::Display for SourceCidrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts().join(" "))
    }
}

impl FromStr for SourceCidrs {
    type Err = InvalidSource;
    fn from_str(text: &str) -> Result<Self, InvalidSource> {
        Self::parse(&text.split_ascii_whitespace().collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_match_their_networks() {
        let cidrs = SourceCidrs::parse(&["10.1.2.3/8", "192.0.2.7", "2001:db8::/32"]).unwrap();
        assert_eq!(cidrs.to_string(), "10.0.0.0/8 192.0.2.7/32 2001:db8::/32");
        assert_eq!(cidrs.to_string().parse(), Ok(cidrs.clone()));
        for (source, inside) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("2001:db8:1::1", true),
            ("2001:db9::1", false),
            // an IPv4 peer as a dual-stack socket names it
            ("::ffff:10.0.0.1", true),
            ("::ffff:11.0.0.1", false),
        ] {
            assert_eq!(cidrs.permit(Some(source.parse().unwrap())), inside, "{source}");
        }
        assert!(!cidrs.permit(None), "its source is unknown");
        assert!(SourceCidrs::default().permit(None));
    }

    #[test]
    fn ipv4_mapped_networks_become_ipv4() {
        for (text, net) in [
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            // not only IPv4
            ("::/0", "::/0"),
            ("::ffff:0:0/95", "::fffe:0:0/95"),
            ("::10.0.0.1/128", "::a00:1/128"),
        ] {
            assert_eq!(network(text).unwrap().to_string(), net, "{text}");
        }
        let cidrs = SourceCidrs::parse(&["::ffff:10.0.0.0/104"]).unwrap();
        for source in ["10.1.1.1", "::ffff:10.1.1.1"] {
            assert!(cidrs.permit(Some(source.parse().unwrap())), "{source}");
        }
        assert!(!cidrs.permit(Some("11.0.0.1".parse().unwrap())));
    }

    #[test]
    fn invalid_networks_are_refused() {
        for bad in ["", "10.0.0.0/33", "example.com", "10.0.0.0/8,11.0.0.0/8"] {
            assert!(SourceCidrs::parse(&[bad]).is_err(), "{bad:?}");
        }
        let many = vec!["10.0.0.0/8"; limits::TOKEN_CIDRS_MAX + 1];
        assert_eq!(SourceCidrs::parse(&many), Err(InvalidSource::TooMany));
    }
}
