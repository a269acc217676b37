//! The relay's settings.
//!
//! The list below is the only place that names a setting: the struct, the
//! flags, the variables, the file's keys, `--print-config` and the table in
//! `docs/operating.md` all follow from it (see [`mod@rendez_program::settings`]).

mod acme;
mod bounds;
mod by_id;
mod ranges;
pub mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rendez_program::logging::{LogFormat, LogLevel};
use rendez_program::settings;
use rendez_program::settings::value::Size;
use rendez_program::settings::{Loaded, SettingsArgs};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_registry::audit::AuditRetention;
use rendez_registry::history::HistoryRetention;
use rendez_registry::model::Subject;

use crate::connections::Quotas;
pub use acme::{Contacts, Directory, Domains};
pub use bounds::Bounds;
pub use by_id::ById;
pub use values::{ClientAuth, Collector, MaybeListen, PublicUrl, TlsVersion, TrustedProxies};

/// The relay's command line, shared by `rendez relay` and `rendez-relay`.
pub type RelayArgs = SettingsArgs<Config>;

settings! {
    /// What a relay needs to know.
    #[allow(rustdoc::bare_urls, reason = "the comments are help texts, too")]
    pub struct Config, ranges::check_value, ranges::check_all;

    /// Address and port that clients reach; port 0 takes any free one.
    listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7700)), "listen", "IP:PORT", AtStart;

    /// Directory of the database and the signing key; made if missing, for its
    /// owner alone.
    state: PathBuf = "rendez-state".into(), "state", "directory", AtStart;

    /// How clients reach this relay, such as https://relay.example.com. Empty:
    /// wherever their request went to.
    public_url: PublicUrl = PublicUrl::default(), "public_url", "URL", AtStart;

    /// Most TCP connections at once; further ones wait in the kernel.
    connections_max: usize = 20_000, "connections_max", "connections", AtStart;

    /// How long /connect waits for an executor that is away, at most 10s; 0s: not
    /// at all. Stock Codex gives up one try after about 6 s.
    connect_wait: Duration = limits::CONNECT_WAIT, "connect_wait", "duration", AtStart;

    /// Where /metrics, /livez, /readyz and the /v1 API are served without TLS,
    /// for this machine or a private network. Metrics are served nowhere else.
    admin_listen: MaybeListen = MaybeListen::Off, "admin.listen", "IP:PORT or off", AtStart;

    /// Whether the whole /v1 API is served on the public listener too. Without
    /// it clients still list their environments there; tokens and the rest are
    /// for the admin listener.
    admin_on_public: bool = true, "admin.on_public", "true or false", AtStart;

    /// Most bytes that one read takes from the kernel. An idle connection holds
    /// no such buffer; one that is held back while it sends may hold one. With half
    /// of the default, forwarding large frames takes a tenth more CPU.
    websocket_read_buffer: Size = Size(32 * 1024), "websocket.read_buffer", "bytes, such as 16KiB", AtStart;

    /// Issuers whose tokens (JWT) are accepted besides the relay's own, as a
    /// file in TOML; see Tokens and identities.
    auth_issuers: Option<PathBuf> = None, "auth.issuers", "file", AtStart;

    /// Proxies whose X-Forwarded-For is believed, as networks with spaces
    /// between them. Empty: none.
    auth_trusted_proxies: TrustedProxies = TrustedProxies::default(), "auth.trusted_proxies", "networks", AtStart;

    /// Certificate chain in PEM, the relay's own first. With it and tls.key the
    /// public listener speaks TLS; a change of the files is noticed.
    tls_cert: Option<PathBuf> = None, "tls.cert", "file", AtReload;

    /// The certificate's private key in PEM.
    tls_key: Option<PathBuf> = None, "tls.key", "file", AtReload;

    /// Authorities in PEM that vouch for clients' certificates.
    tls_client_ca: Option<PathBuf> = None, "tls.client_ca", "file", AtReload;

    /// Whether clients show a certificate: off, optional or required. It is
    /// looked at besides their tokens, never instead, and stands in the log.
    tls_client_auth: ClientAuth = ClientAuth::Off, "tls.client_auth", "off or optional or required", AtReload;

    /// Oldest version of TLS that is spoken. All our clients and stock ones
    /// speak 1.3, and only that agrees on keys which hold against quantum
    /// computers.
    tls_min_version: TlsVersion = TlsVersion::Tls13, "tls.min_version", "1.3 or 1.2", AtReload;

    /// How long a TLS handshake may take, waiting for its turn included.
    tls_handshake_timeout: Duration = Duration::from_secs(10), "tls.handshake_timeout", "duration", AtStart;

    /// Most TLS handshakes that compute at once; further ones wait. Each holds up
    /// everything else on its processor for under a millisecond.
    tls_handshakes_max: usize = 16, "tls.handshakes_max", "handshakes", AtStart;

    /// How often the files are looked at.
    tls_reload_every: Duration = Duration::from_secs(5), "tls.reload_every", "duration", AtStart;

    /// Names that the relay gets a certificate for by itself, by ACME, with spaces
    /// between them, instead of tls.cert; see Certificates by ACME. Empty: none.
    acme_domains: Domains = Domains::default(), "acme.domains", "domain names", AtStart;

    /// Whether you agree to the terms of service of acme.directory. Without it
    /// nothing is ordered.
    acme_terms_agreed: bool = false, "acme.terms_agreed", "true or false", AtStart;

    /// Addresses that the authority may write to, with spaces between them. They
    /// are told when the account is made. Empty: none.
    acme_contact: Contacts = Contacts::default(), "acme.contact", "e-mail addresses", AtStart;

    /// The ACME server's directory. Each has an account and a certificate of its
    /// own in the state directory.
    acme_directory: Directory = Directory::default(), "acme.directory", "URL", AtStart;

    /// Authorities in PEM that vouch for the ACME server itself, instead of those
    /// that the system trusts: for a private one.
    acme_root: Option<PathBuf> = None, "acme.root", "file", AtStart;

    /// Wait after a failed order, at least. It doubles twice; further failures
    /// wait for an hour up to six.
    acme_retry: Duration = Duration::from_secs(60), "acme.retry", "duration", AtStart;

    /// How long /readyz says no before anything else happens: as long as your
    /// balancer takes to notice. It is part of drain.deadline, and less than it.
    drain_announce: Duration = Duration::ZERO, "drain.announce", "duration", AtStart;

    /// When the relay is gone after SIGTERM, whatever is still open; more than 0s.
    drain_deadline: Duration = Duration::from_secs(20), "drain.deadline", "duration", AtStart;

    /// How many websockets per second may come back to the relay that is next.
    /// The more there are, the longer their return is spread.
    drain_reconnects_per_second: usize = 1000, "drain.reconnects_per_second", "websockets per second", AtStart;

    /// Bounds of the node as a whole. Bounds that are not named keep their
    /// default; `none` takes one away.
    quota_node: Bounds = Bounds::of(Quotas::default().node), "quota.node", "bounds", AtReload;

    /// Bounds of each environment.
    quota_environment: Bounds = Bounds::of(Quotas::default().environment), "quota.environment", "bounds", AtReload;

    /// Bounds of each token.
    quota_token: Bounds = Bounds::of(Quotas::default().token), "quota.token", "bounds", AtReload;

    /// Bounds of each websocket: memory and rates. A change counts for new
    /// ones.
    quota_connection: Bounds = Bounds::of(Quotas::default().connection), "quota.connection", "bounds", AtReload;

    /// Bounds of single environments, by their ids. What is not named is
    /// quota.environment's.
    quota_environments: ById<EnvironmentId> = ById::default(), "quota.environments", "bounds per id", AtReload;

    /// Bounds of single tokens, by their ids, or by the jwt_... of those of
    /// other issuers. What is not named is quota.token's.
    quota_tokens: ById<Subject> = ById::default(), "quota.tokens", "bounds per id", AtReload;

    /// Most rows of the audit log that are kept; older ones are removed behind a
    /// checkpoint.
    audit_rows: u64 = limits::AUDIT_KEEP_ROWS, "audit.rows", "rows", AtReload;

    /// How long rows of the audit log are kept, at least 1h.
    audit_keep: Duration = limits::AUDIT_KEEP_AGE, "audit.keep", "duration", AtReload;

    /// How many connections of its executors the history of each environment
    /// keeps, the newest, at most 1000.
    history_connections: u32 = limits::CONNECTIONS_PER_ENVIRONMENT, "history.connections", "connections", AtReload;

    /// How long connections are kept after their end, at least 1h. The last one
    /// of each environment stays: it says why the executor is away.
    history_keep: Duration = limits::CONNECTIONS_KEEP_AGE, "history.keep", "duration", AtReload;

    /// How much is logged: off, error, warn, info, debug or trace.
    log_level: LogLevel = LogLevel::Info, "log.level", "level", AtReload;

    /// How it is logged, on standard error: human, or json with one object per
    /// line.
    log_format: LogFormat = LogFormat::Human, "log.format", "human or json", AtStart;

    /// Where traces of calls and websockets go, by OTLP over HTTP, such as
    /// http://127.0.0.1:4318/v1/traces. Empty: nowhere. Credentials go into the
    /// variable OTEL_EXPORTER_OTLP_HEADERS, as authorization=Basic%20dXNlcjpwYXNz.
    telemetry_otlp: Collector = Collector::default(), "telemetry.otlp", "URL", AtStart;
}

/// The settings in force as a commented file, which reads back as the same.
pub fn document(loaded: &Loaded<Config>) -> String {
    settings::document("The relay's settings in force.", loaded)
}

impl Config {
    /// How much of the audit log is kept.
    pub fn audit_keep(&self) -> AuditRetention {
        AuditRetention { rows: self.audit_rows, age: self.audit_keep }
    }

    /// How much of the history of connections is kept.
    pub fn history_keep(&self) -> HistoryRetention {
        HistoryRetention { connections: self.history_connections, age: self.history_keep }
    }

    /// What everybody may use.
    pub fn quotas(&self) -> Quotas {
        let default = Quotas::default();
        let environment = self.quota_environment.apply_to(default.environment);
        let token = self.quota_token.apply_to(default.token);
        Quotas {
            node: self.quota_node.apply_to(default.node),
            environment,
            token,
            connection: self.quota_connection.apply_to(default.connection),
            environments: self.quota_environments.apply_to(environment),
            tokens: self.quota_tokens.apply_to(token),
        }
    }
}

#[cfg(test)]
mod tests;
