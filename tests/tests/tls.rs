//! TLS that the relay terminates: real handshakes, certificates of a private
//! authority, files that change, and client certificates.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rendez_tests::process::{IsolatedCommand, run};
use rendez_tests::rendez::{OurAgent, OurRelay, TIMEOUT, rendez};
use rendez_tests::tls::{Authority, connect, livez};
use rustix::process::Signal;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, NamedGroup, ProtocolVersion, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A relay with TLS.
struct Relay(OurRelay);

impl Relay {
    async fn start(authority: &Authority, more: &[(&str, PathBuf)]) -> Result<Self> {
        let files = [
            ("--tls-cert", authority.path("relay.pem")),
            ("--tls-key", authority.path("relay.key")),
        ];
        let others = ["--admin-listen", "127.0.0.1:0", "--tls-reload-every", "50ms"];
        let files = files.iter().chain(more);
        let flags = files.flat_map(|(flag, value)| [OsStr::new(flag), value.as_os_str()]);
        Ok(Self(OurRelay::start_with(flags.chain(others.map(OsStr::new))).await?))
    }

    async fn dial(&self, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
        let address = self.0.address();
        connect(config, address, ServerName::from(address.ip())).await
    }
}

fn with_tls(
    mut command: IsolatedCommand,
    ca: &Path,
    identity: Option<(&Path, &Path)>,
) -> IsolatedCommand {
    command.env("RENDEZ_CA", ca);
    if let Some((certificate, key)) = identity {
        command.env("RENDEZ_CLIENT_CERT", certificate).env("RENDEZ_CLIENT_KEY", key);
    }
    command
}

#[tokio::test]
async fn tls_13_with_hybrid_keys_is_negotiated() -> Result<()> {
    let authority = Authority::new()?;
    authority.issue("relay", "relay")?;
    let relay = Relay::start(&authority, &[]).await?;
    let mut stream = relay.dial(Arc::new(authority.client_config(None)?)).await?;
    assert!(livez(&mut stream).await?.starts_with("HTTP/1.1 200"));
    let (_, session) = stream.get_ref();
    let group = session.negotiated_key_exchange_group().context("keys were agreed on")?;
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    relay.0.metric("rendez_tls_key_exchanges_total{group=\"x25519mlkem768\"} 1").await?;

    let old = ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS12])?
    .with_root_certificates(RootCertStore::empty())
    .with_no_client_auth();
    assert!(relay.dial(Arc::new(old)).await.is_err(), "TLS 1.2 is off");
    relay.0.metric("rendez_tls_handshakes_total{result=\"failed\"} 1").await
}

#[tokio::test]
async fn agent_and_exec_use_mutual_tls() -> Result<()> {
    let authority = Authority::new()?;
    authority.issue("relay", "relay")?;
    authority.issue("box", "box 1")?;
    let required =
        [("--tls-client-ca", authority.path("ca.pem")), ("--tls-client-auth", "required".into())];
    let relay = Relay::start(&authority, &required).await?;
    let executor = relay.0.token("executor").await?;
    let token = relay.0.token("orchestrator").await?;
    let url = format!("https://{}", relay.0.address());
    let ca = authority.path("ca.pem");
    let (certificate, key) = (authority.path("box.pem"), authority.path("box.key"));
    let identity = Some((certificate.as_path(), key.as_path()));

    let state = tempfile::tempdir()?;
    let agent = OurAgent::command(state.path(), &url, "box", Some(&executor))?;
    let _agent = OurAgent::start_by(with_tls(agent, &ca, identity)).await?;
    // the relay logs the client's name
    let named = |line: &str| line.contains("CN=box 1").then_some(());
    relay.0.log().line(TIMEOUT, named).await?;

    let exec = |mut command: IsolatedCommand| {
        command.args(["exec", "box", "--", "sh", "-c", "echo through TLS; exit 7"]);
        command.env("RENDEZ_RELAY", &url).env("RENDEZ_TOKEN", &token);
        run(command, b"", TIMEOUT)
    };
    let output = exec(with_tls(rendez()?, &ca, identity)).await?;
    assert_eq!(output.stdout_text(), "through TLS\n", "{}", output.stderr_text());
    assert_eq!(output.status.code(), Some(7));

    let anonymous = exec(with_tls(rendez()?, &ca, None)).await?;
    assert_eq!(anonymous.status.code(), Some(75), "{}", anonymous.stderr_text());
    relay.0.metric("rendez_tls_handshakes_total{result=\"client_certificate\"} 1").await?;
    let other = Authority::new()?;
    let stranger = exec(with_tls(rendez()?, &other.path("ca.pem"), identity)).await?;
    assert_eq!(stranger.status.code(), Some(75), "{}", stranger.stderr_text());
    let missing = exec(with_tls(rendez()?, Path::new("/no/such.pem"), None)).await?;
    assert_eq!(missing.status.code(), Some(78), "{}", missing.stderr_text());
    Ok(())
}

