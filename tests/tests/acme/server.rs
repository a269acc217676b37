//! A strict ACME server (RFC 8555) for tests, over TLS: it requires a valid
//! signature and a fresh nonce for every request, validates every name, and issues
//! certificates only for the key of the request.
//!
//! A validation waits for the test's permission, so that a test decides what happens
//! before there is a certificate. Protocol violations of a client are answered with
//! an error and kept in [`Server::violations`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::{Mutex, MutexGuard};
use rendez_tests::rendez::TIMEOUT;
use rendez_tests::tls::Authority;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::challenge;
use crate::issuance::{Validity, issue};
use crate::jws::{Jwk, Signed, Signer};

const ERROR: &str = "urn:ietf:params:acme:error:";
/// A certificate that has just been issued.
const DEFAULT_VALIDITY: Validity =
    Validity { elapsed: Duration::from_secs(3600), remaining: Duration::from_secs(90 * 24 * 3600) };

/// The server. It ends with the test's runtime.
pub(crate) struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    authority: Authority,
    base: String,
    state: Mutex<ServerState>,
    /// Permitted validations.
    permits: Semaphore,
    /// The address of every name.
    resolve_names_to: watch::Sender<Option<SocketAddr>>,
    /// Challenges that clients have accepted so far.
    ready: watch::Sender<usize>,
}

/// Accounts, orders and the instructions of the test.
struct ServerState {
    nonces: BTreeSet<String>,
    numbers: u64,
    /// Valid nonces that are refused nevertheless.
    nonces_to_refuse: u32,
    accounts: BTreeMap<String, Account>,
    accounts_made: usize,
    orders: Vec<Order>,
    /// Refusals of the next orders.
    refusals: VecDeque<Refusal>,
    /// Validities of the next certificates.
    validities: VecDeque<Validity>,
    violations: Vec<String>,
}

struct Account {
    key: Jwk,
    contact: Value,
}

struct Order {
    account: String,
    names: Vec<String>,
    proofs: Vec<Proof>,
    chain: Option<String>,
}

struct Proof {
    token: String,
    state: Validation,
}

#[derive(Clone, PartialEq)]
enum Validation {
    Pending,
    Processing,
    Valid,
    Invalid(String),
}

/// An error response.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    /// The part after [`ERROR`].
    pub(crate) kind: &'static str,
    pub(crate) detail: String,
}

impl Refusal {
    pub(crate) fn new(status: u16, kind: &'static str, detail: &str) -> Self {
        Self { status, kind, detail: detail.to_owned() }
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Refusal::new(400, "malformed", &format!("{error:#}"))
    }
}

impl Server {
    pub(crate) async fn start() -> Result<Self> {
        let authority = Authority::new()?;
        let tcp = TcpListener::bind("127.0.0.1:0").await?;
        let address = tcp.local_addr()?;
        authority.issue("server", "ACME server")?;
        let config = authority.server_config("server")?;
        let shared = Arc::new(Shared {
            authority,
            base: format!("https://{address}"),
            state: Mutex::new(ServerState {
                nonces: BTreeSet::new(),
                numbers: 0,
                nonces_to_refuse: 1,
                accounts: BTreeMap::new(),
                accounts_made: 0,
                orders: Vec::new(),
                refusals: VecDeque::new(),
                validities: VecDeque::new(),
                violations: Vec::new(),
            }),
            permits: Semaphore::new(0),
            resolve_names_to: watch::Sender::new(None),
            ready: watch::Sender::new(0),
        });
        let app = Router::new().fallback(handle).with_state(shared.clone());
        let listener = TlsListener { tcp, tls: TlsAcceptor::from(Arc::new(config)) };
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { shared })
    }

    /// The directory's URL.
    pub(crate) fn directory(&self) -> String {
        format!("{}/directory", self.shared.base)
    }

    /// The authority, which also issued the server's own certificate.
    pub(crate) fn authority(&self) -> &Authority {
        &self.shared.authority
    }

    /// Resolves every name to this address.
    pub(crate) fn resolve_names_to(&self, address: SocketAddr) {
        self.shared.resolve_names_to.send_replace(Some(address));
    }

    /// Permits this many more validations.
    pub(crate) fn allow_validations(&self, names: usize) {
        self.shared.permits.add_permits(names);
    }

    /// Waits until clients have accepted this many challenges.
    pub(crate) async fn ready(&self, proofs: usize) -> Result<()> {
        let mut ready = self.shared.ready.subscribe();
        tokio::time::timeout(TIMEOUT, ready.wait_for(|found| *found >= proofs)).await??;
        Ok(())
    }

    /// Refuses the next order.
    pub(crate) fn refuse(&self, refusal: Refusal) {
        self.shared.state().refusals.push_back(refusal);
    }

    /// Sets the validity of the next certificate.
    pub(crate) fn next_validity(&self, validity: Validity) {
        self.shared.state().validities.push_back(validity);
    }

    /// Deletes all accounts.
    pub(crate) fn delete_accounts(&self) {
        self.shared.state().accounts.clear();
    }

    /// The number of created accounts, and of accepted orders.
    pub(crate) fn made(&self) -> (usize, usize) {
        let state = self.shared.state();
        (state.accounts_made, state.orders.len())
    }

    /// Contacts of all accounts.
    pub(crate) fn contacts(&self) -> Vec<Value> {
        self.shared.state().accounts.values().map(|account| account.contact.clone()).collect()
    }

    /// The digest of the key authorization of an order's first name.
    pub(crate) fn digest(&self, order: usize) -> Result<Vec<u8>> {
        self.shared.state().digest(order, 0)
    }

    /// The protocol violations of clients. Refusals that a test asked for do not
    /// count.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.shared.state().violations.clone()
    }
}

