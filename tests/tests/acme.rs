//! Certificates that the relay obtains by ACME: a server that validates every
//! challenge, and clients that trust only its authority.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rendez_tests::process::run;
use rendez_tests::rendez::{OurRelay, TIMEOUT, rendez};
use rendez_tests::tls::{connect, livez};
use rustix::process::Signal;
use rustls::ProtocolVersion;
use rustls::pki_types::ServerName;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

#[path = "acme/challenge.rs"]
mod challenge;
#[path = "acme/issuance.rs"]
mod issuance;
#[path = "acme/jws.rs"]
mod jws;
#[path = "acme/server.rs"]
mod server;

use challenge::ALPN;
use issuance::Validity;
use server::{Refusal, Server};

const DOMAIN: &str = "relay.test";
const OTHER_DOMAIN: &str = "other.relay.test";
const CONTACT: &str = "ops@relay.test";
const HTTP: &[u8] = b"http/1.1";

/// `rendez relay` on a free port, with a certificate from an ACME server.
struct Relay(OurRelay);

impl Relay {
    /// Starts it. The server resolves every name to it from then on.
    async fn start(server: &Server, state: &Path) -> Result<Self> {
        Self::start_for(server, state, DOMAIN).await
    }

    async fn start_for(server: &Server, state: &Path, domains: &str) -> Result<Self> {
        let root = server.authority().path("ca.pem");
        let directory = server.directory();
        let flags = ["--admin-listen", "127.0.0.1:0", "--acme-domains", domains]
            .into_iter()
            .chain(["--acme-terms-agreed", "true", "--acme-contact", CONTACT])
            .chain(["--acme-retry", "50ms", "--acme-directory", &directory])
            // a new certificate is used without polling the files
            .chain(["--tls-reload-every", "1h", "--acme-root"])
            .map(OsStr::new)
            .chain([root.as_os_str()]);
        let relay = OurRelay::start_in(state, flags).await?;
        server.resolve_names_to(relay.address());
        Ok(Self(relay))
    }

    /// A connection of a client that trusts the server's authority.
    async fn dial(&self, server: &Server) -> Result<TlsStream<TcpStream>> {
        let mut config = server.authority().client_config(None)?;
        config.alpn_protocols = vec![HTTP.to_vec()];
        connect(config, self.0.address(), ServerName::try_from(DOMAIN)?).await
    }

    async fn stop(mut self) -> Result<()> {
        self.0.stop(Signal::TERM).await.map(drop)
    }
}

fn certificate(stream: &TlsStream<TcpStream>) -> Result<Vec<u8>> {
    let chain = stream.get_ref().1.peer_certificates().context("it showed one")?;
    Ok(chain[0].to_vec())
}

/// All files below a directory, with their permissions.
fn files(folder: &Path) -> Result<Vec<(PathBuf, u32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let (path, metadata) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
        match metadata.is_dir() {
            true => found.extend(files(&path)?),
            false => found.push((path, metadata.permissions().mode() & 0o777)),
        }
    }
    Ok(found)
}

