//! The URL under which clients reach this relay: the base of the websocket URLs in
//! replies.

use rendez_proto::registry::RendezvousUrl;
use rendez_proto::ticket::TicketText;
use std::fmt;
use std::str::FromStr;
use url::Url;

/// The longest Host header in bytes: a DNS name has 253, a port adds six.
pub(crate) const HOST_MAX_BYTES: usize = 260;

/// The path of the rendezvous websocket below the base. The ticket is the query
/// parameter `ticket`.
pub const RENDEZVOUS_PATH: &str = "/v1/rendezvous";

/// The source of the public URL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PublicUrl {
    /// The Host header of the request, without TLS: right for a relay that is
    /// reached directly, wrong behind a proxy that terminates TLS.
    #[default]
    FromHost,
    /// The Host header, with TLS: right for a relay that terminates TLS itself.
    FromHostByTls,
    /// A configured base.
    Fixed(WebsocketBase),
}

/// A `ws://` or `wss://` URL without a trailing slash, query or fragment.
#[derive(Clone, PartialEq, Eq)]
pub struct WebsocketBase(Box<str>);

/// Why a public URL was refused. The operator, or the client with its Host
/// header, is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPublicUrl {
    /// Not a URL.
    #[error("the public URL is not a URL: {0}")]
    Syntax(#[from] url::ParseError),
    /// It has another scheme.
    #[error("the public URL must start with http://, https://, ws:// or wss://")]
    Scheme,
    /// It has parts that a base cannot have.
    #[error("the public URL must have no user, query or fragment")]
    Parts,
    /// The request has no usable Host header, and no URL is configured.
    #[error("the request has no usable Host header, and the relay has no public URL configured")]
    Host,
}

impl FromStr for PublicUrl {
    type Err = InvalidPublicUrl;
    fn from_str(text: &str) -> Result<Self, InvalidPublicUrl> {
        let url = Url::parse(text)?;
        let scheme = match url.scheme() {
            "http" | "ws" => "ws",
            "https" | "wss" => "wss",
            _ => return Err(InvalidPublicUrl::Scheme),
        };
        let user = !url.username().is_empty() || url.password().is_some();
        if user || url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidPublicUrl::Parts);
        }
        let (_, rest) = url.as_str().split_once(':').ok_or(InvalidPublicUrl::Scheme)?;
        let base = format!("{scheme}:{}", rest.trim_end_matches('/'));
        Ok(Self::Fixed(WebsocketBase(base.into())))
    }
}

impl PublicUrl {
    /// Returns the base for a request with this Host header.
    ///
    /// # Errors
    /// [`InvalidPublicUrl::Host`] if the header is needed and not usable.
    pub fn base(&self, host: Option<&str>) -> Result<WebsocketBase, InvalidPublicUrl> {
        match self {
            PublicUrl::Fixed(base) => Ok(base.clone()),
            PublicUrl::FromHost | PublicUrl::FromHostByTls => {
                let scheme = if *self == PublicUrl::FromHost { "ws" } else { "wss" };
                let plain = |b: u8| {
                    b.is_ascii_alphanumeric()
                        || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']')
                };
                host.filter(|host| host.len() <= HOST_MAX_BYTES && host.bytes().all(plain))
                    .and_then(|host| Url::parse(&format!("{scheme}://{host}")).ok())
                    .map(|url| WebsocketBase(url.as_str().trim_end_matches('/').into()))
                    .ok_or(InvalidPublicUrl::Host)
            }
        }
    }
}

impl WebsocketBase {
    /// Returns the URL that `ticket` opens.
    pub fn rendezvous(&self, ticket: &TicketText) -> RendezvousUrl {
        format!("{}{RENDEZVOUS_PATH}?ticket={}", self.0, ticket.expose()).into()
    }
}

impl fmt::Display for WebsocketBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WebsocketBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebsocketBase({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(text: &str) -> Result<String, InvalidPublicUrl> {
        text.parse::<PublicUrl>()?.base(None).map(|base| base.to_string())
    }

    #[test]
    fn configured_url_becomes_websocket_base() {
        for (text, base) in [
            ("http://127.0.0.1:7000", "ws://127.0.0.1:7000"),
            ("https://relay.example.com/", "wss://relay.example.com"),
            ("https://relay.example.com:8443/a/b/", "wss://relay.example.com:8443/a/b"),
            ("wss://relay.example.com", "wss://relay.example.com"),
            ("ws://[::1]:7000", "ws://[::1]:7000"),
        ] {
            assert_eq!(fixed(text).unwrap(), base);
        }
        for bad in
            ["relay.example.com", "ftp://x", "https://u:p@x", "https://x/?a", "https://x/#a", ""]
        {
            assert!(fixed(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn host_header_decides_without_configured_url() {
        let base = |host| PublicUrl::FromHost.base(host).map(|base| base.to_string());
        assert_eq!(base(Some("127.0.0.1:7000")).unwrap(), "ws://127.0.0.1:7000");
        assert_eq!(base(Some("[::1]:7000")).unwrap(), "ws://[::1]:7000");
        assert_eq!(base(Some("relay.example.com")).unwrap(), "ws://relay.example.com");
        let secure = PublicUrl::FromHostByTls.base(Some("relay.example.com:8443")).unwrap();
        assert_eq!(secure.to_string(), "wss://relay.example.com:8443");
        let long = "a".repeat(HOST_MAX_BYTES + 1);
        for bad in [
            None,
            Some(""),
            Some("a/b"),
            Some("a@b"),
            Some("a?b"),
            Some(":80"),
            Some("a:b"),
            Some(long.as_str()),
        ] {
            assert_eq!(base(bad), Err(InvalidPublicUrl::Host), "{bad:?}");
        }
    }
}
