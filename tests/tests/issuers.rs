//! Tokens of an external issuer, with a live relay: its keys come over real HTTPS
//! from a private authority, and an agent and a command have only such tokens.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use rendez_tests::process::run;
use rendez_tests::rendez::{OurAgent, OurRelay, TIMEOUT, exec, rendez};
use rendez_tests::tls::Authority;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

const ISSUER: &str = "https://issuer.test";
const AUDIENCE: &str = "rendez.test";

/// An issuer, and the server of its keys.
struct Issuer {
    key: SigningKey,
    url: String,
    asked: Arc<AtomicUsize>,
    authority: Authority,
    _serving: DropGuard,
}

impl Issuer {
    async fn start() -> Result<Self> {
        let authority = Authority::new()?;
        authority.issue("server", "keys")?;
        let tls = authority.server_config("server")?;
        let key = SigningKey::from_bytes(&[41; 32]);
        let public = URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes());
        let one = json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig",
            "kid": "one", "x": public});
        let keys = json!({"keys": [one]}).to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://{}/keys", listener.local_addr()?);
        let asked = Arc::new(AtomicUsize::new(0));
        let serving = CancellationToken::new();
        let serve = serve(listener, TlsAcceptor::from(Arc::new(tls)), keys, asked.clone());
        tokio::spawn(serving.clone().run_until_cancelled_owned(serve));
        Ok(Self { key, url, asked, authority, _serving: serving.drop_guard() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.authority.path(name)
    }

    /// A token with these claims, valid from now on.
    fn token(&self, subject: &str, audience: &str, good_for: Duration) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let claims = json!({"iss": ISSUER, "aud": audience, "sub": subject, "team": "a/b",
            "iat": now.as_secs(), "exp": (now + good_for).as_secs()});
        let head = json!({"alg": "EdDSA", "kid": "one", "typ": "JWT"});
        let encode = |text: String| URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", encode(head.to_string()), encode(claims.to_string()));
        let signature = self.key.sign(signed.as_bytes()).to_bytes();
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// A relay that accepts this issuer.
    async fn relay(&self) -> Result<OurRelay> {
        let issuers = format!(
            "[[issuer]]\nissuer = {ISSUER:?}\naudience = {AUDIENCE:?}\nkeys = {{ url = {:?} }}\n\
             [[issuer.rules]]\nclaims = {{ sub = \"machine\" }}\nrole = \"executor\"\n\
             environments = \"{{team}}\"\n\
             [[issuer.rules]]\nclaims = {{ sub = \"person\" }}\nrole = \"orchestrator\"\n\
             environments = \"*\"\n",
            self.url
        );
        fs::write(self.path("issuers.toml"), issuers)?;
        let state = self.path("state");
        let (flag, file) = (OsString::from("--auth-issuers"), self.path("issuers.toml"));
        let mut command = OurRelay::command(&state, [flag, file.into()])?;
        command.env("SSL_CERT_FILE", self.path("ca.pem"));
        OurRelay::start_by(command, &state).await
    }
}

/// Answers every request with the keys.
async fn serve(listener: TcpListener, tls: TlsAcceptor, keys: String, asked: Arc<AtomicUsize>) {
    let answer = |tcp: TcpStream| {
        let (tls, asked) = (tls.clone(), asked.clone());
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{keys}", keys.len());
        async move {
            let mut stream = tls.accept(tcp).await?;
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                ensure!(stream.read_buf(&mut request).await? > 0, "the request is incomplete");
            }
            asked.fetch_add(1, Ordering::SeqCst);
            stream.write_all(answer.as_bytes()).await?;
            anyhow::Ok(stream.shutdown().await?)
        }
    };
    while let Ok((tcp, _)) = listener.accept().await {
        tokio::spawn(answer(tcp));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issuer_tokens_open_agent_and_exec() -> Result<()> {
    const HOUR: Duration = Duration::from_secs(3600);
    let issuer = Issuer::start().await?;
    let relay = issuer.relay().await?;
    let url = relay.url();
    let machine = issuer.token("machine", AUDIENCE, HOUR)?;
    // The claim `a/b`, escaped as an environment id.
    let _agent = OurAgent::start(url, "a_2fb", &machine).await?;
    let person = issuer.token("person", AUDIENCE, HOUR)?;
    let output = exec(url, &person, "a_2fb", &["echo", "met"]).await?;
    ensure!(output.stdout_text() == "met\n", "{output:?}");
    ensure!(issuer.asked.load(Ordering::SeqCst) == 1, "the keys are cached");

    // Tokens for another audience, forged tokens and tokens without a rule are
    // refused.
    let elsewhere = issuer.token("person", "rendez.example", HOUR)?;
    let stranger = issuer.token("stranger", AUDIENCE, HOUR)?;
    let mut forged = person.clone();
    forged.replace_range(forged.len() - 8..forged.len() - 4, "AAAA");
    for (token, code) in [(&elsewhere, 77), (&forged, 77), (&stranger, 77), (&machine, 77)] {
        let output = exec(url, token, "a_2fb", &["echo", "met"]).await?;
        ensure!(output.status.code() == Some(code), "{output:?}");
        ensure!(!output.stdout_text().contains("met"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issuer_keys_need_a_trusted_certificate() -> Result<()> {
    let issuer = Issuer::start().await?;
    // The relay trusts another authority.
    let other = Issuer::start().await?;
    fs::copy(other.path("ca.pem"), issuer.path("ca.pem"))?;
    let relay = issuer.relay().await?;
    let url = relay.url();
    let token = issuer.token("person", AUDIENCE, Duration::from_secs(3600))?;
    let mut command = rendez()?;
    command.args(["env", "ls"]).env("RENDEZ_RELAY", url).env("RENDEZ_TOKEN", &token);
    let output = run(command, b"", TIMEOUT).await?;
    ensure!(output.status.code() == Some(75), "{output:?}");
    ensure!(issuer.asked.load(Ordering::SeqCst) == 0);
    Ok(())
}