#[tokio::test]
async fn refused_certificates_are_explained() -> Result<()> {
    let error = async |authority: &Authority, ca: &Authority| {
        let relay = Relay::start(authority, &[]).await?;
        let token = relay.0.token("orchestrator").await?;
        let mut command = with_tls(rendez()?, &ca.path("ca.pem"), None);
        command.args(["exec", "box", "--", "true"]).env("RENDEZ_TOKEN", token);
        command.env("RENDEZ_RELAY", format!("https://{}", relay.0.address()));
        anyhow::Ok(run(command, b"", TIMEOUT).await?.stderr_text())
    };
    let (authority, stranger) = (Authority::new()?, Authority::new()?);
    authority.issue("relay", "relay")?;
    let unknown = error(&authority, &stranger).await?;
    assert!(unknown.contains("name the authority's certificate with --ca"), "{unknown}");
    // What `openssl req -x509` makes: the certificate of the authority itself.
    fs::copy(authority.path("ca.pem"), authority.path("relay.pem"))?;
    fs::write(authority.path("relay.key"), authority.issuer().key().serialize_pem())?;
    let authorities = error(&authority, &authority).await?;
    assert!(authorities.contains("certificate authority (CA:TRUE)"), "{authorities}");
    assert!(authorities.contains("CA:FALSE"), "{authorities}");
    Ok(())
}

#[tokio::test]
async fn certificate_reload_keeps_open_connections() -> Result<()> {
    let authority = Authority::new()?;
    authority.issue("relay", "first")?;
    let relay = Relay::start(&authority, &[]).await?;
    let client = Arc::new(authority.client_config(None)?);
    let shown = async || -> Result<Vec<u8>> {
        let stream = relay.dial(client.clone()).await?;
        let chain = stream.get_ref().1.peer_certificates().context("it showed one")?;
        Ok(chain[0].to_vec())
    };
    let mut open = relay.dial(client.clone()).await?;
    livez(&mut open).await?;
    let first = shown().await?;

    // a mismatched pair is refused and the old one kept
    authority.issue("next", "second")?;
    fs::copy(authority.path("next.pem"), authority.path("relay.pem"))?;
    let warned = |line: &str| line.contains("keeping the old ones").then_some(());
    relay.0.log().line(TIMEOUT, warned).await?;
    assert_eq!(shown().await?, first);
    relay.0.metric("rendez_tls_reloads_total{result=\"ok\"} 0").await?;

    fs::copy(authority.path("next.key"), authority.path("relay.key"))?;
    relay.0.metric("rendez_tls_reloads_total{result=\"ok\"} 1").await?;
    assert_ne!(shown().await?, first);
    assert!(livez(&mut open).await?.starts_with("HTTP/1.1 200"), "an open connection was closed");
    Ok(())
}

/// The settings of the last SIGHUP apply, once their files exist.
#[tokio::test]
async fn settings_apply_when_missing_files_appear() -> Result<()> {
    let authority = Authority::new()?;
    authority.issue("relay", "relay")?;
    authority.issue("box", "box 1")?;
    let config = authority.path("relay.toml");
    fs::write(&config, "[tls]\nclient_auth = \"off\"\n")?;
    let mut relay = Relay::start(&authority, &[("--config", config.clone())]).await?;
    let stranger = Arc::new(authority.client_config(None)?);
    livez(&mut relay.dial(stranger.clone()).await?).await?;

    let later = authority.path("later.pem");
    let wanted = format!("[tls]\nclient_auth = \"required\"\nclient_ca = {later:?}\n");
    fs::write(&config, wanted)?;
    relay.0.process().signal(Signal::HUP)?;
    for logged in ["keeping the old ones", "is not in force yet"] {
        relay.0.log().line(TIMEOUT, |line| line.contains(logged).then_some(())).await?;
    }
    livez(&mut relay.dial(stranger.clone()).await?).await?;

    fs::copy(authority.path("ca.pem"), &later)?;
    relay.0.metric("rendez_tls_reloads_total{result=\"ok\"} 1").await?;
    let refused = async {
        let mut stream = relay.dial(stranger).await?;
        livez(&mut stream).await
    };
    assert!(refused.await.is_err(), "served without a certificate");
    livez(&mut relay.dial(Arc::new(authority.client_config(Some("box"))?)).await?).await?;
    Ok(())
}

/// The maximum number of connections sends nothing, as many stop in the middle of a
/// handshake, and the timeout is ten minutes: other connections still work.
#[tokio::test]
async fn stalled_handshakes_do_not_block_others() -> Result<()> {
    const PLACES: usize = 2;
    let authority = Authority::new()?;
    authority.issue("relay", "relay")?;
    let patient = [
        ("--tls-handshakes-max", PLACES.to_string().into()),
        ("--tls-handshake-timeout", "10m".into()),
    ];
    let relay = Relay::start(&authority, &patient).await?;
    let client = Arc::new(authority.client_config(None)?);
    let mut held = Vec::new();
    for _ in 0..PLACES {
        held.push(TcpStream::connect(relay.0.address()).await?);
        let mut halfway = TcpStream::connect(relay.0.address()).await?;
        let name = ServerName::from(relay.0.address().ip());
        let mut hello = Vec::new();
        ClientConnection::new(client.clone(), name)?.write_tls(&mut hello)?;
        halfway.write_all(&hello).await?;
        // the relay has sent its part and waits for the client's
        tokio::time::timeout(TIMEOUT, halfway.read_u8()).await??;
        held.push(halfway);
    }
    let mut stream = relay.dial(client).await?;
    assert!(livez(&mut stream).await?.starts_with("HTTP/1.1 200"));
    drop(held);
    Ok(())
}

#[tokio::test]
async fn certificate_without_key_stops_the_start() -> Result<()> {
    let state = tempfile::tempdir()?;
    let mut command = rendez()?;
    command.args(["relay", "--listen", "127.0.0.1:0", "--tls-cert", "/x.pem", "--state"]);
    command.arg(state.path());
    let output = run(command, b"", TIMEOUT).await?;
    assert_eq!(output.status.code(), Some(78));
    assert!(output.stderr_text().contains("tls.key"), "{}", output.stderr_text());
    Ok(())
}
