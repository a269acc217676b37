//! The source address of a request.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::HeaderMap;
use ipnet::IpNet;

use crate::registry::Registry;

/// The longest `X-Forwarded-For` that is parsed, in bytes: a dozen proxies.
pub(crate) const FORWARDED_MAX_BYTES: usize = 1024;

/// The TCP peer of a request. The server that accepts connections puts it into the
/// request's extensions. Without it, tokens that are bound to networks are
/// refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddr(pub IpAddr);

/// Is told when a request has shown a valid token or proof. The server that accepts
/// connections puts it into the request's extensions.
#[derive(Clone)]
pub struct OnCredential(pub Arc<dyn Fn() + Send + Sync>);

const FORWARDED_FOR: &str = "x-forwarded-for";

impl Registry {
    /// Returns the source of a request: the TCP peer or, if that is a trusted
    /// proxy, the last address in `X-Forwarded-For` that is not a trusted proxy.
    pub fn source(&self, peer: Option<PeerAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        source(self.trusted_proxies(), peer?.0, headers)
    }
}

/// Returns `None` if a trusted proxy sends no valid `X-Forwarded-For`.
fn source(trusted: &[IpNet], peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
    let peer = peer.to_canonical();
    if !is_trusted(&peer) {
        return Some(peer);
    }
    let mut nearest = None;
    let lines: Vec<_> = headers.get_all(FORWARDED_FOR).into_iter().collect();
    if lines.iter().map(|line| line.len()).sum::<usize>() > FORWARDED_MAX_BYTES {
        return None;
    }
    // each proxy appends its own peer, so addresses before the first untrusted one
    // may be forged
    for line in lines.into_iter().rev() {
        for entry in line.to_str().ok()?.rsplit(',') {
            let address = entry.trim().parse::<IpAddr>().ok()?.to_canonical();
            nearest = Some(address);
            if !is_trusted(&address) {
                return nearest;
            }
        }
    }
    nearest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(trusted: &[&str], peer: &str, forwarded: &[&str]) -> Option<String> {
        let trusted: Vec<IpNet> = trusted.iter().map(|net| net.parse().unwrap()).collect();
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(FORWARDED_FOR, line.parse().unwrap());
        }
        source(&trusted, peer.parse().unwrap(), &headers).map(|source| source.to_string())
    }

    #[test]
    fn only_trusted_proxies_set_the_source() {
        let found = |trusted: &[&str], peer: &str, forwarded: &[&str]| {
            found(trusted, peer, forwarded).unwrap_or_else(|| "unknown".to_owned())
        };
        let proxies = ["10.0.0.0/8", "::1/128"];
        for (peer, forwarded, source) in [
            ("192.0.2.1", &["198.51.100.9"][..], "192.0.2.1"),
            ("10.0.0.1", &["198.51.100.9"], "198.51.100.9"),
            ("::ffff:10.0.0.1", &["198.51.100.9"], "198.51.100.9"),
            ("::1", &["::ffff:198.51.100.9"], "198.51.100.9"),
            // forged by the client, followed by the entries of the proxies
            ("10.0.0.1", &["203.0.113.5, 198.51.100.9, 10.0.0.2"], "198.51.100.9"),
            ("10.0.0.1", &["203.0.113.5", "198.51.100.9,10.0.0.2"], "198.51.100.9"),
            // the request comes from another proxy
            ("10.0.0.1", &["10.0.0.7"], "10.0.0.7"),
            // without an entry, the client behind the proxy is unknown
            ("10.0.0.1", &[], "unknown"),
            ("10.0.0.1", &["unknown"], "unknown"),
            ("10.0.0.1", &["198.51.100.9:4711"], "unknown"),
            ("10.0.0.1", &["198.51.100.9, nonsense"], "unknown"),
        ] {
            assert_eq!(found(&proxies, peer, forwarded), source, "{peer} {forwarded:?}");
        }
        assert_eq!(found(&[], "10.0.0.1", &["198.51.100.9"]), "10.0.0.1", "none by default");
        let long = "198.51.100.9,".repeat(FORWARDED_MAX_BYTES);
        assert_eq!(found(&proxies, "10.0.0.1", &[&long]), "unknown");
    }
}