struct TlsListener {
    tcp: TcpListener,
    tls: TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((tcp, address)) = self.tcp.accept().await else { continue };
            if let Ok(tls) = self.tls.accept(tcp).await {
                return (tls, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

/// A successful response.
struct Answer {
    status: StatusCode,
    location: Option<String>,
    body: Body,
}

enum Body {
    Json(Value),
    Pem(String),
}

impl Answer {
    fn json(body: Value) -> Self {
        Self { status: StatusCode::OK, location: None, body: Body::Json(body) }
    }

    fn made(location: String, body: Value) -> Self {
        Self { status: StatusCode::CREATED, location: Some(location), body: Body::Json(body) }
    }
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let answered = match (&method, uri.path()) {
        (&Method::GET, "/directory") => Ok(Answer::json(shared.directory())),
        (&Method::HEAD, "/nonce") => Ok(Answer::json(Value::Null)),
        (&Method::POST, path) => shared.post(path, &body),
        (method, path) => Err(Refusal::new(405, "malformed", &format!("{method} {path}"))),
    };
    let mut response = match answered {
        Ok(Answer { status, location, body }) => {
            let mut response = match body {
                Body::Json(body) => (status, axum::Json(body)).into_response(),
                Body::Pem(chain) => {
                    (status, [("content-type", "application/pem-certificate-chain")], chain)
                        .into_response()
                }
            };
            if let Some(location) = location.and_then(|url| HeaderValue::from_str(&url).ok()) {
                response.headers_mut().insert("location", location);
            }
            response
        }
        Err(Refusal { status, kind, detail }) => {
            let problem = json!({ "type": format!("{ERROR}{kind}"), "detail": detail });
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
            let kind = [("content-type", "application/problem+json")];
            (status, kind, problem.to_string()).into_response()
        }
    };
    if let Ok(nonce) = HeaderValue::from_str(&shared.state().nonce()) {
        response.headers_mut().insert("replay-nonce", nonce);
    }
    response
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, ServerState> {
        self.state.lock()
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn directory(&self) -> Value {
        json!({
            "newNonce": self.url("/nonce"),
            "newAccount": self.url("/account"),
            "newOrder": self.url("/order"),
            "meta": { "termsOfService": self.url("/terms") },
        })
    }

    fn post(self: &Arc<Self>, path: &str, body: &[u8]) -> Result<Answer, Refusal> {
        let answered = self.answer(path, body);
        if let Err(refusal) = &answered
            && refusal.kind == "malformed"
        {
            self.state().violations.push(format!("{path}: {}", refusal.detail));
        }
        answered
    }

    fn answer(self: &Arc<Self>, path: &str, body: &[u8]) -> Result<Answer, Refusal> {
        let signed = Signed::read(body, &self.url(path))?;
        self.state().take_nonce(&signed.nonce)?;
        let account = match &signed.signer {
            Signer::Key(key) => {
                signed.verify(key)?;
                if path == "/account" {
                    return Ok(self.new_account(key, &signed.payload)?);
                }
                return Err(Refusal::new(400, "malformed", "jwk is for new accounts only"));
            }
            Signer::Account(url) => {
                let key = self.state().accounts.get(url).map(|account| account.key.clone());
                let key = key.ok_or(Refusal::new(400, "accountDoesNotExist", "unknown account"))?;
                signed.verify(&key)?;
                url.clone()
            }
        };
        if path == "/order" {
            return self.new_order(account, &signed.payload);
        }
        let words: Vec<&str> = path.trim_matches('/').split('/').collect();
        let number = |word: &str| word.parse::<usize>().context("a number is required");
        let order = number(words.get(1).context("no such path")?)?;
        ensure_own(&self.state(), order, &account)?;
        match words.as_slice() {
            ["order", _] => Ok(Answer::json(self.order(order)?)),
            ["order", _, "finalize"] => Ok(self.finalize(order, &signed.payload)?),
            ["proof", _, name] => Ok(Answer::json(self.proof(order, number(name)?)?)),
            ["challenge", _, name] => {
                let name = number(name)?;
                ensure_empty_object(&signed.payload)?;
                self.start_validation(order, name)?;
                Ok(Answer::json(self.challenge(order, name)?))
            }
            ["certificate", _] => {
                let chain = self.state().order(order)?.chain.clone().context("not issued")?;
                Ok(Answer { status: StatusCode::OK, location: None, body: Body::Pem(chain) })
            }
            _ => Err(Refusal::new(404, "malformed", path)),
        }
    }

    fn new_account(&self, key: &Jwk, payload: &[u8]) -> Result<Answer> {
        let asked: Value = serde_json::from_slice(payload)?;
        ensure!(asked["termsOfServiceAgreed"] == true, "the terms were not agreed to");
        let mut state = self.state();
        state.accounts_made += 1;
        let url = self.url(&format!("/account/{}", state.accounts_made));
        let account = Account { key: key.clone(), contact: asked["contact"].clone() };
        state.accounts.insert(url.clone(), account);
        Ok(Answer::made(url, json!({ "status": "valid" })))
    }

    fn new_order(&self, account: String, payload: &[u8]) -> Result<Answer, Refusal> {
        let mut state = self.state();
        if let Some(refusal) = state.refusals.pop_front() {
            return Err(refusal);
        }
        let asked: Value = serde_json::from_slice(payload).map_err(anyhow::Error::from)?;
        let identifiers = asked["identifiers"].as_array().context("no identifiers")?;
        let name = |identifier: &Value| {
            ensure!(identifier["type"] == "dns", "{identifier}");
            Ok(identifier["value"].as_str().context("no value")?.to_owned())
        };
        let names: Vec<String> = identifiers.iter().map(name).collect::<Result<_>>()?;
        let mut proofs = Vec::new();
        for _ in &names {
            proofs.push(Proof { token: state.unique("token"), state: Validation::Pending });
        }
        state.orders.push(Order { account, names, proofs, chain: None });
        let number = state.orders.len() - 1;
        drop(state);
        Ok(Answer::made(self.url(&format!("/order/{number}")), self.order(number)?))
    }

    fn order(&self, number: usize) -> Result<Value> {
        let state = self.state();
        let order = state.order(number)?;
        let proofs = 0..order.proofs.len();
        let proofs: Vec<_> =
            proofs.map(|name| self.url(&format!("/proof/{number}/{name}"))).collect();
        let mut text = json!({
            "status": order.status(),
            "identifiers": order.names.iter().map(|name| identifier(name)).collect::<Vec<_>>(),
            "authorizations": proofs,
            "finalize": self.url(&format!("/order/{number}/finalize")),
        });
        if order.chain.is_some() {
            text["certificate"] = self.url(&format!("/certificate/{number}")).into();
        }
        Ok(text)
    }

    fn proof(&self, order: usize, name: usize) -> Result<Value> {
        let challenge = self.challenge(order, name)?;
        let state = self.state();
        let status = match state.proof(order, name)?.state {
            Validation::Pending | Validation::Processing => "pending",
            Validation::Valid => "valid",
            Validation::Invalid(_) => "invalid",
        };
        // the first challenge is of a type that a relay does not support
        let other = json!({ "type": "dns-01", "url": self.url("/no"), "status": "pending",
            "token": "x" });
        Ok(json!({
            "identifier": identifier(&state.order(order)?.names[name]),
            "status": status,
            "challenges": [other, challenge],
        }))
    }

    fn challenge(&self, order: usize, name: usize) -> Result<Value> {
        let state = self.state();
        let proof = state.proof(order, name)?;
        let mut text = json!({
            "type": "tls-alpn-01",
            "url": self.url(&format!("/challenge/{order}/{name}")),
            "token": proof.token,
        });
        text["status"] = match &proof.state {
            Validation::Pending => "pending",
            Validation::Processing => "processing",
            Validation::Valid => "valid",
            Validation::Invalid(why) => {
                text["error"] = json!({ "type": format!("{ERROR}unauthorized"), "detail": why });
                "invalid"
            }
        }
        .into();
        Ok(text)
    }

    /// Validates a name, once it is permitted and the address is known.
    fn start_validation(self: &Arc<Self>, order: usize, name: usize) -> Result<()> {
        let (domain, digest) = {
            let mut state = self.state();
            let digest = state.digest(order, name)?;
            let domain = state.order(order)?.names[name].clone();
            let state = &mut state.proof_mut(order, name)?.state;
            ensure!(*state == Validation::Pending, "it was validated before");
            *state = Validation::Processing;
            (domain, digest)
        };
        self.ready.send_modify(|ready| *ready += 1);
        let this = self.clone();
        tokio::spawn(async move {
            let look = async {
                this.permits.acquire().await?.forget();
                let mut resolves_to = this.resolve_names_to.subscribe();
                let address = *resolves_to.wait_for(Option::is_some).await?;
                challenge::validate(address.context("the address was set")?, &domain, &digest).await
            };
            let state = match look.await {
                Ok(()) => Validation::Valid,
                Err(error) => Validation::Invalid(format!("{error:#}")),
            };
            if let Ok(proof) = this.state().proof_mut(order, name) {
                proof.state = state;
            }
        });
        Ok(())
    }

    fn finalize(&self, number: usize, payload: &[u8]) -> Result<Answer> {
        let mut state = self.state();
        let validity = state.validities.pop_front().unwrap_or(DEFAULT_VALIDITY);
        let order = state.orders.get_mut(number).context("no such order")?;
        ensure!(order.status() == "ready", "the order is {}", order.status());
        let asked: Value = serde_json::from_slice(payload)?;
        let request = URL_SAFE_NO_PAD.decode(asked["csr"].as_str().context("no csr")?)?;
        order.chain = Some(issue(&self.authority, &request, &order.names, validity)?);
        drop(state);
        Ok(Answer::json(self.order(number)?))
    }
}

impl ServerState {
    fn unique(&mut self, what: &str) -> String {
        self.numbers += 1;
        URL_SAFE_NO_PAD.encode(format!("{what} {}", self.numbers))
    }

    fn nonce(&mut self) -> String {
        let nonce = self.unique("nonce");
        self.nonces.insert(nonce.clone());
        nonce
    }

    fn take_nonce(&mut self, nonce: &str) -> Result<(), Refusal> {
        let fresh = self.nonces.remove(nonce);
        if fresh && self.nonces_to_refuse == 0 {
            return Ok(());
        }
        if !fresh {
            self.violations.push(format!("the nonce {nonce} is not fresh"));
        }
        self.nonces_to_refuse = self.nonces_to_refuse.saturating_sub(1);
        Err(Refusal::new(400, "badNonce", "use the next nonce"))
    }

    fn order(&self, number: usize) -> Result<&Order> {
        self.orders.get(number).context("no such order")
    }

    fn proof(&self, order: usize, name: usize) -> Result<&Proof> {
        self.order(order)?.proofs.get(name).context("no such name")
    }

    fn proof_mut(&mut self, order: usize, name: usize) -> Result<&mut Proof> {
        let order = self.orders.get_mut(order).context("no such order")?;
        order.proofs.get_mut(name).context("no such name")
    }

    /// The digest of the key authorization (RFC 8555, section 8.1; RFC 8737, section
    /// 3).
    fn digest(&self, order: usize, name: usize) -> Result<Vec<u8>> {
        let account = self.accounts.get(&self.order(order)?.account).context("no account")?;
        let token = &self.proof(order, name)?.token;
        let authorization = format!("{token}.{}", account.key.thumbprint());
        Ok(Sha256::digest(authorization).to_vec())
    }
}

impl Order {
    fn status(&self) -> &'static str {
        let bad = |proof: &Proof| matches!(proof.state, Validation::Invalid(_));
        if self.chain.is_some() {
            "valid"
        } else if self.proofs.iter().any(bad) {
            "invalid"
        } else if self.proofs.iter().all(|proof| proof.state == Validation::Valid) {
            "ready"
        } else {
            "pending"
        }
    }
}

fn identifier(name: &str) -> Value {
    json!({ "type": "dns", "value": name })
}

fn ensure_own(state: &ServerState, order: usize, account: &str) -> Result<()> {
    ensure!(state.order(order)?.account == account, "this is another account's order");
    Ok(())
}

fn ensure_empty_object(payload: &[u8]) -> Result<()> {
    if payload != b"{}" {
        bail!("a challenge response must be an empty object");
    }
    Ok(())
}