#[tokio::test]
async fn certificate_is_obtained_and_survives_restart() -> Result<()> {
    let (server, state) = (Server::start().await?, tempfile::tempdir()?);
    let relay = Relay::start_for(&server, state.path(), "relay.test Other.Relay.test.").await?;
    relay.0.logs("there is no certificate yet").await?;
    server.ready(2).await?;
    assert!(relay.dial(&server).await.is_err(), "there is no certificate yet");
    relay.0.metric("rendez_tls_handshakes_total{result=\"no_certificate\"} 1").await?;

    server.allow_validations(2);
    relay.0.metric("rendez_tls_reloads_total{result=\"ok\"} 1").await?;
    relay.0.metric("rendez_acme_orders_total{result=\"ok\"} 1").await?;
    let mut stream = relay.dial(&server).await?;
    livez(&mut stream).await?;
    assert_eq!(stream.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let first = certificate(&stream)?;
    assert_eq!(server.made(), (1, 1));
    assert_eq!(server.contacts(), [json!([format!("mailto:{CONTACT}")])]);
    let kept = files(&state.path().join("acme"))?;
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert!(kept.iter().all(|(_, mode)| *mode == 0o600), "{kept:?}");
    relay.0.metric("rendez_tls_handshakes_total{result=\"proof\"} 2").await?;
    relay.stop().await?;

    let again = Relay::start_for(&server, state.path(), "relay.test other.relay.test").await?;
    let mut stream = again.dial(&server).await?;
    livez(&mut stream).await?;
    assert_eq!(certificate(&stream)?, first);
    let next = "rendez_acme_next_order_seconds ";
    let metrics = again.0.metrics().await?;
    let next = metrics.lines().find_map(|line| line.strip_prefix(next)?.parse::<i64>().ok());
    let not_after = "rendez_tls_certificate_not_after_seconds ";
    let ends = metrics.lines().find_map(|line| line.strip_prefix(not_after)?.parse::<i64>().ok());
    let left = ends.context("no expiry time")? - next.context("no renewal time")?;
    assert!((29..32).contains(&(left / (24 * 3600))), "a third of 90 days is left, not {left} s");
    assert_eq!(server.made(), (1, 1), "no new order");
    again.stop().await?;

    // another name: the stored certificate is used until there is one for both
    let more = Relay::start_for(&server, state.path(), "relay.test third.relay.test").await?;
    assert_eq!(certificate(&more.dial(&server).await?)?, first);
    server.allow_validations(2);
    more.0.metric("rendez_tls_reloads_total{result=\"ok\"} 1").await?;
    assert_ne!(certificate(&more.dial(&server).await?)?, first);
    assert_eq!(server.made(), (1, 2), "by the same account");
    assert_eq!(server.violations(), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn challenge_certificate_is_served_only_while_pending() -> Result<()> {
    let (server, state) = (Server::start().await?, tempfile::tempdir()?);
    let relay = Relay::start(&server, state.path()).await?;
    server.ready(1).await?;
    let look = |name, alpn: &'static [&'static [u8]]| {
        challenge::presented_certificate(relay.0.address(), name, alpn)
    };
    challenge::validate(relay.0.address(), DOMAIN, &server.digest(0)?).await?;
    assert!(
        challenge::validate(relay.0.address(), DOMAIN, &[0; 32]).await.is_err(),
        "a wrong digest was accepted"
    );
    look("RELAY.test", &[ALPN]).await?;
    for name in [OTHER_DOMAIN, "x.relay.test", "127.0.0.1"] {
        assert!(look(name, &[ALPN]).await.is_err(), "{name} is not pending");
    }
    assert!(
        look(DOMAIN, &[ALPN, HTTP]).await.is_err(),
        "a challenge certificate with other protocols"
    );
    assert!(look(DOMAIN, &[HTTP]).await.is_err());
    assert!(look(DOMAIN, &[]).await.is_err());

    server.allow_validations(1);
    relay.0.metric("rendez_tls_reloads_total{result=\"ok\"} 1").await?;
    assert!(look(DOMAIN, &[ALPN]).await.is_err(), "the challenge is over");
    livez(&mut relay.dial(&server).await?).await.map(drop)
}

#[tokio::test]
async fn renewal_keeps_open_connections() -> Result<()> {
    let (server, state) = (Server::start().await?, tempfile::tempdir()?);
    // Two thirds of its lifetime are over in three seconds, and it is valid for a
    // day afterwards.
    let day = Duration::from_secs(24 * 3600);
    server
        .next_validity(Validity { elapsed: day * 2, remaining: day + Duration::from_secs(9) / 2 });
    server.allow_validations(1);
    let relay = Relay::start(&server, state.path()).await?;
    relay.0.metric("rendez_tls_reloads_total{result=\"ok\"} 1").await?;
    let mut open = relay.dial(&server).await?;
    livez(&mut open).await?;
    let first = certificate(&open)?;

    server.ready(2).await?;
    livez(&mut open).await?;
    assert_eq!(
        certificate(&relay.dial(&server).await?)?,
        first,
        "the first one is used until then"
    );
    server.allow_validations(1);
    relay.0.metric("rendez_tls_reloads_total{result=\"ok\"} 2").await?;
    relay.0.metric("rendez_acme_orders_total{result=\"ok\"} 2").await?;
    assert_ne!(certificate(&relay.dial(&server).await?)?, first);
    livez(&mut open).await?;
    assert_eq!(server.made(), (1, 2), "by the same account");
    assert_eq!(server.violations(), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn refused_orders_are_logged_and_retried() -> Result<()> {
    let (server, state) = (Server::start().await?, tempfile::tempdir()?);
    server.refuse(Refusal::new(403, "rejectedIdentifier", "not for the likes of you"));
    server.refuse(Refusal::new(429, "rateLimited", "one at a time"));
    let relay = Relay::start(&server, state.path()).await?;
    relay.0.logs("not for the likes of you").await?;
    relay.0.logs("one at a time").await?;
    server.ready(1).await?;
    relay.0.metric("rendez_acme_orders_failed_in_a_row 2").await?;
    relay.0.metric("rendez_acme_orders_total{result=\"refused\"} 1").await?;
    relay.0.metric("rendez_acme_orders_total{result=\"rate_limited\"} 1").await?;
    server.allow_validations(1);
    relay.0.metric("rendez_tls_reloads_total{result=\"ok\"} 1").await?;
    relay.0.metric("rendez_acme_orders_failed_in_a_row 0").await?;
    livez(&mut relay.dial(&server).await?).await?;
    assert_eq!(server.violations(), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn misdirected_name_is_logged_and_retried() -> Result<()> {
    let (server, state) = (Server::start().await?, tempfile::tempdir()?);
    let relay = Relay::start(&server, state.path()).await?;
    // a server without TLS
    let elsewhere = TcpListener::bind("127.0.0.1:0").await?;
    server.resolve_names_to(elsewhere.local_addr()?);
    server.allow_validations(1);
    drop(elsewhere.accept().await?);
    relay.0.logs("did not reach this relay at port 443 of relay.test").await?;
    relay.0.metric("rendez_acme_orders_total{result=\"unproven\"} 1").await?;
    server.resolve_names_to(relay.0.address());
    server.allow_validations(1);
    relay.0.metric("rendez_tls_reloads_total{result=\"ok\"} 1").await?;
    livez(&mut relay.dial(&server).await?).await.map(drop)
}

#[tokio::test]
async fn lost_account_is_created_again() -> Result<()> {
    let (server, state) = (Server::start().await?, tempfile::tempdir()?);
    server.allow_validations(1);
    let relay = Relay::start(&server, state.path()).await?;
    relay.0.metric("rendez_tls_reloads_total{result=\"ok\"} 1").await?;
    relay.stop().await?;
    server.delete_accounts();
    server.allow_validations(2);
    let relay = Relay::start_for(&server, state.path(), "relay.test other.relay.test").await?;
    relay.0.logs("does not know the account").await?;
    relay.0.metric("rendez_tls_reloads_total{result=\"ok\"} 1").await?;
    assert_eq!(server.made(), (2, 2));
    Ok(())
}

#[tokio::test]
async fn invalid_acme_settings_stop_the_start() -> Result<()> {
    let refused = async |flags: &[&str], words: &str| -> Result<()> {
        let state = TempDir::new()?;
        let mut command = rendez()?;
        command.args(["relay", "--listen", "127.0.0.1:0", "--state"]).arg(state.path()).args(flags);
        let output = run(command, b"", TIMEOUT).await?;
        let stderr = output.stderr_text();
        ensure!(!output.status.success() && stderr.contains(words), "{flags:?}: {stderr}");
        Ok(())
    };
    let domains = ["--acme-domains", DOMAIN];
    let agreed = ["--acme-domains", DOMAIN, "--acme-terms-agreed", "true"];
    refused(&domains, "acme.terms_agreed = true").await?;
    refused(&["--acme-domains", "*.relay.test"], "by DNS only").await?;
    refused(&["--acme-domains", "192.0.2.1"], "is an address").await?;
    let files = [&agreed[..], &["--tls-cert", "/x", "--tls-key", "/x"]].concat();
    refused(&files, "use either ACME or a certificate file").await?;
    let root = [&agreed[..], &["--acme-root", "/no/such/root.pem"]].concat();
    refused(&root, "/no/such/root.pem").await?;
    let client_ca = [&agreed[..], &["--tls-client-auth", "required"]].concat();
    refused(&client_ca, "tls.client_ca").await
}
